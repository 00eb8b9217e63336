"""Question answering gives what the pipeline of transformers 4.57 gave; see tools/golden/question_answering.py.

That pipeline's own defects are taken out of its answers first; test_differences_question_answering.py shows that
they are defects.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from harness import pipeline_of, scratch
from parity_helpers import check_any_order, with_options
from safetensors.torch import load_file, save_file

from pipeline_kit.testing.checkpoints import tiny_checkpoint

TOLERANCE = 1e-5
KEPT = 5
GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "question_answering.json").read_text(encoding="utf-8"))
INPUTS: Mapping[str, Sequence[tuple[str, str]]] = GOLDEN["inputs"]

Listed = dict[str, tuple[float, int, int]]
"""By text: score, start, end."""


assemble = partial(pipeline_of, "question-answering")


def options_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return our options for those of a golden run."""
    own = dict(run["options"])
    length, overlap = own.pop("max_seq_len", None), own.pop("doc_stride", None)
    return {"tokenizer": None if length is None else {"max_length": length, "overlap": overlap}, **own}


def examples_of(name: str) -> list[dict[str, str]]:
    return [{"question": question, "context": context} for question, context in INPUTS[name]]


@cache
def made(name: str) -> Path:
    """Make the checkpoint of a golden case again."""
    case = GOLDEN["cases"][name]
    folder = tiny_checkpoint(scratch() / f"golden-{name}", head="question-answering", **case["checkpoint"])
    weights = load_file(folder / "model.safetensors")
    sharp = {key: value * case["sharpness"] if "qa_outputs" in key else value for key, value in weights.items()}
    save_file(sharp, folder / "model.safetensors", {"format": "pt"})
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    for key, value in sorted(sharp.items()):
        digest.update(key.encode() + value.numpy().tobytes())
    if digest.hexdigest() != case["fingerprint"]:
        pytest.fail("tiny_checkpoint writes another checkpoint than the golden answers are from: make them anew")
    return folder


# What the pipeline's answers would be without its defects.


def tidy(context: str, listed: Sequence[Sequence[Any]], widen: bool) -> Listed:
    """Strip white space, add accents that were left behind, complete words that the window cut, drop empty answers."""
    found: Listed = {}
    for text, score, start, end in listed:
        if not text.strip() or score < TOLERANCE / 10:
            continue
        start, end = start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))
        while end < len(context) and unicodedata.combining(context[end]):
            end += 1
        while widen and start and context[start - 1 : start + 1].isalnum():
            start -= 1
        while widen and end < len(context) and context[end - 1 : end + 1].isalnum():
            end += 1
        text = context[start:end]
        found[text] = (found[text][0] + score, *found[text][1:]) if text in found else (score, start, end)
    return found


def untouched(context: str, text: str) -> bool:
    """Return whether an answer has its own score there, not that of another letter case or accent."""
    return context.count(text) == context.lower().count(text.lower()) and not unicodedata.combining(text[-1:] or " ")


def expected(run: Mapping[str, Any], place: int) -> list[tuple[str, float, int, int]]:
    """Put the answers to each window together: an answer's best window, and the least of the null scores.

    The file has the best texts of a window only, so the list ends where another one could stand.
    """
    options, context = run["options"], INPUTS[run["inputs"]][place][1]
    windows = run["windows"][place]
    widen = len(windows) > 1 and options.get("align_to_words", True)
    best: Listed = {}
    known = 0.0
    for window in windows:
        texts = tidy(context, window, widen)
        if len(texts) >= KEPT:
            known = max(known, min(score for score, _, _ in texts.values()))
        for text, answer in texts.items():
            if untouched(context, text) and (text not in best or answer[0] > best[text][0]):
                best[text] = answer
    if options.get("handle_impossible_answer"):
        best[""] = (min(window[-1][1] for window in windows), 0, 0)
    ranked = sorted(((text, *answer) for text, answer in best.items()), key=lambda item: -item[1])
    return [answer for answer in ranked if answer[1] >= known][: options.get("top_k", 1)]


def listed(result: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    return [(a["answer"], a["score"], a["start"], a["end"]) for a in result.get("answers", [result])]


def same(found: Sequence[tuple[str, float, int, int]], wanted: Sequence[Sequence[Any]]) -> bool:
    """Return whether answers are equal, scores to the tolerance; those whose scores are as near may change places."""
    scores = [score for _, score, _, _ in wanted]
    if any(score > TOLERANCE for _, score, _, _ in found[len(wanted) :]):
        return False
    found = found[: len(wanted)]  # the rest has no score to speak of
    if len(found) != len(wanted) or any(abs(a[1] - b) > TOLERANCE for a, b in zip(found, scores, strict=True)):
        return False
    places = {text: (score, start, end) for text, score, start, end in wanted}
    return all(
        (text in places and places[text][1:] == (start, end) and abs(places[text][0] - score) <= TOLERANCE)
        or abs(score - scores[-1]) <= TOLERANCE
        for text, score, start, end in found
    )


@pytest.mark.parametrize("name", [name for name, case in GOLDEN["cases"].items() if case["runs"]])
def test_answers_are_those_of_transformers_4(name: str) -> None:
    folder = made(name)
    compared = 0
    for run in GOLDEN["cases"][name]["runs"]:
        options, examples = options_of(run), examples_of(run["inputs"])
        pipe = assemble(folder, **options)
        results = pipe(examples)
        top_k = options.get("top_k", 1)
        more = {**options, "top_k": top_k + 20}
        del more["tokenizer"]
        longer = with_options("question-answering", pipe, folder, **more)(examples)
        for place, (result, long) in enumerate(zip(results, longer, strict=True)):
            assert same(listed(result), listed(long)[:top_k])
            wanted, context = expected(run, place), INPUTS[run["inputs"]][place][1]
            found = [answer for answer in listed(long) if not answer[0] or untouched(context, answer[0])]
            assert same(found[: len(wanted)], wanted), (run["options"], place, found[:top_k], wanted)
            compared += len(wanted)
    assert compared > 25


@pytest.mark.parametrize("name", [name for name in GOLDEN["cases"] if name.endswith("-sure")])
def test_where_the_model_is_sure_a_plain_call_gives_the_same(name: str) -> None:
    folder = made(name)
    [run] = [run for run in GOLDEN["cases"][name]["runs"] if run["inputs"] == "short" and not run["options"]]
    compared = 0
    for place, (result, theirs) in enumerate(zip(assemble(folder)(examples_of("short")), run["answers"], strict=True)):
        wanted = tidy(INPUTS["short"][place][1], theirs, False)
        for text, (score, start, end) in wanted.items():
            assert (result["answer"], result["start"], result["end"]) == (text, start, end)
            compared += abs(result["score"] - score) <= TOLERANCE
    assert compared >= len(INPUTS["short"]) - 1


def test_the_golden_answers_are_of_use() -> None:
    """Several windows, answers that differ between architectures, and null scores that are listed and not."""
    runs = [run for case in GOLDEN["cases"].values() for run in case["runs"]]
    assert max(len(windows) for run in runs for windows in run["windows"]) >= 4
    cases = [case for case in GOLDEN["cases"].values() if case["runs"]]
    assert len({json.dumps(case["runs"][0]["answers"]) for case in cases}) == len(cases)
    nulls = [expected(run, i) for run in runs if run["options"].get("handle_impossible_answer") for i in range(3)]
    places = {next((i for i, answer in enumerate(answers) if not answer[0]), None) for answers in nulls}
    assert None in places
    assert len(places) > 1
    assert GOLDEN["versions"]["transformers"].startswith("4.57.")


@pytest.mark.parametrize("name", ["bert", "bart", "deberta-v2", "gpt2", "xlm-roberta", "xlnet-right"])
def test_answers_do_not_depend_on_batch_order_or_padding(name: str) -> None:
    folder = made(name)
    pipe = assemble(folder, {"max_length": 40}, top_k=3)
    examples = examples_of("short") + examples_of("long")
    alone = [pipe(example) for example in examples]
    check_any_order(
        pipe,
        examples,
        alone,
        lambda result, one: same(listed(result), listed(one)) and result.get("windows") == one.get("windows"),
    )
