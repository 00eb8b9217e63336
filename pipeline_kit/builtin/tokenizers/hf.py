"""The tokenizer ``hf``: what transformers' AutoTokenizer loads, used through its Rust backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from tokenizers import Tokenizer as Backend

from pipeline_kit.builtin.config_json import languages_of
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.builtin.tokenizers.chat import frame_source, render
from pipeline_kit.builtin.tokenizers.encode import encode, encode_fully, make_encoder
from pipeline_kit.builtin.tokenizers.limits import resolve_max_length
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.builtin.tokenizers.panels import tokenizer_panels
from pipeline_kit.builtin.tokenizers.tokenizer_files import (
    no_tokenizer,
    sanitize_backend,
    takes_token_types,
    usable_pad_id,
)
from pipeline_kit.contract.stages import Panel, StageContext, Tokenizer
from pipeline_kit.contract.types import Checkpoint, Encoding, Example, Side
from pipeline_kit.errors import CheckpointError, for_message

_WHOLE = "tokenizer.json"


@final
class HfTokenizer(Tokenizer):
    """The checkpoint's fast tokenizer; ids equal transformers' own with ``truncation=True``.

    :raises CheckpointError: if the folder has no tokenizer, or only a slow one.
    :raises ConfigError: if an option does not fit the checkpoint.
    """

    def __init__(self, config: HfTokenizerConfig, context: StageContext) -> None:
        """Load the tokenizer from the checkpoint's folder, running no code from it."""
        checkpoint = context.checkpoint
        loaded = _load(checkpoint)
        backend: Backend = loaded.backend_tokenizer
        sanitize_backend(backend, checkpoint)
        self._languages = languages_of(backend)
        frame_source(loaded, self._languages, context)
        self._loaded, self._checkpoint = loaded, checkpoint.name
        self._backend = backend
        self._padding_side: Side = "left" if loaded.padding_side == "left" else "right"
        self._pad_token_id = usable_pad_id(backend, loaded.pad_token_id, checkpoint.config)
        self._encoder = make_encoder(
            backend,
            config,
            context,
            max_length=resolve_max_length(config.max_length, checkpoint, loaded.model_max_length, context.reserved),
            token_types=takes_token_types(checkpoint.config, "token_type_ids" in loaded.model_input_names),
            left=loaded.truncation_side == "left",
        )

    @property
    def pad_token_id(self) -> int | None:
        """See :class:`Tokenizer`."""
        return self._pad_token_id

    @property
    def padding_side(self) -> Side:
        """See :class:`Tokenizer`."""
        return self._padding_side

    @property
    def max_length(self) -> int | None:
        """See :class:`Tokenizer`."""
        return self._encoder.max_length

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        """See :class:`Tokenizer`."""
        return encode(self._encoder, examples)

    def encode_fully(self, examples: Sequence[Example]) -> list[Encoding]:
        """Encode with all fields filled, for ``pipeline-kit explain``."""
        return encode_fully(self._encoder, examples)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    @property
    def languages(self) -> Mapping[str, int]:
        """See :class:`Tokenizer`."""
        return self._languages

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        """See :class:`Tokenizer`; by the checkpoint's chat template."""
        return render(self._loaded, self._checkpoint, messages)

    def panels(self, example: Example, encodings: Sequence[Encoding]) -> Sequence[Panel]:
        """See :class:`Tokenizer`; the normalised text, its pre-tokens, the special tokens."""
        del encodings
        return tokenizer_panels(self._encoder, example, self._languages)


def _holds(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _is_vocabulary(path: Path) -> bool:
    named = path.name == _WHOLE or path.name.startswith("vocab") or path.suffix in (".model", ".spm", ".tiktoken")
    return named and _holds(path)


def _load(checkpoint: Checkpoint) -> Any:
    # Importing AutoTokenizer from its own module instead takes the same time: torch is most of both.
    from transformers import AutoTokenizer

    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(
                str(checkpoint.path), local_files_only=True, trust_remote_code=False, use_fast=True
            )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in native code, set off by a broken file, is no Exception
        if not any(_is_vocabulary(path) for path in checkpoint.path.glob("*")):
            raise no_tokenizer(checkpoint, _WHOLE) from error
        raise CheckpointError(
            f"transformers cannot load a tokenizer from '{checkpoint.path}': {type(error).__name__}: "
            f"{for_message(str(error), 500)}"
        ) from error
    if not isinstance(getattr(loaded, "backend_tokenizer", None), Backend):
        raise CheckpointError(
            f"the tokenizer of '{checkpoint.name}', {type(loaded).__name__}, has no fast version, and slow ones "
            "are not supported; convert it to a tokenizer.json"
        )
    # Some classes make up a tokenizer of a few special tokens, or of characters, where there is no file.
    names = set(type(loaded).vocab_files_names.values()) - {_WHOLE}
    lacking = sorted(name for name in names if not _holds(checkpoint.path / name))
    if not _holds(checkpoint.path / _WHOLE) and (lacking or not names):
        other = f" (or {' and '.join(lacking)})" if lacking else ""
        raise no_tokenizer(checkpoint, _WHOLE + other)
    return loaded
