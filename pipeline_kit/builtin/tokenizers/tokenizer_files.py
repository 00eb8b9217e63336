"""What a checkpoint's files say about its tokenizer, for reading it without transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers
from tokenizers import Tokenizer as Backend

from pipeline_kit.checkpoint.json import read_optional
from pipeline_kit.contract.types import Checkpoint, Side
from pipeline_kit.errors import CheckpointError, for_message

# Which classes and architectures ask for segment ids, as transformers 5 has it in `model_input_names`.
_TYPED_CLASSES = frozenset(
    {"Bert", "Canine", "ConvBert", "Deberta", "DebertaV2", "Electra", "FNet", "LayoutLM", "Lxmert", "MarkupLM"}
    | {"MobileBert", "SqueezeBert", "Tapas"}
)
_TYPED_MODELS = frozenset(
    {"bert", "bros", "canine", "convbert", "deberta", "deberta-v2", "dpr", "electra", "ernie", "fnet", "layoutlm"}
    | {"lxmert", "markuplm", "megatron-bert", "mobilebert", "nezha", "nomic_bert", "qdqbert", "realm", "retribert"}
    | {"squeezebert", "tapas", "visual_bert"}
)
_UNTYPED_MODELS = frozenset({"bart", "distilbert", "mbart", "modernbert", "mpnet", "mt5", "t5", "umt5"})

_FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_SENTENCE_TRANSFORMERS = tuple(f"sentence_{family}_config.json" for family in _FAMILIES)


def takes_token_types(config: Mapping[str, Any], named: bool) -> bool:
    """Return whether encodings need segment ids: the tokenizer has them `named` and the model two segments or more."""
    segments = config.get("type_vocab_size")
    if isinstance(segments, int):
        return named and segments > 1
    return named and config.get("model_type") not in _UNTYPED_MODELS


def names_token_types(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    """Return whether transformers' tokenizer of this checkpoint would name segment ids as an input."""
    names = tokenizer_config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    owner = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    if isinstance(owner, str):
        return owner.removesuffix("Fast").removesuffix("Tokenizer") in _TYPED_CLASSES
    return config.get("model_type") in _TYPED_MODELS


def side(tokenizer_config: Mapping[str, Any], key: str, stored: Mapping[str, Any] | None) -> Side:
    """Return ``padding_side`` or ``truncation_side``; `stored` is what tokenizer.json itself holds of it."""
    found = tokenizer_config.get(key) or (stored or {}).get("direction")
    owner = str(tokenizer_config.get("tokenizer_class")).removesuffix("Fast")
    if found is None and key == "padding_side" and owner == "XLNetTokenizer":
        return "left"
    return "left" if found == "left" else "right"


def pad_token(folder: Path, tokenizer_config: Mapping[str, Any], stored: Mapping[str, Any] | None) -> str | None:
    """Return the padding token that the files name, tokenizer.json's own `stored` padding last; None if none does."""
    places = (tokenizer_config, read_optional(folder / "special_tokens_map.json"), stored or {})
    for place in places:
        token = place.get("pad_token")
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None


def usable_pad_id(backend: Backend, named: int | None, config: Mapping[str, Any]) -> int | None:
    """Return the id that fills padding: `named`, else the one in ``config.json``, else None.

    :param named: the id of the token that the tokenizer's files name. One that the model has no
        embedding for, which transformers makes up for some classes, would fail in every padded batch.
    """
    size = config.get("vocab_size")
    other = config.get("pad_token_id")
    known = (named, other if type(other) is int and other >= 0 and backend.id_to_token(other) is not None else None)
    return next((id for id in known if id is not None and (not isinstance(size, int) or id < size)), None)


def sentence_transformers(folder: Path) -> Mapping[str, Any]:
    """Read the file that sentence-transformers keeps beside a tokenizer, ``{}`` if there is none."""
    return next((read_optional(folder / name) for name in _SENTENCE_TRANSFORMERS if os.path.lexists(folder / name)), {})


_MOST_RULES = 1000
_TIMES, _EXTRA = 16, 16  # a probe of n characters may become at most 16 n + 16

_Rule = Callable[[str], str]


def sanitize_backend(backend: Tokenizer, checkpoint: Checkpoint) -> None:
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
    """Return the error for a folder whose tokenizer lacks files, `lacking`."""
    folder = for_message(str(checkpoint.path))
    head = f"the checkpoint '{for_message(checkpoint.name)}' has no tokenizer: {folder} lacks {lacking}."
    if checkpoint.own_format:
        return CheckpointError(f"{head} Choose the tokenizer that goes with its model stage: pipeline-kit ls tokenizer")
    return CheckpointError(
        f"{head} "
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
                    f"'{for_message(probe, 40)}', so one short text could fill the memory; the file is broken or "
                    "hostile"
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
    """Return a Replace rule's pattern and whether it is 'String' or 'Regex'."""
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
    """Yield short texts that set rules off: printable characters, and what rules look for and write."""
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
    """Return the length of `probe` after the first rule that makes it too long, None if none does."""
    text = probe
    for rule in rules:
        text = rule(text)
        if len(text) > _TIMES * len(probe) + _EXTRA:
            return len(text)
    return None
