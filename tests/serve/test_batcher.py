"""Batches of what waits: who shares one, who goes first, and who is harmed by nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from generate_helpers import writer
from harness import checkpoint, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import GatedModel, gated, until

import pipeline_kit as pk
from pipeline_kit.errors import RowFailure, StageError
from pipeline_kit.runtime.config import ServeConfig
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.serve.dialects.base import Call
from pipeline_kit.serve.dialects.openai import CompletionsBody, completions
from pipeline_kit.serve.refused import Refused
from pipeline_kit.serve.served import Account, ServedPipeline


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline_of("text-classification", checkpoint("bert"))


@pytest.fixture
def held(pipe: Pipeline) -> Iterator[tuple[ServedPipeline, GatedModel]]:
    """A pipeline whose model waits for the test."""
    own, model = gated(pipe)
    served = ServedPipeline("default", own, ServeConfig(max_waiting_tokens=10**6))
    yield served, model
    model.open()
    served.batcher.close()


def at_once(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(work(), 60)

    return asyncio.run(main())


async def ask(served: ServedPipeline, *texts: str, deadline: float = 60, **options: Any) -> Any:
    return await served.run(Account(deadline), list(texts), options)


async def begun(model: GatedModel) -> None:
    """Wait until a batch has begun; its rows do not wait any more."""
    await asyncio.to_thread(model.began.acquire)


def test_rows_that_wait_share_a_batch(held: tuple[ServedPipeline, GatedModel], pipe: Pipeline) -> None:
    served, model = held

    async def work() -> None:
        first = asyncio.create_task(ask(served, "the first one"))
        await begun(model)
        others = [asyncio.create_task(ask(served, f"row {number}")) for number in range(20)]
        await asyncio.to_thread(until, lambda: len(served.batcher._rows.get("", ())) == 20)
        model.open()
        assert await first == pipe(["the first one"])
        assert [row for (row,) in await asyncio.gather(*others)] == [
            pytest.approx(row, abs=1e-5) for row in pipe([f"row {number}" for number in range(20)])
        ]

    at_once(work)
    assert model.batches == [1, 20]


def test_the_oldest_row_is_in_the_next_batch(held: tuple[ServedPipeline, GatedModel]) -> None:
    """A plan has the longest rows first; a short one that came earlier would wait for ever."""
    served, model = held

    async def work() -> None:
        blocker = asyncio.create_task(ask(served, "now"))
        await begun(model)
        short = asyncio.create_task(ask(served, "short"))
        await asyncio.to_thread(until, lambda: len(served.batcher._rows.get("", ())) == 1)
        long = asyncio.create_task(ask(served, *["long " * 200] * 40))
        await asyncio.to_thread(until, lambda: len(served.batcher._rows.get("", ())) == 41)
        model.open(2)
        await blocker
        await short
        assert not long.done()
        model.open()
        await long

    at_once(work)


def test_rows_of_other_options_are_batches_of_their_own(held: tuple[ServedPipeline, GatedModel]) -> None:
    served, model = held
    served._variants["[('postprocessor.top_k', None)]"] = replace(
        served.pipeline.with_options({"postprocessor.top_k": None}),
        model=model,  # type: ignore[arg-type]
    )

    async def work() -> None:
        blocker = asyncio.create_task(ask(served, "now"))
        await begun(model)
        plain = [asyncio.create_task(ask(served, f"text {number}")) for number in range(3)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(ask(served, f"text {number}", top_k=None)) for number in range(2)]
        await asyncio.to_thread(until, lambda: sum(map(len, served.batcher._rows.values())) == 5)
        model.open()
        await blocker
        assert ["labels" in row for (row,) in await asyncio.gather(*plain, *others)] == [False] * 3 + [True] * 2

    at_once(work)
    assert model.batches == [1, 3, 2]


def test_a_bad_row_harms_no_other(held: tuple[ServedPipeline, GatedModel], pipe: Pipeline) -> None:
    served, model = held
    model.open()

    async def work() -> Any:
        return await asyncio.gather(ask(served, "good"), served.run(Account(), ["a", {"txt": "bad"}, "b"], {}))

    (good,), (first, bad, last) = at_once(work)
    assert good == pytest.approx(pipe("good"), abs=1e-5)
    assert (first, last) == (pytest.approx(pipe("a"), abs=1e-5), pytest.approx(pipe("b"), abs=1e-5))
    assert isinstance(bad, RowFailure)
    assert bad.index == 1


class Broken:
    """A model that breaks its contract for long texts."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, batch: Any) -> Any:
        if batch.input_ids.shape[1] >= 20:
            raise StageError("it returned nothing")
        return self.model.forward(batch)


def test_a_stage_that_breaks_ends_no_thread(pipe: Pipeline) -> None:
    served = ServedPipeline("default", replace(pipe, model=Broken(pipe.model)), ServeConfig())  # type: ignore[arg-type]

    async def work() -> None:
        with pytest.raises(StageError):
            await ask(served, "long " * 200)
        assert await ask(served, "short") == [pytest.approx(pipe("short"), abs=1e-5)]
        assert served.batcher.waiting_tokens == 0
        assert served.batcher.stuck < 60

    at_once(work)
    served.batcher.close()


def test_who_has_left_is_not_run(held: tuple[ServedPipeline, GatedModel]) -> None:
    served, model = held

    async def work() -> None:
        blocker = asyncio.create_task(ask(served, "now"))
        await begun(model)
        left = [asyncio.create_task(ask(served, f"gone {number}")) for number in range(5)]
        stays = asyncio.create_task(ask(served, "stays"))
        await asyncio.to_thread(until, lambda: len(served.batcher._rows.get("", ())) == 6)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        model.open()
        await asyncio.gather(blocker, stays)
        assert served.batcher.waiting_tokens == 0

    at_once(work)
    assert model.batches == [1, 1]


def test_a_deadline_passes_while_a_row_waits(held: tuple[ServedPipeline, GatedModel]) -> None:
    served, model = held

    async def work() -> None:
        blocker = asyncio.create_task(ask(served, "now"))
        await begun(model)
        with pytest.raises(Refused) as refused:
            await ask(served, "late", deadline=0.05)
        assert refused.value.status == 504
        model.open()
        await blocker
        await ask(served, "next")

    at_once(work)
    assert model.batches == [1, 1]


def test_too_much_that_waits(held: tuple[ServedPipeline, GatedModel]) -> None:
    served, model = held
    served.config = ServeConfig(max_waiting_tokens=60)

    async def work() -> None:
        alone = asyncio.create_task(ask(served, "a request larger than the queue " * 30))  # runs, for nothing waits
        await begun(model)
        waits = asyncio.create_task(ask(served, "x " * 60))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await ask(served, "x " * 90)
        assert refused.value.status == 429
        assert refused.value.retry_after is not None
        assert 1 <= refused.value.retry_after <= 60
        model.open()
        await asyncio.gather(alone, waits)
        await ask(served, "x " * 90)
        assert served.batcher.waiting_tokens == 0

    at_once(work)


def test_who_is_refused_for_one_text_waits_for_no_other() -> None:
    """The texts of ``n`` are requests of their own; and a stream that waits for its turn has the deadline of any."""
    served = ServedPipeline("default", writer(checkpoint("gpt2", head="causal-lm")), ServeConfig(max_waiting_tokens=20))
    go = threading.Event()

    async def work() -> None:
        blocker = asyncio.create_task(served.alone(Account(), lambda pipe: go.wait(60)))
        call = Call(served, CompletionsBody(prompt="word " * 12, n=3), {}, {}, None, Account())  # type: ignore[arg-type]
        with pytest.raises(Refused, match="tokens wait already"):
            await completions(call)
        await asyncio.to_thread(until, lambda: served.batcher.waiting_tokens == 0)
        late = Account(100, began=time.monotonic() - 100)
        for waiting in (anext(served.stream(late, "a", {})), served.alone(late, lambda pipe: None)):
            with pytest.raises(Refused, match=r"serve\.deadline"):
                await waiting
        go.set()
        await blocker

    at_once(work)
    served.batcher.close()


def test_a_call_has_the_model_for_itself(held: tuple[ServedPipeline, GatedModel]) -> None:
    served, model = held
    seen: list[int] = []

    async def work() -> None:
        before = asyncio.create_task(ask(served, "before"))
        await begun(model)
        call = asyncio.create_task(served.alone(Account(), lambda pipe: seen.append(len(model.batches))))
        await asyncio.sleep(0)
        after = asyncio.create_task(ask(served, "after"))
        await asyncio.to_thread(until, lambda: len(served.batcher._rows.get("", ())) == 1)
        model.open()
        await asyncio.gather(before, call, after)
        with pytest.raises(ZeroDivisionError):
            await served.alone(Account(), lambda pipe: 1 / 0)

    at_once(work)
    assert seen == [1]


REQUESTS = st.lists(
    st.lists(st.text("ab é😀\n", max_size=30) | st.just("word " * 300), min_size=1, max_size=4), min_size=1, max_size=8
)


@pytest.fixture(scope="module")
def busy(pipe: Pipeline) -> Iterator[ServedPipeline]:
    served = ServedPipeline("default", pipe, ServeConfig())
    yield served
    served.batcher.close()


@settings(max_examples=40)
@given(requests=REQUESTS)
def test_any_mix_of_requests_has_the_answers_of_an_offline_run(
    pipe: Pipeline, busy: ServedPipeline, requests: Sequence[Sequence[str]]
) -> None:
    async def work() -> Any:
        return await asyncio.gather(*(ask(busy, *texts) for texts in requests))

    for texts, found in zip(requests, at_once(work), strict=True):
        assert [row["label"] for row in found] == [row["label"] for row in pipe(texts)]
        assert [row["score"] for row in found] == [pytest.approx(row["score"], abs=1e-5) for row in pipe(texts)]


def test_steps() -> None:
    steps = {"one": {"task": "text-classification"}, "two": {"task": "text-classification", "when": "one.label"}}
    pipe = pk.load(steps=steps)
    served = ServedPipeline("default", pipe, ServeConfig())

    async def work() -> Any:
        return await asyncio.gather(*(ask(served, text) for text in ("I love it", "I hate it", "I know it")))

    found = [row for (row,) in at_once(work)]
    served.batcher.close()
    for row, other in zip(found, pipe(["I love it", "I hate it", "I know it"]), strict=True):
        assert row["two"]["label"] == other["two"]["label"]
        assert row["two"]["score"] == pytest.approx(other["two"]["score"], abs=1e-5)
