"""A report as a picture: a bar for each side, with its spread and the ratio to the first."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from textwrap import shorten as cut
from textwrap import wrap
from typing import Any

from pipeline_kit.bench.machine import counted, counted_texts
from pipeline_kit.errors import UsageError, for_message
from pipeline_kit.files.atomic import atomic_writer

_INK, _SOFT, _FIRST, _OTHER = "#1f2933", "#6b7783", "#1f6feb", "#a9b4c0"
_NAME, _LINES = 30, 3


def check_plot(name: str) -> Path:
    """Raise UsageError, before anything is measured, if a plot cannot be written to the file `name`."""
    path = Path(name).expanduser()
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {for_message(name)}: the plot is a PNG; name the file .png")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {for_message(name)}: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install 'pipeline-kit[plot]'")
    return path


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Put the picture of `report` at `path`, complete or not at all; raise OutputError if it cannot be written."""
    picture = BytesIO()
    draw_plot(report).savefig(picture, dpi=160, format="png")
    with atomic_writer(path) as file:
        file.write(picture.getbuffer())


def draw_plot(report: Mapping[str, Any]) -> Any:
    """Make the figure: tokens a second, whiskers from the lower to the upper quartile.

    Where the sides read different numbers of tokens it shows texts a second, which compare.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sides = report["sides"]
    unit = "tokens" if len({side["tokens"] for side in sides}) == 1 else "texts"
    speeds = [side[f"{unit}_per_second"] for side in sides]
    names = [_name(side["name"]) for side in sides]
    height = 1.75 + sum(0.42 + 0.2 * name.count("\n") for name in names) + 0.3
    figure = Figure(figsize=(8.6, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.27, 0.78 / height, 0.68, 1 - 1.72 / height))
    places = range(len(sides))
    medians = [speed["median"] for speed in speeds]
    whiskers = [
        [speed["median"] - speed["q1"] for speed in speeds],
        [speed["q3"] - speed["median"] for speed in speeds],
    ]
    colours = [_FIRST, *[_OTHER] * (len(sides) - 1)]
    style = {"ecolor": _INK, "capsize": 3, "elinewidth": 1.1, "capthick": 1.1}
    bars = axes.barh(places, medians, height=0.58, color=colours, xerr=whiskers, error_kw=style)
    top = max(speed["q3"] for speed in speeds)
    labels = [f"{speed['median']:,.0f}" + _ratio(report["ratios"], place) for place, speed in enumerate(speeds)]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.bar_label(bars, labels, padding=8, color=_INK, fontsize=9.5, bbox=box)
    axes.set_xlim(0, top * 1.55)
    axes.set_ylim(len(sides) - 0.5, -0.5)
    axes.set_yticks(places, names, fontsize=10, color=_INK, parse_math=False)  # a $ in a name is a $
    axes.set_xlabel(f"{unit}/s: median, whiskers from the lower to the upper quartile", color=_SOFT, fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(axis="x", colors=_SOFT, labelsize=8.5, length=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for edge in ("top", "right", "bottom"):
        axes.spines[edge].set_visible(False)
    axes.spines["left"].set_color("#c3cbd3")
    _titles(figure, report, height)
    return figure


def _titles(figure: Any, report: Mapping[str, Any], height: float) -> None:
    texts, machine = report["texts"], report["machine"]
    task = report["sides"][0]["pipeline"].get("task", "")
    checkpoint = report["sides"][0]["pipeline"].get("checkpoint", {}).get("name", "")
    title = cut(f"{task}, {Path(str(checkpoint)).name}", 90, placeholder="…")
    facts = f"{counted_texts(texts)}, {counted(report['repeats'], 'round')}"
    where = (
        f"{machine['gpu'] or machine['processor']}, {counted(machine['threads'], 'thread')}, torch {machine['torch']}"
    )
    figure.text(
        0.03, 1 - 0.34 / height, title, fontsize=13, fontweight="bold", color=_INK, va="center", parse_math=False
    )
    figure.text(0.03, 1 - 0.62 / height, f"{facts}; {where}", fontsize=9, color=_SOFT, va="center")
    busy = [note for note in report["notes"] if "do not quote" in note]
    if busy:
        figure.text(0.03, 0.14 / height, busy[0], fontsize=9, color="#b42318", va="center")


def _ratio(ratios: list[dict[str, Any]], place: int) -> str:
    """Describe what part of the first's speed a side has; the first itself is what the others are compared with."""
    if not place:
        return ""
    found = ratios[place - 1]["first_is_faster_by"]
    return f"   first is {found['median']:.2f}x ({found['min']:.2f} to {found['max']:.2f})"


def _name(name: str) -> str:
    lines = wrap(name, _NAME, break_on_hyphens=False) or [name]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][: _NAME - 1] + "…"]
    return "\n".join(lines)
