"""Makes a loaded tokenizer fit for use, and refuses one whose rules blow a text up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

from pipeline_kit.builtin.tokenizers.traits import sentence_transformers
from pipeline_kit.errors import CheckpointError, shorten
from pipeline_kit.types import Checkpoint

__all__ = ["check_growth", "no_tokenizer", "prepare"]

_MOST_RULES = 1000
_TIMES, _EXTRA = 16, 16  # a probe of n characters may become at most 16 n + 16

_Rule = Callable[[str], str]


def prepare(backend: Tokenizer, checkpoint: Checkpoint) -> None:
    """Make a freshly loaded backend safe to use and its encodings depend on their text alone.

    Stored padding, truncation and dropout are switched off. sentence-transformers' own ``do_lower_case``
    is followed.

    :raises CheckpointError: if its rules blow texts up, see :func:`check_growth`.
    """
    backend.no_padding()
    backend.no_truncation()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    check_growth(backend, checkpoint.name)
    if sentence_transformers(checkpoint.path).get("do_lower_case") is True:
        first = normalizers.Lowercase()
        rest = backend.normalizer
        backend.normalizer = first if rest is None else normalizers.Sequence([first, rest])


def no_tokenizer(checkpoint: Checkpoint, lacking: str) -> CheckpointError:
    """Return the error for a folder that lacks the files of its tokenizer.

    :param lacking: their names, for the message.
    """
    folder = shorten(str(checkpoint.path))
    return CheckpointError(
        f"the checkpoint '{shorten(checkpoint.name)}' has no tokenizer: {folder} lacks {lacking}. "
        "Saving a model does not save its tokenizer. With the name of the checkpoint that the model was trained from, "
        f"run AutoTokenizer.from_pretrained('NAME').save_pretrained('{folder}') in Python, or copy the file(s)"
    )


def check_growth(backend: Tokenizer, name: str) -> None:
    """Refuse a normalizer or decoder whose ``Replace`` and ``Prepend`` rules make texts many times longer.

    The rules are tried on short probes made of what they themselves replace and write, so a rule set
    written to escape the probes can still be slow; it cannot be told apart from a harmless one.

    :param name: the checkpoint, for the message.
    :raises CheckpointError: naming the probe that grew.
    """
    for part in ("normalizer", "decoder"):
        nodes = list(_nodes(_state(getattr(backend, part))))
        rules = [node for node in nodes if node.get("type") in ("Replace", "Prepend")]
        if len(rules) > _MOST_RULES:
            raise CheckpointError(
                f"the {part} of '{name}' has {len(rules)} rules that rewrite text; at most {_MOST_RULES} are taken"
            )
        for probe in _probes(rules):
            if (length := _grown([_rule(node) for node in rules], probe)) is not None:
                raise CheckpointError(
                    f"the {part} of '{name}' makes {length} characters or more of the {len(probe)} in "
                    f"'{shorten(probe, 40)}', so one short text could fill the memory; the file is broken or hostile"
                )


def _state(part: Any) -> Any:
    """Read a part of a tokenizer as JSON data; None if there is no such part or it is written in Python."""
    try:
        return None if part is None else json.loads(part.__getstate__())
    except Exception:  # the library raises a bare Exception for a part without a file form
        return None


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        yield node
        for key in ("normalizers", "decoders"):
            for child in node.get(key) or ():
                yield from _nodes(child)


def _pattern(node: Mapping[str, Any]) -> tuple[str, str]:
    """Give a Replace rule's pattern and whether it is 'String' or 'Regex'."""
    pattern = node.get("pattern")
    kind, text = next(iter(pattern.items())) if isinstance(pattern, Mapping) and pattern else ("String", "")
    return str(text), str(kind)


def _rule(node: Mapping[str, Any]) -> _Rule:
    if node["type"] == "Prepend":
        prefix = str(node.get("prepend", ""))
        return lambda text: prefix + text
    pattern, kind = _pattern(node)
    content = str(node.get("content", ""))
    if kind == "Regex":
        replace = normalizers.Replace(Regex(pattern), content)
        return lambda text: str(replace.normalize_str(text))
    return lambda text: text.replace(pattern, content)


def _probes(rules: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Give short texts that set rules off: printable characters, and what rules look for and write."""
    if not rules:
        return
    characters = {chr(code) for code in range(32, 127)}
    for node in rules:
        characters.update(str(node.get("content", ""))[:100])
        if node["type"] == "Replace" and (pattern := _pattern(node))[1] == "String":
            yield pattern[0][:100]
            yield pattern[0][:25] * 4
    yield from sorted(characters)


def _grown(rules: Sequence[_Rule], probe: str) -> int | None:
    """Give the length of `probe` after the first rule that makes it too long, None if none does."""
    text = probe
    for rule in rules:
        text = rule(text)
        if len(text) > _TIMES * len(probe) + _EXTRA:
            return len(text)
    return None
