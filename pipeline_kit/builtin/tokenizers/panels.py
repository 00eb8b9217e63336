"""The panels of the built-in tokenizers: a text's normalised form, its pre-tokens, and the special tokens put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import PreTokenizedString

from pipeline_kit.builtin.tasks.common.panels import ROWS, cell, fold, notes
from pipeline_kit.builtin.tokenizers.encode import Encoder, Rendered, encode_fully
from pipeline_kit.contract.fields import text_and_pair
from pipeline_kit.contract.stages import Cell, Panel
from pipeline_kit.contract.types import Encoding, Example
from pipeline_kit.errors import for_message

_SEEN = 20_000  # characters of a text that are looked at
_SHOWN = 500  # characters of a text in a cell

Span = tuple[int, int]


@dataclass(frozen=True)
class _Piece:
    """A pre-token: its text and its place in the source; `added` is a token of its own, found before all else."""

    text: str
    start: int
    end: int
    added: bool


def tokenizer_panels(encoder: Encoder, example: Example, languages: Mapping[str, int]) -> list[Panel]:
    """Show what became of each text of `example`, which the encoder was given, on its way to token ids."""
    first, second = text_and_pair(example)
    texts = [first, second] if second else [first]
    encodings = encode_fully(encoder, [example])
    panels = []
    if isinstance(first, Rendered):
        lines = "\n".join(for_message(line, 76) for line in first[: _SEEN // 10].split("\n")[:ROWS])
        note = "the conversation as the checkpoint's template writes it; special tokens are in it already"
        panels.append(Panel("chat template", formula=lines, note=note))
    cut = [_pieces(encoder.backend, text[:_SEEN]) for text in texts]
    panels.append(_normalized(encoder.backend, texts, [norm for norm, _ in cut]))
    for i, (_, pieces) in enumerate(cut):
        panels.append(_pre_tokens(pieces, encodings, i, len(texts), len(texts[i]) > _SEEN))
    return [*panels, _special(encoder, encodings, isinstance(first, Rendered), {v: k for k, v in languages.items()})]


def _pieces(backend: Any, text: str) -> tuple[str, list[_Piece]]:
    """Normalise `text` and split it into pre-tokens as the backend does, which first finds the added tokens."""
    added = _added(backend, text)
    split = PreTokenizedString(text)
    cuts = sorted({0, len(text), *(place for span in added for place in span)})
    if added:
        split.split(lambda _, part: [part.slice(pair) for pair in pairwise(cuts)])
    if backend.normalizer is not None:
        split.normalize(lambda part: backend.normalizer.normalize(part))
    joined = "".join(piece.text for piece in _merged(split, text, added))
    if backend.pre_tokenizer is not None:
        backend.pre_tokenizer.pre_tokenize(split)
    return joined, [piece for piece in _merged(split, text, added) if piece.text]


def _added(backend: Any, text: str) -> list[Span]:
    """Find where `text` spells a token that was added to the vocabulary, such as ``[MASK]``."""
    known = backend.get_added_tokens_decoder()
    encoded = backend.encode(text, add_special_tokens=False)
    pairs = zip(encoded.ids, encoded.offsets, strict=True)
    return [(begin, end) for id, (begin, end) in pairs if id in known and _spells(text[begin:end], known[id])]


def _spells(part: str, token: Any) -> bool:
    """Return whether `part` of a text is the added `token`, not what it stands for, as the unknown one does."""
    slim, content = part.strip(), str(token.content).strip()
    return bool(slim) and (slim == content or (token.normalized and slim.lower() == content.lower()))


def _merged(split: PreTokenizedString, text: str, added: Sequence[Span]) -> list[_Piece]:
    """Return the pieces that `split` has come to, an added token as it stands in the text."""
    found: list[_Piece] = []
    waiting = sorted(added)
    for piece, (begin, end), _ in split.get_splits("original", "char"):
        span = next((span for span in added if span[0] <= begin and end <= span[1] and begin < end), None)
        if span is None:
            found.append(_Piece(piece, begin, end, added=False))
        elif span in waiting:
            waiting.remove(span)
            found.append(_Piece(text[slice(*span)], *span, added=True))
    return found


def _normalized(backend: Any, texts: Sequence[str], normalized: Sequence[str]) -> Panel:
    rows: list[Sequence[Cell]] = []
    for name, text, after in zip(("text", "text_pair"), texts, normalized, strict=False):
        rows.append((name, cell(str(text), _SHOWN), cell(after, _SHOWN), len(text), len(after), after != text[:_SEEN]))
    columns = ("field", "as given", "normalised", "characters", "after", "changed")
    rule = "none, the text stays as it is" if backend.normalizer is None else for_message(str(backend.normalizer), 300)
    note = f"looked at up to {_SEEN} characters" if any(len(text) > _SEEN for text in texts) else ""
    return Panel("normalised text", columns, rows, formula=fold(f"normalizer: {rule}".split(" ")), note=note)


def _pre_tokens(pieces: Sequence[_Piece], encodings: Sequence[Encoding], sequence: int, texts: int, cut: bool) -> Panel:
    """Show the pre-tokens of one text with the tokens that each became; dashes where truncation took them all."""
    tokens = _by_word(encodings, sequence)
    rows: list[Sequence[Cell]] = []
    for i, piece in enumerate(pieces):
        kept = " ".join(tokens.get(i, ()))
        rows.append(
            (i, cell(piece.text, _SHOWN), piece.start, piece.end, "added" if piece.added else "", cell(kept, _SHOWN))
        )
    first = min(tokens, default=0)
    begin = max(0, min(first, len(rows) - ROWS))  # a text that is cut at its beginning has what counts behind
    shown = rows[begin : begin + ROWS]
    left = len(rows) - len(shown)
    said = [
        "added: a token of its own, found before the text is normalised" if any(p.added for p in pieces) else "",
        "an empty last column: truncation took its tokens" if len(tokens) < len(pieces) else "",
        f"{left} pre-tokens left out" if left else "",
        f"of the first {_SEEN} characters" if cut else "",
    ]
    title = "pre-tokens" if texts == 1 else f"pre-tokens of {('text', 'text_pair')[sequence]}"
    columns = ("number", "pre-token", "start", "end", "kind", "tokens")
    return Panel(title, columns, shown, note=notes(*said))


def _by_word(encodings: Sequence[Encoding], sequence: int) -> dict[int, list[str]]:
    """Return the tokens of each word of one text; a word that several windows hold from the one with most of it."""
    found: dict[int, list[str]] = {}
    for encoding in encodings:
        here: dict[int, list[str]] = {}
        columns = zip(encoding.tokens or (), encoding.word_ids or (), encoding.sequence_ids or (), strict=True)
        for token, word, owner in columns:
            if word is not None and owner == sequence:
                here.setdefault(word, []).append(token)
        for word, pieces in here.items():
            if len(pieces) > len(found.get(word, ())):
                found[word] = pieces
    return found


def _special(encoder: Encoder, encodings: Sequence[Encoding], written: bool, languages: Mapping[int, str]) -> Panel:
    """Show the tokens of the first encoding that belong to no text."""
    encoding = encodings[0]
    sequences, names = encoding.sequence_ids or (), encoding.tokens or ()
    texts = [owner for owner in sequences if owner is not None]
    rows: list[Sequence[Cell]] = []
    seen = 0
    for place, (owner, name) in enumerate(zip(sequences, names, strict=True)):
        if owner is not None:
            seen += 1
            continue
        where = "before the text" if not seen else "behind the text" if seen == len(texts) else "between the texts"
        id = encoding.input_ids[place]
        what = f"the language {languages[id]}" if id in languages else ""
        rows.append((name, id, place, where if texts else "alone", what))
    columns = ("token", "id", "place", "where", "what")
    if written:
        note = "none is added to a written conversation"
    elif not encoder.options.add_special_tokens:
        note = "tokenizer.add_special_tokens is false"
    else:
        note = "" if rows else "this tokenizer adds none"
    several = f"each of the {len(encodings)} windows has them" if len(encodings) > 1 and rows else ""
    return Panel("special tokens that were added", columns if rows else (), rows[:ROWS], note=notes(note, several))
