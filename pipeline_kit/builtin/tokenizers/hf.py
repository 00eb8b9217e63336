"""The tokenizers ``hf``, which transformers' AutoTokenizer loads, and ``tokenizers_json``, which it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final

from tokenizers import Tokenizer as Backend

from pipeline_kit.builtin.config_json import check_language, languages_of
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.builtin.tokenizers import tokenizer_files
from pipeline_kit.builtin.tokenizers.encode import Encoder, encode, encode_fully
from pipeline_kit.builtin.tokenizers.limits import resolve_max_length
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig, TokenizersJsonConfig
from pipeline_kit.builtin.tokenizers.pieces import PYTHON_ONLY, PieceIds, fast_version, frame
from pipeline_kit.contract.stages import Panel, StageContext, Tokenizer
from pipeline_kit.contract.types import Checkpoint, Encoding, Example, Side
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, Fault, closest_match, for_message


class BackendTokenizer(Tokenizer):
    """Encodes in bulk by a backend, which a subclass loads and whose files it reads."""

    def __init__(
        self,
        backend: Backend,
        config: HfTokenizerConfig,
        context: StageContext,
        languages: Mapping[str, int],
        *,
        pad_token_id: int | None,
        padding_side: Side,
        model_max_length: object,
        token_types: bool,
        left: bool,
        pieces: PieceIds | None = None,
    ) -> None:
        """Settle the limits.

        :param languages: the tokens that stand for languages, by code.
        :param token_types: whether encodings get segment ids.
        :param left: whether truncation cuts at the beginning.
        :param pieces: the ids, where the backend's are not those of the checkpoint.
        :raises ConfigError: if an option does not fit the checkpoint.
        """
        self._backend, self._languages = backend, languages
        self._pad_token_id, self._padding_side = pad_token_id, padding_side
        longest = resolve_max_length(
            config.max_length, context.checkpoint, model_max_length, context.reserved_positions
        )
        self._encoder = Encoder(backend, config, context, longest, token_types=token_types, left=left, pieces=pieces)

    @property
    def pad_token_id(self) -> int | None:
        return self._pad_token_id

    @property
    def padding_side(self) -> Side:
        return self._padding_side

    @property
    def max_length(self) -> int | None:
        return self._encoder.max_length

    @property
    def languages(self) -> Mapping[str, int]:
        return self._languages

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return encode(self._encoder, examples)

    def encode_fully(self, examples: Sequence[Example]) -> list[Encoding]:
        return encode_fully(self._encoder, examples)

    def decode(self, ids: Sequence[int]) -> str:
        text = self._backend.decode(list(ids), skip_special_tokens=True)
        return text if self._encoder.pieces is None else text.strip()  # as transformers' own do; the rest do not

    def panels(self, example: Example, encodings: Sequence[Encoding]) -> Sequence[Panel]:
        from pipeline_kit.builtin.tokenizers.panels import tokenizer_panels  # takes torch, and tokenizing takes none

        return tokenizer_panels(self._encoder, example, self._languages)


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
        pieces: PieceIds | None = None
        if type(self._loaded).__name__ in PYTHON_ONLY:
            backend, pieces = _converted(self._loaded, checkpoint)
        else:
            backend = self._loaded.backend_tokenizer
        tokenizer_files.sanitize_backend(backend, checkpoint)
        languages = languages_of(backend)
        frame_source(self._loaded, languages, context)
        if pieces is not None:
            frame(backend, self._loaded)
        types = "token_type_ids" in self._loaded.model_input_names
        super().__init__(
            backend,
            config,
            context,
            languages,
            pad_token_id=tokenizer_files.usable_pad_id(backend, self._loaded.pad_token_id, checkpoint.config),
            padding_side="left" if self._loaded.padding_side == "left" else "right",
            model_max_length=self._loaded.model_max_length,
            token_types=tokenizer_files.takes_token_types(checkpoint.config, types),
            left=self._loaded.truncation_side == "left",
            pieces=pieces,
        )

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        from pipeline_kit.builtin.tokenizers.chat import render  # takes transformers and Jinja

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
            raise tokenizer_files.no_tokenizer(checkpoint, _WHOLE) from error
        raise _not_loaded(checkpoint, error) from error
    owner = type(loaded).__name__
    if owner not in PYTHON_ONLY and not isinstance(getattr(loaded, "backend_tokenizer", None), Backend):
        raise CheckpointError(
            f"the tokenizer of '{for_message(checkpoint.name)}', {owner}, has no fast version, and slow ones are not "
            f"supported. Use a checkpoint with a {_WHOLE}, or write a stage for it: "
            "pipeline-kit new-plugin tokenizer NAME"
        )
    # Some classes make up a tokenizer of a few special tokens, or of characters, where there is no file.
    names = set(type(loaded).vocab_files_names.values()) - {_WHOLE, "target_vocab.json"}
    lacking = sorted(name for name in names if not _holds(checkpoint.path / name))
    if not _holds(checkpoint.path / _WHOLE) and (lacking or not names):
        other = f" (or {' and '.join(lacking)})" if lacking else ""
        raise tokenizer_files.no_tokenizer(checkpoint, _WHOLE + other)
    return loaded


def _converted(loaded: Any, checkpoint: Checkpoint) -> tuple[Backend, PieceIds]:
    try:
        return fast_version(loaded, checkpoint)
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except BaseException as error:  # as above: a file of sentencepiece may hold what native code does not take
        raise _not_loaded(checkpoint, error) from error


def _not_loaded(checkpoint: Checkpoint, error: BaseException) -> CheckpointError:
    """Return the error for a tokenizer that transformers cannot load, or only with a library that is not installed."""
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    names = (path.name for kind in ("*.model", "*.spm") for path in checkpoint.path.glob(kind))
    pieces = sorted(name for name in names if name != "tiktoken.model")
    readable = is_sentencepiece_available() and is_protobuf_available()
    if pieces and not readable and not _holds(checkpoint.path / _WHOLE):
        return CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' has no {_WHOLE} but {for_message(pieces[0])}, which "
            "is read with sentencepiece and protobuf: pip install 'pipeline-kit[sentencepiece]'"
        )
    return CheckpointError(
        f"transformers cannot load a tokenizer from '{checkpoint.path}': {type(error).__name__}: "
        f"{for_message(str(error), 500)}"
    )


@final
class TokenizersJson(BackendTokenizer):
    """A tokenizer.json and what the files beside it say; never imports transformers.

    :raises CheckpointError: if the file is missing or broken.
    :raises ConfigError: if an option does not fit the checkpoint.
    """

    def __init__(self, config: TokenizersJsonConfig, context: StageContext) -> None:
        checkpoint = context.checkpoint
        own, names = checkpoint.config, checkpoint.tokenizer_config
        backend = _read_backend(_inside(checkpoint.path, config.file), checkpoint)
        padding, truncation = backend.padding, backend.truncation
        tokenizer_files.sanitize_backend(backend, checkpoint)
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
        """Refuse: templates are run by transformers, which this does not load."""
        raise ExampleError("tokenizer=tokenizers_json writes no conversations; use tokenizer=hf")


def _inside(folder: Path, name: str) -> Path:
    """Join a file's name to the folder; a link in a hub cache may point elsewhere, the name may not."""
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            problem = f"'{for_message(name)}' leaves the checkpoint's folder."
            hint = "name a file inside it, such as tokenizer.json"
            raise ConfigError([Fault("tokenizer.file", problem, hint=hint)])
    return folder / name


def _read_backend(path: Path, checkpoint: Checkpoint) -> Backend:
    if not path.is_file() or not path.stat().st_size:
        raise tokenizer_files.no_tokenizer(checkpoint, f"{path.name} (tokenizer=hf reads other files too)")
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
    """Find the id of the padding token; raise ConfigError if the user names one that the tokenizer does not have."""
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


def frame_source(loaded: Any, known: Mapping[str, int], context: StageContext) -> None:
    """Make `loaded`, one of transformers' tokenizers, frame texts as ``task.src_lang`` asks.

    :raises ConfigError: if the task is to translate and the language is missing or unknown, or if its class does
        not know how texts are framed.
    """
    if not known or (context.src_lang is None and context.task != "translation"):
        return
    check_language("task.src_lang", context.src_lang, known, context)
    if not hasattr(loaded, "set_src_lang_special_tokens"):
        raise ConfigError([unframed(type(loaded).__name__)])
    loaded.src_lang = context.src_lang


def unframed(name: str) -> Fault:
    """Return the fault of a tokenizer that cannot put a language to a text."""
    hint = "use tokenizer=hf, and a tokenizer_class in tokenizer_config.json that does, such as NllbTokenizer"
    return Fault("task.src_lang", f"{name} does not know where in a text the token of its language stands.", hint=hint)
