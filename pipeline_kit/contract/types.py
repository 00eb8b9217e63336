"""The values that pass between stages. Everything here is data; nothing imports torch at run time.

Shapes are written with these letters: ``B`` rows of a batch, ``T`` tokens after padding,
``L`` labels, ``H`` hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

Example = str | Mapping[str, Any]
"""A text, or a mapping with the task's named fields (``text``, ``text_pair`` ...)."""

Result = dict[str, Any]
"""The result of one example: JSON values only."""

RowOutput = Mapping[str, "np.ndarray[Any, Any]"]
"""What the model (after ``Postprocessor.reduce``) returned for one encoding: arrays on the CPU without
the batch dimension and, for the names in ``ModelOutput.per_token``, without padding rows."""

Side = Literal["right", "left"]

Trust = Literal["data", "pickle"]
"""What of a checkpoint may be opened: data alone, or files too that can run code when they are."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One unpadded sequence of token ids: an example, or one window of a long one.

    Only `input_ids` is always there. The fields a postprocessor names in its ``required_fields`` are filled
    too; the rest are None because filling them costs time.

    :param input_ids: token ids with special tokens, ``[T]``.
    :param token_type_ids: segment ids ``[T]`` where the checkpoint's model takes them.
    :param special_tokens_mask: 1 for a special token, 0 for text, ``[T]``.
    :param offsets: begin and end of each token in the source text, in characters, ``[T, 2]``.
    :param tokens: the tokens as strings, ``[T]``.
    :param word_ids: the word each token belongs to, None for special tokens, ``[T]``.
    :param sequence_ids: 0 for the text, 1 for its pair, None for special tokens, ``[T]``.
    :param example: the example's place in the list given to ``Tokenizer.encode``.
    :param part: the place of its text among those that ``Postprocessor.prepare`` made of the example; set by
        the pipeline.
    :param window: the place of this window among the example's windows.
    :param truncated: how many tokens of the example were cut off and are in no window.
    :param truncated_chars: how many characters were cut off before tokenizing (see ``max_chars``).
    :param token_span: begin and end of a window in the text that is split, in tokens from its first one, so that what
        neighbours share can be told; None for a text that is whole.
    """

    input_ids: Sequence[int]
    token_type_ids: Sequence[int] | None = None
    special_tokens_mask: Sequence[int] | None = None
    offsets: Sequence[tuple[int, int]] | None = None
    tokens: Sequence[str] | None = None
    word_ids: Sequence[int | None] | None = None
    sequence_ids: Sequence[int | None] | None = None
    example: int = 0
    part: int = 0
    window: int = 0
    truncated: int = 0
    truncated_chars: int = 0
    token_span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Padded tensors on the model's device, all int64 ``[B, T]``.

    :param attention_mask: 1 for a token, 0 for padding.
    :param lengths: the number of tokens of each row, ``[B]`` on the CPU.
    :param side: where the padding stands.
    :param has_padding: whether there is any padding at all; without it a model may ignore the mask.
    :param wanted: True for the tokens whose outputs are read, bool ``[B, T]``; None: all. A model may ignore it, or
        return an output that is per token for these alone, see :meth:`ModelOutput.at`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None
    lengths: np.ndarray[Any, Any]
    side: Side
    has_padding: bool
    wanted: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Named tensors whose first dimension is ``B``.

    :param tensors: by Hugging Face name: ``logits``, ``last_hidden_state`` ...
    :param per_token: the names whose second dimension is ``T``, so that padding can be taken off.
    """

    tensors: Mapping[str, torch.Tensor]
    per_token: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the tensor `name`; the KeyError names the ones there are."""
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyError(f"the model returned no '{name}', only {', '.join(sorted(self.tensors))}") from None

    def at(self, name: str, wanted: torch.Tensor) -> torch.Tensor:
        """Return what the tensor `name` holds for the tokens of `wanted`, ``[N, ...]``, row by row.

        It is for all tokens if its name is in `per_token`, else for the batch's wanted ones alone: ``[B, M, ...]``,
        those of a row from the front on, M at least the most that a row has.
        """
        values = self[name]
        if name in self.per_token:
            return values[wanted]
        return values[wanted.sort(dim=1, descending=True).values[:, : values.shape[1]]]


@dataclass(frozen=True, slots=True)
class Device:
    """Where and how precisely a model runs, resolved: nothing in it is 'auto'.

    :param name: as torch names it: ``cpu``, ``cuda:0``, ``mps``.
    :param dtype: the torch dtype's name, ``float32``, ``bfloat16`` or ``float16``.
    :param threads: CPU threads that one operator may use; torch has this number already when a model is built.
    """

    name: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    @property
    def kind(self) -> str:
        """The device without its index: ``cpu``, ``cuda``, ``mps``."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that was found and checked: data, never code.

    :param path: the local folder with the network and the tokenizer.
    :param name: what the user called it, a folder, a URL or a hub id.
    :param config: the parsed ``config.json``.
    :param tokenizer_config: the parsed ``tokenizer_config.json``, empty if there is none.
    :param revision: the commit of a hub checkpoint, None for a folder.
    :param root: the folder that `path` is a part of, as in older sentence-transformers folders; None where it is
        all there is.
    :param prompts: texts that the user named to be put before an embedding model's texts, by name.
    :param own_format: whether it was checked by the model stage's own :attr:`Model.checkpoint_format`.
    :param trust: ``pickle`` where the user trusts the folder on the command line; a stage opens no pickle without it.
    """

    path: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    root: Path | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    own_format: bool = False
    trust: Trust = "data"

    @property
    def labels(self) -> tuple[str, ...]:
        """The label names by index, from ``id2label``; ``LABEL_0`` ... where names are missing."""
        names = self.config.get("id2label")
        if isinstance(names, Mapping) and names:
            by_index = {int(key): str(value) for key, value in names.items()}
            return tuple(by_index.get(i, f"LABEL_{i}") for i in range(max(by_index) + 1))
        count = self.config.get("num_labels")
        return tuple(f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2))


@dataclass
class RunStats:
    """Counts of one run, filled while it streams.

    :param rows: examples that went in; `failed` of them have no result.
    :param truncated_rows: examples of which something was cut off.
    :param tokens: tokens the model saw, padding not counted; `padded_tokens` counts padding too.
    :param written_tokens: ids of texts that were streamed; `unfinished_rows` of them ended as no more may be written.
    :param repeats: encodings that got the answer of an equal one, see ``batching.deduplicate``; in no other count of
        what the model did.
    :param retries: calls that were retried, see ``runner.retries``.
    :param seconds: time spent in each stage; tokenizing overlaps with the model.
    """

    rows: int = 0
    failed: int = 0
    truncated_rows: int = 0
    windows: int = 0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    written_tokens: int = 0
    unfinished_rows: int = 0
    repeats: int = 0
    retries: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def padding_share(self) -> float:
        """The share of the model's token slots that was padding, 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    @classmethod
    def total(cls, several: Iterable[RunStats]) -> RunStats:
        """Add up the counts of runs, and the times of their stages."""
        found = cls()
        for stats in several:
            for item in fields(cls):
                if item.name != "seconds":
                    setattr(found, item.name, getattr(found, item.name) + getattr(stats, item.name))
            for stage, seconds in stats.seconds.items():
                found.seconds[stage] += seconds
        return found

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the body to `stage`."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += perf_counter() - start
