"""The three interfaces. A docstring here is the whole contract of a stage.

A stage is built as ``Stage(config, context)``: `config` is the dataclass it was registered with,
checked and complete; `context` is the :class:`StageContext`. It never sees Hydra or YAML.

Any exception that a stage raises while it works on several rows is narrowed down to the rows that
cause it, by calling the stage again with fewer of them, so a stage must not keep state between calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline_kit.errors import ExampleError, shorten
from pipeline_kit.types import (
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

__all__ = ["ENCODING_FIELDS", "Model", "Postprocessor", "StageContext", "Tokenizer", "text_and_pair"]

ENCODING_FIELDS = frozenset({"special_tokens_mask", "offsets", "tokens", "word_ids", "sequence_ids"})
"""The fields of :class:`~pipeline_kit.types.Encoding` that are filled on request only."""


@dataclass(frozen=True)
class StageContext:
    """What a stage may know about the pipeline it is built into.

    :param checkpoint: the model folder.
    :param device: where tensors live and in which precision.
    :param head: the head the task asks for, such as ``sequence-classification`` or ``base``.
    :param requires: encoding fields that the pipeline's postprocessor reads.
    :param task: the task's name.
    :param tokenizer: the built tokenizer; None while the tokenizer itself is built.
    """

    checkpoint: Checkpoint
    device: Device = field(default_factory=Device)
    head: str = "base"
    requires: frozenset[str] = frozenset()
    task: str = ""
    tokenizer: Tokenizer | None = None


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
            its windows; each has ``example`` set to its place in `examples`. ``[]`` for ``[]``.
            No encoding is empty or longer than `max_length`.
        :raises ExampleError: when an example cannot be encoded; use :func:`text_and_pair` to read one.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of `ids` without special tokens."""


class Model(ABC):
    """Token ids to tensors.

    Threads: ``forward`` is called from one thread at a time.
    """

    @property
    @abstractmethod
    def supported_sides(self) -> frozenset[Side]:
        """The padding sides under which a row's answer does not depend on its padding.

        Empty for an architecture that lets padding leak into its answer: then only rows of equal
        length share a batch, whatever the padding policy says.
        """

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


class Postprocessor(ABC):
    """Model outputs to results, in two steps: on the device for a batch, on the CPU for an example.

    Threads: both steps are called from one thread at a time.
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    """The encoding fields that ``__call__`` reads, out of `ENCODING_FIELDS`."""

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Shrink `output` on its device before it is copied to the CPU: softmax, pooling ...

        A row of the returned tensors depends on that row of `output` and `batch` alone. Tensors that
        ``__call__`` does not need should not be returned. The default returns `output` as it is.
        """
        del batch
        return output

    @abstractmethod
    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Turn what the model gave into results.

        :param encodings: for each example its encodings: one, or the windows of a long text in order.
        :param outputs: for each example, what the model gave for each of those; float32 arrays.
        :returns: exactly one result per example, in order, made of JSON values; ``[]`` for ``[]``.
            A result depends on its own example, encodings and outputs alone.
        :raises ExampleError: when an example has no result, such as a score that is not a number.
        """


def text_and_pair(example: Example) -> tuple[str, str | None]:
    """Read the fields ``text`` and ``text_pair`` of an example, as most tokenizers need them.

    :raises ExampleError: if it is neither a string nor a mapping with a ``text``, if it has other
        fields, or if a text holds a lone surrogate, which no encoder can represent.
    """
    if isinstance(example, str):
        return _encodable(example, "text"), None
    if not hasattr(example, "keys"):
        raise ExampleError(
            f"an example is a text or a mapping with the field 'text', not {type(example).__name__}: {shorten(example)}"
        )
    unknown = [str(key) for key in example if key not in ("text", "text_pair")]
    if "text" not in example:
        raise ExampleError(f"the field 'text' is missing; found: {shorten(', '.join(unknown) or 'no field')}")
    if unknown:
        raise ExampleError(f"unknown field '{shorten(unknown[0])}'; the fields are 'text' and 'text_pair'")
    pair = example.get("text_pair")
    return _encodable(example["text"], "text"), None if pair is None else _encodable(pair, "text_pair")


def _encodable(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise ExampleError(f"the field '{name}' is {type(text).__name__}, not a string: {shorten(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ExampleError(f"the field '{name}' has a lone surrogate at character {error.start}") from error
    return text
