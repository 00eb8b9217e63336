"""Runs three stages over a stream of examples: chunks, batches, isolation of bad rows, input order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from threading import RLock
from typing import Any

from pipeline_kit.contract.stages import Model, Postprocessor, Tokenizer
from pipeline_kit.contract.types import Device, Encoding, Example, Result, RowOutput, RunStats
from pipeline_kit.errors import RowFailure, StageError
from pipeline_kit.runtime.batching import BatchingPolicy, plan_batches
from pipeline_kit.runtime.calls import StageCalls
from pipeline_kit.runtime.padding import PaddingPolicy, check_finite, collate, equal_rows, split_rows

FIRST_CHUNK = 64  # A stream's first results should not wait for a whole sort window; chunks grow from here.

Observer = Callable[[str, Any, Any], None]
"""Called after each stage with its name, input and output; see :class:`StageRunner`."""

Outcome = Result | RowFailure

Prepared = Sequence[Example] | RowFailure
"""What is encoded for an example, or why there is nothing."""

Encoded = list[Encoding] | RowFailure
"""The encodings of an example, by part and window, or why there are none."""


@dataclass(frozen=True)
class StageLocks:
    """Who may call a stage now. Pipelines that share stages share this.

    A turn is held for one call of a stage, never while a row is handed out or an observer runs. So a stream that is
    half read blocks nobody, and a thread with the tokenizer's turn never waits for the model's: there is no deadlock.

    :param tokenizer: for ``encode``.
    :param model: for the model and the postprocessor, and so for the device.
    """

    tokenizer: RLock = field(default_factory=RLock)
    model: RLock = field(default_factory=RLock)


@dataclass
class StageRunner:
    """Three stages with their policies, and the four steps of a stream as calls on lists of rows.

    A server that forms batches of its own calls them itself: :meth:`encode`, :meth:`batch`, :meth:`forward`,
    :meth:`postprocess`. Each takes and returns lists; where a row failed, its :class:`RowFailure` stands in its place
    and is passed on. `rows` are the numbers of the rows, for failures; without them their places are.

    :param description: the resolved config as plain data, for people and manifests.
    :param observer: if set, called as ``observer(stage, input, output)`` for ``tokenizer`` (what `prepare` made of
        each example, encodings), ``padding`` (encodings, TokenBatch), ``model`` (TokenBatch, ModelOutput), ``reduce``
        (ModelOutput, ModelOutput) and ``postprocessor`` ((examples, encodings, outputs), results), on the thread that
        called the stage.
    :param calls: how stages are called.
    :param locks: which thread may call a stage.
    """

    tokenizer: Tokenizer
    model: Model
    postprocessor: Postprocessor
    padding: PaddingPolicy
    batching: BatchingPolicy
    device: Device
    description: Mapping[str, Any]
    observer: Observer | None = None
    calls: StageCalls = field(default_factory=StageCalls)
    locks: StageLocks = field(default_factory=StageLocks)

    def results_or_failures(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Outcome]:
        """Run on any iterable in bounded memory; yield in input order each row's result, or its :class:`RowFailure`."""
        stats = stats or RunStats()
        for rows, chunk, encoded in self._encoded_chunks(examples, stats):
            for outcome in self._run_chunk(rows, chunk, encoded, stats):
                stats.rows += 1
                stats.failed += isinstance(outcome, RowFailure)
                yield outcome

    def prepare(self, example: Example, row: int = 0, stats: RunStats | None = None) -> Prepared:
        """Return what is encoded for an example, by the postprocessor's rule."""
        postprocessor = self.postprocessor
        if type(postprocessor).prepare is Postprocessor.prepare:
            return (example,)

        def call(examples: Sequence[Example]) -> list[Sequence[Example]]:
            with self.locks.model:
                found = postprocessor.prepare(examples[0])
            if not found:
                raise StageError("the postprocessor's prepare returned nothing to encode for an example")
            return [found]

        return self.calls.call("input", call, [example], [row], stats or RunStats())[0]

    def encode(
        self,
        examples: Sequence[Example],
        rows: Sequence[int] | None = None,
        stats: RunStats | None = None,
        *,
        prepared: Sequence[Prepared] | None = None,
    ) -> list[Encoded]:
        """Tokenize examples; one that fails, in any of its parts, does not touch the others.

        :param prepared: what :meth:`prepare` returned for each; without it, it is called here.
        :returns: for each example its encodings, by part and window, or why there are none.
        """
        stats, rows = stats or RunStats(), range(len(examples)) if rows is None else rows
        if prepared is None:
            prepared = [self.prepare(example, row, stats) for example, row in zip(examples, rows, strict=True)]
        good = [place for place, parts in enumerate(prepared) if not isinstance(parts, RowFailure)]
        lists: Any = [prepared[place] for place in good]
        with stats.timed("tokenizer"):
            call = partial(self._tokenize, self.tokenizer)
            found = iter(self.calls.call("tokenizer", call, lists, [rows[place] for place in good], stats))
        encoded = [parts if isinstance(parts, RowFailure) else next(found) for parts in prepared]
        if self.observer is not None:
            self.observer("tokenizer", prepared, encoded)
        return encoded

    def batch(self, encodings: Sequence[Encoding]) -> list[list[int]]:
        """Return which encodings share a batch, by their places: each exactly once, the longest first.

        Those that are equal are in one batch, where they count once, see :meth:`forward`.
        """
        groups = self._groups(encodings)
        lengths = [len(encodings[group[0]].input_ids) for group in groups]
        batches = plan_batches(lengths, self.batching, self.padding)
        return [[place for number in batch for place in groups[number]] for batch in batches]

    def _groups(self, encodings: Sequence[Encoding]) -> list[list[int]]:
        """Return the places of `encodings`, those together that are one row for the model."""
        if self.batching.deduplicate and self.model.deterministic:
            return equal_rows(encodings)
        return [[place] for place in range(len(encodings))]

    def forward(
        self, encodings: Sequence[Encoding], rows: Sequence[int] | None = None, stats: RunStats | None = None
    ) -> list[RowOutput | RowFailure]:
        """Pad encodings to one batch, run the model on it, and reduce what it returns, on its device.

        Equal encodings are one row of the batch, and each gets a copy of its answer, if the model is deterministic.

        :returns: for each encoding the arrays that :meth:`postprocess` takes, or why there are none.
        """
        stats, rows = stats or RunStats(), range(len(encodings)) if rows is None else rows
        model, postprocessor, stage = self.model, self.postprocessor, "model"

        def call(encodings: Sequence[Encoding]) -> list[RowOutput]:
            nonlocal stage
            stage = "model"
            with stats.timed("padding"):
                groups = self._groups(encodings)
                distinct = [encodings[group[0]] for group in groups]
                batch = collate(distinct, self.padding, self.device.name)
            with self.locks.model:
                stage = "postprocessor"
                batch = replace(batch, wanted=postprocessor.wanted(batch))
                stage = "model"
                with stats.timed("model"):
                    output = model.forward(batch)
                    check_finite(output, batch)
                stage = "postprocessor"
                with stats.timed("postprocessor"):
                    reduced = postprocessor.reduce(output, batch)
                stage = "model"
                with stats.timed("model"):  # on a GPU the copy is where the wait for the model's work is
                    split = split_rows(reduced, batch)
            stats.batches += 1
            stats.repeats += len(encodings) - len(distinct)
            stats.tokens += int(batch.lengths.sum())
            stats.padded_tokens += batch.input_ids.numel()
            if self.observer is not None:
                self.observer("padding", distinct, batch)
                self.observer("model", batch, output)
                self.observer("reduce", output, reduced)
            answers: dict[int, RowOutput] = {}
            for (first, *others), answer in zip(groups, split, strict=True):
                answers[first] = answer
                answers.update((place, {name: value.copy() for name, value in answer.items()}) for place in others)
            return [answers[place] for place in range(len(encodings))]

        return self.calls.call("model", call, encodings, rows, stats, lambda: stage)

    def postprocess(
        self,
        examples: Sequence[Example],
        encoded: Sequence[Encoded],
        outputs: Sequence[Sequence[RowOutput | RowFailure]],
        rows: Sequence[int] | None = None,
        stats: RunStats | None = None,
    ) -> list[Outcome]:
        """Make results of what the model returned.

        :param encoded: for each example what :meth:`encode` returned.
        :param outputs: for each example what :meth:`forward` returned for each of its encodings.
        """
        stats, rows = stats or RunStats(), range(len(examples)) if rows is None else rows
        postprocessor = self.postprocessor
        failures = [
            item if isinstance(item, RowFailure) else next((o for o in found if isinstance(o, RowFailure)), None)
            for item, found in zip(encoded, outputs, strict=True)
        ]

        def call(places: Sequence[int]) -> list[Result]:
            given: Any = [[values[place] for place in places] for values in (examples, encoded, outputs)]
            with self.locks.model:
                results = postprocessor(*given)
            if len(results) != len(places):
                raise StageError(f"the postprocessor returned {len(results)} results for {len(places)} examples")
            if self.observer is not None:
                self.observer("postprocessor", tuple(given), results)
            return results

        good = [place for place, failure in enumerate(failures) if failure is None]
        with stats.timed("postprocessor"):
            found = self.calls.call("postprocessor", call, good, [rows[place] for place in good], stats)
        outcomes: list[Any] = list(failures)
        for place, result in zip(good, found, strict=True):
            outcomes[place] = result
            if not isinstance(result, RowFailure):
                self._annotate(result, encoded[place], stats)  # type: ignore[arg-type]
        return outcomes

    def _chunks(
        self, examples: Iterable[Example], stats: RunStats, ended_by: list[Exception]
    ) -> Iterator[tuple[range, list[Example], list[Prepared]]]:
        """Cut a stream into chunks that are tokenized and planned together.

        A chunk has at most ``window`` parts to encode, unless one example alone has more of them.

        :param ended_by: gets what the stream itself raises, so that the rows before it have their results first.
        """
        window = self.batching.window
        size = window if hasattr(examples, "__len__") else min(FIRST_CHUNK, window)
        chunk: list[Example] = []
        prepared: list[Prepared] = []
        start = parts = 0
        try:
            for row, example in enumerate(examples):
                found = self.prepare(example, row, stats)
                chunk.append(example)
                prepared.append(found)
                parts += 1 if isinstance(found, RowFailure) else len(found)
                if parts >= size:
                    yield range(start, row + 1), chunk, prepared
                    chunk, prepared, start, parts = [], [], row + 1, 0
                    size = min(size * 4, window)
        except Exception as error:
            ended_by.append(error)
        if chunk:
            yield range(start, start + len(chunk)), chunk, prepared

    def _encoded_chunks(
        self, examples: Iterable[Example], stats: RunStats
    ) -> Iterator[tuple[range, list[Example], list[Encoded]]]:
        """Tokenize each chunk on a second thread while the caller runs the model on the one before."""

        def encode(chunk: tuple[range, list[Example], list[Prepared]]) -> tuple[range, list[Example], list[Encoded]]:
            rows, examples, prepared = chunk
            return rows, examples, self.encode(examples, rows, stats, prepared=prepared)

        ended_by: list[Exception] = []
        chunks = self._chunks(examples, stats, ended_by)
        current, following = next(chunks, None), next(chunks, None)
        if current is not None and following is None:
            yield encode(current)
        elif current is not None:
            with ThreadPoolExecutor(1, thread_name_prefix="pipeline-kit-tokenizer") as encoder:
                pending = encoder.submit(encode, current)
                while following is not None:
                    encoded, current = pending.result(), following
                    pending = encoder.submit(encode, current)
                    yield encoded
                    following = next(chunks, None)
                yield pending.result()
        if ended_by:
            raise ended_by[0]

    def _run_chunk(
        self, rows: range, examples: list[Example], encoded: list[Encoded], stats: RunStats
    ) -> list[Outcome]:
        """Return the outcomes of a chunk in order, once all its batches ran."""
        outcomes: list[Any] = list(encoded)
        outputs: list[list[Any]] = [[None] * len(item) if isinstance(item, list) else [] for item in encoded]
        places = [(owner, part) for owner, found in enumerate(outputs) for part in range(len(found))]
        flat = [encoding for item in encoded if isinstance(item, list) for encoding in item]
        waiting = [len(found) for found in outputs]
        for batch in self.batch(flat):
            ready: list[int] = []
            numbers = [rows[places[i][0]] for i in batch]
            for i, output in zip(batch, self.forward([flat[i] for i in batch], numbers, stats), strict=True):
                owner, part = places[i]
                outputs[owner][part] = output
                waiting[owner] -= 1
                if not waiting[owner]:
                    ready.append(owner)
            results = self.postprocess(
                [examples[i] for i in ready],
                [encoded[i] for i in ready],
                [outputs[i] for i in ready],
                [rows[i] for i in ready],
                stats,
            )
            for owner, outcome in zip(ready, results, strict=True):
                outcomes[owner] = outcome
                outputs[owner] = []  # what a finished row's outputs held is not needed until the chunk ends
        return outcomes

    def _tokenize(self, tokenizer: Tokenizer, lists: Sequence[Sequence[Example]]) -> list[list[Encoding]]:
        """Encode the parts of several examples in one call; return with each encoding its example."""
        owners = [(place, part) for place, parts in enumerate(lists) for part in range(len(parts))]
        grouped: list[list[Encoding]] = [[] for _ in lists]
        seen = [False] * len(owners)
        with self.locks.tokenizer:
            found = tokenizer.encode([part for parts in lists for part in parts])
        for encoding in found:
            if not 0 <= encoding.example < len(owners) or not len(encoding.input_ids):
                raise StageError("the tokenizer returned an encoding that is empty or belongs to no example")
            seen[encoding.example] = True
            place, part = owners[encoding.example]
            if (place, part) != (encoding.example, 0):
                encoding = replace(encoding, example=place, part=part)
            grouped[place].append(encoding)
        if not all(seen):
            raise StageError(f"the tokenizer returned no encoding for text {seen.index(False)} of {len(seen)}")
        return grouped

    def _annotate(self, result: Result, encodings: Sequence[Encoding], stats: RunStats) -> None:
        """Add what a user must know about cut and split texts, so that neither is ever silent."""
        # With only_first the parts of an example have the text that is cut in common: it counts once.
        total = max if self.postprocessor.truncation == "only_first" else sum
        firsts = encodings if len(encodings) == 1 else [e for e in encodings if not e.window]
        tokens, characters = total([e.truncated for e in firsts]), total([e.truncated_chars for e in firsts])
        if tokens or characters:
            stats.truncated_rows += 1
            result["truncated"] = tokens
            if characters:
                result["truncated_chars"] = characters
        if len(encodings) > len(firsts):
            stats.windows += len(encodings)
            result["windows"] = len(encodings)
