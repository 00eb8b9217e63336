"""The three stages as interfaces, and the panels in which a stage shows its own work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pipeline_kit.contract.gradients import Differentiable, Target
from pipeline_kit.contract.types import (
    Checkpoint,
    Device,
    Encoding,
    Example,
    ModelOutput,
    Result,
    RowOutput,
    Side,
    TokenBatch,
)
from pipeline_kit.errors import ExampleError, for_message

if TYPE_CHECKING:
    import torch

Cell = str | int | float | bool | None
"""What stands in a panel's table: JSON values."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A heading with a table, a formula, or both.

    :param title: a few words, such as ``logits to probabilities``.
    :param columns: the table's headings; empty if there is no table.
    :param rows: the table's cells, each row as long as `columns`; numbers stay numbers.
    :param bar: the heading of a column of numbers that is drawn as bars too.
    :param formula: the arithmetic with its numbers, as one would write it on paper; lines.
    :param note: what a reader should know besides.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    bar: str | None = None
    formula: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One example on its way through a postprocessor.

    :param raw: for each encoding what the model returned, before `reduce`; padding is taken off.
    :param outputs: for each encoding what `reduce` left of it, as ``Postprocessor.__call__`` gets it.
    :param labels: the checkpoint's label names, by index.
    """

    example: Example
    encodings: Sequence[Encoding]
    raw: Sequence[RowOutput]
    outputs: Sequence[RowOutput]
    result: Result
    labels: Sequence[str] = ()

    def places(self, part: int) -> list[int]:
        """Return the places of the encodings of one of the texts that `prepare` made of the example."""
        return [place for place, encoding in enumerate(self.encodings) if encoding.part == part]


ENCODING_FIELDS = frozenset({"special_tokens_mask", "offsets", "tokens", "word_ids", "sequence_ids"})
"""The fields of :class:`~pipeline_kit.contract.types.Encoding` that are filled on request only."""

Truncation = Literal["longest_first", "only_first", "only_second"]
"""Which text of a pair is truncated where both do not fit, in transformers' words."""

Overflow = Literal["truncate", "window"]

PAIR = ("the first text of the pair", "the second text of the pair")
"""What messages call the two texts of a pair, unless the task has names for them."""


@dataclass(frozen=True)
class StageContext:
    """What a stage may know about the pipeline it is built into.

    :param checkpoint: the model folder.
    :param device: where tensors live and in which precision.
    :param head: the head the task asks for, such as ``sequence-classification`` or ``base``.
    :param required_fields: encoding fields that the pipeline's postprocessor reads.
    :param task: the task's name.
    :param tokenizer: the built tokenizer; None while the tokenizer itself is built.
    :param truncation: which text of a pair is cut or split where both do not fit; a single text always is.
    :param overflow: what becomes of a text that is too long, where the user leaves it to the task.
    :param pair_names: what messages call the two texts of a pair.
    :param reserved_positions: positions of the model that no text may take, see :meth:`Model.reserved_positions`.
    :param src_lang: the language of the texts, where the user names it.
    :param tgt_lang: the language to write in, where the user names it.
    :param model: the built model; None while tokenizer and model themselves are built.
    :param others: what the model stage named in :meth:`Model.other_checkpoints`, each found and checked.
    """

    checkpoint: Checkpoint
    device: Device = field(default_factory=Device)
    head: str = "base"
    required_fields: frozenset[str] = frozenset()
    task: str = ""
    tokenizer: Tokenizer | None = None
    truncation: Truncation = "longest_first"
    overflow: Overflow = "truncate"
    pair_names: tuple[str, str] = PAIR
    reserved_positions: int = 0
    src_lang: str | None = None
    tgt_lang: str | None = None
    model: Model | None = None
    others: tuple[Checkpoint, ...] = ()


class Tokenizer(ABC):
    """Text to token ids.

    Threads: ``encode`` is called from one thread at a time, which need not be the one that built the
    stage or the one that runs the model.
    """

    @property
    @abstractmethod
    def pad_token_id(self) -> int | None:
        """The id that fills padding, or None: then only rows of equal length share a batch."""

    @property
    @abstractmethod
    def padding_side(self) -> Side:
        """The side on which the checkpoint was trained to have padding."""

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """The longest encoding that ``encode`` returns, in tokens; None if there is no limit."""

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        """Encode `examples`, unpadded.

        :returns: at least one encoding per example, in the order of the examples and, within one, of
            its windows; each has ``example`` set to its place in `examples`. ``[]`` for ``[]``. Where windows
            say in ``token_span`` what they hold of the text, what neighbours share counts once when they are merged.
            No encoding is empty or longer than `max_length`.
        :param examples: strings, or mappings with ``text`` and perhaps ``text_pair``, whatever the task: its
            postprocessor's :meth:`Postprocessor.prepare` has made these of its own fields.
        :raises ExampleError: when an example cannot be encoded; ``text_and_pair`` of ``contract.fields`` reads one.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""

    @property
    def languages(self) -> Mapping[str, int]:
        """The languages that a multilingual translator has a token for, each with its id; empty for all others."""
        return {}

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        """Write a conversation as the checkpoint was trained to see it.

        Called from another thread than ``encode``. A rendered conversation holds its special tokens already: this
        tokenizer's ``encode`` must not add them a second time. How it recognises one is up to the implementation.

        :param messages: each with a ``role`` and a ``content``, strings, and perhaps more keys.
        :raises ExampleError: if the checkpoint has no form for conversations, or none for this one.
        """
        raise ExampleError(f"{type(self).__name__} has no form for conversations; pass the field 'text'")

    def panels(self, example: Example, encodings: Sequence[Encoding]) -> Sequence[Panel]:
        """Return panels on how `example` became `encodings`, for ``pipeline-kit explain``; none by default.

        :param example: one that was given to ``encode``: what the postprocessor's `prepare` made.
        """
        return ()


class CheckpointFormat(Protocol):
    """A function that checks a folder, and returns what stands for ``config.json``; see `Model.checkpoint_format`."""

    def __call__(self, checkpoint: Checkpoint, /) -> Mapping[str, Any]:
        """Raise CheckpointError if the folder lacks something."""
        ...


class Model(ABC):
    """Token ids to tensors.

    Threads: ``forward`` is called from one thread at a time.
    """

    deterministic: bool = False
    """Whether equal rows have equal answers, in any batch and call: then a row that repeats is run once for all.

    True promises that ``forward`` draws no random numbers, and keeps nothing from one call to the next.
    """

    checkpoint_format: ClassVar[CheckpointFormat | None] = None
    """What a checkpoint of this stage must hold; None: ``config.json`` and safetensors, which are checked already.

    A stage that reads other files, or none, sets a static method. It is called with a checkpoint whose `path` and
    `trust` are set, of which pickles and code were refused. It returns what stands for ``config.json``: ``{}``, or what
    other stages read there, such as ``id2label`` for the labels. It raises CheckpointError with what is missing.
    """

    @classmethod
    def other_checkpoints(cls, config: Any) -> Sequence[str]:
        """Return the paths of checkpoints that it reads beside ``checkpoint.path``: folders or hub ids.

        They are checked like that one and come as ``context.others``; a job notices when one changes.

        :param config: what the model will be built with.
        """
        return ()

    @classmethod
    def reserved_positions(cls, config: Any, context: StageContext) -> int:
        """How many of the checkpoint's positions no text may take, since the model, built with `config`, writes there.

        Asked before the tokenizer is built, which cuts texts accordingly.

        :raises ConfigError: if that leaves no position for a text.
        """
        return 0

    def with_options(self, config: Any, context: StageContext) -> Model | None:
        """Return this model with other options for one call, its weights shared; None: it must be loaded anew."""
        return None

    @property
    @abstractmethod
    def safe_padding_sides(self) -> frozenset[Side]:
        """The padding sides under which a row's answer does not depend on its padding.

        Empty where padding leaks into the answer: then only rows of equal length share a batch, whatever the policy.
        """

    @property
    def runtime_info(self) -> Mapping[str, Any]:
        """What was decided at load, as JSON values, for ``pipeline-kit cfg --resolve``."""
        return {}

    @property
    def pinned_options(self) -> Mapping[str, Any]:
        """Options, by name, with which another load decides what this one found by measuring.

        A job that is resumed, or shared among processes, sets them, so that all its rows come from one kernel.
        """
        return {}

    @property
    def tolerance(self) -> float:
        """The largest absolute difference of an output to the checkpoint's own in float32."""
        return 1e-5

    @abstractmethod
    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the model on `batch` without gradients.

        :returns: tensors on the batch's device, first dimension ``B``, in any float dtype. The names
            are the Hugging Face ones. They must not alias memory that the next call writes to.
        :raises RuntimeError: on lack of memory; the pipeline then halves the batch.
        """

    def capture_layers(self) -> AbstractContextManager[Sequence[tuple[str, Any]]]:
        """While the body calls ``forward``, note what each layer returns, for ``pipeline-kit explain``.

        :returns: a list that fills up with names (``embeddings``, ``layer 1``) and hidden states ``[B, T, H]`` on the
            model's device; the default notes nothing. The numbers that ``forward`` returns must not change.
        """
        return nullcontext(())

    def attentions(self, batch: TokenBatch) -> Mapping[str, Any]:
        """Return each layer's attention weights ``[B, heads, T, T]`` by name, from a run of its own; {}: unknown."""
        return {}

    def differentiable(self) -> Differentiable | None:
        """Return the network with gradients, for views such as attribution; None, the default: there is none.

        It may be loaded for this, which takes as long as building the stage.
        """
        return None

    def panels(self, batch: TokenBatch, output: ModelOutput) -> Sequence[Panel]:
        """Return panels on how `batch` became `output`, for ``pipeline-kit explain``; none by default."""
        return ()


class Postprocessor(ABC):
    """The task's two ends: what of an example is encoded, and what becomes of the model's outputs.

    Outputs become results in two steps: on the device for a batch, on the CPU for an example.

    Threads: all of it is called from one thread at a time, `prepare` while a tokenizer may run on another.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset()
    """The encoding fields that ``__call__`` reads, out of `ENCODING_FIELDS`."""

    truncation: ClassVar[Truncation] = "longest_first"
    """Which text of a pair is truncated where both do not fit."""

    overflow: ClassVar[Overflow] = "truncate"
    """What becomes of a text that is too long, unless the user says: ``window`` where ``__call__`` makes as
    much of the windows of a long text as of a short text."""

    pair_names: ClassVar[tuple[str, str]] = PAIR
    """What messages call the two texts of a pair that `prepare` returns: where they came from."""

    best_first: ClassVar[frozenset[str]] = frozenset()
    """The keys of results whose lists stand best first: ``tune`` compares their first items, and what other items have
    in common, but not their order."""

    def prepare(self, example: Example) -> Sequence[Example]:
        """Read the task's fields and say what is to be encoded: texts and pairs, for any tokenizer.

        :returns: one string or mapping with ``text`` and perhaps ``text_pair`` for each sequence that the
            model is to see: usually one, or one per candidate label, document or choice; at least one. The
            encodings that ``__call__`` gets say in ``part`` which of them they belong to. The default returns
            the example itself.
        :raises ExampleError: naming the field, when one is missing, unknown or of the wrong type; use
            :func:`~pipeline_kit.contract.fields.read_fields`.
        """
        return (example,)

    def wanted(self, batch: TokenBatch) -> torch.Tensor | None:
        """Return the tokens whose outputs are read, bool ``[B, T]``, from the rows of `batch` alone; None: all.

        A model may then return its outputs for these alone: read them with :meth:`ModelOutput.at`.
        """
        return None

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Shrink `output` on its device before it is copied to the CPU: softmax, pooling ...

        A row of the returned tensors depends on that row of `output` and `batch` alone. Tensors that
        ``__call__`` does not need should not be returned. The default returns `output` as it is.
        """
        return output

    @abstractmethod
    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Turn what the model returned into results.

        :param encodings: for each example its encodings: one, or several in the order of ``part`` (what
            `prepare` returned) and, within one, of ``window`` (those of a long text).
        :param outputs: for each example, what the model returned for each of those; float32 arrays.
        :returns: exactly one result per example, in order, made of JSON values; ``[]`` for ``[]``.
            A result depends on its own example, encodings and outputs alone.
        :raises ExampleError: when an example has no result, such as a score that is not a number.
        """

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show the arithmetic that led to a result, for ``pipeline-kit explain``; the default shows none."""
        return ()

    def cells(self, example: Example, result: Result) -> Mapping[str, Any]:
        """Return what a table on a terminal shows of `result` and of the columns carried with it; by default all."""
        return result

    def attribution_targets(self, seen: Seen) -> Sequence[Target] | None:
        """Return the numbers of the model that made a result, for views such as attribution.

        :returns: one for each window of a long text; none for a result that holds nothing, such as no entity. None:
            results of this stage are made of no such numbers. By default, where the model returns ``logits [L]`` for
            each window of one text: the logit of the result's ``label``, or else the largest.
        """
        count = len(seen.labels)
        logits = [row["logits"] for row in seen.raw if "logits" in row and row["logits"].shape == (count,)]
        if not count or len(logits) < len(seen.raw) or any(encoding.part for encoding in seen.encodings):
            return None
        named = [place for place, label in enumerate(seen.labels) if label == seen.result.get("label")]
        best = max(named or range(count), key=lambda place: sum(float(found[place]) for found in logits))
        name = f"logit of '{for_message(seen.labels[best], 60)}'"
        return [Target.logit(number, name, best) for number in range(len(logits))]


@runtime_checkable
class TextWriter(Protocol):
    """What a model may have besides: it writes ids, and can give them one by one.

    Its ``forward`` gets up to 256 rows, however long, and decides itself how many of them it runs together.

    :ivar stop_strings: writing ends where the text has one of these.
    :ivar max_new_tokens: writing ends after so many ids.
    """

    stop_strings: Sequence[str]
    max_new_tokens: int

    def write(self, batch: TokenBatch) -> Iterator[int]:
        """Return the ids for a batch of one row as they are written; closing the iterator ends the writing.

        :raises UsageError: if the options do not allow it.
        """
        ...


@runtime_checkable
class TextReader(Protocol):
    """What a postprocessor may have besides: it reads such ids one by one."""

    def read(self, example: Example, encoding: Encoding, ids: Iterator[int]) -> Iterator[str]:
        """Return the result's text in pieces, as early as each is certain; joined they are that text."""
        ...
