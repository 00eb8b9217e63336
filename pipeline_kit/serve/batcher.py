"""Forms batches of the rows that wait: requests come from an event loop, the stages run on two threads.

A request is tokenized when it arrives. Whenever the model is free, the pipeline's own plan is made over the rows that
wait, and the batch with the oldest row runs. Nothing waits for more rows to come: a lone request runs alone, at once,
and a busy server runs the batches of an offline run.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import Condition, Lock, Thread
from typing import Any

from pipeline_kit.contract.types import Encoding, Example, RunStats
from pipeline_kit.errors import RowFailure
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.runtime.stage_runner import Outcome
from pipeline_kit.runtime.steps import StepPipeline

MOST_PLANNED = 256
"""How many waiting rows are looked at when a batch is formed, those of the longest wait first."""

MOST_ENCODED = 128
"""How many examples are tokenized in one call, so that the first of many need not wait for the last."""

CHARS_PER_TOKEN = 4
FADING = 0.95
"""What the tokens and seconds of a batch before count beside those of the last one, in the measured speed."""


@dataclass(eq=False)
class Work:
    """The examples of one request, all with the same options.

    :param pipeline: runs them; `key` is equal where the options are, and such works share batches.
    :param on_done: called on `loop` when all `outcomes` are there, or `error` is set.
    :param tokens: how many of its tokens wait; a guess by characters until it is tokenized.
    :param error: what a stage raised that breaks its contract.
    :param total: how many tokens it had in all; `waited` is how many seconds its first row waited for the model.
    """

    pipeline: Pipeline
    key: str
    examples: Sequence[Example]
    loop: AbstractEventLoop
    on_done: Callable[[], None]
    tokens: int = 0
    total: int = 0
    truncated: int = 0
    ticket: int = 0
    cancelled: bool = False
    error: BaseException | None = None
    arrived: float = field(default_factory=time.monotonic)
    waited: float | None = None
    outcomes: list[Outcome | None] = field(default_factory=list)
    encoded: list[list[Encoding]] = field(default_factory=list)
    outputs: list[list[Any]] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        """Make room for what becomes of each example."""
        self.left = len(self.examples)
        self.outcomes = [None] * self.left
        self.encoded, self.outputs = [[] for _ in self.examples], [[] for _ in self.examples]
        self.tokens = self.total = sum(map(guessed_tokens, self.examples))


@dataclass(frozen=True, slots=True)
class _Row:
    """What goes to the model: an encoding of an example, or a whole example of a pipeline made of steps."""

    work: Work
    place: int
    part: int = 0
    tokens: int = 0

    @property
    def encoding(self) -> Encoding:
        return self.work.encoded[self.place][self.part]


@dataclass(eq=False)
class _Call:
    """Something else that needs the model for itself."""

    function: Callable[[], None]
    ticket: int


Watcher = Callable[[int, RunStats], None]
"""Called on a stage's thread after each call: with the rows of a batch, 0 for a tokenizer, and what was counted."""


class Batcher:
    """Two threads, of which one tokenizes while the other runs the model, and what waits for them.

    While the model has nothing to do, its thread tokenizes too: a lone request is not handed from thread to thread.

    :param first_tokens: a plan's budget of tokens: as much may always wait, whatever the speed.
    """

    def __init__(self, name: str, watcher: Watcher = lambda rows, stats: None, first_tokens: int = 1024) -> None:
        self._name, self._watcher, self._first_tokens = name, watcher, first_tokens
        self._lock = Lock()
        self._model_wanted, self._tokenizer_wanted = Condition(self._lock), Condition(self._lock)
        self._arrived: deque[tuple[Work, int]] = deque()
        self._rows: dict[str, deque[_Row]] = {}
        self._calls: deque[_Call] = deque()
        self._tickets = count()
        self._threads: list[Thread] = []
        self._model_waits = self._closed = False
        self._tokens, self._seconds = 0.0, 0.0
        self.waiting_tokens = 0
        self.progressed = time.monotonic()
        """When the model's thread last finished something, or had nothing to do."""

    @property
    def speed(self) -> float:
        """The tokens a second of the last batches; 0 before the first."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def most_waiting(self, seconds: float) -> int:
        """Return how many tokens may wait so that the last of them waits for so many seconds."""
        return max(self._first_tokens, int(self.speed * seconds))

    @property
    def stuck(self) -> float:
        """For how many seconds something waits and nothing was finished; infinity if a thread has died."""
        if any(not thread.is_alive() for thread in self._threads):
            return float("inf")
        with self._lock:
            busy = bool(self._arrived or self._rows or self._calls) or not self._model_waits
        return time.monotonic() - self.progressed if busy and self._threads else 0.0

    def submit(self, work: Work, limit: float = float("inf")) -> bool:
        """Take a request in; return False, and do nothing, if more than `limit` tokens would wait.

        One that is larger than the limit is taken when nothing waits.
        """
        with self._lock:
            if self.waiting_tokens and self.waiting_tokens + work.tokens > limit:
                return False
            work.ticket = next(self._tickets)
            self.waiting_tokens += work.tokens
            self._arrived.append((work, 0))
            self._notify()
        return True

    def call(self, function: Callable[[], None]) -> None:
        """Run `function`, which raises nothing, on the model's thread, when the rows that wait for it have run."""
        with self._lock:
            self._calls.append(_Call(function, next(self._tickets)))
            self._notify()

    def cancel(self, work: Work) -> None:
        """Forget a request: what of it still waits is not run."""
        with self._lock:
            self.waiting_tokens -= work.tokens
            work.tokens, work.cancelled = 0, True

    def close(self) -> None:
        """End both threads once they are done with what they do now; what takes longer ends with the process."""
        with self._lock:
            self._closed = True
            self._model_wanted.notify_all()
            self._tokenizer_wanted.notify_all()
        for thread in self._threads:
            thread.join(timeout=1)

    def _notify(self) -> None:
        if not self._threads:
            for name, loop in (("tokenizer", self._tokenize_all), ("model", self._run_all)):
                self._threads.append(Thread(target=loop, name=f"pipeline-kit-{self._name}-{name}", daemon=True))
                self._threads[-1].start()
        (self._model_wanted if self._model_waits else self._tokenizer_wanted).notify()

    def _tokenize_all(self) -> None:
        while True:
            with self._lock:
                # While the model's thread waits, it was woken for what has arrived and takes it itself.
                while not self._closed and (self._model_waits or not self._arrived):
                    self._tokenizer_wanted.wait()
                if self._closed:
                    return
                taken = self._take_arrived()
            self._encode(taken)

    def _run_all(self) -> None:
        while (step := self._next_step()) is not None:
            step()
            self.progressed = time.monotonic()

    def _next_step(self) -> Callable[[], None] | None:
        """Wait for something to do; None when the batcher is closed."""
        with self._lock:
            while not self._closed:
                oldest = min(self._rows, key=lambda key: self._rows[key][0].work.ticket, default=None)
                if self._calls and (oldest is None or self._calls[0].ticket < self._rows[oldest][0].work.ticket):
                    return self._calls.popleft().function
                if oldest is not None:
                    self._tokenizer_wanted.notify()
                    return partial(self._run, oldest)
                if self._arrived:
                    return partial(self._encode, self._take_arrived())
                self._model_waits = True
                self._model_wanted.wait()
                self._model_waits, self.progressed = False, time.monotonic()
        return None

    def _take_arrived(self) -> list[tuple[Work, range]]:
        """Take examples that are not tokenized, of one pipeline, in the order they came."""
        taken: list[tuple[Work, range]] = []
        room, key = MOST_ENCODED, self._arrived[0][0].key
        while self._arrived and room and self._arrived[0][0].key == key:
            work, start = self._arrived.popleft()
            if work.cancelled:
                continue
            end = min(len(work.examples), start + room)
            taken.append((work, range(start, end)))
            room -= end - start
            if end < len(work.examples):
                self._arrived.appendleft((work, end))
        return taken

    def _encode(self, taken: Sequence[tuple[Work, range]]) -> None:
        """Tokenize examples, and put their rows among those that wait for the model."""
        places = [(work, place) for work, span in taken for place in span]
        if not places:
            return
        rows, done, stats = list[_Row](), set[Work](), RunStats()
        try:
            rows = _tokenized(taken[0][0].pipeline, places, stats, done)
        except BaseException as error:
            done = {work for work, _ in places}
            for work in done:
                work.error = error
        with self._lock:
            for work, place in places:
                self._count(work, -guessed_tokens(work.examples[place]))
            for row in rows:
                self._count(row.work, row.tokens)
            for work in done:
                if work.error is not None:
                    self._count(work, -work.tokens)
                    work.cancelled = True
            if rows:
                self._rows.setdefault(taken[0][0].key, deque()).extend(rows)
                if self._model_waits:
                    self._model_wanted.notify()
        _deliver(done)
        self._watcher(0, stats)

    def _count(self, work: Work, tokens: int) -> None:
        if not work.cancelled:
            self.waiting_tokens += tokens
            work.tokens += tokens
            work.total += tokens

    def _chosen(self, key: str) -> list[_Row]:
        """Take the batch with the oldest row out of those that wait; empty if nobody wants them any more."""
        looked: list[_Row] = []
        with self._lock:
            waiting = self._rows[key]
            while waiting and len(looked) < MOST_PLANNED:
                row = waiting.popleft()
                if not row.work.cancelled:
                    looked.append(row)
        chosen: Sequence[int] = range(len(looked))
        if looked and not isinstance(looked[0].work.pipeline, StepPipeline):
            try:
                plan = looked[0].work.pipeline.batch([row.encoding for row in looked])
                chosen = next(batch for batch in plan if 0 in batch)
            except Exception:  # a policy of a plugin; its rows are run one by one
                chosen = [0]
        inside, taken = set(chosen), [looked[place] for place in chosen]
        with self._lock:
            waiting.extendleft(row for place, row in reversed(list(enumerate(looked))) if place not in inside)
            if not waiting:
                del self._rows[key]
            for row in taken:
                if not row.work.cancelled:
                    self.waiting_tokens -= row.tokens
                    row.work.tokens -= row.tokens
        return taken

    def _run(self, key: str) -> None:
        """Run a batch, and deliver the results of the requests that it completes."""
        rows = self._chosen(key)
        if not rows:
            return
        pipeline, stats, done, start = rows[0].work.pipeline, RunStats(), set[Work](), time.monotonic()
        for row in rows:
            if row.work.waited is None:
                row.work.waited = start - row.work.arrived
        try:
            if isinstance(pipeline, StepPipeline):
                outcomes = pipeline.results_or_failures([row.work.examples[row.place] for row in rows], stats)
                for row, outcome in zip(rows, outcomes, strict=True):
                    _settle(row.work, row.place, outcome, done)
            else:
                self._run_batch(pipeline, rows, stats, done)
        except BaseException as error:
            for work in {row.work for row in rows}:
                self.cancel(work)
                work.error = error
                done.add(work)
        seconds = time.monotonic() - start
        self._tokens = self._tokens * FADING + sum(row.tokens for row in rows)
        self._seconds = self._seconds * FADING + seconds
        _deliver(done)
        self._watcher(len(rows), stats)

    def _run_batch(self, pipeline: Pipeline, rows: Sequence[_Row], stats: RunStats, done: set[Work]) -> None:
        ready: list[_Row] = []
        for row, output in zip(rows, pipeline.forward([row.encoding for row in rows], stats=stats), strict=True):
            outputs = row.work.outputs[row.place]
            outputs[row.part] = output
            if all(found is not None for found in outputs):
                ready.append(row)
        results = pipeline.postprocess(
            [row.work.examples[row.place] for row in ready],
            [row.work.encoded[row.place] for row in ready],
            [row.work.outputs[row.place] for row in ready],
            stats=stats,
        )
        for row, outcome in zip(ready, results, strict=True):
            row.work.outputs[row.place] = []  # what is not needed any more
            _settle(row.work, row.place, outcome, done)


def _tokenized(pipeline: Pipeline, places: Sequence[tuple[Work, int]], stats: RunStats, done: set[Work]) -> list[_Row]:
    """Return the rows that the model is to see of examples; what cannot be tokenized is settled."""
    if isinstance(pipeline, StepPipeline):
        return [_Row(work, place, 0, guessed_tokens(work.examples[place])) for work, place in places]
    rows: list[_Row] = []
    found = pipeline.encode([work.examples[place] for work, place in places], stats=stats)
    for (work, place), item in zip(places, found, strict=True):
        if isinstance(item, RowFailure):
            _settle(work, place, item, done)
            continue
        work.encoded[place], work.outputs[place] = item, [None] * len(item)
        rows += [_Row(work, place, part, len(encoding.input_ids)) for part, encoding in enumerate(item)]
    return rows


def _settle(work: Work, place: int, outcome: Outcome, done: set[Work]) -> None:
    """Note what became of an example; a failure has its place in the request."""
    if isinstance(outcome, RowFailure):
        outcome = RowFailure(place, outcome.stage, outcome.error, outcome.message)
    else:
        work.truncated += "truncated" in outcome
    work.outcomes[place] = outcome
    work.left -= 1
    if not work.left:
        done.add(work)


def _deliver(works: Iterable[Work]) -> None:
    """Let each event loop know once of all its works that are done."""
    by_loop: dict[AbstractEventLoop, list[Work]] = {}
    for work in works:
        by_loop.setdefault(work.loop, []).append(work)
    for loop, found in by_loop.items():

        def call(found: Sequence[Work] = found) -> None:
            for work in found:
                work.on_done()

        if not loop.is_closed():
            loop.call_soon_threadsafe(call)


def guessed_tokens(example: Any) -> int:
    """Guess by its characters how many tokens an example has, all of its texts together."""
    return 2 + _characters(example) // CHARS_PER_TOKEN


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 1
