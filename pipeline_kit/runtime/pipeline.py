"""What a Python program holds: a pipeline that is called, streamed through, mapped over frames, pickled and closed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from html import escape
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.column_types import COUNTS, ColumnType
from pipeline_kit.contract.fields import lacks_value
from pipeline_kit.contract.stages import TextReader, TextWriter
from pipeline_kit.contract.types import Encoding, Example, Result, RunStats
from pipeline_kit.errors import (
    MissingValueError,
    RowError,
    RowFailure,
    StageError,
    UsageError,
    for_message,
    redacted,
)
from pipeline_kit.runtime import frames
from pipeline_kit.runtime.calls import is_interruption
from pipeline_kit.runtime.frames import Fields
from pipeline_kit.runtime.padding import collate
from pipeline_kit.runtime.stage_runner import Outcome, Prepared, StageRunner

MOST_LABELS = 8

Missing = Literal["fail", "skip"]


@dataclass(frozen=True)
class Recipe:
    """What a pipeline was built from, and what its task reads and returns.

    :param data: the whole config as plain data, with its secrets; `plugins` were passed beside it.
    :param build: builds a pipeline from these two; None for one that was put together by hand.
    :param takes: the fields of an example; a ``?`` stands behind one that may be left out.
    :param gives: the keys of a result with their types, None for one that only rows show; a ``?`` stands behind one
        that an option adds.
    :param labels: the names of the labels of the checkpoint's head, by index; empty for a task without them.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    build: Callable[[Mapping[str, Any], tuple[str, ...]], Pipeline] | None = None
    takes: tuple[str, ...] = ("text", "text_pair?")
    gives: Mapping[str, ColumnType | None] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


@dataclass
class Pipeline(StageRunner, AbstractContextManager["Pipeline"]):
    """Texts in, results out; ``pipeline_kit.load`` builds one.

    Call it on a text, a mapping of the task's fields, or several of them: a list, a column of pandas, polars, pyarrow
    or datasets, a numpy array, a generator. Of a frame it reads the columns that are called like the task's fields::

        pipe = pk.load("task=text-classification")
        pipe("I love this.")                                 # {'label': 'POSITIVE', 'score': 0.997...}
        pipe(["I love this.", "I hate it."])                 # a list of results, in order
        pipe.map(frame, fields={"text": "review"})           # the frame with two more columns: label, score
        pipe.embed(texts)                                    # float32 [N, H], with task=sentence-embedding
        for result in pipe.stream(lines): ...                # any number of rows in bounded memory
        await asyncio.to_thread(pipe, texts)                 # without blocking an event loop

    `task`, `labels`, `config` and `description` say what it is. ``with pk.load() as pipe:`` frees the model at the end.

    Several threads may call one pipeline: they take turns at each stage, and each gets the results it would get alone.
    It is pickled and copied as its config: a pickle holds no weights and no observer, and a config with a secret is
    refused. Reading it builds the pipeline anew, from the checkpoint where the config has it.

    :param explainer: what :meth:`explain` calls.
    :param adapter: returns a pipeline with the options of a call, around the same tokenizer and model.
    :param recipe: what it was built from.
    """

    explainer: Callable[..., Any] | None = None
    adapter: Callable[[Pipeline, Mapping[str, Any]], Pipeline] | None = None
    recipe: Recipe = field(default_factory=Recipe)

    @overload
    def __call__(self, inputs: str | Mapping[str, Any], **options: Any) -> Result: ...
    @overload
    def __call__(self, inputs: Sequence[Example], **options: Any) -> list[Result]: ...
    @overload
    def __call__(self, inputs: Iterable[Example], **options: Any) -> Iterator[Result]: ...
    @overload
    def __call__(self, inputs: Any = ..., **options: Any) -> Any: ...
    def __call__(
        self,
        inputs: Any = ...,
        *,
        fields: Fields = None,
        missing: Missing = "fail",
        progress: bool = False,
        **options: Any,
    ) -> Any:
        """Run on one example, on several, on a column or a frame, or on a stream.

        :param inputs: may be left out where the fields of one example are arguments: ``pipe(question=…, context=…)``.
        :param fields: for a frame, the columns of fields that are called otherwise: ``{"text": "review"}``.
        :param missing: ``fail``: a row without a value (None, NaN) fails; ``skip``: its result is None.
        :param progress: show a bar on stderr.
        :param options: options for this call alone, such as ``top_k=None``; none that change the model.
        :returns: a result for a string or mapping; a list for anything with a length, in the same order;
            an iterator for a generator or other iterator, as :meth:`stream` returns.
        :raises RowError: on the first row that fails.
        :raises UsageError: if a frame lacks a field of the task, or an option cannot be set in a call.
        """
        if inputs is ...:
            names = [name.removesuffix("?") for name in self.recipe.takes]
            inputs = {name: options.pop(name) for name in names if name in options}
        results = self.stream(inputs, fields=fields, missing=missing, progress=progress, **options)
        if frames.is_example(inputs):
            return next(results)
        return list(results) if hasattr(inputs, "__len__") else results

    def stream(
        self,
        inputs: Any,
        stats: RunStats | None = None,
        *,
        fields: Fields = None,
        missing: Missing = "fail",
        progress: bool = False,
        **options: Any,
    ) -> Iterator[Result]:
        """Run on whatever a call takes in bounded memory; results are yielded in input order, as they come.

        :param stats: counted into, if given. The other parameters are those of a call.
        :raises RowError: at the place of the first row that fails, after the results before it.
        """
        if missing not in ("fail", "skip"):
            raise UsageError(f"missing={missing!r} is not allowed; allowed: 'fail', 'skip'")
        rows = frames.rows_of(inputs, self.recipe.takes, fields)
        return self.with_options(options)._results(rows, stats, missing == "skip", progress)

    def map(
        self, frame: Any, fields: Fields = None, *, prefix: str = "", missing: Missing = "fail", **options: Any
    ) -> Any:
        """Return `frame` with the results as more columns; its own columns, index, schema and metadata are kept.

        :param frame: a pandas or polars DataFrame, a pyarrow Table or RecordBatch, or a Dataset of datasets. An
            IterableDataset is mapped as it is read.
        :param prefix: what stands before the names of the new columns.
        :param missing: ``skip``: a row without a value has null in the new columns.
        :param options: those of a call, and `progress`.
        :returns: the same kind of object.
        :raises RowError: on the first row that fails.
        :raises UsageError: if it is not a frame, lacks a field of the task, or has a column of a new one's name.
        """

        def mapped(part: Any, places: Sequence[int] = ()) -> Any:
            try:
                results = self(frames.frame_rows(part, self.recipe.takes, fields), missing=missing, **options)
            except RowError as error:
                index = error.failure.index
                raise RowError(replace(error.failure, index=places[index] if places else index)) from error
            return frames.with_results(part, results, self.recipe.gives, prefix)

        if frames.is_streamed(frame):
            return frame.map(mapped, batched=True, batch_size=self.batching.window, with_indices=True)
        if not frames.is_frame(frame):
            way = f"For a {type(frame).__name__} call the pipeline: pipe(texts) returns the results"
            raise UsageError(f"map adds columns to a frame: {frames.READABLE}. {way}")
        # Columns that only some results have are refused beforehand too, and not after an hour.
        frames.check_names(frame, [*(name.removesuffix("?") for name in self.recipe.gives), *COUNTS], prefix)
        return mapped(frame)

    def embed(self, inputs: Any, **options: Any) -> NDArray[np.float32]:
        """Return the embeddings of texts as one matrix; no more than a window of results is in memory beside it.

        :param inputs: whatever a call takes; one text makes a matrix of one row.
        :param options: those of a call. With ``missing="skip"`` the vector of a row without a value is NaN.
        :returns: float32 ``[N, H]``, in the order of `inputs`; ``[0, H]`` if there are none.
        :raises UsageError: if the task does not return embeddings.
        :raises RowError: on the first row that fails.
        """
        numbers, found, width = array("f"), [], 0
        for result in self.stream(inputs, **options):
            found.append(result is not None)
            if result is not None:
                vector = self._vector(result)
                width = width or len(vector)
                if len(vector) != width:
                    raise StageError(f"the embedding of row {len(found) - 1} has {len(vector)} numbers, not {width}")
                numbers.extend(vector)
        width = width or len(self._vector(self("a", **options)))
        matrix = np.frombuffer(numbers, np.float32).reshape(-1, width)
        if all(found):
            return matrix
        spread = np.full((len(found), width), np.nan, np.float32)
        spread[found] = matrix
        return spread

    def _vector(self, result: Result) -> list[float]:
        vector = result.get("embedding")
        if isinstance(vector, list):
            return vector
        keys = ", ".join(map(str, result))
        raise UsageError(f"a result of task={self.task} has no embedding, but {keys}; use task=sentence-embedding")

    def with_options(self, options: Mapping[str, Any]) -> Pipeline:
        """Return this pipeline with other options, around the same model: what a call with them runs.

        :raises ConfigError: for an option that is not there, or that would load the model anew.
        :raises UsageError: if the pipeline was put together without an `adapter`.
        """
        if options and self.adapter is None:
            raise UsageError(f"'{next(iter(options))}' cannot be set in a call of this pipeline; set it in load")
        return self.adapter(self, options) if options and self.adapter else self

    def _results(self, rows: Iterable[Any], stats: RunStats | None, skip: bool, progress: bool) -> Iterator[Any]:
        outcomes: Iterable[Outcome] = self.results_or_failures(rows, stats)
        if progress:
            from rich.console import Console
            from rich.progress import track

            total = len(rows) if isinstance(rows, Sized) else None
            outcomes = track(outcomes, "rows", total, console=Console(stderr=True), transient=True)
        for outcome in outcomes:
            if not isinstance(outcome, RowFailure):
                yield outcome
            elif skip and outcome.error == MissingValueError.__name__:
                yield None
            else:
                raise RowError(outcome)

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.description.get("task", ""))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels that the checkpoint's head knows, by index; empty for a task without them."""
        return self.recipe.labels

    @property
    def config(self) -> dict[str, Any]:
        """The config as plain data, without secrets; `description` has what every ``auto`` in it became."""
        found: dict[str, Any] = redacted(self.recipe.data)
        return found

    def close(self) -> None:
        """Free the stages and the model's memory: a call after it raises. Stages with a method ``close`` are closed."""
        for stage in {id(stage): stage for stage in self._released()}.values():  # steps may share one
            getattr(stage, "close", lambda: None)()
        if self.device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _released(self) -> list[Any]:
        """Forget the stages, once no thread is in one, and return them."""
        self.adapter = None  # it has the model too
        with self.locks.model, self.locks.tokenizer:
            return [vars(self).pop(name, None) for name in ("postprocessor", "model", "tokenizer")]

    def __exit__(self, *error: object) -> None:
        self.close()

    if not TYPE_CHECKING:  # it would hide misspelt names

        def __getattr__(self, name: str) -> Any:
            if name in ("postprocessor", "model", "tokenizer"):
                raise UsageError("this pipeline is closed; load it again")
            raise AttributeError(f"'Pipeline' object has no attribute '{name}'", name=name, obj=self)

    def __reduce__(self) -> Any:
        data, plugins, build = self.recipe.data, self.recipe.plugins, self.recipe.build
        if build is None:
            raise UsageError("a pipeline is pickled and copied as its config, and this one was put together without it")
        if redacted(data) != data:
            raise UsageError("the config of this pipeline holds a secret, which a pickle would show; load it again")
        return build, (data, plugins)

    def __repr__(self) -> str:
        return f"<Pipeline {'; '.join(f'{name} {value}' for name, value in self._facts().items())}>"

    def _repr_html_(self) -> str:
        cells = ((escape(name), escape(value)) for name, value in self._facts().items())
        rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
        return f"<table><caption>pipeline-kit</caption>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        """Return what a person wants to know of a pipeline at a glance."""
        told = self.description
        stages = [str(told.get(kind, {}).get("name", "?")) for kind in ("tokenizer", "model", "postprocessor")]
        labels, more = ", ".join(self.labels[:MOST_LABELS]), len(self.labels) - MOST_LABELS
        found = {
            "task": self.task,
            "checkpoint": str(told.get("checkpoint", {}).get("name", "")),
            "stages": " > ".join(stages),
            "device": f"{self.device.name} {self.device.dtype}",
            "labels": labels + (f" and {more} more" if more > 0 else ""),
            "state": "" if "model" in vars(self) else "closed",
        }
        return {name: for_message(value) for name, value in found.items() if value}

    def prepare(self, example: Example, row: int = 0, stats: RunStats | None = None) -> Prepared:
        """See :class:`StageRunner`; an example without a value fails."""
        if lacks_value(example, self.recipe.takes):
            return RowFailure.of(row, "input", MissingValueError())
        return super().prepare(example, row, stats)

    def judged_results(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Outcome]:
        """Run as :meth:`results_or_failures` does; what comes is what an evaluator of its task judges."""
        return self.results_or_failures(examples, stats)

    @property
    def pinned_options(self) -> Mapping[str, Any]:
        """What the model decided by measuring as it was loaded, see :attr:`Model.pinned_options`."""
        return self.model.pinned_options

    def stream_text(self, example: Example, stats: RunStats | None = None) -> Iterator[str]:
        """Return the text that a generating pipeline writes for one example, in pieces as they come.

        Joined they are the ``text`` of its result. Closing the iterator ends the writing.

        :param stats: counted into, if given, before the first piece; it holds whether the example was cut. Once the
            text has ended, also what was written of it.
        :raises UsageError: if the model does not write piece by piece, as with beams.
        :raises RowError: if the example fails.
        """
        model, reader = self.model, self.postprocessor
        if not isinstance(model, TextWriter) or not isinstance(reader, TextReader):
            stage = reader if isinstance(model, TextWriter) else model
            raise UsageError(
                f"{type(stage).__name__} does not return text in pieces; "
                "use a task that writes, such as task=text-generation"
            )
        stats = stats or RunStats()
        [found] = self.encode([example], stats=stats)
        if isinstance(found, RowFailure):
            raise RowError(found)
        if len(found) > 1:
            raise UsageError(
                f"the text was split into {len(found)} windows, whose texts are joined at the end; set "
                "tokenizer.overflow to truncate or error"
            )
        stats.rows += 1
        stats.tokens += len(found[0].input_ids)
        stats.truncated_rows += bool(found[0].truncated or found[0].truncated_chars)
        batch = collate(found, self.padding, self.device.name)
        most = model.max_new_tokens
        return _pieces(lambda: _counted(model.write(batch), most, stats), reader, example, found[0], self.locks.model)

    def explain(
        self,
        examples: Example | Sequence[Example],
        *,
        attentions: bool = False,
        views: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run on one example, or on a few together, and return a ``Trace`` with the input and output of every stage.

        See :func:`pipeline_kit.explain.record.explain`.

        :raises UsageError: if the pipeline was put together without an `explainer`.
        """
        if self.explainer is None:
            raise UsageError("this pipeline has no explainer; load it with pipeline_kit.load")
        with self.locks.model:  # it watches the model, and must not see the batches of other threads
            return self.explainer(self, examples, attentions=attentions, views=views)


def _counted(ids: Iterator[int], most: int, stats: RunStats) -> Generator[int, None, None]:
    """Count what a model writes; a reader that met a stop string does not ask for the end."""
    try:
        before = stats.written_tokens
        for token in ids:
            stats.written_tokens += 1
            yield token
        stats.unfinished_rows += stats.written_tokens - before >= most
    finally:
        getattr(ids, "close", lambda: None)()  # what was cut off by a stop string goes on being written otherwise


def _pieces(
    write: Callable[[], Generator[int, None, None]],
    reader: TextReader,
    example: Example,
    encoding: Encoding,
    turn: RLock,
) -> Iterator[str]:
    ids: Generator[int, None, None] | None = None
    pieces: Iterator[str] | None = None
    try:
        while True:
            try:
                with turn:  # for one piece: who stops to read does not keep other threads from the model
                    if pieces is None:
                        ids = write()
                        pieces = reader.read(example, encoding, ids)
                    piece = next(pieces, None)
            except BaseException as error:
                if isinstance(error, UsageError) or is_interruption(error):
                    raise
                raise RowError(RowFailure.of(0, "model", error)) from error
            if piece is None:
                return
            yield piece
    finally:
        if ids is not None:
            ids.close()
