"""The search with sides whose times and answers are given: what is tried, what is chosen, what is said."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline_kit.bench.sides import BenchSide, TextBatch
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import PipelineConfig, parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Device, Example
from pipeline_kit.errors import CheckpointError, RowError, RowFailure
from pipeline_kit.tune.report import preset_comment, report_of
from pipeline_kit.tune.search import NOT_TRIED, Effort, Search
from pipeline_kit.tune.space import Candidate, SearchSpace
from pipeline_kit.tune.trial import AccuracyLimits, Trial, best_of

TEXTS = [f"text {i}" for i in range(40)]
Answers = Callable[[int], Any]


class FakeClock:
    """A clock that stands still unless a side lets time pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def right(place: int) -> dict[str, Any]:
    return {"label": "AB"[place % 2], "score": 0.5}


def wrong(share: float) -> Answers:
    """Answers of which this share of the 40 is another label."""
    return lambda place: {"label": "C", "score": 0.5} if place < 40 * share else right(place)


class FakeSide(BenchSide):
    """Takes the seconds it is told to, a round after the other, the last of them for ever."""

    def __init__(self, lab: Lab, config: PipelineConfig, seconds: Iterator[float], answers: Answers) -> None:
        self.lab, self.config, self.seconds, self.answers = lab, config, seconds, answers
        self.device = Device("cpu", "float32", config.device.threads or torch.get_num_threads())
        self.name = config.model.name

    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        work = TextBatch([self.answers(TEXTS.index(str(example))) for example in examples])
        work.count(np.array([5] * len(examples)), 5 * len(examples))
        return work

    def run(self, examples: Sequence[Example]) -> object:
        self.lab.log.append(self.lab.label(self.config))
        self.lab.clock.now += next(self.seconds)
        return None

    def run_one(self, example: Example) -> object:
        raise AssertionError("tune times no single texts")

    @property
    def description(self) -> Mapping[str, Any]:
        batching = self.config.batching
        return {"batching": {"max_tokens": batching.max_tokens or 1024, "max_rows": batching.max_rows}}


class Lab:
    """A space of candidates with given speeds, its own clock, and a log of who ran."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.clock, self.log = registry, FakeClock(), list[str]()
        self.config = compose(["device.threads=2"], registry=registry)
        self.own = Candidate("your config", self.config)
        self.reference = self.own
        self.found: list[Candidate] = []
        self.speeds: dict[str, Sequence[float]] = {"your config": (1.0,)}
        self.answers: dict[str, Answers] = {}
        self.broken: dict[str, BaseException] = {}
        self.tuned: Callable[[Candidate, str, int], float] = lambda candidate, group, value: 1.0
        self.said: list[str] = []

    def add(self, name: str, *seconds: float, answers: Answers = right, error: BaseException | None = None) -> None:
        """Add an engine whose rounds take so long, where the user's config takes 1.0."""
        model = {**self.config.data["model"], "attn_implementation": "eager", "head": "base"}
        data = {**self.config.data, "model": model, "task": {**self.config.data["task"], "src_lang": name}}
        self.found.append(Candidate(name, parse_config(data, self.registry, [])))
        self.speeds[name], self.answers[name] = seconds, answers
        if error is not None:
            self.broken[name] = error

    def label(self, config: PipelineConfig) -> str:
        return config.task.src_lang or "your config"

    def engines(self) -> list[Candidate]:
        return self.found

    def budgets(self, leader: Candidate, now: int | None) -> list[Candidate]:
        return [self._varied(leader, "batching", "max_tokens", value) for value in (256, 512, 1024) if value != now]

    def threads(self, leader: Candidate, now: int) -> list[Candidate]:
        return [self._varied(leader, "device", "threads", value) for value in (1, 2) if value != now]

    def _varied(self, leader: Candidate, group: str, name: str, value: int) -> Candidate:
        assert leader.config is not None
        node = {**leader.config.data[group], name: value}
        return Candidate(leader.engine, parse_config({**leader.config.data, group: node}, self.registry, []))

    def open(self, candidate: Candidate) -> BenchSide:
        assert candidate.config is not None
        name = candidate.engine
        if name in self.broken:
            raise self.broken[name]
        given = self.speeds[name]
        factor = self.tuned(candidate, "batching", candidate.config.batching.max_tokens or 1024)
        factor *= self.tuned(candidate, "device", candidate.config.device.threads or torch.get_num_threads())
        seconds = chain((factor * value for value in given), repeat(factor * given[-1]))
        return FakeSide(self, candidate.config, seconds, self.answers.get(name, right))

    def search(self, minutes: float = 60, repeats: int = 3, **floors: Any) -> Search:
        held = AccuracyLimits(**{"tolerance": None, "min_agreement": 0.95, **floors})
        side = self.open(self.own)
        plan = Effort(60 * minutes, repeats, held)
        found = Search(cast(SearchSpace, self), side, plan, self.open, self.clock, self.said.append)
        found.run(TEXTS)
        return found


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes longer than all the rest
    before = torch.get_num_threads()
    yield Lab(load_registry())
    torch.set_num_threads(before)


def named(search: Search, name: str) -> Trial:
    """The first trial of an engine."""
    return next(trial for trial in search.trials if trial.candidate.engine == name)


def winner(search: Search) -> str | None:
    found = best_of(search.trials, search.own)
    return None if found is None else found.candidate.engine


def test_the_fastest_whose_answers_are_close_enough_wins(lab: Lab) -> None:
    lab.add("good", 0.5)
    lab.add("faster but wrong", 0.1, answers=wrong(0.1))
    lab.add("slower", 0.75, answers=wrong(0.05))
    search = lab.search()
    assert winner(search) == "good"
    bad = named(search, "faster but wrong")
    assert bad.ratio == pytest.approx(10)
    assert bad.rejected_because == "agreement 90.0% is under 95.0%"
    assert len(bad.seconds) == 1  # timed once, to show what it would give
    assert named(search, "slower").rejected_because is None
    assert any("agreement 90.0% is under" in line for line in lab.said)


def test_a_tolerance_excludes_too(lab: Lab) -> None:
    lab.add("near", 0.5, answers=lambda place: {**right(place), "score": 0.55})
    lab.add("far", 0.3, answers=lambda place: {**right(place), "score": 0.7})
    assert winner(lab.search()) == "far"
    search = lab.search(tolerance=0.1)
    assert winner(search) == "near"
    assert named(search, "far").rejected_because == "a difference of 0.2 is over 0.1"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("lacks the head"), "lacks the head"),
        (ModuleNotFoundError("No module named 'openvino'"), "ModuleNotFoundError: No module named 'openvino'"),
        (RuntimeError("two\nlines \x1b[31m"), r"RuntimeError: two lines \x1b[31m"),
    ],
)
def test_one_that_does_not_load_is_a_row_with_its_reason(lab: Lab, error: Exception, reason: str) -> None:
    lab.add("broken", 0.1, error=error)
    lab.found.append(Candidate("impossible", problem="model.magic: unknown option."))
    lab.add("good", 0.5)
    search = lab.search()
    assert winner(search) == "good"
    assert named(search, "broken").problem == reason
    assert named(search, "impossible").problem == "model.magic: unknown option."
    assert named(search, "broken").ratio == 0


def test_one_that_fails_on_texts_or_in_a_round_is_out(lab: Lab) -> None:
    failure = RowFailure(3, "model", "ValueError", "cannot swallow this")
    lab.add("picky", 0.1, answers=lambda place: failure if place == 3 else right(place))
    lab.add("stops", 0.1)
    lab.speeds["stops"] = ("no number", 0.1)  # type: ignore[assignment]
    search = lab.search()
    assert named(search, "picky").problem == "fails on 1 of the texts: ValueError: cannot swallow this"
    assert str(named(search, "stops").problem).startswith("TypeError")
    assert winner(search) is None


def test_texts_that_the_users_config_fails_on_are_left_out(lab: Lab) -> None:
    failure = RowFailure(0, "tokenizer", "ExampleError", "too long")
    lab.answers["your config"] = lambda place: failure if place in (0, 7) else right(place)
    lab.add("good", 0.5)
    search = lab.search()
    assert len(search.examples) == 38
    assert winner(search) == "good"
    lab.answers["your config"] = lambda place: failure
    with pytest.raises(RowError, match="too long"):
        lab.search()


def test_budgets_then_threads_of_the_leaders_are_tried(lab: Lab) -> None:
    lab.add("good", 0.5)
    lab.add("next", 0.55)
    lab.add("hopeless", 0.9)
    best = {("batching", 512): 0.6, ("device", 1): 0.7}
    lab.tuned = lambda candidate, group, value: (
        1.0 if candidate.engine == "your config" else best.get((group, value), 1)
    )
    search = lab.search()
    found = best_of(search.trials, search.own)
    assert found is not None
    assert (found.candidate.engine, found.max_tokens, found.threads, found.final) == ("good", 512, 1, True)
    assert found.ratio == pytest.approx(1 / (0.5 * 0.6 * 0.7))
    tried = [
        (t.candidate.engine, t.max_tokens, t.threads) for t in search.trials if t.candidate.engine != "your config"
    ]
    assert tried == [
        *[("good", 1024, 2), ("next", 1024, 2), ("hopeless", 1024, 2)],
        *[("good", 256, 2), ("good", 512, 2), ("good", 512, 1)],
        *[("next", 256, 2), ("next", 512, 2), ("next", 512, 1)],
    ]


def test_a_config_without_threads_gets_its_own_number_after_one_with_another(lab: Lab) -> None:
    torch.set_num_threads(2)
    lab.config = compose(registry=lab.registry)
    lab.own = lab.reference = Candidate("your config", lab.config)
    lab.add("good", 0.5)
    lab.tuned = lambda candidate, group, value: 0.5 if candidate.engine == "good" and value == 1 else 1
    search = lab.search()
    assert {t.threads for t in search.trials if t.candidate.config and not t.candidate.config.device.threads} == {2}
    assert {t.threads for t in search.trials} == {1, 2}


def test_every_round_has_the_users_config_and_who_begins_changes(lab: Lab) -> None:
    lab.add("good", 0.9)
    lab.search(minutes=5 / 60)
    assert lab.log[0] == "your config"
    assert lab.log[1:7] == ["your config", "good", "good", "your config", "your config", "good"]


def test_one_that_begins_hopelessly_is_timed_once(lab: Lab) -> None:
    lab.add("good", 0.5)
    lab.add("close", 0.6)
    lab.add("slow", 0.7)
    search = lab.search()
    assert [len(named(search, name).seconds) for name in ("close", "slow")] == [5, 1]


def test_the_best_are_measured_anew_since_one_may_have_been_lucky(lab: Lab) -> None:
    lab.add("lucky", 0.4)
    lab.add("good", 0.5)
    opened = iter((0.4,) * 4 + (0.8,) * 9)
    usual = lab.open

    def open_it(candidate: Candidate) -> BenchSide:
        if candidate.engine == "lucky":
            lab.speeds["lucky"] = (next(opened),)
        return usual(candidate)

    lab.open = open_it  # type: ignore[method-assign]
    search = lab.search(repeats=1)
    assert search.trials[1].ratio in (pytest.approx(1.25), pytest.approx(2.5))
    assert winner(search) == "good"


def test_one_that_fails_in_the_last_race_keeps_what_was_measured_before(lab: Lab) -> None:
    lab.add("stops late", 0.5)
    lab.speeds["stops late"] = (0.5, 0.5, 0.5, "no number", 0.5)  # type: ignore[assignment]
    search = lab.search()
    assert winner(search) == "stops late"
    assert named(search, "stops late").ratio == pytest.approx(2)
    assert search.notes[0].startswith("the last race failed, so the figures are those from before it: TypeError")


def test_a_winner_is_faster_by_a_margin_and_exact_where_that_costs_nothing(lab: Lab) -> None:
    lab.add("as fast", 0.98)
    assert winner(lab.search()) is None
    lab.add("a bit", 0.96, answers=lambda place: {**right(place), "score": 0.501})
    assert winner(lab.search()) == "a bit"
    lab.add("fast", 0.50, answers=lambda place: {**right(place), "score": 0.501})
    lab.add("exact", 0.51)
    assert winner(lab.search()) == "exact"
    lab.speeds["exact"] = (0.52,)
    assert winner(lab.search()) == "fast"


def test_when_the_time_is_up_nothing_new_is_begun(lab: Lab) -> None:
    lab.add("good", 0.5)
    lab.add("long", 20.0)
    lab.add("late", 0.1)
    search = lab.search(minutes=0.2)
    assert named(search, "late").problem == NOT_TRIED
    assert search.late
    assert winner(search) == "good"
    assert not any(trial.final for trial in search.trials)
    assert {trial.max_tokens for trial in search.trials if trial.seconds} == {1024}


def test_ctrl_c_leaves_what_is_known(lab: Lab) -> None:
    lab.add("good", 0.5)
    lab.add("stopped", 0.1, error=KeyboardInterrupt())
    lab.add("never", 0.1)
    search = lab.search()
    assert search.interrupted
    assert [trial.candidate.engine for trial in search.trials] == ["your config", "good", "stopped"]
    assert named(search, "stopped").problem == "interrupted"
    assert winner(search) == "good"
    lab.reference = lab.found[1]
    search = lab.search()  # before anything is known
    assert [trial.problem for trial in search.trials] == ["interrupted", "interrupted"]


def test_answers_are_held_against_the_reference_not_the_users_config(lab: Lab) -> None:
    lab.add("reference", 2.0)
    lab.add("like yours", 0.1, answers=wrong(0.5))
    lab.reference = lab.found.pop(0)
    lab.answers["your config"] = wrong(0.5)
    search = lab.search()
    assert search.reference == "reference in float32"
    assert named(search, "reference").ratio == pytest.approx(0.5)
    assert named(search, "like yours").rejected_because == "agreement 50.0% is under 95.0%"
    assert search.notes == ["your own config is not good enough itself: agreement 50.0% is under 95.0%"]
    assert winner(search) is None


def test_without_a_reference_the_users_config_is_it(lab: Lab) -> None:
    lab.add("reference", 2.0, error=CheckpointError("static vectors have no network"))
    lab.add("good", 0.5)
    lab.reference = lab.found.pop(0)
    search = lab.search()
    assert search.reference == "your config"
    assert named(search, "reference").problem == "static vectors have no network"
    assert "static vectors have no network" in search.notes[0]
    assert winner(search) == "good"


MACHINE = {
    "date": "2026-11-24",
    "gpu": None,
    "processor": "a CPU",
    "processors": 2,
    "system": "Linux x86_64",
    "pipeline_kit": "0.1.0",
    "torch": "2",
    "transformers": "5",
    "python": "3",
    "load_per_processor": 0.1,
}


def test_the_report_says_all_and_what_makes_it_doubtful(lab: Lab) -> None:
    lab.add("good", 0.5, answers=wrong(0.05))
    lab.found.append(Candidate("impossible", problem="no"))
    search = lab.search()
    report = report_of(search, MACHINE, "given", 40, ["first"])
    chosen = report["trials"][report["winner"]]
    assert (chosen["engine"], chosen["agreement"], chosen["chosen"]) == ("good", 0.95, True)
    assert chosen["ratio"]["median"] == pytest.approx(2)
    assert chosen["texts_per_second"]["median"] == pytest.approx(80)
    assert chosen["tokens_per_second"]["median"] == pytest.approx(400)
    assert {"model.head=base", "task.src_lang=good"} <= set(chosen["overrides"])
    assert [trial["problem"] for trial in report["trials"] if trial["engine"] == "impossible"] == ["no"]
    assert report["notes"] == ["first"]
    assert report["texts"] == {"source": "given", "rows": 40, "different": 40, "left_out": 0}
    config = search.trials[report["winner"]].candidate.config
    assert config is not None
    comment = "\n".join(preset_comment(report, config, "RUN"))
    for text in ("RUN", "2.00x", "95.0% of 40 given texts", "2026-11-24, a CPU", "torch 2", "Note: first"):
        assert text in comment
    doubtful = report_of(search, {**MACHINE, "load_per_processor": 3.0}, "short", 41)["notes"]
    for place, text in enumerate(("the machine is busy (load 3.00", "1 texts failed", "built-in sentences")):
        assert text in doubtful[place]


def test_few_texts_and_labels_that_never_change_are_warned_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.answers["your config"] = lambda place: {"label": "A", "score": 0.5}
    lab.add("far", 0.5, answers=lambda place: {"label": "A", "score": 0.6})
    monkeypatch.setattr("test_tune_search.TEXTS", TEXTS[:5])
    lab.speeds["your config"] = (0.01,)
    search = lab.search()
    notes = "\n".join(report_of(search, MACHINE, "given", 5)["notes"])
    assert "only 5 different texts: even where all agree, 45% of others may not" in notes
    assert "same labels, so agreement means nothing here; numbers may differ by 0.01" in notes
    assert "a round took less than 0.05 s" in notes
    assert winner(search) is None
