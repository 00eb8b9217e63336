"""The exception tree. Every error a user can meet is one of these.

::

    PipelineKitError              exit code 1
    |-- UsageError                exit code 2: wrong flags or arguments
    |-- ConfigError               exit code 2: carries every fault of a config
    |   `-- RegistryError         a stage name that is unknown, doubled or broken
    |-- CheckpointError           exit code 2: a model folder or hub id that cannot be used
    |-- DeviceError               exit code 2: a device that is not there
    |-- InputError                exit code 2: a file that cannot be read
    |-- OutputError               exit code 1: a file that cannot be written
    |-- JobError                  exit code 1: a job that stopped; what is done is kept
    |-- ExampleError              one example is not what the task takes
    |   `-- MissingValueError     a row of a column or frame has no value
    |-- StageError                a stage broke its contract
    |-- TransientError            for stages to raise: the same call may succeed a moment later
    `-- RowError                  one row failed in a stage; raised by ``pipe(...)``
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote


class PipelineKitError(Exception):
    """Any error of this project that is meant for a user's eyes."""

    exit_code = 1


class UsageError(PipelineKitError):
    """Flags or arguments that make no sense together."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a config: where, what, what is allowed, what to do."""

    key: str
    problem: str
    allowed: tuple[str, ...] = ()
    suggestion: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        head = f"{self.key}: {self.problem}" if self.key else self.problem
        if self.suggestion is not None:
            head += f" Did you mean '{self.suggestion}'?"
        lines = [head]
        if self.allowed:
            lines.append("  allowed: " + ", ".join(self.allowed))
        if self.hint is not None:
            lines.append("  " + self.hint)
        return hidden("\n".join(lines))


class Stopped(SystemExit):
    """A signal asked the process to end. Only our own handlers raise it, so it is never taken for a failed row."""


class ConfigError(PipelineKitError):
    """A config with one or more faults, all of them in `faults`."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)

    def __reduce__(self) -> Any:  # an exception is made anew from its message, unless it names what it takes
        return type(self), (self.faults,)


class RegistryError(ConfigError):
    """A stage name that is unknown, registered twice, or whose plugin is broken."""


class CheckpointError(PipelineKitError):
    """A model folder or hub id that is missing, unsafe, or lacks what the task needs."""

    exit_code = 2


class DeviceError(PipelineKitError):
    """A device or dtype that this machine does not have."""

    exit_code = 2


class InputError(PipelineKitError):
    """An input file that cannot be read."""

    exit_code = 2


class OutputError(PipelineKitError):
    """An output file that cannot be written; nothing is left under its final name."""


class JobError(PipelineKitError):
    """A job that cannot continue, or cannot be resumed; what it has done is kept."""


class ExampleError(PipelineKitError):
    """An example that the task or the tokenizer cannot take; it fails that row alone."""


class MissingValueError(ExampleError):
    """A row of a column or frame without a value: None or NaN."""

    def __init__(self) -> None:
        super().__init__("the value is missing (None or NaN); missing='skip' passes over such rows")

    def __reduce__(self) -> Any:
        return type(self), ()


class StageError(PipelineKitError):
    """A stage returned something its contract does not allow."""


class TransientError(PipelineKitError):
    """For a stage to raise where the same call may succeed a moment later; see ``runner.retries``."""


@dataclass(frozen=True, slots=True)
class RowFailure:
    """A row that has no result: which, in what stage, and why.

    :param index: the row's place in the input.
    :param stage: ``input``, ``tokenizer``, ``model`` or ``postprocessor``.
    :param error: the class name of the exception.
    :param message: its message.
    """

    index: int
    stage: str
    error: str
    message: str

    def __post_init__(self) -> None:
        """Take secrets out of the message, which may quote what the stage was given."""
        object.__setattr__(self, "message", hidden(self.message[:10_000]))

    @classmethod
    def of(cls, index: int, stage: str, error: BaseException) -> RowFailure:
        """Return the failure of row `index` that `error`, raised in `stage`, means."""
        return cls(index, stage, type(error).__name__, str(error))


class RowError(PipelineKitError):
    """One row failed; `failure` holds which, in what stage, and why."""

    def __init__(self, failure: RowFailure) -> None:
        super().__init__(f"row {failure.index}: {failure.stage}: {failure.error}: {for_message(failure.message)}")
        self.failure = failure

    def __reduce__(self) -> Any:
        return type(self), (self.failure,)


def closest_match(name: object, known: Sequence[str]) -> str | None:
    """Return the one of `known` that `name` was most likely meant to be, or None where none is near.

    Near is: a third of the letters differ, three at the most; or `name` begins a longer one, or is whole words of it.
    """
    text, near = _folded(name), list[tuple[int, int, str]]()
    for place, item in enumerate(known):
        other = _folded(item)
        allowed = min(max(len(text), len(other)) // 3, 3)
        distance = _edits(text, other) if abs(len(text) - len(other)) <= allowed else allowed + 1
        whole = len(text) >= 3 and (other.startswith(text) or f"_{text}_" in f"_{other}_")
        if distance <= allowed or whole:
            near.append((distance, place, item))
    return min(near)[2] if near else None


def _folded(name: object) -> str:
    return str(name)[:200].lstrip("-").replace("-", "_").lower()


def _edits(one: str, other: str) -> int:
    """Count the letters to insert, delete, replace or swap with their neighbour between two texts."""
    before, last = [0], list(range(len(other) + 1))
    for i, letter in enumerate(one):
        row = [i + 1]
        for j, mark in enumerate(other):
            row.append(min(last[j + 1] + 1, row[j] + 1, last[j] + (letter != mark)))
            if i and j and letter == other[j - 1] and mark == one[i - 1]:
                row[-1] = min(row[-1], before[j - 1] + 1)
        before, last = last, row
    return last[-1]


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of a message that names the one of `known` that was most likely meant, or ``""``."""
    near = closest_match(name, tuple(known))
    return f" Did you mean '{near}'?" if near else ""


def for_message(value: object, limit: int = 200) -> str:
    """Return `value` for a message: no secrets, control characters escaped, at most `limit` characters."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # an integer of 5,000 digits, or a class of somebody else's
        text = f"<{type(value).__name__}>"
    # Cut first: the patterns take a time that grows with the square of a word.
    text = hidden(text[:10_000])
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


HIDDEN = "(hidden)"
_NAMES = "key|token|secret|password|passwd|pwd|passphrase|auth|authorization|bearer|credential|cookie|private"
_WORD = re.compile(rf"(?:(?:api|access|auth|client|private|secret)?(?:{_NAMES}))s?")
_SPLIT = re.compile(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OVERRIDE = re.compile(r"\s*['\"]?[+~]*([A-Za-z_][^\s='\"{}\[\](),:?&]*)=")
# Tried once for each run of such characters, or a name of 10,000 letters would take seconds.
_EQUALS = re.compile(r"(?<![\w.$@/-])(?:(?![A-Za-z_])[\w.$@/-])*([A-Za-z_][\w.$@/-]*)\\*['\"]?\s?=\s?(?!=)")
_COLON = re.compile(r"(?<=[{,\[])\s*\\*['\"]?([A-Za-z_][\w.$-]*(?: [\w.$-]+)?)\\*['\"]?\s*:\s*")
_HEADER = re.compile(r"(?i)\b((?:[a-z0-9]+-)*(?:authorization|cookie)|x-[a-z0-9-]+)['\"]?\s*:\s*")
_QUOTED = re.compile(r"(?<=['\"])([A-Za-z][\w-]*): +")
_NAMED = re.compile(r"\s*([A-Za-z][\w-]*)\s*:\s*")
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}\b|(?<=://)[^/\s]+(?=@)|(?<=\bbearer )\s*(?=\S*\d)[^\s'\"]{6,}", re.IGNORECASE
)
_NUMBER = re.compile(r"[\s\[\]]*[-+]?[\d.][\d._]*(e[-+]?\d+)?[\s\[\]]*", re.IGNORECASE)
_CONSTANTS = ("true", "false", "null", "", "???", "value")
_QUOTE = re.compile(r"\\*['\"]")
_SHORTEST, _MOST_KNOWN = 6, 1000

_declared: dict[str, bool] = {}
_known: dict[str, None] = {}


def declare(schema: type[Any], path: str) -> None:
    """Remember which options of a dataclass are secret: an option of a group called `path`, such as ``tokenizer``.

    ``option(..., secret=...)`` decides; without it the name does, where the type can hold text. Where two stages have
    an option of the same name, it is a secret if it is one of either.
    """
    try:
        hints = get_type_hints(schema)
    except Exception:  # a plugin's annotations may name what is not there; its options are known by name alone
        hints = {}
    for item in fields(schema):
        where, kind = f"{path}.{item.name}", hints.get(item.name)
        if isinstance(kind, type) and is_dataclass(kind):
            declare(kind, where)
        secret = item.metadata.get("secret")
        if secret is None and _holds_no_text(kind):
            secret = False
        elif secret is None and _says_secret(where):
            secret = True
        if secret is not None:
            _declared[where] = _declared.get(where, False) or secret


def is_secret(path: str) -> bool:
    """Return whether the option or key `path`, such as ``tokenizer.headers.api_key``, is a secret by its name."""
    parts = path.split(".")
    if parts[0] == "steps":  # an option of a step is one of its group, whatever the step is called
        parts = parts[2:]
        path = ".".join(parts)
    for end in range(len(parts), 0, -1):
        found = _declared.get(".".join(parts[:end]))
        if found is not None:
            return found
    return _says_secret(path)


def redacted(value: Any, path: str = "") -> Any:
    """Return `value` without its secrets; `path` is its full name, such as ``tokenizer``."""
    if is_secret(path) and not _is_harmless(value, path):
        return HIDDEN
    if isinstance(value, Mapping):
        return {name: redacted(inner, f"{path}.{name}".lstrip(".")) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner, path) for inner in value]
    return hidden(value, whole=True) if isinstance(value, str) else value


def without_secrets(overrides: Iterable[str]) -> list[str]:
    """Return overrides, as they are typed, without the secrets in them."""
    return [hidden(text, whole=True) for text in overrides]


def hidden(text: str, *, whole: bool = False) -> str:
    """Return a text, such as a message that quotes an override or a library's error, without the secrets in it.

    :param whole: `text` is one value or one override, so a name at its beginning names all of it.
    """
    if "=" in text or ":" in text:
        done, parts = 0, []
        for start, end in _spans(text, whole, apart=True):
            parts += [text[done:start], HIDDEN]
            done = end
        text = "".join([*parts, text[done:]])
    text = _FORMS.sub(HIDDEN, text)
    for secret in sorted(_known, key=len, reverse=True):  # the longest first: one may hold another
        text = text.replace(secret, HIDDEN)
    return text


def learn(value: Any, path: str = "") -> None:
    """Remember the secrets in a config, or in one override as text, so that :func:`hidden` knows them anywhere."""
    if is_secret(path) and not _is_harmless(value, path):
        for text in _texts(value):
            _remember(text)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            learn(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            learn(inner, path)
    elif isinstance(value, str):
        for start, end in _spans(value, whole=True):
            _remember(value[start:end])
        for found in _FORMS.findall(value):
            _remember(found)
            _remember(found.rpartition(":")[2])


def learn_environment() -> None:
    """Remember the secrets among the environment's variables: by their names, and in addresses."""
    for name, value in os.environ.items():
        learn(value, "" if os.path.exists(value) else name)  # SSH_AUTH_SOCK and the like name files


def _remember(text: str) -> None:
    bare = re.sub(r"(?i)^(bearer|basic|token|digest) +", "", text.strip(" '\"[]{}"))
    pieces = re.split(r"""['"]?\s*(?<!\\),\s*['"]?""", bare)  # a sweep, or a list
    for piece in (text, bare, *pieces, *(re.sub(r"\\(.)", r"\1", piece) for piece in pieces)):
        for form in (piece, json.dumps(piece)[1:-1], repr(piece)[1:-1], quote(piece, safe="")):
            if len(form) >= _SHORTEST and form != HIDDEN:
                _known[form] = None
    while len(_known) > _MOST_KNOWN:  # a process that composes for ever
        del _known[next(iter(_known))]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _says_secret(path: str) -> bool:
    return any(_WORD.fullmatch(word.lower()) for word in _SPLIT.split(path))


def _holds_no_text(kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType, list):
        return all(map(_holds_no_text, get_args(kind)))
    return get_origin(kind) is Literal or kind in (bool, int, float, NoneType)


def _is_harmless(value: Any, path: str) -> bool:
    """Return whether nothing is given away: no value, true or false, or a number that the name does not mean.

    A number is meant by a name that ends with a word for a secret, such as ``password``; not by ``max_tokens``.
    """
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str) and value.strip().lower() in _CONSTANTS:
        return True
    if isinstance(value, list | tuple):
        return all(_is_harmless(inner, path) for inner in value)
    words = [word.lower() for word in _SPLIT.split(path) if word]
    meant = _declared.get(path) or bool(words and _WORD.fullmatch(words[-1]) and not words[-1].endswith("s"))
    parts = value.split(",") if isinstance(value, str) else [str(value)]
    return not meant and all(_NUMBER.fullmatch(part) or part.strip() in _CONSTANTS for part in parts)


def _spans(text: str, whole: bool, *, apart: bool = False) -> Iterator[tuple[int, int]]:
    """Find the values that a name before them marks as secret, from left to right.

    :param apart: leave out those that begin within another; what a client sends may nest thousands of them.
    """
    first = _OVERRIDE.match(text) or (_NAMED.match(text) if whole else None)
    rest = "" if first is None else text[first.end() :]
    if first is not None and is_secret(first[1]) and not rest.startswith(HIDDEN) and not _is_harmless(rest, first[1]):
        yield first.end(), len(text)
        return
    found = [(match, " &;)`,\n\t" if "?" in text else " &;)`\n\t") for match in _EQUALS.finditer(text)]
    found += [(match, ",") for pattern in (_COLON, _QUOTED) for match in pattern.finditer(text)] + [
        (match, "\n") for match in _HEADER.finditer(text)
    ]
    done = 0
    for match, stops in sorted(found, key=lambda pair: pair[0].end()):
        name, start = match[1].strip(), match.end()
        if start < done or text.startswith(HIDDEN, start) or not is_secret(name):
            continue
        end = _end_of_value(text, start, stops)
        if not _is_harmless(text[start:end], name):
            yield start, end
            done = end if apart else 0


def _end_of_value(text: str, start: int, stops: str) -> int:
    """Find where a value ends: at one of `stops` or a closing bracket, outside of quotes and its own brackets."""
    place, depth, begins = start, 0, True
    while place < len(text):
        mark = _QUOTE.match(text, place)
        if mark is not None and begins:
            close = text.find(mark[0], mark.end())
            while close > 0 and text[close - 1] == "\\":
                close = text.find(mark[0], close + 1)
            place = len(text) if close < 0 else close + len(mark[0])
            begins = False
            continue
        letter = text[place]
        if letter == "\\":
            place += 2
            continue
        if depth == 0 and (letter in stops or letter in "]}" or (letter in "'\"" and stops != ",")):
            return place
        depth += (letter in "[{(") - (letter in "]})")
        begins = letter in "[{(,: "
        place += 1
    return len(text)
