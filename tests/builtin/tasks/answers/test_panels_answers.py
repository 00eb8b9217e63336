"""Panels of question answering, held against transformers' own logits put together by brute force."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator, Mapping
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
from safetensors.torch import load_file, save_file

from pipeline_kit import Pipeline

EXAMPLES = (
    {"question": "Who was in Paris?", "context": "My friend Sarah was in Paris, and Sarah was happy."},
    {"question": "a", "context": "b"},
    {"question": "漢字?", "context": "  Ünïcödé 漢字 😀 e\u0301 עברית \t zzz "},
    {"question": "Was it dull?", "context": LONG},
)
NULL = {"bert": 0, "roberta": 0, "xlnet": -1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    found = {}
    for name in NULL:
        found[name] = tmp_path_factory.mktemp("panels") / name
        shutil.copytree(checkpoint(name, head="question-answering", seed=1), found[name])
        weights = load_file(found[name] / "model.safetensors")
        sharp = {key: value * 3 if "qa_outputs" in key else value for key, value in weights.items()}
        save_file(sharp, found[name] / "model.safetensors", {"format": "pt"})
    return found


def make(folder: Path, **options: Any) -> Pipeline:
    task = "question-answering"
    return assemble(folder, task, {"name": "answers", **options}, WINDOWS)


def allowed(told: Told, name: str) -> list[list[int]]:
    """Return for each window the places of its context, then the one that stands for no answer."""
    found = []
    for encoding in told.encodings:
        assert encoding.sequence_ids is not None
        context = [i for i, owner in enumerate(encoding.sequence_ids) if owner == 1]
        found.append([*context, NULL[name] % len(encoding.input_ids)])
    return found


def probabilities(model: Any, told: Told, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return start and end probabilities of the allowed places of each window, float64."""
    rows = reference(model, told)
    pairs = zip(rows, allowed(told, name), strict=True)
    return [
        (row["start_logits"][kept].double().softmax(0), row["end_logits"][kept].double().softmax(0))
        for row, kept in pairs
    ]


def piece(text: str, begin: int, end: int) -> str:
    """Return a slice without white space, its last letter with the accents that stand behind it."""
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return text[begin:end].strip()


def spans(told: Told, name: str, chances: Any, longest: int) -> Iterator[tuple[int, int, int, float]]:
    """Yield window, first and last character, and probability of every span of tokens."""
    for window, (encoding, kept, (start, end)) in enumerate(
        zip(told.encodings, allowed(told, name), chances, strict=True)
    ):
        offsets = encoding.offsets
        assert offsets is not None
        places = kept[:-1]
        for i, first in enumerate(places):
            for j in range(i, min(i + longest, len(places))):
                yield window, offsets[first][0], offsets[places[j]][1], float(start[i] * end[j])


@pytest.mark.parametrize("name", NULL)
def test_start_and_end(folders: Mapping[str, Path], name: str) -> None:
    pipe, model = make(folders[name]), network(folders[name], "AutoModelForQuestionAnswering")
    for side in sorted(pipe.model.safe_padding_sides):
        for told, example in zip(ask(padded(pipe, side), EXAMPLES), EXAMPLES, strict=True):
            panel = told.panel("start and end: logits to probabilities")
            chances, kept, rows = probabilities(model, told, name), allowed(told, name), reference(model, told)
            table: dict[Any, list[list[float]]] = {}
            for window, (places, (start, end)) in enumerate(zip(kept, chances, strict=True)):
                for i, place in enumerate(places):
                    is_null = i == len(places) - 1
                    span = (None, None) if is_null else (told.encodings[window].offsets or ())[place]
                    logits = rows[window]["start_logits"][place], rows[window]["end_logits"][place]
                    found = [float(x) for x in (logits[0], start[i], logits[1], end[i])]
                    table.setdefault((window, *span), []).append(found)
            several = len(told.encodings) > 1
            assert len(panel.rows) == min(50, sum(len(places) for places in kept))
            for row in panel.rows:
                window, token, begin, stop, *numbers = row if several else (0, *row)
                assert token == ("(no answer)" if begin is None else example["context"][begin:stop])
                assert any(numbers == pytest.approx(own, abs=1e-6, rel=1e-6) for own in table[window, begin, stop])
            heights = [max(row[-3], row[-1]) for row in panel.rows]
            assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("name", NULL)
def test_the_spans_of_the_best_answer_add_up(folders: Mapping[str, Path], name: str) -> None:
    """By tokens, where spans are easily counted by hand; white space at the ends of a span is no part of it."""
    pipe = make(folders[name], align_to_words=False, max_answer_len=4)
    model = network(folders[name], "AutoModelForQuestionAnswering")
    for told, example in zip(
        ask(padded(pipe, sorted(pipe.model.safe_padding_sides)[0]), EXAMPLES), EXAMPLES, strict=True
    ):
        if "😀" in example["context"] and name != "bert":
            continue  # several tokens for a character: their slices are equal, and so is the text
        chances = probabilities(model, told, name)
        sums: dict[tuple[int, str], float] = {}
        for window, begin, end, chance in spans(told, name, chances, 4):
            text = piece(example["context"], begin, end)
            sums[window, text] = sums.get((window, text), 0.0) + chance
        (_, best), score = max(((key, value) for key, value in sums.items() if key[1]), key=lambda item: item[1])
        panel = told.panel("spans of '")
        assert told.result["answer"] == best
        close([sum(column(panel, "product")), told.result["score"]], [score, score])
        for row in panel.rows:
            assert row[-1] == pytest.approx(row[-3] * row[-2], rel=1e-9)
            assert piece(example["context"], row[2], row[3]) == best
        assert last_number(panel) == shown(score)
        ranked = told.panel("answers, best first")
        assert ranked.rows[0] == (best, told.result["start"], told.result["end"], told.result["score"], True)
        tops = sorted({text: max(v for (_, t), v in sums.items() if t == text) for _, text in sums if text}.values())
        close(column(ranked, "score"), tops[::-1][:10])


@pytest.mark.parametrize("longest", [3, 40])
def test_words_are_whole(folders: Mapping[str, Path], longest: int) -> None:
    """The spans that start or end inside a word count for the whole word, if they are not too long themselves."""
    example = {"question": "Who?", "context": "Sarah was in Paris, happy."}
    [told] = ask(make(folders["bert"], max_answer_len=longest), [example])
    [(start, end)] = probabilities(network(folders["bert"], "AutoModelForQuestionAnswering"), told, "bert")
    [encoding] = told.encodings
    pairs = zip(encoding.word_ids or (), encoding.sequence_ids or (), strict=True)
    owner = [word for word, sequence in pairs if sequence == 1]
    assert len(set(owner)) < len(owner)
    total: dict[Any, list[float]] = {}
    for i, first in enumerate(owner):
        for j in range(i, min(i + longest, len(owner))):
            total.setdefault((first, owner[j]), []).append(float(start[i] * end[j]))
    best = max(total.values(), key=sum)
    panel = told.panel("spans of '")
    close(column(panel, "product"), sorted(best, reverse=True))
    close([told.result["score"], last_number(panel)], [sum(best), last_number(panel)])
    assert last_number(panel) == shown(sum(best))


def test_windows_and_no_answer(folders: Mapping[str, Path]) -> None:
    folder = folders["bert"]
    model = network(folder, "AutoModelForQuestionAnswering")
    pipe = make(folder, handle_impossible_answer=True, top_k=3)
    for told in ask(pipe, EXAMPLES):
        nulls = torch.stack([start[-1] * end[-1] for start, end in probabilities(model, told, "bert")])
        ranked = told.panel("answers, best first")
        assert last_number(ranked) == shown(float(nulls.min()))
        listed = [row[:4] for row in ranked.rows if row[-1]]
        assert [(item["answer"] or "(no answer)", item["start"], item["end"]) for item in told.result["answers"]] == [
            row[:3] for row in listed
        ]
        close([row[3] for row in listed], [item["score"] for item in told.result["answers"]])
        texts = [row for row in ranked.rows if row[0] != "(no answer)"]
        assert last_number(told.panel("spans of '")) == shown(texts[0][3])
        if len(told.encodings) > 1:
            panel = told.panel("windows put together")
            close(column(panel, "p(no answer)"), nulls)
            assert max(column(panel, "score")) == pytest.approx(texts[0][3], abs=1e-9)


def test_no_answer_is_told_of_but_does_not_compete(folders: Mapping[str, Path]) -> None:
    plain, handled = (
        ask(make(folders["bert"], handle_impossible_answer=own), [EXAMPLES[1]])[0] for own in (False, True)
    )
    assert "does not compete" in plain.panel("answers, best first").note
    assert plain.panel("answers, best first").formula == handled.panel("answers, best first").formula
    assert "(no answer)" not in column(plain.panel("answers, best first"), "answer")
    assert "(no answer)" in column(handled.panel("answers, best first"), "answer")
