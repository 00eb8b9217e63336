"""Stops the building of a network as soon as it asks for far more than the checkpoint's weights hold."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.nn.modules import module

from pipeline_kit.errors import CheckpointError, shorten
from pipeline_kit.types import Checkpoint

__all__ = ["backed_sizes"]

# A network has modules without weights, halves that an encoder saved by itself lacks, and tables that are tied.
_MODULES_PER_WEIGHT, _MORE_MODULES = 16, 1000
_TIMES, _MORE_NUMBERS = 8, 1 << 20
_BUFFER_NUMBERS = 1 << 28  # a causal mask for 16,384 positions


@contextmanager
def backed_sizes(checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Refuse what is built inside if no weights back it; nothing of it has memory yet, since it is on ``meta``.

    :param shapes: of the checkpoint's weights, by name.
    :raises CheckpointError: naming the part that is too large, or the number of parts.
    """
    numbers = sum(math.prod(shape) for shape in shapes.values())
    most_modules = _MODULES_PER_WEIGHT * len(shapes) + _MORE_MODULES
    thread, modules, asked = threading.get_ident(), 0, 0

    def refuse(what: str) -> None:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} asks for {what}, but the {len(shapes)} weights of the checkpoint hold "
            f"{numbers} numbers in all. Check the sizes in config.json, or download the checkpoint again"
        )

    def on_module(owner: Any, name: str, part: Any) -> None:
        nonlocal modules
        modules += threading.get_ident() == thread
        if modules > most_modules:
            refuse(f"a network of over {most_modules} parts")

    def on_parameter(owner: Any, name: str, weight: Any) -> None:
        nonlocal asked
        if weight is None or not weight.is_meta or threading.get_ident() != thread:
            return
        asked += weight.numel()
        if weight.numel() > numbers + _MORE_NUMBERS or asked > _TIMES * numbers + _MORE_NUMBERS:
            refuse(f"a weight '{shorten(name, 80)}' of shape {list(weight.shape)} in a {type(owner).__name__}")

    def on_buffer(owner: Any, name: str, buffer: Any) -> None:
        if buffer is not None and threading.get_ident() == thread and buffer.numel() > numbers + _BUFFER_NUMBERS:
            refuse(f"a table '{shorten(name, 80)}' of shape {list(buffer.shape)} in a {type(owner).__name__}")

    hooks = (
        module.register_module_module_registration_hook(on_module),
        module.register_module_parameter_registration_hook(on_parameter),
        module.register_module_buffer_registration_hook(on_buffer),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
