"""Results of the comparisons as a Markdown page and a picture.

    python benchmarks/report.py benchmarks/results/*.json [--output benchmarks/RESULTS.md] [--no-plot]

Each kind of machine has its own section, the one with the most results first. What stands behind the line
`<!-- by hand -->` of a page that is there stays. The picture, of the first kind, needs matplotlib
(pip install 'pipeline-kit[plot]') and stands beside the page under the same name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.goals import GOALS, Found, Goal
from common.script import SCHEMA, Measurement, tell
from common.tables import markdown, rows_of

from pipeline_kit.errors import InputError, PipelineKitError, UsageError, for_message
from pipeline_kit.files.atomic import atomic_writer

OUTPUT = Path(__file__).parent / "RESULTS.md"
Result = Mapping[str, Any]
ORDER = (
    "classifier",
    "runtimes",
    "shipped",
    "embeddings",
    "generation",
    "latency",
    "limit",
    "memory",
    "cold_start",
    "job",
    "steps",
    "budgets",
    "gpu",
)
SETS = "short mixed long agreement"
DRAWN = ("classifier", "runtimes", "shipped", "embeddings", "generation")
BY_HAND = "<!-- by hand -->"
GOAL_COLUMNS = ("work", "goal", "measured", "lowest to highest round", "reached")


def read(paths: Sequence[Path]) -> list[Result]:
    """Read results, each comparison's tables once.

    :raises InputError: for a file that is not a result.
    :raises UsageError: if a table is there twice for a kind of machine, or some results are of `--quick`, some not.
    """
    results: list[Result] = []
    homes: dict[tuple[str, str], Path] = {}
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            known = result["schema"] == SCHEMA and isinstance(result["measurements"], list)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: no result of a comparison: {type(error).__name__}: {error}") from error
        if not known:
            raise InputError(
                f"{path}: schema {for_message(str(result['schema']))}, this program reads {SCHEMA}; measure again"
            )
        for measurement in result["measurements"]:
            other = homes.setdefault((_kind(result), measurement["name"]), path)
            if other != path:
                raise UsageError(f"{path} and {other} both hold {measurement['name']}; pass one of them")
        results.append(result)
    if len({result["quick"] for result in results}) > 1:
        raise UsageError("some of these results are of --quick, which are no figures; pass the others alone")
    return results


def page(kinds: Mapping[str, Sequence[Result]], picture: str | None) -> Iterator[str]:
    """Write the page, line by line.

    :param kinds: results by kind of machine.
    :param picture: the name of the plot's file, of the first kind; None without one.
    """
    yield from ("# Measured", "")
    if any(result["quick"] for results in kinds.values() for result in results):
        yield from ("**Made with `--quick`: these numbers say nothing about speed.**", "")
    yield "Made by `python benchmarks/run_all.py` and `python benchmarks/report.py`; [README.md](README.md) says how."
    yield "Sides take turns in one process. Speeds are medians over the rounds with their quartiles; ratios are taken"
    yield "within each round: their median, lowest and highest. A kind of machine has its own section."
    yield ""
    for kind, results in kinds.items():
        yield from _head(kind, results)
        if picture is not None:
            yield from (f"![tokens per second of all sides]({picture})", "")
            picture = None
        found = {measurement["name"]: measurement for measurement in ordered(results)}
        quick = any(result["quick"] for result in results)
        goals = [(goal, goal.find(found)) for goal in GOALS]
        yield from ("### Goals", "")
        yield from markdown(GOAL_COLUMNS, [_goal(goal, value, quick) for goal, value in goals if value is not None])
        missing = sum(value is None for _, value in goals)
        yield from ("", f"Not measured here: {missing} other goals.", "") if missing else ("",)
        for measurement in found.values():
            yield from _section(measurement)


def ordered(results: Sequence[Result]) -> list[Measurement]:
    """Return all measurements, in an order that does not depend on that of the files."""
    found = [measurement for result in results for measurement in result["measurements"]]
    return sorted(
        found, key=lambda m: (ORDER.index(m["name"].partition("/")[0]), SETS.find(m["name"].rpartition("/")[2]))
    )


def _head(kind: str, results: Sequence[Result]) -> Iterator[str]:
    yield from (f"## {kind}", "")
    machines = {json.dumps([_machine(result), _software(result)]): result for result in results}
    for result in machines.values():
        yield f"- {_machine(result)}"
        yield f"- {_software(result)}"
    dates = sorted(result["machine"]["date"] for result in results)
    minutes = sum(result["seconds"] for result in results) / 60
    yield f"- {dates[0][:10]}" + (f" to {dates[-1][:10]}" if dates[-1][:10] != dates[0][:10] else "")
    yield f"- {len(results)} comparisons, {minutes:.0f} minutes; rounds: {_rounds(results)}"
    if len(machines) > 1:
        yield "- **These results are of several machines or versions: do not compare them with each other.**"
    for result in results:
        for note in result["notes"]:
            yield f"- {result['comparison']}: {note}"
    yield ""


def _section(measurement: Measurement) -> Iterator[str]:
    yield from (f"### {measurement['title']}", "")
    columns, rows = rows_of(measurement)
    yield from markdown(columns, rows)
    yield ""
    items = [f"- {name}: {why}" for name, why in measurement.get("left_out", {}).items()]
    items += [f"- {note}" for note in measurement.get("report", measurement).get("notes", ())]
    if items:
        yield from (*items, "")


def _goal(goal: Goal, found: Found, quick: bool) -> list[str]:
    bound = "at most " if goal.most else ""
    work = f"{goal.work} ({found.what})" if found.what else goal.work
    spread = ""
    if found.low is not None and found.high is not None:
        spread = f"{_with_unit(goal, found.low)} to {_with_unit(goal, found.high)}"
    reached = "" if quick else "yes" if goal.reached(found) else "**no**"
    return [work, bound + _with_unit(goal, goal.wanted), _with_unit(goal, found.value), spread, reached]


def _with_unit(goal: Goal, value: float) -> str:
    formats = {"x": f"{value:.2f}x", "%": f"{value:.1%}", "of its time": f"{value:.2f} of its time"}
    return formats.get(goal.unit, f"{value:.1f} {goal.unit}")


def _kind(result: Result) -> str:
    """Name the kind of machine: the processor with the widest vectors it has, or the GPU."""
    machine = result["machine"]
    widest = machine["flags"][-1] if machine["flags"] else "instructions unknown"
    return str(machine.get("gpu") or f"{machine['processor']}, {widest}")


def _machine(result: Result) -> str:
    machine = result["machine"]
    flags = ", ".join(machine["flags"]) or "instructions unknown"
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    return (
        f"{machine['processor']}, {machine['processors']} processors, {machine['threads']} threads{memory} "
        f"({machine['system']}; {flags})"
    )


def _software(result: Result) -> str:
    versions = [f"{name} {number}" for name, number in result["versions"].items() if number is not None]
    return f"Python {result['machine']['python']}, {', '.join(versions)}"


def _rounds(results: Sequence[Result]) -> str:
    return ", ".join(sorted({str(result["rounds"]) for result in results}))


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description="results as a Markdown page and a picture")
    parser.add_argument("results", metavar="FILE", nargs="+", type=Path, help="JSON that a comparison wrote")
    parser.add_argument("--output", metavar="FILE.md", type=Path, default=OUTPUT, help=f"default: {OUTPUT.name}")
    parser.add_argument("--no-plot", action="store_true", help="the page alone")
    args = parser.parse_args()
    picture = None if args.no_plot else args.output.with_suffix(".png")
    try:
        results = read(args.results)
        kinds: dict[str, list[Result]] = {}
        for result in results:
            kinds.setdefault(_kind(result), []).append(result)
        kinds = dict(sorted(kinds.items(), key=lambda item: -len(item[1])))
        first = next(iter(kinds.values()))
        drawn = [m for m in ordered(first) if m["kind"] == "sides" and m["name"].partition("/")[0] in DRAWN]
        if not drawn:
            picture = None
        if picture is not None:
            if find_spec("matplotlib") is None:
                raise UsageError("the plot needs matplotlib: pip install 'pipeline-kit[plot]'; or give --no-plot")
            from common.plot import write_plot

            write_plot(drawn, picture, f"{_machine(first[0])[:110]}; {first[0]['machine']['date'][:10]}")
        before = args.output.read_text(encoding="utf-8") if args.output.exists() else ""
        by_hand = "".join(before.partition(BY_HAND)[1:])
        with atomic_writer(args.output) as file:
            file.write("\n".join(page(kinds, picture.name if picture else None)).rstrip() + "\n")
            file.write(f"\n{by_hand}" if by_hand else "")
    except (PipelineKitError, OSError) as error:
        sys.exit(f"report.py: {error}")
    tell(f"wrote {args.output}" + (f" and {picture}" if picture else ""))


if __name__ == "__main__":
    main()
