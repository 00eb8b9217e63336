"""Panels of token classification, held against transformers' own logits put together by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import checkpoint
from panels_helpers import (
    LONG,
    WINDOWS,
    Told,
    ask,
    assemble,
    close,
    column,
    last_number,
    network,
    padded,
    reference,
    shown,
)

from pipeline_kit import Pipeline
from pipeline_kit.contract.types import Example

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TAGS = ("O", "PER", "PER", "LOC", "LOC")
AGGREGATIONS = ("none", "simple", "first", "average", "max")
TEXTS = ("My name is Sarah and I live in Paris", "a", "Ünïcödé 漢字 😀 👩‍👩‍👧 עברית \t zzz", LONG)


@pytest.fixture(scope="module")
def folders() -> Mapping[str, Path]:
    return {
        # Seeds with which both tags and runs of several tokens come up.
        name: checkpoint(name, head="token-classification", labels=LABELS, seed=seed)
        for name, seed in (("bert", 2), ("roberta", 9), ("xlnet", 3))
    }


def make(folder: Path, aggregation: str, ignore: Sequence[str] = ("O",)) -> Pipeline:
    post = {"name": "entities", "aggregation": aggregation, "ignore_labels": list(ignore)}
    return assemble(folder, "token-classification", post, WINDOWS)


def tokens_by_hand(model: Any, told: Told) -> list[tuple[int, int, torch.Tensor]]:
    """Return start, end and logits of each token of the text: of two windows the one with more around the token."""
    found: dict[int, tuple[int, int, int, int, torch.Tensor]] = {}
    for encoding, row in zip(told.encodings, reference(model, told), strict=True):
        mask, offsets = encoding.special_tokens_mask, encoding.offsets
        assert mask is not None
        assert offsets is not None
        places = [i for i, special in enumerate(mask) if not special]
        begin, end = encoding.token_span or (0, len(places))
        for token, place in zip(range(begin, end), places, strict=True):
            around = min(token - begin if begin else 10_000, end - 1 - token if end < last(told) else 10_000)
            if token not in found or around > found[token][0]:
                found[token] = (around, encoding.window, *offsets[place], row["logits"][place])
    return [found[token][2:] for token in sorted(found)]


def last(told: Told) -> int:
    """How many tokens the text has."""
    span = told.encodings[-1].token_span
    return 10_000 if span is None else span[1]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
def test_tokens_and_entities(folders: Mapping[str, Path], name: str, aggregation: str) -> None:
    model = network(folders[name], "AutoModelForTokenClassification")
    pipe = make(folders[name], aggregation)
    for told, text in zip(ask(padded(pipe, sorted(pipe.model.safe_padding_sides)[0]), TEXTS), TEXTS, strict=True):
        by_place: dict[tuple[int, int], list[torch.Tensor]] = {}
        for start, end, logits in tokens_by_hand(model, told):
            by_place.setdefault((start, end), []).append(logits)
        panel = told.panel("tokens: logits to labels")
        assert panel.rows
        for token, start, end, label, logit, power, total, score in panel.rows:
            assert text[start:end] == token
            fits = [own for own in by_place[start, end] if abs(float(own.max()) - logit) < 1e-6]
            assert fits, (token, logit)
            own = fits[0]
            best = int(own.argmax())
            assert label == LABELS[best]
            exps = (own - own.max()).double().exp()
            close([logit, power, total, score], [own[best], exps[best], exps.sum(), exps[best] / exps.sum()])
        entities = told.panel("entities")
        listed = told.result["entities"]
        assert len(entities.rows) == min(50, len(listed))
        for row, entity in zip(entities.rows, listed, strict=False):
            assert entity["text"].startswith(row[0].removesuffix("…"))
            assert row[1:4] == (entity["start"], entity["end"], entity["label"])
            assert row[-1] == pytest.approx(entity["score"], abs=1e-6)
        assert (len(told.encodings) > 1) is any(panel.title == "windows put together" for panel in told.panels)


def test_an_entity_is_the_mean_of_its_tokens(folders: Mapping[str, Path]) -> None:
    model = network(folders["bert"], "AutoModelForTokenClassification")
    joined = 0
    for told, text in zip(ask(make(folders["bert"], "simple"), TEXTS[:3]), TEXTS[:3], strict=True):
        tokens, panel = tokens_by_hand(model, told), told.panel("entities")
        for piece, start, end, label, count, score in panel.rows:
            own = [logits for begin, stop, logits in tokens if begin >= start and stop <= end]
            assert text[start:end] == piece
            assert count == len(own)
            assert {TAGS[int(logits.argmax())] for logits in own} == {label}
            close([score], torch.stack([logits.softmax(0).max() for logits in own]).double().mean()[None])
            joined += count > 1
        assert any(last_number(panel) == shown(row[-1]) for row in panel.rows)
    assert joined, "the seed gives no entity of several tokens"


def test_an_entity_never_begins_within_a_character(folders: Mapping[str, Path]) -> None:
    """The tokens of one character take what the first one has, and the note says so where that changes a label."""
    [told] = ask(make(folders["roberta"], "simple"), ["😀 漢字 👩‍👩‍👧 is good"])
    best = [row[3] for row in told.panels[0].rows]
    assert "within a character" in told.panel("entities").note, best


@pytest.mark.parametrize("aggregation", ["first", "average", "max"])
def test_words(folders: Mapping[str, Path], aggregation: str) -> None:
    model = network(folders["bert"], "AutoModelForTokenClassification")
    examples: list[Example] = ["name Sarah lives in Zürich", {"words": ["New York", "is", "zzz"]}]
    for told, example in zip(ask(make(folders["bert"], aggregation, ()), examples), examples, strict=True):
        tokens = tokens_by_hand(model, told)
        panel = told.panel(f"tokens to words ({aggregation})")
        assert sum(column(panel, "tokens")) == len(tokens)
        at = 0
        for _, start, end, count, label, score in panel.rows:
            own = torch.stack([logits.softmax(0) for _, _, logits in tokens[at : at + count]]).double()
            assert (tokens[at][0], tokens[at + count - 1][1]) == (start, end)
            at += count
            values = {
                "first": own[0],
                "average": own.mean(dim=0),
                "max": own[int(own.max(dim=1).values.argmax())],
            }[aggregation]
            assert label == TAGS[int(values.argmax())]
            close([score], values.max()[None])
        assert any(last_number(panel) == shown(row[-1]) for row in panel.rows)
        if isinstance(example, dict):
            assert column(panel, "word") == example["words"]


def test_windows_put_together(folders: Mapping[str, Path]) -> None:
    [told] = ask(make(folders["bert"], "simple"), [LONG])
    panel = told.panel("windows put together")
    assert column(panel, "tokens") == [len(encoding.input_ids) for encoding in told.encodings]
    assert sum(column(panel, "taken")) == last(told)
    # Of six shared tokens three come from each side.
    assert [row[4:] for row in panel.rows[:2]] == [(1, 19), (4, 19)]


def test_many_tokens_keep_those_that_count(folders: Mapping[str, Path]) -> None:
    [told] = ask(make(folders["bert"], "none", ("O", "PER")), ["it was so good and " * 14])
    panel = told.panel("tokens: logits to labels")
    assert "tokens left out, those of ignored labels first" in panel.note
    assert set(column(panel, "label")) <= {"B-LOC", "I-LOC"}


def test_nothing_to_tag(folders: Mapping[str, Path]) -> None:
    none, ignored = (
        ask(make(folders["bert"], "simple", ignore), [text])[0]
        for ignore, text in ((("O",), ""), (("O", "PER", "LOC"), "I love this"))
    )
    assert [panel.title for panel in none.panels] == ["no tokens"]
    assert none.result == {"entities": []} == ignored.result
    assert ignored.panel("entities").rows == ()
