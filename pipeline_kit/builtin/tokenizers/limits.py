"""How many tokens an encoding may have: the user's limit, the checkpoint's, and the model's positions."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.builtin.tokenizers.tokenizer_files import sentence_transformers
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import ConfigError, Fault

Options = TypeVar("Options", bound=HfTokenizerConfig)

# Above this, a tokenizer's model_max_length only says that nobody set one.
_UNSET = 1_000_000

_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "max_seq_len", "n_ctx")

# These number their positions from pad_token_id + 1, so that many rows of the table are never a token's.
_OFFSET_BY_PAD = frozenset(
    {"camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"}
    | {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)

# Relative or computed positions: a text of any length runs, whatever number the config names.
_UNLIMITED = frozenset(
    {"bloom", "funnel", "longt5", "mamba", "mpt", "mt5", "pop2piano", "rwkv", "switch_transformers", "t5"}
    | {"transfo-xl", "umt5", "xlnet"}
)


def resolve_max_length(
    wanted: int | None, checkpoint: Checkpoint, model_max_length: object, reserved: int = 0
) -> int | None:
    """Return the longest encoding in tokens, None if nothing limits it.

    :param wanted: the user's ``max_length``; None takes the checkpoint's own.
    :param reserved: positions that no text may take.
    :raises ConfigError: if `wanted` is more than the positions that the model has.
    """
    limit = positions(checkpoint.config)
    if limit is not None:
        limit -= reserved
    if wanted is None:
        # What a sentence-transformers checkpoint was trained with replaces the tokenizer's own.
        trained = sentence_transformers(checkpoint.path).get("max_seq_length")
        own = _length(trained) or _length(model_max_length)
        known = [length for length in (own, limit) if length is not None]
        return min(known) if known else None
    # DeBERTa without absolute positions runs on longer texts; its number is only what it was trained with.
    if limit is not None and wanted > limit and checkpoint.config.get("position_biased_input") is not False:
        problem = f"'{wanted}' is more than the {limit} tokens that '{checkpoint.name}' has positions for."
        hint = "for longer texts, split them: tokenizer.overflow=window"
        if reserved:
            problem = problem[:-1] + f" beside the {reserved} that the model writes."
            hint = "for longer texts, let it write less: model.generation.max_new_tokens"
        raise ConfigError([Fault("tokenizer.max_length", problem, allowed=(f"1 to {limit}", "null"), hint=hint)])
    return wanted


def positions(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens the model of a ``config.json`` has positions for, None if it has no such limit."""
    kind = config.get("model_type")
    if kind in _UNLIMITED:
        return None
    nested = config.get("text_config")
    found = next((n for n in (_length(config.get(key)) for key in _POSITION_KEYS) if n is not None), None)
    if found is None:
        return positions(nested) if isinstance(nested, Mapping) and "text_config" not in nested else None
    pad = config.get("pad_token_id", 1)
    if kind in _OFFSET_BY_PAD and isinstance(pad, int) and 0 <= pad < found - 1:
        return found - pad - 1
    return found


def settle_overflow(options: Options, context: StageContext, max_length: int | None) -> Options:
    """Decide ``overflow`` where the user left it to the task; without a limit there is nothing to split."""
    if options.overflow is not None:
        return options
    return replace(options, overflow="truncate" if max_length is None else context.overflow)


def check_options(options: HfTokenizerConfig, max_length: int | None, specials: int) -> None:
    """Raise ConfigError if no text fits between the `specials` of a single one, or windows do not move forward."""
    faults: list[Fault] = []
    if max_length is None:
        if options.overflow == "window":
            problem = "the checkpoint names no limit, so windows need one."
            faults.append(Fault("tokenizer.max_length", problem, hint="for example: tokenizer.max_length=512"))
    elif max_length <= specials:
        problem = f"'{max_length}' leaves no room for text: {specials} tokens are special ones."
        faults.append(Fault("tokenizer.max_length", problem, allowed=(f"{specials + 1} or more",)))
    elif options.overflow == "window" and options.overlap is not None and options.overlap >= max_length - specials:
        room = max_length - specials
        problem = f"'{options.overlap}' is not less than the {room} tokens of text in a window of {max_length}."
        faults.append(Fault("tokenizer.overlap", problem, allowed=(f"0 to {room - 1}",)))
    if faults:
        raise ConfigError(faults)


def _length(value: object) -> int | None:
    """Read a length that somebody set on purpose; some files hold it as a float such as 1e30."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < _UNSET:
        return None
    return int(value)


CHARS_PER_TOKEN = 250
"""No text needs more characters than this for a token; the rest of a longer one is never looked at."""

# Measured with BERT's tokenizer: this many full stops, each a token, take 20 to 50 ms, text less.
_FIRST_LOOK = 16_000
_FIRST_PER_TOKEN = 8

_BACK_OFF = 256  # characters given up to cut between words
_JOINERS = frozenset("\u200d\ufe0e\ufe0f")  # zero width joiner and the two variation selectors


class CharacterLimits(NamedTuple):
    """The characters of a text that are tokenized: `first`, doubled up to `last` while they are too few tokens."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class TextSlice:
    """The part of a text that is tokenized, its place there, and how many characters are not in it."""

    text: str
    start: int = 0
    unseen: int = 0


def character_limits(options: HfTokenizerConfig, max_length: int | None) -> CharacterLimits | None:
    """Make the option ``max_chars`` definite; None looks at everything."""
    if options.max_chars is not None:
        return CharacterLimits(options.max_chars, options.max_chars)
    if max_length is None or options.overflow == "window":
        return None
    last = CHARS_PER_TOKEN * max_length
    return CharacterLimits(min(last, max(_FIRST_LOOK, _FIRST_PER_TOKEN * max_length)), last)


def slice_text(text: str, limit: int | None, left: bool) -> TextSlice:
    """Cut `text` to `limit` characters of its beginning, or end (`left`), between words where one ends nearby."""
    length = len(text)
    if limit is None or length <= limit:
        return TextSlice(text)
    if left:
        start = _boundary(text, length - limit, 1)
        return TextSlice(text[start:], start, start)
    end = _boundary(text, limit, -1)
    return TextSlice(text[:end], 0, length - end)


def _boundary(text: str, place: int, step: int) -> int:
    """Find a place to cut at or beyond `place`: before a white space, else where no character is split."""
    for back in range(min(_BACK_OFF, (len(text) - place if step > 0 else place) // 2)):
        if text[place + step * back].isspace():
            return place + step * back
    for _ in range(32):
        if not 0 < place < len(text) or not (_continues(text[place]) or text[place - 1] == "\u200d"):
            break
        place += step
    return min(max(place, 1), len(text) - 1)


def _continues(character: str) -> bool:
    tone = "\U0001f3fb" <= character <= "\U0001f3ff"  # of a skin
    return tone or character in _JOINERS or unicodedata.category(character).startswith("M")
