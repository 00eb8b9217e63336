"""The tokenizer ``hf``: what transformers' AutoTokenizer loads, used through its Rust backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from tokenizers import Tokenizer as Backend

from pipeline_kit.builtin.config_json import languages_of
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.builtin.tokenizers.backend import BackendTokenizer
from pipeline_kit.builtin.tokenizers.chat import frame_source, render
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.builtin.tokenizers.tokenizer_files import (
    no_tokenizer,
    sanitize_backend,
    takes_token_types,
    usable_pad_id,
)
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Example
from pipeline_kit.errors import CheckpointError, for_message

_WHOLE = "tokenizer.json"


@final
class HfTokenizer(BackendTokenizer):
    """The checkpoint's fast tokenizer; ids equal transformers' own with ``truncation=True``.

    It runs no code from the checkpoint's folder.

    :raises CheckpointError: if the folder has no tokenizer, or only a slow one.
    :raises ConfigError: if an option does not fit the checkpoint.
    """

    def __init__(self, config: HfTokenizerConfig, context: StageContext) -> None:
        checkpoint = context.checkpoint
        self._loaded, self._checkpoint = _load(checkpoint), checkpoint.name
        backend: Backend = self._loaded.backend_tokenizer
        sanitize_backend(backend, checkpoint)
        languages = languages_of(backend)
        frame_source(self._loaded, languages, context)
        super().__init__(
            backend,
            config,
            context,
            languages,
            pad_token_id=usable_pad_id(backend, self._loaded.pad_token_id, checkpoint.config),
            padding_side="left" if self._loaded.padding_side == "left" else "right",
            model_max_length=self._loaded.model_max_length,
            token_types=takes_token_types(checkpoint.config, "token_type_ids" in self._loaded.model_input_names),
            left=self._loaded.truncation_side == "left",
        )

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        """See :class:`Tokenizer`; by the checkpoint's chat template."""
        return render(self._loaded, self._checkpoint, messages)


def _holds(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


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
        kinds = (_WHOLE, "vocab*", "*.model", "*.spm", "*.tiktoken")
        if not any(_holds(path) for kind in kinds for path in checkpoint.path.glob(kind)):
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
