"""What a reader has to know before quoting figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline_kit.bench.machine import BUSY
from pipeline_kit.bench.numbers import spread

__all__ = ["notes_of"]

_SHORT_SECONDS = 0.05
_UNSTEADY = 0.10
_FEW_ROUNDS = 3


def notes_of(sides: Sequence[dict[str, Any]], load: float | None, left_out: int) -> list[str]:
    """Name what makes figures doubtful.

    :param sides: the reports of the sides.
    :param load: the load for each processor before the measurement.
    :param left_out: texts that were not measured because a side could not answer them.
    """
    notes = []
    if load is not None and load > BUSY:
        notes.append(f"the machine is busy (load {load:.2f} for each processor before the start): do not quote these")
    if left_out:
        notes.append(f"{left_out:,} texts failed and were left out; see why with: pipeline-kit run")
    if len(sides[0]["seconds"]["rounds"]) < _FEW_ROUNDS:
        notes.append("fewer than 3 rounds: the quartiles say little")
    else:
        wide = {side["name"]: spread(side["seconds"]["rounds"]) for side in sides}
        worst = max(wide, key=lambda name: wide[name])
        if wide[worst] > _UNSTEADY:
            notes.append(f"the rounds of '{worst}' differ by {wide[worst]:.0%} (quartiles): measure again, or longer")
    if min(side["seconds"]["median"] for side in sides) < _SHORT_SECONDS:
        notes.append("a round took less than 0.05 s, mostly overhead: give more texts, or a larger --rows")
    if len({side["tokens"] for side in sides}) > 1:
        notes.append("the sides read different numbers of tokens: compare texts/s and the ratios, not tokens/s")
    models = [side["pipeline"].get("model", {}) for side in sides]
    packed = [None if model.get("int8_linears") else model.get("packed_linears") for model in models]
    if len({count for count in packed if count is not None}) > 1:
        counts = ", ".join("-" if count is None else str(count) for count in packed)
        notes.append(
            f"the sides packed different numbers of linear layers ({counts}), as measured when each was loaded; "
            "model.linear=packed or eager settles it"
        )
    unknown = [side for side in sides if side["matrix_limit"]["unknown"] is not None]
    reasons = dict.fromkeys(side["matrix_limit"]["unknown"] for side in unknown)
    notes += [f"no share of the matrix product's limit: {reason}" for reason in reasons]
    if any(side["pipeline"].get("model", {}).get("name") == "generate" for side in sides):
        notes.append("tokens are those that were read, not those that were written")
    return notes
