"""Where question answering differs from the pipeline of transformers 4.57 on purpose, each shown by hand.

What that pipeline gives was recorded by tools/golden/question_answering.py, on the same checkpoints. By hand means:
from the raw logits of transformers' own model, with the span probabilities written out one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_parity_question_answering import GOLDEN, INPUTS, assemble, made, options_of

from pipeline_kit.contract.types import Encoding

TOLERANCE = 1e-5
DIFFERENCES = GOLDEN["differences"]


class Hand:
    """The tokens of a pair with the probabilities that an answer starts and ends at each, by a plain softmax."""

    def __init__(self, folder: Path, question: str, context: str, *, softmax_over: str = "context") -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
        inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        self.context = context
        self.offsets = inputs.pop("offset_mapping")[0].tolist()
        sequences = inputs.encodings[0].sequence_ids
        self.inside = [i for i, sequence in enumerate(sequences) if sequence == 1]
        counted = [0, *self.inside] if softmax_over == "context" else list(range(len(sequences)))
        with torch.inference_mode():
            output = model(**inputs)
        self.start: dict[int, float] = {}
        self.end: dict[int, float] = {}
        for found, logits in ((self.start, output.start_logits), (self.end, output.end_logits)):
            values = np.exp(logits[0].double().numpy()[counted])
            found.update(zip(counted, (values / values.sum()).tolist(), strict=True))

    def spans(self, longest: int = 15) -> list[tuple[float, str]]:
        """List every span of at most so many tokens with its probability."""
        return [
            (self.start[i] * self.end[j], self.context[self.offsets[i][0] : self.offsets[j][1]])
            for a, i in enumerate(self.inside)
            for j in self.inside[a : a + longest]
        ]

    def probability(self, text: str) -> float:
        """Add up the spans that have `text`, white space at its ends aside."""
        return sum(score for score, span in self.spans() if span.strip() == text)


def ours(name: str) -> tuple[dict[str, Any], list[list[Any]], Path]:
    """Return our result, theirs, and the checkpoint."""
    asked = DIFFERENCES[name]
    folder = made(asked["case"])
    pipe = assemble(folder, **options_of(asked))
    return pipe({"question": asked["question"], "context": asked["context"]}), asked["answers"], folder


def scores(result: Mapping[str, Any]) -> dict[str, float]:
    return {a["answer"]: a["score"] for a in result.get("answers", [result])}


def test_a_score_does_not_depend_on_how_many_answers_are_listed() -> None:
    """transformers adds up the best ``2 * top_k + 10`` spans of tokens only, so the same answer has another score with
    another ``top_k``, and with ``top_k=1`` a less likely answer can win. Here it names "The friend of Paris has", with
    0.015; over all spans, as its own call with a large ``top_k`` shows, "The friend of Paris" has 0.080.
    The probability that the answer has a text is the sum over all spans with the text, whatever is listed.
    """
    [run] = [r for r in GOLDEN["cases"]["albert"]["runs"] if r["inputs"] == "short" and not r["options"]]
    [theirs], all_spans = run["answers"][0], run["windows"][0][0][0]
    assert theirs[0] == "The friend of Paris has"
    assert all_spans[0] == "The friend of Paris"
    assert all_spans[1] > 5 * theirs[1]
    question, context = INPUTS["short"][0]
    folder = made("albert")
    hand = Hand(folder, question, context)
    words = {text: score for text, score in by_words(hand).items() if text in (theirs[0], all_spans[0])}
    assert words[all_spans[0]] > words[theirs[0]] > theirs[1]
    for top_k in (1, 2, 20):
        result = assemble(folder, top_k=top_k)({"question": question, "context": context})
        assert result["answer"] == all_spans[0]
        assert result["score"] == pytest.approx(words[all_spans[0]], abs=TOLERANCE)
        assert result["score"] == pytest.approx(all_spans[1], abs=TOLERANCE)


def by_words(hand: Hand) -> dict[str, float]:
    """Add up the spans that are the same once they are widened to what stands between spaces."""
    found: dict[str, float] = {}
    for a, i in enumerate(hand.inside):
        for j in hand.inside[a : a + 15]:
            begin, end = hand.offsets[i][0], hand.offsets[j][1]
            while hand.context[begin] != " " and begin > 0 and hand.context[begin - 1] != " ":
                begin -= 1
            while end < len(hand.context) and hand.context[end] != " ":
                end += 1
            text = hand.context[begin:end].strip()
            found[text] = found.get(text, 0.0) + hand.start[i] * hand.end[j]
    return found


def test_a_score_is_a_probability_however_many_windows_have_the_answer() -> None:
    """transformers adds an answer's scores in all windows. Two windows share "then" here and its score is 1.28, with
    which it beats an answer that is likelier than it is in either. An answer does not become likelier by being read
    twice: ours has the score of its best window.
    """
    plain, [theirs], folder = ours("sum over windows")
    assert theirs[1] > 1
    asked = DIFFERENCES["sum over windows"]
    pipe = assemble(folder, {"max_length": 40, "overlap": 20}, top_k=20)
    result = pipe(asked_of(asked))
    windows = pipe.tokenizer.encode(pipe.postprocessor.prepare(asked_of(asked)))
    assert len(windows) == result["windows"]
    alone = []
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    for window in windows:
        with torch.inference_mode():
            ids, types = torch.tensor([window.input_ids]), torch.tensor([window.token_type_ids])
            output = model(input_ids=ids, token_type_ids=types)
        inside = [0] + [i for i, sequence in enumerate(window.sequence_ids or ()) if sequence == 1]
        start, end = (torch.softmax(x[0, inside].double(), 0) for x in (output.start_logits, output.end_logits))
        places = [k for k, i in enumerate(inside) if k and 165 <= begin_of(window, i) < 169]
        alone.append(float(sum(start[a] * end[b] for a in places for b in places if a <= b)))
    assert sorted(alone)[-2] > 0.1, "two windows have it"
    assert sum(sorted(alone)[-2:]) == pytest.approx(theirs[1], abs=1e-3)
    assert scores(result)[theirs[0]] == pytest.approx(max(alone), abs=TOLERANCE)
    assert 1 >= plain["score"] == result["score"] > max(alone)


def begin_of(window: Encoding, token: int) -> int:
    assert window.offsets is not None
    return window.offsets[token][0]


def asked_of(asked: Mapping[str, Any]) -> dict[str, str]:
    return {"question": asked["question"], "context": asked["context"]}


def test_the_padding_side_does_not_change_what_may_be_an_answer() -> None:
    """Where the tokenizer pads on the left, transformers puts the context first and forgets the mask: the question's
    tokens share in the softmax, the first token of the context can never begin an answer, and a span may begin in the
    question and end in the context, which gives ``start`` 25 and ``end`` 3. Ours is the context's alone, question
    first, whatever the side. The precedence in the source is ``[(tok != 1) if question_first else 0 for tok in ...]``.
    """
    result, theirs, folder = ours("padding side")
    assert any(start > end for _, _, start, end in theirs)
    asked = DIFFERENCES["padding side"]
    hand = HandXlnet(folder, asked["question"], asked["context"])
    best = max(by_words(hand).items(), key=lambda item: item[1])
    assert (result["answer"], result["score"]) == (best[0], pytest.approx(best[1], abs=TOLERANCE))
    assert all(answer["start"] < answer["end"] for answer in result["answers"])


class HandXlnet(Hand):
    """XLNet's special token for the whole stands last."""

    def __init__(self, folder: Path, question: str, context: str) -> None:
        super().__init__(folder, question, context, softmax_over="all")
        counted = [*self.inside, len(self.start) - 1]
        for found in (self.start, self.end):
            total = sum(found[i] for i in counted)
            for i in counted:
                found[i] /= total


def test_us_is_not_us() -> None:
    """transformers adds the scores of answers that differ in upper and lower case only, and gives one of them the sum:
    "us" for both "US" and "us". An answer is a slice of the context, and these are two.
    """
    result, theirs, folder = ours("upper and lower case")
    asked = DIFFERENCES["upper and lower case"]
    hand = Hand(folder, asked["question"], asked["context"])
    upper, lower = hand.probability("US"), hand.probability("us")
    assert [score for text, score, _, _ in theirs if text.lower() == "us"] == [pytest.approx(upper + lower, abs=1e-5)]
    assert scores(result)["US"] == pytest.approx(upper, abs=TOLERANCE)
    assert scores(result)["us"] == pytest.approx(lower, abs=TOLERANCE)


def test_a_special_token_in_the_question_is_a_part_of_the_question() -> None:
    """transformers lets every token with the id of [CLS] be part of an answer, one in the question too: it shares in
    the softmax, and spans that begin with it, the question's third word, count for the context's third word, "of".
    """
    result, theirs, folder = ours("special token in the question")
    asked = DIFFERENCES["special token in the question"]
    hand = Hand(folder, asked["question"], asked["context"])
    text = theirs[0][0]
    assert scores(result)[text] == pytest.approx(hand.probability(text), abs=TOLERANCE)
    assert abs(scores(result)[text] - theirs[0][1]) > 1e-2


def test_a_tokenizer_without_special_tokens_has_answers_in_every_window() -> None:
    """For GPT-2, whose pairs have no frame, transformers finds no answer in any window but the first: the tokens of
    later windows say of themselves that they belong to the first text. Ours come from every window.
    """
    question, context = INPUTS["long"][0]
    pipe = assemble(made("gpt2"), {"max_length": 40, "overlap": 12}, top_k=2000)
    result = pipe({"question": question, "context": context})
    assert result["windows"] > 3
    assert any(answer["start"] > len(context) * 3 // 4 for answer in result["answers"])
