"""Measured speeds as one picture: a panel for each comparison, a bar for each side."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .script import Measurement

__all__ = ["write_plot"]

_INK, _SOFT, _OURS, _PEER = "#1f2933", "#6b7783", "#1f6feb", "#a9b4c0"
_BAR, _HEAD, _FOOT = 0.26, 0.62, 0.42  # inches


def write_plot(measurements: Sequence[Measurement], path: Path, caption: str) -> None:
    """Draw those of the kind ``sides`` and put the picture at `path`, complete or not at all.

    :param caption: one line about the machine.
    :raises OSError: if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib needs it itself

    heights = [_BAR * len(measurement["report"]["sides"]) + _HEAD for measurement in measurements]
    total = sum(heights) + _FOOT
    figure = Figure(figsize=(8.4, total), facecolor="white")
    FigureCanvasAgg(figure)
    top = total
    for measurement, height in zip(measurements, heights, strict=True):
        axes = figure.add_axes((0.34, (top - height + 0.12) / total, 0.63, (height - _HEAD + 0.1) / total))
        _panel(axes, measurement)
        figure.text(
            0.02, (top - 0.27) / total, measurement["title"], fontsize=10.5, fontweight="bold", color=_INK, va="center"
        )
        top -= height
    figure.text(0.02, 0.16 / total, caption, fontsize=8, color=_SOFT, va="center")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        whole = io.BytesIO()
        figure.savefig(whole, dpi=100, format="png")
        # A few colours are all there are; a palette makes the file a third as large.
        Image.open(whole).convert("RGB").quantize(48).save(part, format="png", optimize=True)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _panel(axes: Any, measurement: Measurement) -> None:
    """Draw tokens a second: medians, whiskers from the lower to the upper quartile."""
    sides, ours = measurement["report"]["sides"], measurement["ours"]
    speeds = [side["tokens_per_second"] for side in sides]
    places = range(len(sides))
    whiskers = [[s["median"] - s["q1"] for s in speeds], [s["q3"] - s["median"] for s in speeds]]
    colours = [_OURS if side["name"] in ours else _PEER for side in sides]
    style = {"ecolor": _INK, "capsize": 2, "elinewidth": 0.9, "capthick": 0.9}
    axes.barh(places, [s["median"] for s in speeds], height=0.66, color=colours, xerr=whiskers, error_kw=style)
    for place, speed in enumerate(speeds):
        label = f"{speed['median']:,.0f} tokens/s"
        axes.annotate(
            label, (speed["q3"], place), (6, 0), textcoords="offset points", va="center", color=_INK, fontsize=8
        )
    axes.set_xlim(0, max(s["q3"] for s in speeds) * 1.22)
    axes.set_ylim(len(sides) - 0.5, -0.5)
    axes.set_yticks(places, [side["name"] for side in sides], fontsize=8.5, color=_INK)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for edge in ("top", "right", "bottom"):
        axes.spines[edge].set_visible(False)
    axes.spines["left"].set_color("#c3cbd3")
