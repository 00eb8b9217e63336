"""Puts other layers in the place of a network's linear layers, and takes them back if its answers change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pipeline_kit.builtin.models.compare import is_close


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


@dataclass(frozen=True, slots=True)
class ReplacedLayers:
    """What was done.

    :param layers: how many linear layers were replaced.
    :param activations: how many of them do their activation too.
    """

    layers: int = 0
    activations: int = 0


Probe = Callable[[], Mapping[str, torch.Tensor]]
"""Runs a network on a few rows and returns its outputs."""


def replace_linears(
    network: nn.Module, made: Mapping[nn.Linear, FusedLinear], probe: Probe, noise: float
) -> ReplacedLayers:
    """Put `made` into `network` in place of its linear layers; all or none of them.

    An activation that follows such a layer directly is done by the layer. If the answers differ then, the
    layers do no activations; if they still differ, everything stays as it was.

    :param noise: how far an answer may be from the one before, as a share of the largest number.
    """
    if not made:
        return ReplacedLayers()
    expected = probe()
    activations = {layer: found for layer, found in activations_after(network, probe).items() if layer in made}
    tries: list[dict[nn.Linear, tuple[nn.Module, PostOp]]] = [activations, {}] if activations else [{}]
    for fused in tries:
        instead: dict[nn.Module, nn.Module] = {activation: nn.Identity() for activation, _ in fused.values()}
        for layer, replacement in made.items():
            instead[layer] = replacement
            replacement.post = fused[layer][1] if layer in fused else NO_ACTIVATION
        before: list[tuple[nn.Module, str, nn.Module]] = []
        for owner in list(network.modules()):
            for name, child in list(owner.named_children()):
                if child in instead:
                    setattr(owner, name, instead[child])
                    before.append((owner, name, child))
        with suppress(RuntimeError, TypeError, AttributeError):  # a network that reads a layer's weight itself
            answers = probe()
            if all(is_close(answers[name], value, noise) for name, value in expected.items()):
                return ReplacedLayers(len(made), len(fused))
        for owner, name, module in before:
            setattr(owner, name, module)
    return ReplacedLayers()


def linears(network: nn.Module) -> Iterator[nn.Linear]:
    """Yield each plain linear layer once; a subclass may do something else with its weight."""
    for module in network.modules():
        if type(module) is nn.Linear:
            yield module


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


def activations_after(network: nn.Module, run: Callable[[], Any]) -> dict[nn.Linear, tuple[nn.Module, PostOp]]:
    """Watch one run of `network` and find the activations that read nothing but one linear layer's output.

    An activation is known by what it does to numbers, not by its class or name. A layer whose output also
    goes elsewhere cannot be seen from here: the caller that fuses the two compares the network's answers.

    :param run: runs the network on a few rows.
    :returns: by layer the module of its activation and what that is to oneDNN.
    """
    made: dict[int, tuple[torch.Tensor, nn.Linear]] = {}  # the tensor too, so that no other one gets its id
    calls: Counter[nn.Linear] = Counter()
    readers: defaultdict[nn.Module, list[nn.Linear | None]] = defaultdict(list)

    def after_linear(layer: nn.Linear, _: Any, output: torch.Tensor) -> None:
        made[id(output)] = (output, layer)
        calls[layer] += 1

    def before_other(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        source = made.get(id(inputs[0])) if len(inputs) == 1 else None
        readers[module].append(None if source is None else source[1])

    handles = []
    for module in network.modules():
        if type(module) is nn.Linear:
            handles.append(module.register_forward_hook(after_linear))
        elif not any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(before_other))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found: dict[nn.Linear, tuple[nn.Module, PostOp]] = {}
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
        return None  # a module that takes no such tensor is no activation
    return None
