"""What ``postprocessor=fill_mask`` tells: for each mask its candidates and their share of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline_kit.builtin.postprocessors.panel_formulas import activation_panel
from pipeline_kit.builtin.postprocessors.panel_lines import cell, counted, number
from pipeline_kit.panels import Panel

__all__ = ["mask_panels"]

Array = np.ndarray[Any, Any]

_MASKS = 10  # that are shown


def mask_panels(
    masks: Sequence[Sequence[dict[str, Any]]],
    places: Sequence[tuple[int, int]],
    logits: Sequence[Array],
    windows: Sequence[int | None],
    targets: int | None,
) -> list[Panel]:
    """Show the candidates of each mask.

    :param masks: what the result lists.
    :param places: where each mask stands in the text, in characters.
    :param logits: for each mask those of the whole vocabulary, ``[V]``.
    :param windows: the window that each mask counts in, None where the text is whole.
    :param targets: how many tokens compete by the user's choice, None for all.
    """
    panels: list[Panel] = []
    for number_of, (listed, (begin, end), values, window) in enumerate(
        list(zip(masks, places, logits, windows, strict=True))[:_MASKS], 1
    ):
        title = f"mask {number_of} of {len(masks)} at {begin} to {end}: logits to candidates (softmax)"
        ids = [int(item["id"]) for item in listed]
        scores = np.array([item["score"] for item in listed])
        note = _note(len(values), scores, window, targets, len(masks))
        panels.append(
            activation_panel(
                title,
                [cell(item["token"]) for item in listed],
                values[ids],
                scores,
                "softmax",
                heading="token",
                among=values,
                noun="tokens",
                extra=(("id", ids),),
                note=note,
            )
        )
    return panels


def _note(vocabulary: int, scores: Array, window: int | None, targets: int | None, masks: int) -> str:
    rest = vocabulary - len(scores)
    said = [
        f"the other {counted(rest, 'token')} of the vocabulary have {number(max(0.0, 1 - float(scores.sum())))} in all"
    ]
    if targets is not None:
        said.append(f"only {counted(targets, 'token')} may be listed (targets); scores are still shares of all tokens")
    if window is not None:
        said.append(f"taken from window {window}, where the mask has the most tokens on its poorer side")
    if masks > 1:
        said.append("each mask is filled in while the others stay")
    if masks > _MASKS:
        said.append(f"only the first {_MASKS} masks are shown")
    return "; ".join(said)
