"""Runs three stages over a stream of examples: chunks, batches, isolation of bad rows, input order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, overload

from pipeline_kit.contract.stages import Model, Postprocessor, TextReader, TextWriter, Tokenizer
from pipeline_kit.contract.types import Device, Encoding, Example, Result, RowFailure, RowOutput, RunStats
from pipeline_kit.errors import ExampleError, RowError, StageError, UsageError
from pipeline_kit.runtime.batching import BatchingPolicy, plan_batches
from pipeline_kit.runtime.calls import Failed, InStage, StageCalls, is_interruption
from pipeline_kit.runtime.chunks import Chunk, ChunkEncodings, chunks, encode_chunk
from pipeline_kit.runtime.padding import PaddingPolicy, check_finite, collate, split_rows

Observer = Callable[[str, Any, Any], None]
"""Called after each stage with its name, input and output; see :class:`Pipeline`."""

Outcome = Result | RowFailure


@dataclass
class Pipeline:
    """A runnable pipeline: call it, or stream through it.

    :param observer: if set, called as ``observer(stage, input, output)`` for ``tokenizer`` (examples, or
        what `prepare` made of each, encodings), ``padding`` (encodings, TokenBatch), ``model`` (TokenBatch,
        ModelOutput), ``reduce`` (ModelOutput, ModelOutput) and ``postprocessor`` ((examples, encodings,
        outputs), results).
    :param calls: how stages are called.
    :param description: the resolved config as plain data, for people and manifests.
    :param explainer: what :meth:`explain` calls.
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
    explainer: Callable[..., Any] | None = None

    @overload
    def __call__(self, inputs: str | Mapping[str, Any]) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, inputs: Sequence[Example]) -> list[Result]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, inputs: Iterable[Example]) -> Iterator[Result]: ...
    def __call__(self, inputs: Any) -> Any:
        """Run on one example, on a list of them, or on a stream.

        :returns: a result for a string or mapping; a list for anything with a length, in the same order;
            an iterator for a generator or other iterator, as :meth:`stream` returns.
        :raises RowError: on the first row that fails.
        """
        if isinstance(inputs, str | Mapping):
            return next(self.stream([inputs]))
        if isinstance(inputs, bytes | bytearray) or not hasattr(inputs, "__iter__"):
            raise ExampleError(f"a pipeline takes a text, a mapping, or several of them, not {type(inputs).__name__}")
        return list(self.stream(inputs)) if hasattr(inputs, "__len__") else self.stream(inputs)

    def stream(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Result]:
        """Run on any iterable in bounded memory; results come in input order.

        :param stats: counted into, if given.
        :raises RowError: at the place of the first row that fails, after the results before it.
        """
        for outcome in self.outcomes(examples, stats):
            if isinstance(outcome, RowFailure):
                raise RowError(outcome.index, outcome.stage, outcome.error, outcome.message)
            yield outcome

    def stream_text(self, example: Example, stats: RunStats | None = None) -> Iterator[str]:
        """Return the text that a generating pipeline writes for one example, in pieces as they come.

        Joined they are the ``text`` of its result. Closing the iterator ends the writing.

        :param stats: counted into, if given, before the first piece; it says whether the example was cut.
        :raises UsageError: if the model does not write piece by piece, as with beams.
        :raises RowError: if the example fails.
        """
        parts = (self.tokenizer, self.model, self.postprocessor, self.padding, self.device.name)
        return stream_text(*parts, example, RunStats() if stats is None else stats)

    def explain(self, examples: Example | Sequence[Example], *, attentions: bool = False) -> Any:
        """Run on one example, or on a few together, and return a ``Trace`` with the input and output of every stage.

        See :func:`pipeline_kit.explain.record.explain`.

        :raises UsageError: if the pipeline was put together without an `explainer`.
        """
        if self.explainer is None:
            raise UsageError("this pipeline has no explainer; load it with pipeline_kit.load")
        return self.explainer(self, examples, attentions=attentions)

    def outcomes(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Outcome]:
        """Run as :meth:`stream` does, but give a :class:`RowFailure` in the place of a row that fails."""
        stats = RunStats() if stats is None else stats
        start = 0
        for chunk, encoded in self._encoded_chunks(examples, stats):
            yield from self._run_chunk(chunk.examples, encoded, start, stats)
            start += len(chunk.examples)

    def _encoded_chunks(self, examples: Iterable[Example], stats: RunStats) -> Iterator[tuple[Chunk, ChunkEncodings]]:
        """Tokenize each chunk on a second thread while the caller runs the model on the one before."""
        plain = type(self.postprocessor).prepare is Postprocessor.prepare
        prepare = None if plain else self.calls.each("input", self.postprocessor.prepare)
        found = chunks(examples, self.batching.window, prepare)
        current = next(found, None)
        if current is None:
            return
        following = next(found, None)
        if following is None:
            yield current, self._encode(current, 0, stats)
            return
        start = 0
        encoder = ThreadPoolExecutor(1, thread_name_prefix="pipeline-kit-tokenizer")
        try:
            pending = encoder.submit(self._encode, current, start, stats)
            while current is not None:
                encoded = pending.result()
                start += len(current.examples)
                if following is not None:
                    pending = encoder.submit(self._encode, following, start, stats)
                yield current, encoded
                current, following = following, (next(found, None) if following is not None else None)
        finally:
            encoder.shutdown(wait=True, cancel_futures=True)

    def _encode(self, chunk: Chunk, start: int, stats: RunStats) -> ChunkEncodings:
        rows = range(start, start + len(chunk.examples))
        with stats.timed("tokenizer"):
            encoded = encode_chunk(
                self.tokenizer, chunk, lambda call, lists: self.calls.isolated("tokenizer", call, lists, rows, stats)
            )
        if self.observer is not None:
            self.observer("tokenizer", chunk.examples if chunk.parts is None else chunk.parts, encoded)
        return encoded

    def _run_chunk(
        self, chunk: list[Example], encoded: ChunkEncodings, start: int, stats: RunStats
    ) -> Iterator[Outcome]:
        """Yield the outcomes of a chunk in order, once all its batches ran."""
        outcomes: list[Outcome | None] = [None] * len(chunk)
        owners: list[int] = []
        flat: list[Encoding] = []
        for place, item in enumerate(encoded):
            if isinstance(item, Failed):
                outcomes[place] = _failure(start + place, "tokenizer", item.error)
            else:
                owners.extend([place] * len(item))
                flat.extend(item)
        waiting = [0 if isinstance(item, Failed) else len(item) for item in encoded]
        outputs: list[RowOutput | None] = [None] * len(flat)
        first = {owner: place for place, owner in reversed(list(enumerate(owners)))}
        for batch in plan_batches([len(e.input_ids) for e in flat], self.batching, self.padding):
            ready: list[int] = []
            numbers = [start + owners[i] for i in batch]
            found = self.calls.isolated("model", self._forward(stats), [flat[i] for i in batch], numbers, stats)
            for place, output in zip(batch, found, strict=True):
                owner = owners[place]
                if isinstance(output, Failed):
                    outcomes[owner] = _failure(start + owner, "model", output.error)
                else:
                    outputs[place] = output
                waiting[owner] -= 1
                if not waiting[owner] and outcomes[owner] is None:
                    ready.append(owner)
            rows = [(chunk[i], encoded[i], outputs[first[i] : first[i] + len(encoded[i])]) for i in ready]  # type: ignore[arg-type]
            for owner, result in zip(ready, self._postprocess(rows, [start + i for i in ready], stats), strict=True):
                if isinstance(result, Failed):
                    outcomes[owner] = _failure(start + owner, "postprocessor", result.error)
                else:
                    outcomes[owner] = self._annotate(result, encoded[owner], stats)  # type: ignore[arg-type]
            for owner in ready:  # what a finished row's outputs held is not needed until the chunk ends
                outputs[first[owner] : first[owner] + len(encoded[owner])] = [None] * len(encoded[owner])  # type: ignore[arg-type]
        for outcome in outcomes:
            assert outcome is not None, "every row of a chunk has an outcome"
            stats.rows += 1
            stats.failed += isinstance(outcome, RowFailure)
            yield outcome

    def _forward(self, stats: RunStats) -> Callable[[Sequence[Encoding]], list[RowOutput]]:
        def call(encodings: Sequence[Encoding]) -> list[RowOutput]:
            with stats.timed("padding"):
                batch = collate(encodings, self.padding, self.device.name)
            with stats.timed("model"):
                output = self.model.forward(batch)
                check_finite(output, batch)
            try:
                with stats.timed("postprocessor"):
                    reduced = self.postprocessor.reduce(output, batch)
            except BaseException as error:
                if isinstance(error, StageError) or is_interruption(error):
                    raise
                raise InStage("postprocessor", error) from error
            with stats.timed("model"):  # on a GPU the copy is where the wait for the model's work is
                rows = split_rows(reduced, batch)
            stats.batches += 1
            stats.tokens += int(batch.lengths.sum())
            stats.slots += batch.input_ids.numel()
            if self.observer is not None:
                self.observer("padding", encodings, batch)
                self.observer("model", batch, output)
                self.observer("reduce", output, reduced)
            return rows

        return call

    def _postprocess(
        self, rows: Sequence[tuple[Any, ...]], numbers: Sequence[int], stats: RunStats
    ) -> list[Result | Failed]:
        def call(part: Sequence[tuple[Any, ...]]) -> list[Result]:
            examples, encodings, outputs = ([row[i] for row in part] for i in range(3))
            results = self.postprocessor(examples, encodings, outputs)
            if len(results) != len(examples):
                raise StageError(f"the postprocessor returned {len(results)} results for {len(examples)} examples")
            if self.observer is not None:
                self.observer("postprocessor", (examples, encodings, outputs), results)
            return results

        with stats.timed("postprocessor"):
            return self.calls.isolated("postprocessor", call, rows, numbers, stats)

    def _annotate(self, result: Result, encodings: Sequence[Encoding], stats: RunStats) -> Result:
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
        return result


def _failure(index: int, stage: str, error: BaseException) -> RowFailure:
    if isinstance(error, InStage):
        stage, error = error.stage, error.cause
    return RowFailure(index, stage, type(error).__name__, str(error))


def stream_text(
    tokenizer: Tokenizer,
    model: Model,
    postprocessor: Postprocessor,
    padding: PaddingPolicy,
    device: str,
    example: Example,
    stats: RunStats,
) -> Iterator[str]:
    """See :meth:`pipeline_kit.runtime.pipeline.Pipeline.stream_text`."""
    if not isinstance(model, TextWriter) or not isinstance(postprocessor, TextReader):
        stage = postprocessor if isinstance(model, TextWriter) else model
        raise UsageError(
            f"{type(stage).__name__} gives no text in pieces; use a task that writes, such as task=text-generation"
        )
    found = encode_chunk(tokenizer, next(chunks([example], 1, postprocessor.prepare)))[0]
    if isinstance(found, Failed):
        stage_name, error = ("tokenizer", found.error)
        if isinstance(error, InStage):
            stage_name, error = error.stage, error.cause
        raise RowError(0, stage_name, type(error).__name__, str(error)) from error
    if len(found) > 1:
        raise UsageError(
            f"the text was split into {len(found)} windows, whose texts are joined at the end; set "
            "tokenizer.overflow to truncate or error"
        )
    stats.rows += 1
    stats.truncated_rows += bool(found[0].truncated or found[0].truncated_chars)
    return _pieces(model, postprocessor, found[0], example, padding, device)


def _pieces(
    model: TextWriter, reader: TextReader, encoding: Encoding, example: Example, padding: PaddingPolicy, device: str
) -> Iterator[str]:
    ids = model.write(collate([encoding], padding, device))
    pieces = reader.read(example, encoding, ids)
    try:
        while (piece := _next(pieces)) is not None:
            yield piece
    finally:
        close = getattr(ids, "close", None)  # what was cut off by a stop string goes on being written otherwise
        if close is not None:
            close()


def _next(pieces: Iterator[str]) -> str | None:
    try:
        return next(pieces, None)
    except BaseException as error:
        if isinstance(error, UsageError) or is_interruption(error):
            raise
        raise RowError(0, "model", type(error).__name__, str(error)) from error
