"""A pipeline that answers requests: its parameters, its limits, and the way of a request through its batcher."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event
from typing import Any, TypeVar

from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.contract.column_types import ColumnType
from pipeline_kit.contract.registry import Task
from pipeline_kit.contract.stages import TextReader, TextWriter
from pipeline_kit.contract.types import Example, Result, RunStats
from pipeline_kit.errors import (
    ConfigError,
    PipelineKitError,
    RegistryError,
    RowError,
    RowFailure,
    closest_match,
    for_message,
)
from pipeline_kit.runtime.config import ServeConfig
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.runtime.stage_runner import Outcome
from pipeline_kit.runtime.steps import StepPipeline
from pipeline_kit.serve.batcher import Batcher, Watcher, Work
from pipeline_kit.serve.refused import Refused

T = TypeVar("T")

LONGEST_WAIT = 10.0
"""Seconds that a request may have to wait for those before it, unless ``serve.max_waiting_tokens`` is set."""

MOST_VARIANTS = 64
"""How many sets of options of requests are kept."""

MOST_WRITTEN = 32
"""How many texts are written side by side, at most."""

TRANSIENT = ("TransientError", "ConnectionError", "TimeoutError", "MemoryError", "OutOfMemoryError")


@dataclass
class Account:
    """What is known of a request when it has been answered.

    :param deadline: seconds that it may wait in all, from `began` on, ``time.monotonic()``.
    :param written: tokens of a text that was streamed; `unfinished` is whether it ended as no more may be written.
    :param waited: seconds that its first row waited for the model.
    :param texts: its examples, where ``serve.log_texts`` is set.
    :param left: whether the client has gone.
    """

    deadline: float = 60.0
    began: float = field(default_factory=time.monotonic)
    rows: int = 0
    tokens: int = 0
    written: int = 0
    unfinished: bool = False
    waited: float | None = None
    texts: Any = None
    left: bool = False


@dataclass(eq=False)
class ServedPipeline:
    """One pipeline of a server.

    :param parameters: the options that a request may set, by the last word of their names.
    :param gives: the keys of its results with their types; empty where only the rows show them.
    """

    name: str
    pipeline: Pipeline
    config: ServeConfig
    watcher: Watcher = lambda rows, stats: None
    rejected: Callable[[str], None] = lambda reason: None
    task: str = field(init=False)
    head: str = field(init=False)
    takes: tuple[str, ...] = field(init=False)
    gives: Mapping[str, ColumnType | None] = field(init=False)
    parameters: Mapping[str, str] = field(init=False)
    batcher: Batcher = field(init=False)
    warm: bool = False

    def __post_init__(self) -> None:
        """Read what the task declares; a failed call of a stage is not tried again, since others wait."""
        pipe = self.pipeline
        self.pipeline = self._capped(replace(pipe, calls=replace(pipe.calls, retries=0)))
        self._variants: dict[str, Pipeline] = {}
        self.task, self.takes = pipe.task, pipe.recipe.takes
        self.gives = {key.removesuffix("?"): kind for key, kind in pipe.recipe.gives.items()}
        steps = isinstance(pipe, StepPipeline)
        try:
            task: Task | None = load_registry(pipe.recipe.plugins).get("task", self.task).detail
        except RegistryError:  # a pipeline that was put together by hand
            task = None
        self.head = task.head if task is not None and not steps else ""
        names = task.parameters if task is not None and not steps else ()
        self.parameters = {name.rpartition(".")[2]: name for name in names}
        self.batcher = Batcher(self.name, self.watcher, pipe.batching.max_tokens or 1024)

    @property
    def writes(self) -> bool:
        """Whether it can return a text in pieces."""
        return isinstance(self.pipeline.model, TextWriter) and isinstance(self.pipeline.postprocessor, TextReader)

    def _capped(self, pipe: Pipeline) -> Pipeline:
        """Return a pipeline that writes fewer texts side by side: later requests wait for all of them to end."""
        if not self.writes:
            return pipe
        most = min(pipe.batching.max_rows or MOST_WRITTEN, MOST_WRITTEN)
        return replace(pipe, batching=replace(pipe.batching, max_rows=most))

    @property
    def most_waiting(self) -> int:
        """How many tokens may wait."""
        return self.config.max_waiting_tokens or self.batcher.most_waiting(LONGEST_WAIT)

    async def variant(self, options: Mapping[str, Any]) -> tuple[str, Pipeline]:
        """Return the pipeline with options of a request, and a key that is equal where they are.

        A new one is made on another thread: where a text may get longer, its tokenizer is read again.

        :raises Refused: 422 for an option that the task does not let a request set, or a value that is wrong.
        """
        chosen: dict[str, Any] = {}
        for name, value in options.items():
            if name not in self.parameters:
                known = tuple(self.parameters)
                near = closest_match(name, known)
                hint = f" Did you mean '{near}'?" if near else ""
                allowed = f"a request may set: {', '.join(known)}" if known else "a request may set none"
                raise Refused(
                    422,
                    f"'{for_message(name, 60)}' is not a parameter of task={self.task}.{hint} {allowed}",
                    param="$.parameters",
                )
            chosen[self.parameters[name]] = value
        if not chosen:
            return "", self.pipeline
        key = repr(sorted(chosen.items()))
        found = self._variants.get(key)
        if found is None:
            try:
                found = self._capped(await asyncio.to_thread(self.pipeline.with_options, chosen))
            except ConfigError as error:
                raise Refused(422, "; ".join(map(str, error.faults)), param="$.parameters") from None
            except PipelineKitError as error:
                raise Refused(422, str(error), param="$.parameters") from None
            if len(self._variants) >= MOST_VARIANTS:
                self._variants.pop(next(iter(self._variants)))
            self._variants[key] = found
        return key, found

    async def run(self, account: Account, examples: Sequence[Example], options: Mapping[str, Any]) -> list[Outcome]:
        """See :meth:`~pipeline_kit.serve.dialects.base.Call.outcomes`."""
        self.check_count(account, examples, options)
        key, pipeline = await self.variant(options)
        if not examples:
            return []
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        work = Work(pipeline, key, examples, loop, partial(_settle, done))
        if not self.batcher.submit(work, self.most_waiting):
            raise self._overloaded()
        try:
            await self._in_time(account, done)
        finally:
            if not done.done() or done.cancelled():
                self.batcher.cancel(work)  # the client has left, or the deadline has passed
            account.tokens += work.total
            account.waited = work.waited
        if work.error is not None:
            raise work.error
        return work.outcomes  # type: ignore[return-value] # all are there

    async def stream(self, account: Account, example: Example, options: Mapping[str, Any]) -> AsyncIterator[str]:
        """See :meth:`~pipeline_kit.serve.dialects.base.Call.pieces`; it has the model for itself meanwhile."""
        self.check_count(account, [example], options)
        _, pipeline = await self.variant(options)
        self._check_room()
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        left, stats = Event(), RunStats()

        def put(item: str | BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(pieces.put_nowait, item)

        def write() -> None:
            try:
                text = iter(()) if left.is_set() else pipeline.stream_text(example, stats)
                for piece in text:
                    put(piece)
                    self.batcher.progressed = time.monotonic()
                    if left.is_set():
                        break
                getattr(text, "close", lambda: None)()
                put(None)
            except BaseException as error:
                put(error)

        self.batcher.call(write)
        try:
            item = await self._in_time(account, pieces.get())
            while True:
                if item is None:
                    return
                if isinstance(item, RowError):
                    self.result_of(0, item.failure, 1)
                if isinstance(item, PipelineKitError):
                    raise Refused(422, str(item))
                if isinstance(item, BaseException):
                    raise item
                yield item
                item = await pieces.get()
        finally:
            left.set()
            account.tokens += stats.tokens
            account.written += stats.written_tokens
            account.unfinished = bool(stats.unfinished_rows)

    async def alone(self, account: Account, function: Callable[[Pipeline], T]) -> T:
        """Run a function with the pipeline on the model's thread, between batches.

        :raises Refused: 429 if too much waits, 504 if the deadline passes before it is done.
        """
        self._check_room()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[T] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not found.done():
                found.set_result(value) if error is None else found.set_exception(error)

        def work() -> None:
            value, error = None, None
            try:
                value = None if found.cancelled() else function(self.pipeline)
            except BaseException as failure:
                error = failure
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, value, error)

        self.batcher.call(work)
        return await self._in_time(account, found)

    async def _in_time(self, account: Account, found: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(found, account.began + account.deadline - time.monotonic())
        except TimeoutError:
            message = f"the request waited for {account.deadline:g} s, see serve.deadline"
            raise Refused(504, message, retry_after=self.retry_after) from None

    async def warm_up(self) -> None:
        """Run a batch, so that the first request does not pay for what is done once, and the speed is known."""
        words = "The first request should not pay for what is done once. " * 2
        example = {name: [words] if name.endswith("s") else words for name in self.takes if not name.endswith("?")} or {
            self.takes[0].removesuffix("?"): words
        }
        rows = max(1, min(16, (self.pipeline.batching.max_tokens or 1024) // 32)) if not self.writes else 1
        account = Account(deadline=3600)
        for _ in range(2):
            with suppress(Exception):  # the task may not take such an example; the stages are loaded all the same
                await self.run(account, [example] * rows, {})
        self.warm = True

    @property
    def retry_after(self) -> int:
        """Seconds until what waits now has run, 1 to 60."""
        speed = self.batcher.speed
        return min(60, max(1, math.ceil(self.batcher.waiting_tokens / speed))) if speed else 1

    def result_of(self, place: int, outcome: Outcome, rows: int) -> Result:
        """Return a result.

        :raises Refused: if it is a failure: 422, or 503 for one that may not come again.
        """
        if not isinstance(outcome, RowFailure):
            return outcome
        where = f"input {place}: " if rows > 1 else ""
        message = f"{where}{outcome.stage}: {for_message(outcome.message, 500)}"
        if outcome.error in TRANSIENT:
            raise Refused(503, message, retry_after=self.retry_after)
        raise Refused(422, message, param=f"$.inputs[{place}]" if rows > 1 else "$.inputs")

    def check_count(
        self, account: Account, examples: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> None:
        """Count the inputs of a request: an option that is a field too, such as labels, counts for each example.

        :raises Refused: 413 if they are too many.
        """
        account.rows += len(examples)
        if self.config.log_texts:
            account.texts = examples
        shared = {name: value for name, value in (options or {}).items() if f"{name}?" in self.takes}
        self.check_limit(sum(max(_inputs(example), _inputs(shared)) for example in examples))

    def check_limit(self, count: int) -> None:
        """Raise Refused, 413, for more inputs than a request may have."""
        if count > self.config.max_inputs:
            raise Refused(
                413, f"{count:,} inputs are more than serve.max_inputs={self.config.max_inputs:,}; send fewer at a time"
            )

    def _check_room(self) -> None:
        if self.batcher.waiting_tokens > self.most_waiting:
            raise self._overloaded()

    def _overloaded(self) -> Refused:
        self.rejected("queue_full")
        waiting = self.batcher.waiting_tokens
        message = f"{waiting:,} tokens wait already, {self.most_waiting:,} may; come back in {self.retry_after} s"
        return Refused(429, message, retry_after=self.retry_after)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _inputs(example: Example) -> int:
    """Count the inputs that an example is made of: documents, labels and the like count each."""
    if isinstance(example, str):
        return 1
    # A list of labels may be one text, with commas.
    counts = (
        len(value) if isinstance(value, list) else value.count(",") + 1
        for name, value in example.items()
        if isinstance(value, list) or (name == "labels" and isinstance(value, str))
    )
    return max(counts, default=1) or 1
