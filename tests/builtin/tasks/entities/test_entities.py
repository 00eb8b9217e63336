"""The entities postprocessor: aggregation by hand and against transformers' own, words, windows, bad input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.pipelines.token_classification import AggregationStrategy

import pipeline_kit as pk
from pipeline_kit.builtin.tasks.entities.stage import Entities
from pipeline_kit.builtin.tasks.options import EntitiesConfig
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device, Encoding, Example, ModelOutput, Result
from pipeline_kit.errors import ConfigError, RowError, StageError
from pipeline_kit.runtime.padding import PaddingPolicy, collate, split_rows
from pipeline_kit.testing import PostprocessorConformance, WordTokenizer, WordTokenizerConfig, tiny_stage_context

CONLL = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
PLAIN = ("O", "MISC", "PER", "ORG", "LOC")
STRATEGIES = ("none", "simple", "first", "average", "max")

Span = tuple[int, int]


def context(labels: Sequence[str] = CONLL) -> StageContext:
    return tiny_stage_context(labels=labels, head="token-classification")


def stage(aggregation: str = "simple", labels: Sequence[str] = CONLL, ignore: Sequence[str] = ("O",)) -> Entities:
    return Entities(EntitiesConfig(aggregation=aggregation, ignore_labels=list(ignore)), context(labels))  # type: ignore[arg-type]


def window(spans: Sequence[Span], words: Sequence[int], ids: Sequence[int] | None = None, number: int = 0) -> Encoding:
    """Make the encoding of tokens with these places and words, between two special tokens."""
    return Encoding(
        input_ids=[1, *(ids or range(10, 10 + len(spans))), 2],
        special_tokens_mask=[1, *[0] * len(spans), 1],
        offsets=[(0, 0), *spans, (0, 0)],
        word_ids=[None, *words, None],
        window=number,
    )


def run(
    entities: Entities, example: Example, windows: Sequence[Encoding], scores: Sequence[Any], check: bool = True
) -> list[dict[str, Any]]:
    """Return the entities for the scores of the text tokens of each window; they are made to sum to 1 by ``O``."""
    tensors = []
    for rows in scores:
        table = np.array(rows, dtype=np.float64)
        edge = np.eye(table.shape[1])[:1]
        framed = np.vstack([edge, table, edge])
        framed[:, 0] += 1 - framed.sum(axis=1)
        tensors.append(torch.tensor(np.log(np.maximum(framed, 1e-30)), dtype=torch.float32))
    outputs = []
    for encoding, tensor in zip(windows, tensors, strict=True):
        batch = collate([encoding], PaddingPolicy("longest"), "cpu")
        reduced = entities.reduce(ModelOutput({"logits": tensor[None]}, frozenset({"logits"})), batch)
        outputs += split_rows(reduced, batch)
    [result] = entities([example], [windows], [outputs])
    json.dumps(result, allow_nan=False)
    if check and isinstance(example, str):
        check_entities(example, result["entities"])
    found: list[dict[str, Any]] = result["entities"]
    return found


def check_entities(text: str, entities: Sequence[Mapping[str, Any]]) -> None:
    end = 0
    for entity in entities:
        assert set(entity) == {"label", "score", "text", "start", "end"}
        assert end <= entity["start"] < entity["end"]
        assert entity["text"] == text[entity["start"] : entity["end"]] == entity["text"].strip()
        assert type(entity["score"]) is float
        assert 0 <= entity["score"] <= 1
        end = entity["end"]


def short(entities: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(entity["label"], entity["text"]) for entity in entities]


def rows_of(labels: Sequence[str], names: Sequence[str] = CONLL, score: float = 0.9) -> list[list[float]]:
    """Return scores in which each token has one label, or ``label=score``."""
    found = []
    for label in labels:
        name, _, value = label.partition("=")
        row = [0.0] * len(names)
        row[names.index(name)] = float(value or score)
        if name != names[0]:
            row[0] = 0.99 - row[names.index(name)]
        found.append(row)
    return found


# transformers' own arrays: tests/pipelines/test_pipelines_token_classification.py


@pytest.fixture(scope="module")
def reference() -> Any:
    folder = checkpoint(head="token-classification", labels=CONLL)
    return transformers.pipeline("token-classification", model=str(folder), device="cpu")


def oracle(
    reference: Any,
    how: str,
    labels: Sequence[str],
    rows: Sequence[Sequence[float]],
    spans: Sequence[Span],
    subwords: Any,
) -> list[tuple[Any, ...]]:
    """Return what ``TokenClassificationPipeline.aggregate`` makes of scores, ``O`` left out."""
    tokens = [
        {"word": "x", "scores": np.array(row), "start": start, "end": end, "index": i, "is_subword": subword}
        for i, (row, (start, end), subword) in enumerate(zip(rows, spans, subwords, strict=True))
    ]
    reference.model.config.id2label = dict(enumerate(labels))
    found = reference.aggregate(tokens, AggregationStrategy(how))
    key = "entity" if how == "none" else "entity_group"
    return [(e[key], e["start"], e["end"], pytest.approx(float(e["score"]), abs=1e-5)) for e in found if e[key] != "O"]


def tuples(entities: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    return [(e["label"], e["start"], e["end"], e["score"]) for e in entities]


ENZO = "Enzo was, UN"
ENZO_SPANS, ENZO_WORDS = [(0, 2), (2, 4), (10, 12)], [0, 0, 3]
RAMAZOTTI = "Ramazotti"
RAMAZOTTI_SPANS, RAMAZOTTI_WORDS = [(0, 2), (2, 4), (4, 9)], [0, 0, 0]
RAMAZOTTI_SCORES = [
    [0, 0.55, 0, 0.45, 0, 0, 0, 0, 0],
    [0, 0, 0, 0.2, 0, 0, 0, 0.8, 0],
    [0, 0, 0, 0.4, 0, 0, 0.6, 0, 0],
]


@pytest.mark.parametrize("labels", [CONLL, PLAIN])
@pytest.mark.parametrize("how", STRATEGIES)
def test_enzo_of_transformers(reference: Any, how: str, labels: tuple[str, ...]) -> None:
    kinds = ("I-PER", "I-PER", "B-ORG") if labels is CONLL else ("LOC", "LOC", "ORG")
    scores = (0.9968166351318359, 0.9957635998725891, 0.9986497163772583)
    rows = [[score * (name == kind) for name in labels] for kind, score in zip(kinds, scores, strict=True)]
    found = run(stage(how, labels), ENZO, [window(ENZO_SPANS, ENZO_WORDS)], [rows])
    assert tuples(found) == oracle(reference, how, labels, rows, ENZO_SPANS, [False, True, False])
    person, kind = ("PER", "ORG") if labels is CONLL else ("LOC", "ORG")
    if how == "none":
        assert short(found) == [(kinds[0], "En"), (kinds[1], "zo"), (kinds[2], "UN")]
    else:
        assert short(found) == [(person, "Enzo"), (kind, "UN")]
        first = scores[0] if how in ("first", "max") else (scores[0] + scores[1]) / 2
        assert [e["score"] for e in found] == pytest.approx([first, scores[2]], abs=1e-6)


@pytest.mark.parametrize(
    ("how", "label", "score"), [("first", "MISC", 0.55), ("max", "LOC", 0.8), ("average", "PER", 0.35)]
)
def test_ramazotti_of_transformers(reference: Any, how: str, label: str, score: float) -> None:
    found = run(stage(how), RAMAZOTTI, [window(RAMAZOTTI_SPANS, RAMAZOTTI_WORDS)], [RAMAZOTTI_SCORES])
    assert tuples(found) == [(label, 0, 9, pytest.approx(score, abs=1e-6))]
    assert tuples(found) == oracle(reference, how, CONLL, RAMAZOTTI_SCORES, RAMAZOTTI_SPANS, [False, True, True])


def test_ramazotti_token_by_token() -> None:
    found = run(stage("none"), RAMAZOTTI, [window(RAMAZOTTI_SPANS, RAMAZOTTI_WORDS)], [RAMAZOTTI_SCORES])
    assert [(e["label"], e["score"]) for e in found] == [
        ("B-MISC", pytest.approx(0.55)),
        ("B-LOC", pytest.approx(0.8)),
        ("I-ORG", pytest.approx(0.6)),
    ]


def test_special_tokens_are_left_out_as_in_transformers() -> None:
    """``gather_pre_entities``: the row of [CLS] is the best label of all and gives nothing."""
    labels = ("O", "X", "Y")
    encoding = Encoding([1, 10, 11], None, [1, 0, 0], [(0, 0), (0, 5), (6, 11)], None, [None, 0, 1])
    entities = stage("none", labels, [])
    scores = np.log(np.array([[1e-9, 1e-9, 1], [0.1, 0.3, 0.6], [0.8, 0.1, 0.1]], dtype=np.float32))
    batch = collate([encoding], PaddingPolicy("longest"), "cpu")
    reduced = entities.reduce(ModelOutput({"logits": torch.tensor(scores)[None]}, frozenset({"logits"})), batch)
    [result] = entities(["Hello there"], [[encoding]], [split_rows(reduced, batch)])
    assert [(e["label"], e["start"], e["end"]) for e in result["entities"]] == [("Y", 0, 5), ("O", 6, 11)]


@st.composite
def a_sentence(draw: st.DrawFn) -> tuple[str, list[Span], list[int], list[list[float]], tuple[str, ...]]:
    """Return a text of words of one to three pieces, with random scores; few labels, so that neighbours agree."""
    labels = draw(st.sampled_from([("O", "B-A", "I-A"), ("O", "A", "B"), ("B-A", "I-A", "B-B", "I-B"), ("X-A", "O")]))
    pieces = draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    text = " ".join("ab" * count for count in pieces)
    spans, words, place = [], [], 0
    for word, count in enumerate(pieces):
        spans += [(place + 2 * i, place + 2 * i + 2) for i in range(count)]
        words += [word] * count
        place += 2 * count + 1
    weights = st.lists(st.integers(1, 40), min_size=len(labels), max_size=len(labels), unique=True)
    rows = [[value / sum(row) for value in row] for row in (draw(weights) for _ in spans)]
    return text, spans, words, rows, labels


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(sentence=a_sentence(), how=st.sampled_from(STRATEGIES))
def test_random_scores_as_transformers_has_them(reference: Any, sentence: Any, how: str) -> None:
    text, spans, words, rows, labels = sentence
    if labels[0] == "X-A" and how != "none":
        labels = ("XA", "O")  # transformers takes X- for a prefix; see the differences
    subwords = [i > 0 and words[i] == words[i - 1] for i in range(len(words))]
    found = run(stage(how, labels), text, [window(spans, words)], [rows])
    assert tuples(found) == oracle(reference, how, labels, rows, spans, subwords)


# Labels.


def test_b_begins_anew_and_i_goes_on_across_a_space() -> None:
    text, spans = "a b c d e", [(i, i + 1) for i in range(0, 9, 2)]
    labels = ["B-PER", "I-PER", "B-PER", "I-LOC", "B-LOC"]
    found = run(stage(), text, [window(spans, range(5))], [rows_of(labels)])
    assert short(found) == [("PER", "a b"), ("PER", "c"), ("LOC", "d"), ("LOC", "e")]


def test_iobes_and_bilou_where_the_tag_has_a_b_label() -> None:
    text, spans = "a b c d", [(i, i + 1) for i in range(0, 7, 2)]
    names = ("O", "B-X", "I-X", "E-X", "S-X", "L-X", "U-X")
    entities = stage(labels=names)
    assert short(run(entities, text, [window(spans, range(4))], [rows_of(["B-X", "E-X", "S-X", "S-X"], names)])) == [
        ("X", "a b"),
        ("X", "c"),
        ("X", "d"),
    ]
    assert short(run(entities, text, [window(spans, range(4))], [rows_of(["B-X", "I-X", "L-X", "U-X"], names)])) == [
        ("X", "a b c"),
        ("X", "d"),
    ]
    odd = ("O", "E-mail", "S-bahn")
    found = run(stage(labels=odd), text, [window(spans, range(4))], [rows_of(["E-mail", "E-mail", "S-bahn", "O"], odd)])
    assert short(found) == [("E-mail", "a b"), ("S-bahn", "c")]


def test_ignore_labels() -> None:
    text, spans = "a b c", [(0, 1), (2, 3), (4, 5)]
    scores = [rows_of(["B-PER", "O", "I-LOC"])]
    windows = [window(spans, range(3))]
    assert short(run(stage(ignore=[]), text, windows, scores)) == [("PER", "a"), ("O", "b"), ("LOC", "c")]
    assert short(run(stage(ignore=["O", "PER"]), text, windows, scores)) == [("LOC", "c")]
    assert short(run(stage("none", ignore=["B-PER", "O"]), text, windows, scores)) == [("I-LOC", "c")]
    assert short(run(stage("none", ignore=["LOC"]), text, windows, scores)) == [("B-PER", "a"), ("O", "b")]
    assert short(run(stage(labels=("X", "Y")), text, windows, [rows_of("XYY", ("X", "Y"))])) == [
        ("X", "a"),
        ("Y", "b c"),
    ]


def test_ignore_labels_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match=r"no label 'PERS'\. Did you mean 'PER'") as caught:
        stage(ignore=["PERS", "ZZ"])
    assert [fault.key for fault in caught.value.faults] == ["postprocessor.ignore_labels"] * 2
    with pytest.raises(ConfigError, match=r"'B-PER' has a prefix, which an aggregation drops\. Did you mean 'PER'"):
        stage(ignore=["B-PER"])


# Characters of several tokens, white space, words.

FOUR = [(0, 2), (3, 4), (3, 4), (3, 4), (3, 4), (5, 7)]


@pytest.mark.parametrize(
    ("labels", "simple", "none"),
    [
        ("I-PER I-PER I-PER I-PER I-PER O", [("PER", "ab 😀")], [("I-PER", "ab"), ("I-PER", "😀")]),
        ("O B-PER I-PER I-PER I-PER I-PER", [("PER", "😀 cd")], [("B-PER", "😀"), ("I-PER", "cd")]),
        ("O B-PER B-PER B-PER B-PER O", [("PER", "😀")], [("B-PER", "😀")]),
        ("O B-PER I-LOC O I-PER I-PER", [("PER", "😀 cd")], [("B-PER", "😀"), ("I-PER", "cd")]),
        ("I-LOC O I-LOC I-LOC O I-LOC", [("LOC", "ab"), ("LOC", "cd")], [("I-LOC", "ab"), ("I-LOC", "cd")]),
    ],
)
def test_a_character_of_several_tokens_is_in_one_entity(
    labels: str, simple: list[tuple[str, str]], none: list[tuple[str, str]]
) -> None:
    windows, scores = [window(FOUR, [0, 1, 1, 1, 1, 2])], [rows_of(labels.split())]
    assert short(run(stage(), "ab 😀 cd", windows, scores)) == simple
    assert short(run(stage("none"), "ab 😀 cd", windows, scores)) == none


def test_tokens_of_one_character_count_one_by_one_where_they_agree() -> None:
    scores = [rows_of(["I-PER=0.9", "I-PER=0.6", "I-PER=0.6", "I-PER=0.7", "I-PER=0.8", "O"])]
    [found] = run(stage(), "ab 😀 cd", [window(FOUR, [0, 1, 1, 1, 1, 2])], scores)
    assert found["score"] == pytest.approx(0.72, abs=1e-6)


def test_tokens_of_one_character_are_never_two_words() -> None:
    """Some tokenizers write … as three full stops, and each of them is a word."""
    spans = [(0, 2), (2, 3), (2, 3), (2, 3)]
    found = run(stage("first"), "ab…", [window(spans, [0, 1, 2, 3])], [rows_of(["O", "B-PER", "B-LOC", "B-PER"])])
    assert short(found) == [("PER", "…")]


def test_entities_have_no_white_space_around_them() -> None:
    spans = [(0, 2), (2, 5), (5, 6), (6, 9)]
    found = run(stage(), " a b \n cd", [window(spans, range(4))], [rows_of(["I-PER", "I-PER", "I-LOC", "B-LOC"])])
    assert tuples(found) == [("PER", 1, 4, pytest.approx(0.9)), ("LOC", 7, 9, pytest.approx(0.9))]
    everywhere = run(stage("none"), " a b \n cd", [window(spans, range(4))], [rows_of(["I-PER"] * 4)])
    assert short(everywhere) == [("I-PER", "a"), ("I-PER", "b"), ("I-PER", "cd")]


def pieces(text: str, cuts: Sequence[int]) -> list[Span]:
    return list(zip([0, *cuts], [*cuts, len(text)], strict=True))


@pytest.mark.parametrize(
    ("text", "cuts", "words", "expected"),
    [
        ("abc def", [2, 3, 5], [0, 0, 0, 0], ["abc", "def"]),  # a tokenizer that takes the text for one word
        ("abc def", [3, 4, 5], [0, 1, 1, 1], ["abc", "def"]),  # a piece that is only the blank before a word
        ("U.N.", [1, 2, 3], [0, 1, 2, 3], ["U", ".", "N", "."]),
        ("in 2024.", [2, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5], ["in", "2024", "."]),
        ("हिन्दी!", [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], ["हिन्दी", "!"]),
        ("e\u0301a b", [1, 2, 3], [0, 1, 2, 3], ["e\u0301a", "b"]),
        ("می\u200cخو", [2, 3], [0, 1, 2], ["می\u200cخو"]),
        ("漢字", [1], [0, 1], ["漢", "字"]),
        ("a\u3000b\tc\u00a0d", [1, 3, 5], [0, 0, 0, 0], ["a", "b", "c", "d"]),
    ],
)
def test_words(text: str, cuts: list[int], words: list[int], expected: list[str]) -> None:
    """All tokens begin an entity of their own, so that each word is one."""
    spans = pieces(text, cuts)
    for how in ("first", "max", "average"):
        found = run(stage(how), text, [window(spans, words)], [rows_of(["B-PER"] * len(spans))])
        assert [entity["text"] for entity in found] == expected


def test_a_blank_of_its_own_is_the_first_token_of_the_word_behind_it() -> None:
    spans = pieces("abc def", [3, 4, 5])
    found = run(stage("first"), "abc def", [window(spans, [0, 1, 1, 1])], [rows_of(["O", "B-PER", "O", "B-LOC"])])
    assert short(found) == [("PER", "def")]


def test_a_gap_of_dropped_characters_is_no_white_space() -> None:
    """A soft hyphen that the tokenizer drops is between tokens of one word."""
    found = run(stage("first"), "ab\u00adcd", [window([(0, 2), (3, 5)], [0, 0])], [rows_of(["B-PER", "B-LOC"])])
    assert short(found) == [("PER", "ab\u00adcd")]


def test_words_of_ones_own_are_the_words() -> None:
    """However the tokenizer cuts them, a word has one label; places are those in the words joined by a blank."""
    example = {"words": ["U.N.", "al-Qaida", "x"]}
    text = "U.N. al-Qaida x"
    spans = [*pieces("U.N.", [1, 2, 3]), (4, 7), (7, 8), (8, 13), (13, 15)]
    scores = [rows_of(["B-ORG", "O", "O", "O", "B-LOC", "O", "B-PER", "O"])]
    entities = stage("first")
    assert entities.prepare(example) == (text,)
    found = run(entities, example, [window(spans, range(8))], scores)
    check_entities(text, found)
    assert short(found) == [("ORG", "U.N."), ("LOC", "al-Qaida")]
    assert [(e["start"], e["end"]) for e in found] == [(0, 4), (5, 13)]
    blank = [(0, 1), (1, 2), (2, 3)]  # the blank before b is a token of its own
    found = run(entities, {"words": ["a", "b"]}, [window(blank, [0, 0, 0])], [rows_of(["O", "B-PER", "O"])])
    assert tuples(found) == [("PER", 2, 3, pytest.approx(0.9))]


def test_good_input() -> None:
    entities = stage()
    assert entities.prepare("a b") == entities.prepare({"text": "a b"}) == entities.prepare({"words": ["a", "b"]})
    for row in ({"words": '["a", "b"]', "text": None}, {"words": ["a", "b"], "text": ""}, {"words": "", "text": "a b"}):
        assert entities.prepare(row) == ("a b",)
    assert entities.prepare({"words": "", "text": ""}) == ("",)
    assert entities.prepare({"words": []}) == entities.prepare("") == ("",)
    assert run(entities, {"words": []}, [window([], [])], [np.zeros((0, 9))]) == []


def test_what_the_model_may_not_give() -> None:
    windows = [window([(0, 1)], [0])]
    with pytest.raises(StageError, match="2 'labels' for 3 tokens"):
        stage()(["a"], [windows], [[{"labels": np.zeros(2, dtype=np.int64), "scores": np.ones(2, dtype=np.float32)}]])


@pytest.mark.parametrize("how", STRATEGIES)
def test_only_average_copies_all_scores(how: str) -> None:
    batch = collate([window([(0, 1)], [0])], PaddingPolicy("longest"), "cpu")
    reduced = stage(how).reduce(ModelOutput({"logits": torch.zeros(1, 3, 9)}), batch)
    shapes = {name: tuple(tensor.shape) for name, tensor in reduced.tensors.items()}
    assert shapes == ({"scores": (1, 3, 9)} if how == "average" else {"labels": (1, 3), "scores": (1, 3)})
    assert reduced.per_token == set(shapes)
    assert reduced["scores"].dtype == torch.float32


# Windows.


def test_a_shared_token_is_taken_from_where_it_is_farther_from_the_border() -> None:
    spans = [(i, i + 1) for i in range(0, 15, 2)]
    text = "a b c d e f g h"
    first, second = window(spans[:5], range(5), range(10, 15)), window(spans[2:], range(2, 8), range(12, 18), 1)
    scores = [
        rows_of([f"B-PER=0.{i}" for i in (81, 82, 83, 84, 85)]),
        rows_of([f"B-PER=0.{i}" for i in (93, 94, 95, 96, 97, 98)]),
    ]
    found = run(stage("none"), text, [first, second], scores)
    # c, d and e are shared; d, the middle one, is as far from one border as from the other.
    assert [round(e["score"], 2) for e in found] == [0.81, 0.82, 0.83, 0.84, 0.95, 0.96, 0.97, 0.98]


def test_an_entity_reaches_from_one_window_into_the_next() -> None:
    spans = [(0, 2), (3, 5), (6, 8), (9, 11)]
    windows = [window(spans[:2], range(2), [10, 11]), window(spans[2:], range(2, 4), [12, 13], 1)]
    scores = [rows_of(["O", "B-PER"]), rows_of(["I-PER", "B-PER"])]
    assert short(run(stage(), "ab cd ef gh", windows, scores)) == [("PER", "cd ef"), ("PER", "gh")]


def test_windows_that_say_which_tokens_they_hold() -> None:
    """Bytes of one character may have id and place in common; only the window's span tells them apart."""
    first = replace(window([(0, 1)] * 3, [0] * 3, [7, 7, 7]), token_span=(0, 3))
    second = replace(window([(0, 1), (0, 1), (2, 3)], [0, 0, 1], [7, 7, 8], 1), token_span=(2, 5))
    scores = [rows_of(["I-PER=0.6", "I-PER=0.7", "I-PER=0.8"]), rows_of(["I-PER=0.95", "I-PER=0.9", "O"])]
    [found] = run(stage(), "漢 b", [first, second], scores)
    assert found["score"] == pytest.approx(0.75, abs=1e-6)
    apart = replace(window([(0, 1)], [0], [9], 1), token_span=(3, 4))  # they share none: the fourth byte counts too
    [found] = run(stage(), "漢 b", [first, apart], [scores[0], rows_of(["I-PER=0.9"])])
    assert found["score"] == pytest.approx(0.75, abs=1e-6)


def test_windows_that_a_tokenizer_cut_differently_do_not_overlap() -> None:
    first = window([(0, 3), (4, 7), (8, 10)], [0, 1, 2], [10, 11, 12])
    second = window([(8, 11), (12, 15)], [0, 1], [20, 21], 1)
    found = run(stage("none"), "abc def ghi jkl", [first, second], [rows_of(["B-PER"] * 3), rows_of(["B-LOC"] * 2)])
    assert short(found) == [("B-PER", "abc"), ("B-PER", "def"), ("B-PER", "gh"), ("B-LOC", "jkl")]


WINDOW_TEXT = st.lists(st.sampled_from(["a", "bc", "d.", "é", "漢", "😀", "x,y"]), max_size=25).map(" ".join)


@settings(max_examples=60)
@given(
    text=WINDOW_TEXT,
    size=st.integers(4, 12),
    share=st.integers(0, 8),
    how=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 99),
)
def test_windows_give_what_the_whole_text_gives(text: str, size: int, share: int, how: str, seed: int) -> None:
    """If the scores of a token do not depend on its window, neither does any entity."""
    overlap = min(share, size - 3)
    [whole] = WordTokenizer(WordTokenizerConfig(max_length=None)).encode([text])
    cut = WordTokenizer(WordTokenizerConfig(max_length=size, overflow="window", overlap=overlap)).encode([text])
    assert whole.offsets is not None
    labels = ("O", "B-A", "I-A", "B-B")
    generator = np.random.default_rng(seed)
    by_place = {span: generator.dirichlet(np.ones(4)) for span in whole.offsets[1:-1]}

    def found(windows: Sequence[Encoding]) -> list[dict[str, Any]]:
        tables = [[by_place[span] for span in (w.offsets or ())[1:-1]] for w in windows]
        return run(stage(how, labels, []), text, windows, [np.array(t).reshape(-1, 4) for t in tables])

    assert found(cut) == found([whole])


def test_windows_of_a_checkpoint_are_put_together() -> None:
    """The task asks for windows; every word of a long text is in an entity when nothing is ignored."""
    folder = checkpoint("roberta", head="token-classification", labels=CONLL, max_positions=32)
    overrides = (f"checkpoint.path={folder}", "device=cpu", "postprocessor.ignore_labels=[]")
    pipe = pk.load("task=ner", *overrides)
    text = "I love this film 😀 in paris, and zq too. " * 150
    result = pipe(text)
    check_entities(text, result["entities"])
    assert result["windows"] > 100
    assert "truncated" not in result
    covered = {i for entity in result["entities"] for i in range(entity["start"], entity["end"])}
    assert covered >= {i for i, character in enumerate(text) if not character.isspace()}
    cut = pk.load("task=ner", *overrides, "tokenizer.overflow=truncate")(text)
    assert cut["truncated"] > 1000
    short_text = "I love paris"
    whole = pk.load("task=ner", *overrides, "tokenizer.overflow=truncate")(short_text)
    assert tuples(pipe(short_text)["entities"]) == [
        (*e[:3], pytest.approx(e[3], abs=1e-5)) for e in tuples(whole["entities"])
    ]
    with pytest.raises(RowError, match="row 0: input: ExampleError: the fields 'text' and 'words' are both there"):
        pipe({"text": "a", "words": ["a"]})


class TestEntities(PostprocessorConformance):
    stage = "entities"
    head = "token-classification"

    def context(self, device: Device | None = None) -> StageContext:
        labels = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
        return tiny_stage_context(device=device, head=self.head, labels=labels)


class TestEntitiesByMeanOfWords(TestEntities):
    options: ClassVar = {"aggregation": "average", "ignore_labels": ["O", "LOC"]}


class TestEntitiesByBestOfWords(TestEntities):
    options: ClassVar = {"aggregation": "max"}

    def example(self, text: str) -> Example:
        return {"words": text.split(" ")}


def test_results_have_no_other_keys() -> None:
    result: Result = stage()([""], [[window([], [])]], [[{"labels": np.zeros(2, int), "scores": np.ones(2)}]])[0]
    assert result == {"entities": []}
