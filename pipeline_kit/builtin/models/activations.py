"""Which linear layer hands its output to an activation and to nothing else, so that one operator can do both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["NO_ACTIVATION", "PostOp", "activations_after"]

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
    goes elsewhere cannot be told from here: whoever fuses the two compares the network's answers.

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
