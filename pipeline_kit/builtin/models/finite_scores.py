"""Scores of the next token that are no numbers: a search would take the first token of the vocabulary, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline_kit.errors import ExampleError

__all__ = ["finite_scores"]


@contextmanager
def finite_scores(network: Any, *, at_once: bool) -> Iterator[None]:
    """Check the scores that `network` gives in the body, before the search changes them.

    A network may rule tokens out by minus infinity, so what counts is each row's best score. It is infinite, or not a
    number, if one score is, or if there is none left.

    :param at_once: end the search at the step itself; else the body ends first, and a GPU is not waited for.
    :raises ExampleError: if the best score of a row is not finite.
    """
    seen: list[torch.Tensor] = []

    def look(module: Any, given: Any, output: Any) -> None:
        del module, given
        found = output.logits[:, -1].amax(dim=-1).isfinite().all()
        if at_once:
            refuse(found)
        seen[:] = [seen[0] & found if seen else found]

    def refuse(found: torch.Tensor) -> None:
        if not found:
            raise ExampleError("the model's scores for the next token of this example are not finite numbers")

    handle = network.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
    for found in seen:
        refuse(found)
