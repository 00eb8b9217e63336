"""Errors that may pass: the call is made again, so often and after such waits, and only for such classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from echo_job import EchoModel, echo, echo_config

from pipeline_kit.contract.types import ModelOutput, RowFailure, RunStats, TokenBatch
from pipeline_kit.errors import TransientError
from pipeline_kit.runtime.calls import InStage, Retry, StageCalls
from pipeline_kit.runtime.config import RunnerConfig


class Clock:
    """Counts the seconds that would have been slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def retry(self, fraction: float = 1.0, **options: object) -> Retry:
        return Retry(RunnerConfig(**options), self.slept.append, lambda: fraction)  # type: ignore[arg-type]


def failing(times: int, error: BaseException) -> tuple[list[int], object]:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return calls, call


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_call_that_fails_for_a_while_is_made_again(times: int) -> None:
    clock, seen = Clock(), list[BaseException]()
    calls, call = failing(times, ConnectionResetError("lost"))
    assert clock.retry(retries=2)(call, seen.append) == "done"  # type: ignore[arg-type]
    assert (len(calls), len(seen)) == (times + 1, times)


def test_it_is_given_up_after_the_last_try() -> None:
    clock = Clock()
    calls, call = failing(9, TransientError("busy"))
    with pytest.raises(TransientError):
        clock.retry(retries=3, retry_delay=1.0)(call, lambda error: None)  # type: ignore[arg-type]
    assert (len(calls), clock.slept) == (4, [1.0, 2.0, 4.0])


def test_waits_are_capped_and_shaken() -> None:
    clock = Clock()
    _, call = failing(99, TimeoutError())
    with pytest.raises(TimeoutError):
        clock.retry(fraction=0.5, retries=20, retry_delay=1.0)(call, lambda error: None)  # type: ignore[arg-type]
    assert clock.slept[0] == 0.5
    assert max(clock.slept) == clock.slept[-1] == 30.0


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), MemoryError(), InStage("postprocessor", OSError())]
)
def test_other_errors_are_raised_at_once(error: BaseException) -> None:
    clock = Clock()
    calls, call = failing(1, error)
    with pytest.raises(type(error)):
        clock.retry()(call, lambda error: None)  # type: ignore[arg-type]
    assert (len(calls), clock.slept) == (1, [])


def test_what_is_derived_and_a_library_s_class_of_that_name_count() -> None:
    of_a_library = type("ConnectionError", (OSError,), {})
    for error in (TransientError(), ConnectionResetError(), TimeoutError(), of_a_library()):
        assert Retry.may_pass(error)
        assert Retry.may_pass(InStage("postprocessor", error))
    assert not Retry.may_pass(OSError())


class Flaky(EchoModel):
    """Fails `times` times before it works, or always for a row with this id."""

    def __init__(self, times: int, never: int = -1) -> None:
        self.times, self.never, self.sizes = times, never, list[int]()

    def forward(self, batch: TokenBatch) -> ModelOutput:
        self.sizes.append(len(batch.lengths))
        if len(self.sizes) <= self.times or (batch.input_ids == self.never).any():
            raise ConnectionError("the server is away")
        return super().forward(batch)


def outcomes(model: Flaky, texts: Sequence[str], clock: Clock) -> tuple[list[object], RunStats]:
    pipe = echo(echo_config("unused"), model=model)
    pipe = replace(pipe, calls=StageCalls(clock.retry(retries=2)))
    stats = RunStats()
    return list(pipe.outcomes(texts, stats)), stats


def test_a_flaky_stage_costs_no_row_and_is_counted() -> None:
    clock, model = Clock(), Flaky(2)
    found, stats = outcomes(model, ["a", "b", "c"], clock)
    assert [row["label"] for row in found] == ["a", "b", "c"]  # type: ignore[index]
    assert (model.sizes, stats.retries, len(clock.slept)) == ([3, 3, 3], 2, 2)


def test_a_row_that_always_fails_is_found_without_waiting_for_each_half() -> None:
    clock, model = Clock(), Flaky(0, never=ord("b"))
    found, stats = outcomes(model, ["a", "b", "c", "d"], clock)
    assert [isinstance(row, RowFailure) for row in found] == [False, True, False, False]
    assert found[1] == RowFailure(1, "model", "ConnectionError", "the server is away")
    assert len(clock.slept) == stats.retries == 2, "only the whole batch is tried again"
