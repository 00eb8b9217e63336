"""Measuring: turns, figures from given times, memory, samples."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import builtins

from pipeline_kit.bench.machine import (
    counted,
    load_per_cpu,
    machine_facts,
    paired_ratio,
    percentiles,
    processor_model,
    quartiles,
    speeds,
    spread,
)
from pipeline_kit.bench.measure import MeasurementPlan, measure, steps_of
from pipeline_kit.bench.plot import write_plot
from pipeline_kit.bench.rounds import Peak, Timing, latencies, peak_of, read_status, turns, warm_up, watch
from pipeline_kit.bench.sides import BenchSide, TextBatch
from pipeline_kit.cli.texts import SAMPLES, SampleName, sample_examples, sample_rows
from pipeline_kit.contract.types import Device, Example
from pipeline_kit.errors import RowError, RowFailure, UsageError
from pipeline_kit.evaluate.likeness import compare_scores, scored


class FakeClock:
    """A clock that stands still unless a side lets time pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeSide(BenchSide):
    """Takes the seconds it is told to: of `rounds` in turn for all texts, of `single` for one text."""

    def __init__(
        self,
        name: str,
        clock: FakeClock,
        log: list[str],
        rounds: Sequence[float] = (1.0,),
        single: float = 0.01,
        bad: str | None = None,
        threads: int = 1,
    ) -> None:
        self.name, self.device = name, Device("cpu", "float32", threads)
        self._clock, self._log, self._single, self._bad = clock, log, single, bad
        self.threads_seen: set[int] = set()
        self._rounds: Iterator[float] = cycle(rounds)

    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        self.threads_seen.add(torch.get_num_threads())
        self._log.append(f"warm {self.name} {len(examples)}")
        work = TextBatch([self._answer(i, example) for i, example in enumerate(examples)])
        work.count(np.array([2, 4]), 8)
        return work

    def run(self, examples: Sequence[Example]) -> object:
        self.threads_seen.add(torch.get_num_threads())
        self._log.append(self.name)
        self._clock.now += next(self._rounds)
        return None

    def run_one(self, example: Example) -> object:
        self.threads_seen.add(torch.get_num_threads())
        self._log.append(f"one {self.name} {example}")
        self._clock.now += self._single
        return None

    @property
    def description(self) -> Mapping[str, Any]:
        return {"task": "text-classification", "notes": []}

    def _answer(self, place: int, example: Example) -> Any:
        if example == self._bad:
            return RowFailure(place, "model", "ValueError", "cannot swallow this")
        return {"label": "A", "score": 0.5}


Made = tuple[FakeClock, list[str], Callable[..., FakeSide]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes longer than all the rest
    clock, log = FakeClock(), list[str]()
    return clock, log, lambda name, **more: FakeSide(name, clock, log, **more)


def run(sides: Sequence[BenchSide], clock: FakeClock, repeats: int = 3, **plan: Any) -> dict[str, Any]:
    fixed = {"source": "given", "load": 0.1, "latency_seconds": 0.1, **plan}
    return measure(sides, ["a", "b"], MeasurementPlan(repeats=repeats, **fixed), clock=clock)


def test_sides_take_turns_and_each_round_another_comes_first(made: Made) -> None:
    clock, log, side = made
    report = run([side("x"), side("y"), side("z")], clock, repeats=4)
    assert log[:3] == ["warm x 2", "warm y 2", "warm z 2"]
    assert log[3:15] == ["x", "y", "z", "y", "z", "x", "z", "x", "y", "x", "y", "z"]
    assert report["order"] == [["x", "y", "z"], ["y", "z", "x"], ["z", "x", "y"], ["x", "y", "z"]]
    assert turns(2, 7) == [1, 0]


def test_every_turn_runs_with_the_threads_of_its_side(made: Made) -> None:
    clock, _, side = made
    before = torch.get_num_threads()
    sides = [side("x", threads=1), side("y", threads=2), side("z", threads=1)]
    try:
        run(sides, clock)
    finally:
        torch.set_num_threads(before)
    assert [one.threads_seen for one in sides] == [{1}, {2}, {1}]


def test_figures_come_from_the_times_of_the_rounds(made: Made) -> None:
    clock, _, side = made
    report = run([side("x", rounds=(1, 2, 4)), side("y", rounds=(3, 4, 16))], clock)
    mine = report["sides"][0]
    assert mine["seconds"] == {"median": 2, "q1": 1.5, "q3": 3, "rounds": [1, 2, 4]}
    assert mine["texts_per_second"] == {"median": 1, "q1": 0.75, "q3": 1.5}
    assert mine["tokens_per_second"]["median"] == 3  # 6 tokens in 2 seconds
    assert (mine["tokens"], mine["slots"], mine["padding_share"], mine["batches"]) == (6, 8, 0.25, 1)
    [ratio] = report["ratios"]
    assert ratio["first_is_faster_by"] == {"median": 3, "min": 2, "max": 4, "rounds": [3, 2, 4]}
    assert (ratio["first"], ratio["other"]) == ("x", "y")
    assert ratio["results"] == {"rows": 2, "largest_score_difference": 0, "same_label": 1}


def test_the_report_is_json_and_says_what_it_was_taken_from(made: Made) -> None:
    clock, _, side = made
    steps: list[int] = []
    plan = MeasurementPlan("mixed", 2, 0.1, 0.1, notes=("known before",))
    sides = [side("x"), side("y")]
    report = measure(sides, ["ab", {"text": "cde", "choices": ["f", "gh"]}], plan, lambda: steps.append(1), clock)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert len(steps) == steps_of(2, 2)
    assert report["texts"] == {"source": "mixed", "rows": 2, "left_out": 0, "characters": 8}
    assert report["notes"][0] == "known before"
    assert report["machine"].keys() >= {"date", "processor", "threads", "capability", "torch", "transformers"}
    assert report["machine"]["date"].endswith("+00:00")
    assert report["sides"][0]["latency_ms"].keys() == {"p50", "p95", "p99", "texts"}


def test_single_texts_take_turns_until_the_time_is_over(made: Made) -> None:
    clock, log, side = made
    sides = [side("x", single=0.5), side("y", single=0.25)]
    timings = [Timing(TextBatch([])), Timing(TextBatch([]))]
    latencies(sides, timings, ["a", "b"], budget=1.0, most=50, clock=clock)
    assert timings[0].single == [0.5] * 3  # 0.75 s a pair, 2 s for two sides
    assert timings[1].single == [0.25] * 3
    timed = log[4:]  # behind the warm-ups
    assert [line.split()[1] for line in timed] == ["x", "y", "y", "x", "x", "y"]
    assert [line.split()[2] for line in timed[::2]] == [timed[0][-1], timed[2][-1], timed[0][-1]]  # begun again
    assert {timed[0][-1], timed[2][-1]} == {"a", "b"}


def test_single_texts_end_at_the_most_and_are_at_least_one(made: Made) -> None:
    clock, _, side = made
    for budget, most, count in ((100.0, 7, 7), (0.0, 7, 1)):
        timing = Timing(TextBatch([]))
        latencies([side("x")], [timing], ["a"], budget, most, clock)
        assert len(timing.single) == count


def test_texts_that_a_side_cannot_answer_are_left_out_for_all(made: Made) -> None:
    clock, log, side = made
    report = run([side("x", bad="b"), side("y")], clock)
    assert log[:3] == ["warm x 2", "warm x 1", "warm y 1"]
    assert (report["texts"]["rows"], report["texts"]["left_out"]) == (1, 1)
    assert any(note.startswith("1 texts failed") for note in report["notes"])
    with pytest.raises(RowError, match="row 0: model: ValueError: cannot swallow this"):
        warm_up([side("x", bad="a")], ["a"], lambda: None)


@pytest.mark.parametrize(
    ("rounds", "load", "expected"),
    [
        ((1, 1, 1), 0.51, "the machine is busy (load 0.51 for each processor before the start): do not quote these"),
        ((1, 2, 1.5), 0.1, "the rounds of 'x' differ by 33% (quartiles)"),
        ((0.01, 0.01, 0.01), 0.1, "a round took less than 0.05 s"),
        ((1,), 0.1, "fewer than 3 rounds"),
    ],
)
def test_what_makes_figures_doubtful_is_noted(
    made: Made, rounds: tuple[float, ...], load: float, expected: str
) -> None:
    clock, _, side = made
    report = run([side("x", rounds=rounds)], clock, len(rounds), load=load)
    assert [note for note in report["notes"] if note.startswith(expected)] == report["notes"]
    assert run([side("x")], clock, 3, load=None)["notes"] == []


def test_a_name_is_drawn_as_it_is(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    clock, _, side = made
    report = run([side(r"checkpoint=$\frac$"), side("y")], clock)
    report["sides"][0]["pipeline"]["checkpoint"] = {"name": r"$\frac$"}
    write_plot(report, tmp_path / "plot.png")


def test_numbers() -> None:
    assert quartiles([1, 2, 3, 4, 5]) == {"median": 3, "q1": 2, "q3": 4}
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)
    assert percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert speeds(10, [2.0, 2.0])["median"] == 5
    # The median of the ratios of pairs, which is not the ratio of the medians (4 / 2).
    assert paired_ratio([1, 2, 10], [4, 6, 2])["median"] == 3
    assert (counted(1, "round"), counted(1000, "round")) == ("1 round", "1,000 rounds")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"label": "A", "score": 0.5}, [("A", 0.5)]),
        ([{"label": "A", "score": 0.5}], [("A", 0.5)]),
        ({"label": "A", "score": 0.5, "labels": [{"label": "A", "score": 0.5}, {"label": "B", "score": 0.4}]}, 2),
        ({"sequence": "x", "labels": ["A", "B"], "scores": [0.6, 0.4]}, [("A", 0.6), ("B", 0.4)]),
        (
            {"masks": [[{"token": "x", "id": 3, "score": 0.2}], [{"token": "y", "id": 4, "score": 0.1}]]},
            [(3, 0.2), (4, 0.1)],
        ),
        ([[{"token": 3, "token_str": "x", "score": 0.2}], [{"token": 4, "score": 0.1}]], [(3, 0.2), (4, 0.1)]),
        ({"entities": []}, []),
        ({"embedding": [0.1, 0.2]}, []),
        ([[0.1, 0.2]], []),
    ],
)
def test_scores_are_found_in_results(result: Any, expected: Any) -> None:
    found = scored(result)
    assert len(found) == expected if isinstance(expected, int) else found == expected


def test_results_are_compared_by_score_and_label() -> None:
    first = [{"label": "A", "score": 0.9}, {"label": "A", "score": 0.6}, {"entities": []}]
    other = [{"label": "A", "score": 0.8}, {"label": "B", "score": 0.5}, [{"entity": "X", "score": 0.1}]]
    found = compare_scores(first, other)
    assert found == {"rows": 2, "largest_score_difference": pytest.approx(0.1), "same_label": 0.5}
    assert compare_scores([{"embedding": [1.0]}], [{"embedding": [1.0]}])["largest_score_difference"] is None


def test_memory() -> None:
    text = "Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
    assert (read_status(text, "VmHWM"), read_status(text, "VmRSS"), read_status(text, "VmX")) == (
        2 << 20,
        1 << 20,
        None,
    )
    assert peak_of([Peak(5, 1), Peak(4, 3, 7)]) == Peak(5, 3, 7)
    assert peak_of([Peak(5, 1)]).device_peak is None


@pytest.mark.skipif(sys.platform != "linux", reason="only there can the mark be set back")
def test_memory_is_that_of_the_turn_not_of_the_turns_before() -> None:
    size = 64 << 20
    with watch(Device()) as large:
        np.ones(size, dtype=np.uint8).sum()
    with watch(Device()) as small:
        pass
    assert large.growth > 0.9 * size
    assert small.growth < 0.1 * size
    assert large.peak > small.peak


def test_machine(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 9000\nflags\t: sse\n")
    assert processor_model(tmp_path / "cpuinfo") == "Fast 9000"
    assert processor_model(tmp_path / "none") != "Fast 9000"
    assert machine_facts(Device("cpu", "float32", 3), 0.123)["load_per_processor"] == 0.12
    load = load_per_cpu()
    assert load is None or load >= 0


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_have_the_words_they_promise_and_are_always_the_same(name: SampleName) -> None:
    found = sample_examples(name, sample_rows(name), ["text", "text_pair?"])
    assert len(found) == sample_rows(name)
    assert found == sample_examples(name, sample_rows(name), ["text"])
    words = [len(str(text).split()) for text in found]
    least, most = {"short": (5, 30), "mixed": (5, 400), "long": (200, 400)}[name]
    assert least <= min(words) <= max(words) <= most
    if name == "mixed":
        assert sum(count <= 30 for count in words) > len(words) / 2
        assert max(words) >= 200
    assert len({str(text) for text in found}) > 0.9 * len(found)


def test_there_is_a_sample_for_every_task() -> None:
    for takes in [spec.detail.takes for spec in builtins().specs("task")]:
        examples = sample_examples("short", 3, takes)
        needed = [field for field in takes if not field.endswith("?")]
        assert all(isinstance(example, str) or set(example) >= set(needed) for example in examples)
    [masked] = sample_examples("long", 1, ["text"], mask="<m>")
    assert str(masked).count("<m>") == 1
    [labelled] = sample_examples("short", 1, ["text", "labels?"], labels=True)
    assert isinstance(labelled, dict)
    assert len(labelled["labels"]) > 1
    with pytest.raises(UsageError, match="no sample for the field 'image'"):
        sample_examples("short", 1, ["text", "image"])
