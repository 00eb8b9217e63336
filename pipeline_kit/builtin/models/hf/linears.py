"""Which kernel computes a network's matrix products, by what the user asks for and what the device can do."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import nn

from pipeline_kit.builtin.models.hf.batches import noise_of
from pipeline_kit.builtin.models.hf.joined import Probe, join_linears, swap_modules
from pipeline_kit.contract.types import Device
from pipeline_kit.errors import ConfigError, Fault
from pipeline_kit.runtime.device import emulated


class FusedLinear(nn.Module):
    """A linear layer that keeps another form of its weight, and does the activation after it too.

    ``weight`` stays as an empty parameter on the meta device, for code that asks for its shape or dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Take over the sizes and the bias of `linear`, weight ``[out_features, in_features]``."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.post: PostOp = NO_ACTIVATION

    def fuses(self, post: PostOp) -> bool:
        """Return whether the layer does this activation as fast as torch does it afterwards."""
        return True


@dataclass(frozen=True, slots=True)
class ReplacedLayers:
    """How many linear layers were replaced, and how many of them do their activation too."""

    layers: int = 0
    activations: int = 0


def replace_linears(
    network: nn.Module, made: Mapping[nn.Module, FusedLinear], probe: Probe, noise: float
) -> ReplacedLayers:
    """Put `made` into `network` in place of its linear layers; all or none of them.

    An activation that follows such a layer directly is done by the layer, if that is not slower. If the answers
    differ then, the layers do no activations; if they still differ, everything stays as it was.

    :param noise: how far an answer may be from the one before, as a share of the largest number.
    """
    if not made:
        return ReplacedLayers()
    expected = probe()
    after = activations_after(network, probe).items()
    activations = {layer: found for layer, found in after if layer in made and made[layer].fuses(found[1])}
    tries: list[dict[nn.Module, tuple[nn.Module, PostOp]]] = [activations, {}] if activations else [{}]
    for fused in tries:
        instead: dict[nn.Module, nn.Module] = {activation: nn.Identity() for activation, _ in fused.values()}
        for layer, replacement in made.items():
            instead[layer] = replacement
            replacement.post = fused[layer][1] if layer in fused else NO_ACTIVATION
        if swap_modules(network, instead, probe, expected, noise):
            return ReplacedLayers(len(made), len(fused))
    return ReplacedLayers()


def linears(network: nn.Module) -> dict[nn.Module, nn.Linear]:
    """Find each plain linear layer once, with itself; a subclass may do something else with its weight.

    The Conv1D of GPT-2 is one whose weight is ``[in_features, out_features]``: with it comes a layer that shares it.
    """
    from transformers.pytorch_utils import Conv1D

    found: dict[nn.Module, nn.Linear] = {}
    for module in network.modules():
        if type(module) is nn.Linear:
            found[module] = module
        elif type(module) is Conv1D:
            same: Any = module
            found[module] = linear = nn.Linear(same.nx, same.nf, device="meta")
            linear.weight, linear.bias = nn.Parameter(same.weight.detach().t(), requires_grad=False), same.bias
    return found


PostOp = tuple[Literal["none", "gelu", "relu", "swish"], Literal["", "none", "tanh"]]
"""What oneDNN does to a product before it is written, and by which formula."""

NO_ACTIVATION: PostOp = ("none", "")

_KNOWN: tuple[tuple[PostOp, Callable[[torch.Tensor], torch.Tensor]], ...] = (
    (("gelu", "none"), nn.functional.gelu),
    (("gelu", "tanh"), lambda values: nn.functional.gelu(values, approximate="tanh")),
    (("relu", ""), nn.functional.relu),
    (("swish", ""), nn.functional.silu),
)
_EQUAL = 1e-6  # the two formulas of GELU are 5e-4 apart


def activations_after(network: nn.Module, run: Callable[[], Any]) -> dict[nn.Module, tuple[nn.Module, PostOp]]:
    """Watch one run of `network` and find the activations that read nothing but one linear layer's output.

    An activation is known by what it does to numbers, not by its class or name. A layer whose output also
    goes elsewhere cannot be seen from here: the caller that fuses the two compares the network's answers.
    """
    made: dict[int, tuple[torch.Tensor, nn.Module]] = {}  # the tensor too, so that no other one gets its id
    calls: Counter[nn.Module] = Counter()
    readers: defaultdict[nn.Module, list[nn.Module | None]] = defaultdict(list)

    def after_linear(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        made[id(output)] = (output, layer)
        calls[layer] += 1

    def before_other(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        source = made.get(id(inputs[0])) if len(inputs) == 1 else None
        readers[module].append(None if source is None else source[1])

    handles, known = [], linears(network)
    for module in network.modules():
        if module in known:
            handles.append(module.register_forward_hook(after_linear))
        elif not any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(before_other))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found: dict[nn.Module, tuple[nn.Module, PostOp]] = {}
    for module, sources in readers.items():
        post = _post_op(module)
        reads = Counter(source for source in sources if source is not None)
        if post is not None and None not in sources and all(calls[layer] == reads[layer] for layer in reads):
            found.update({layer: (module, post) for layer in reads})
    return found


def _post_op(module: nn.Module) -> PostOp | None:
    values = torch.linspace(-9, 9, 301)
    try:
        with torch.inference_mode():
            result = module(values)
            if not isinstance(result, torch.Tensor) or result.shape != values.shape:
                return None
            for post, known in _KNOWN:
                if bool((result - known(values)).abs().max() < _EQUAL):
                    return post
    except Exception:
        return None  # an activation takes such a tensor; this is another module
    return None


@dataclass(frozen=True, slots=True)
class LinearKernels:
    """What was decided on; outputs may be `tolerance` further from those in float32 because of it."""

    packed: ReplacedLayers
    rounded: ReplacedLayers
    joined: int
    tolerance: float

    @property
    def details(self) -> Mapping[str, Any]:
        """How many products are packed or rounded, how many layers share one, how many activations one computes too."""
        return {
            "packed_linears": self.packed.layers,
            "int8_linears": self.rounded.layers,
            "joined_linears": self.joined,
            "fused_activations": self.packed.activations + self.rounded.activations,
        }

    @property
    def settled(self) -> Mapping[str, LinearKernel]:
        """What ``linear=auto`` came to, as that option."""
        return {"linear": "packed" if self.packed.layers else "eager"}


def choose_linear_kernels(
    network: nn.Module, probe: Probe, linear: LinearKernel, quantization: Quantization, device: Device
) -> LinearKernels:
    """Replace linear layers where that is measured to be faster, or asked for; raise ConfigError if it cannot be."""
    packs = linear != "eager" and can_pack(device)
    if linear == "packed" and not packs:
        problem = (
            "'packed' is for float32, or bfloat16 where the CPU has it, on a CPU with oneDNN, "
            f"not for {device.dtype} on {device.name} here."
        )
        raise ConfigError([Fault("model.linear", problem, ("auto", "eager"))])
    layers = linears(network)
    packs = packs and (linear == "packed" or _are_faster(list(layers.values())))
    joined = 0
    rounded = packed = ReplacedLayers()
    if quantization != "none":
        _check_rounding(quantization, device)
    if quantization != "none" or (packs and device.dtype == "bfloat16"):
        # In float32 a wide product is as fast as three narrow ones, and reading it in parts is not free.
        alone = {layer for layer, linear in layers.items() if linear.out_features < _FEWEST_OUTPUTS}
        alone |= activations_after(network, probe).keys()
        joined = join_linears(network, layers, alone, probe, noise_of("packed", device))
    if quantization != "none":
        rounded = _round_linears(network, probe, quantization, device)
    if packs:
        packed = pack_linears(network, probe, device)
    return LinearKernels(packed, rounded, joined, _INT8_TOLERANCE if rounded.layers else 0.0)


def _check_rounding(quantization: Quantization, device: Device) -> None:
    if device.kind != "cpu" or device.dtype != "float32":
        problem = f"'{quantization}' is for device=cpu in float32, not for {device.dtype} on {device.name}."
        raise ConfigError([Fault("model.quantization", problem, hint="leave it out, or add device=cpu")])
    if not can_quantize():
        problem = f"'{quantization}' needs products in int8, which torch does not have on this CPU."
        raise ConfigError([Fault("model.quantization", problem, ("none",))])


def _round_linears(network: nn.Module, probe: Probe, quantization: Quantization, device: Device) -> ReplacedLayers:
    """Round the linear layers of `network` in place, but for heads of few outputs."""
    layer: type[FusedLinear] = Int8Linear if quantization == "int8" else Int8PerTokenLinear
    plain = linears(network).items()
    made = {module: layer(linear) for module, linear in plain if linear.out_features >= _FEWEST_OUTPUTS}
    done = replace_linears(network, made, probe, noise_of("int8", device))
    if not done.layers:
        problem = f"'{quantization}': nothing in this network can be rounded, or its answers change too much."
        raise ConfigError([Fault("model.quantization", problem, ("none",))])
    return done


LinearKernel = Literal["auto", "eager", "packed"]

_ROWS = (16, 128)  # a short text alone, and as many as a batch of the default budget has in its cache
_MOST_PRODUCTS = 3e8  # of one measurement: about 3 ms on two cores
_TRIES = 6  # of which the fastest counts: what else the machine does only ever adds time
_MARGIN = 1.3  # so much slower still counts as faster: noise must not decide differently from run to run
_LEAST_WEIGHTS = 1 << 14  # what a smaller layer takes is mostly the call, and its measure mostly noise


@final
class PackedLinear(FusedLinear):
    """A linear layer that keeps only the packed form of its weight."""

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weight ``[out_features, in_features]`` of `linear`, float32 or bfloat16 on the CPU."""
        super().__init__(linear)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def fuses(self, post: PostOp) -> bool:
        """Return False for a GELU or SiLU with AVX2, which takes up to four times as long within the product."""
        # By a rule, not by measuring: the workers of a job have to decide alike.
        return post[0] == "relu" or torch.backends.cpu.get_cpu_capability() != "AVX2"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``input @ weight.T + bias`` with the activation on it, ``[..., out_features]``, dtype as `input`."""
        name, formula = self.post
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, name, [], formula)
        return result


def can_pack(device: Device) -> bool:
    """Return whether this build of torch has the operators, and the device a use for them."""
    known = device.kind == "cpu" and device.dtype in ("float32", "bfloat16")
    if not known or emulated(device.dtype) or not torch._C._has_mkldnn:
        return False
    dtype, near = (torch.float32, 1e-5) if device.dtype == "float32" else (torch.bfloat16, 2e-2)
    try:
        linear = nn.Linear(16, 16, dtype=dtype)
        rows = torch.ones(2, 16, dtype=dtype)
        packed = PackedLinear(linear)
        with torch.inference_mode():
            plain = bool(torch.allclose(packed(rows), linear(rows), atol=near))
            packed.post = ("gelu", "none")
            return plain and bool(torch.allclose(packed(rows), nn.functional.gelu(linear(rows)), atol=near))
    except (AttributeError, RuntimeError, TypeError):
        return False


def pack_linears(network: nn.Module, probe: Probe, device: Device) -> ReplacedLayers:
    """Pack all linear layers in place; none if the answers change."""
    made = {module: PackedLinear(linear) for module, linear in linears(network).items()}
    return replace_linears(network, made, probe, noise_of("packed", device))


def _are_faster(layers: Sequence[nn.Linear]) -> bool:
    """Measure one layer of each shape, and count its time for all that have it; small ones do not count."""
    layers = [linear for linear in layers if linear.weight.numel() >= _LEAST_WEIGHTS]
    counts = Counter(linear.weight.shape for linear in layers)
    examples = {linear.weight.shape: linear for linear in layers}
    times = {shape: _times(linear) for shape, linear in examples.items()}
    eager, packed = (sum(counts[shape] * times[shape][which] for shape in counts) for which in (0, 1))
    return packed <= _MARGIN * eager


def _times(linear: nn.Linear) -> tuple[float, float]:
    """Return the seconds that `linear` takes for a few and for many rows, as it is and packed."""
    packed = PackedLinear(linear)
    eager_total, packed_total = 0.0, 0.0
    with torch.inference_mode():
        for rows in _ROWS:
            count = max(1, min(rows, int(_MOST_PRODUCTS / linear.weight.numel())))
            inputs = torch.ones(count, linear.in_features, dtype=linear.weight.dtype)
            pairs = []
            for _ in range(_TRIES):
                start = time.perf_counter()
                linear(inputs)
                between = time.perf_counter()
                packed(inputs)
                pairs.append((between - start, time.perf_counter() - between))
            eager_total += min(eager for eager, _ in pairs)
            packed_total += min(fast for _, fast in pairs)
    return eager_total, packed_total


Quantization = Literal["none", "int8", "int8_per_token"]

# For logits and states of order 10, of small networks with random weights; trained ones are closer.
_INT8_TOLERANCE = 0.5
_FEWEST_OUTPUTS = 32  # a head with few labels costs nothing, and its rounding would show in every score
_MIDDLE = 128  # the unsigned number that stands for zero
_HALF = 0.5  # added before the fraction is cut off, rounds what is positive
_LEAST = 1e-12  # keeps the scale of a row or channel of zeros from being zero


class _RoundedLinear(FusedLinear):
    def __init__(self, linear: nn.Linear) -> None:
        """Round each row of the weight ``[out_features, in_features]``, float32 on the CPU, by its largest number."""
        super().__init__(linear)
        weight = linear.weight.detach()
        # Without VNNI a sum of two products is kept in 16 bits, which eight bits could overflow.
        most = 127 if torch.cpu._is_vnni_supported() else 63
        scales = weight.abs().amax(dim=1).clamp_min(_LEAST) / most
        rounded = (weight / scales[:, None]).round_().to(torch.int8).contiguous()
        packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._rounded = packed, scales, torch.zeros(len(weight), dtype=torch.int32)


@final
class Int8Linear(_RoundedLinear):
    """Rounds its input by the range that it has in the whole batch, so an answer depends a little on the batch."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return about ``input @ weight.T + bias`` with the activation on it, ``[..., out_features]`` float32.

        :raises ValueError: if `input` holds a number that is not finite, of whichever row.
        """
        rows = input.reshape(-1, self.in_features)
        least, most = torch.stack(torch.aminmax(rows)).tolist()
        least, most = min(least, 0.0), max(most, 0.0)  # zero has to be a number that is not rounded
        if not math.isfinite(most - least):
            raise ValueError("a number inside the network is not finite, so int8 has no range to round by")
        scale = max(most - least, _LEAST) / 254  # one step less than there are, for the rounding of zero's place
        zero = round(-least / scale)
        rounded = rows.mul(1 / scale).add_(zero + _HALF).to(torch.uint8)
        post, formula = self.post
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, scale, zero, *self._rounded, self.bias, 1.0, 0, torch.float32, post, [], formula
        )
        return result.reshape(*input.shape[:-1], self.out_features)


@final
class Int8PerTokenLinear(_RoundedLinear):
    """Rounds each token's numbers by the token's own largest, so an answer knows nothing of its batch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._half = torch.tensor(_MIDDLE + _HALF)
        self._plain = self.bias is None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return about ``input @ weight.T + bias`` with the activation on it, ``[..., out_features]`` float32."""
        rows = input.reshape(-1, self.in_features)
        scales = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_min_(_LEAST).div_(127)
        rounded = torch.addcmul(self._half, rows, scales.reciprocal()).to(torch.uint8)
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, _MIDDLE, *self._rounded, None, 1.0, 0, torch.float32, NO_ACTIVATION[0], [], NO_ACTIVATION[1]
        )
        result = result.mul_(scales) if self._plain else torch.addcmul(self.bias, result, scales, out=result)
        return self._activated(result).reshape(*input.shape[:-1], self.out_features)

    def _activated(self, values: torch.Tensor) -> torch.Tensor:
        name, formula = self.post
        if name == "gelu":
            return nn.functional.gelu(values, approximate=formula)
        if name == "relu":
            return values.relu_()
        return nn.functional.silu(values, inplace=True) if name == "swish" else values


def can_quantize() -> bool:
    """Return whether this build of torch and this CPU have the product in int8."""
    try:
        linear, rows = nn.Linear(64, 64), torch.linspace(-1, 1, 256).reshape(4, 64)
        with torch.inference_mode():
            return all(
                bool((layer(linear)(rows) - linear(rows)).abs().max() < 0.05)
                for layer in (Int8Linear, Int8PerTokenLinear)
            )
    except (AttributeError, RuntimeError, TypeError):
        return False
