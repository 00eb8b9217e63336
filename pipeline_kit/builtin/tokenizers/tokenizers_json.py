"""The tokenizer ``tokenizers_json``: a tokenizer.json read by the tokenizers library alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final

from tokenizers import Tokenizer as Backend

from pipeline_kit.builtin.config_json import languages_of
from pipeline_kit.builtin.tokenizers import tokenizer_files
from pipeline_kit.builtin.tokenizers.backend import BackendTokenizer
from pipeline_kit.builtin.tokenizers.chat import unframed
from pipeline_kit.builtin.tokenizers.options import TokenizersJsonConfig
from pipeline_kit.builtin.tokenizers.tokenizer_files import no_tokenizer, sanitize_backend
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Example
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, Fault, closest_match, for_message


@final
class TokenizersJson(BackendTokenizer):
    """A tokenizer.json and what the files beside it say; never imports transformers.

    :raises CheckpointError: if the file is missing or broken.
    :raises ConfigError: if an option does not fit the checkpoint.
    """

    def __init__(self, config: TokenizersJsonConfig, context: StageContext) -> None:
        checkpoint = context.checkpoint
        own, names = checkpoint.config, checkpoint.tokenizer_config
        backend = _load(_inside(checkpoint.path, config.file), checkpoint)
        padding, truncation = backend.padding, backend.truncation
        sanitize_backend(backend, checkpoint)
        languages = languages_of(backend)
        if languages and context.task == "translation":
            raise ConfigError([unframed("tokenizer=tokenizers_json")])
        super().__init__(
            backend,
            config,
            context,
            languages,
            pad_token_id=_pad_id(backend, config, checkpoint, padding),
            padding_side=tokenizer_files.side(names, "padding_side", padding),
            model_max_length=names.get("model_max_length", names.get("max_len")),
            token_types=tokenizer_files.takes_token_types(own, tokenizer_files.names_token_types(own, names)),
            left=tokenizer_files.side(names, "truncation_side", truncation) == "left",
        )

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        """See :class:`Tokenizer`; templates are run by transformers, which this does not load."""
        del messages
        raise ExampleError("tokenizer=tokenizers_json writes no conversations; use tokenizer=hf")


def _inside(folder: Path, name: str) -> Path:
    """Join a file's name to the folder; a link in a hub cache may point elsewhere, the name may not."""
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            problem = f"'{for_message(name)}' leaves the checkpoint's folder."
            hint = "name a file inside it, such as tokenizer.json"
            raise ConfigError([Fault("tokenizer.file", problem, hint=hint)])
    return folder / name


def _load(path: Path, checkpoint: Checkpoint) -> Backend:
    if not path.is_file() or not path.stat().st_size:
        raise no_tokenizer(checkpoint, f"{path.name} (tokenizer=hf reads other files too)")
    try:
        return Backend.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in native code, set off by a broken file, is no Exception
        raise CheckpointError(
            f"'{path}' is not a tokenizer.json that can be read: {for_message(str(error), 500)}"
        ) from error


def _pad_id(
    backend: Backend, config: TokenizersJsonConfig, checkpoint: Checkpoint, stored: dict[str, object] | None
) -> int | None:
    """Find the id of the padding token.

    :raises ConfigError: if the user names a token that the tokenizer does not have.
    """
    if config.pad_token is not None:
        found: int | None = backend.token_to_id(config.pad_token)
        if found is None:
            problem = f"'{for_message(config.pad_token, 80)}' is not a token of '{checkpoint.name}'."
            known = tuple(token.content for token in backend.get_added_tokens_decoder().values())
            fault = Fault("tokenizer.pad_token", problem, known[:20], closest_match(config.pad_token, known))
            raise ConfigError([fault])
        return found
    token = tokenizer_files.pad_token(checkpoint.path, checkpoint.tokenizer_config, stored)
    named = None if token is None else backend.token_to_id(token)
    return tokenizer_files.usable_pad_id(backend, named, checkpoint.config)
