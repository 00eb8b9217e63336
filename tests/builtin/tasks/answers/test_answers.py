"""The answers postprocessor, by hand and against a table of all spans."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pytest
from harness import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline_kit as pk
from pipeline_kit.builtin.tasks.answers.spans import Context
from pipeline_kit.builtin.tasks.answers.stage import Answers
from pipeline_kit.builtin.tasks.options import AnswersConfig
from pipeline_kit.contract.stages import Model, StageContext, Tokenizer
from pipeline_kit.contract.types import Device, Encoding, Example, ModelOutput, Result, RowOutput, Side, TokenBatch
from pipeline_kit.errors import ConfigError, ExampleError, RowError, RowFailure, StageError
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.testing import (
    PostprocessorConformance,
    TinyModel,
    TinyModelConfig,
    WordTokenizer,
    WordTokenizerConfig,
    tiny_pipeline,
    tiny_stage_context,
)

CONTEXT = StageContext(tiny_stage_context().checkpoint, truncation="only_second")


def words(max_length: int | None = 16, overlap: int = 2) -> WordTokenizer:
    return WordTokenizer(WordTokenizerConfig(max_length=max_length, overflow="window", overlap=overlap), CONTEXT)


def stage(**options: Any) -> Answers:
    return Answers(AnswersConfig(**options), tiny_stage_context())


def asked(question: str, context: str) -> dict[str, str]:
    return {"question": question, "context": context}


class SpanModel(Model):
    """TinyModel with a head for spans."""

    def __init__(self) -> None:
        self.inner = TinyModel(TinyModelConfig(), tiny_stage_context())

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        return self.inner.safe_padding_sides

    def forward(self, batch: TokenBatch) -> ModelOutput:
        hidden = self.inner.forward(batch)["last_hidden_state"] * 4
        made = {"start_logits": hidden[:, :, 0], "end_logits": hidden[:, :, 1]}
        return ModelOutput(made, frozenset(made))


class TestAnswers(PostprocessorConformance):
    stage = "answers"
    examples: ClassVar[Sequence[Example]] = (
        asked("Who?", "Sarah lives in London."),
        asked("What is it that she said?", "No."),
        asked("Where?", "In a place, of which she says that it is far from here, and that no road leads to it."),
        asked("Why not?", "It rains"),
    )

    def example(self, text: str) -> Example:
        return asked("Who?", text)

    def encode(self, examples: Sequence[Example]) -> list[list[Encoding]]:
        made = self.build()
        return [words().encode(made.prepare(example)) for example in examples]

    def forward(self, batch: TokenBatch, device: Device | None = None) -> ModelOutput:
        model = SpanModel()
        model.inner = TinyModel(TinyModelConfig(), self.context(device))
        return model.forward(batch)


class TestSeveralAnswersOrNone(TestAnswers):
    options: ClassVar = {"top_k": 5, "handle_impossible_answer": True, "max_answer_len": 3}


# By hand.


def given_logits(
    context: str, start: Sequence[Sequence[float]], end: Sequence[Sequence[float]], overlap: int = 1, **options: Any
) -> Result:
    """Answer `q` with the logits of each window: of its first special token, then of its context."""
    found, example = stage(**options), asked("q", context)
    tokenizer = words(None if len(start) == 1 else 4 + len(start[0]) - 1, overlap)
    windows = tokenizer.encode(found.prepare(example))
    assert len(windows) == len(start)
    rows: list[RowOutput] = []
    for window, begins, ends in zip(windows, start, end, strict=True):
        # [CLS] q [SEP] context [SEP]: question and separators are far above all others, to no avail.
        logits = [[v[0], 99.0, 99.0, *v[1:], 99.0] for v in (begins, ends)]
        assert len(logits[0]) == len(window.input_ids)
        rows.append({"span_logits": np.array(logits, dtype=np.float32).T})
    [result] = found([example], [windows], [rows])
    json.dumps(result, allow_nan=False)
    return result


def logs(*values: float) -> list[float]:
    return [math.log(value) for value in values]


def test_a_span_by_hand() -> None:
    # Start: nothing 1/10, a 1/10, b 6/10, c 2/10. End: nothing 1/10, a 2/10, b 2/10, c 5/10.
    result = given_logits("a b c", [logs(1, 1, 6, 2)], [logs(1, 2, 2, 5)], top_k=4)
    assert [(a["answer"], a["start"], a["end"]) for a in result["answers"]] == [
        ("b c", 2, 5),
        ("b", 2, 3),
        ("c", 4, 5),
        ("a b c", 0, 5),
    ]
    assert [a["score"] for a in result["answers"]] == pytest.approx([0.30, 0.12, 0.10, 0.05])
    assert {key: result[key] for key in ("answer", "score", "start", "end")} == result["answers"][0]
    assert type(result["score"]) is float
    assert type(result["start"]) is int


def test_an_answer_has_at_most_so_many_tokens() -> None:
    result = given_logits("a b c", [logs(1, 1, 6, 2)], [logs(1, 2, 2, 5)], top_k=9, max_answer_len=1)
    assert [a["answer"] for a in result["answers"]] == ["b", "c", "a"]
    assert result["score"] == pytest.approx(0.12)


def test_one_answer_has_no_list() -> None:
    assert set(given_logits("a b", [logs(1, 1, 1)], [logs(1, 1, 1)])) == {"answer", "score", "start", "end"}


def test_the_same_text_at_two_places_is_one_answer_at_its_likelier_place() -> None:
    result = given_logits("a b a", [logs(1, 2, 3, 4)], [logs(1, 2, 3, 4)], top_k=9)
    by_text = {a["answer"]: a for a in result["answers"]}
    assert by_text["a"] == {"answer": "a", "score": pytest.approx(0.04 + 0.16), "start": 4, "end": 5}
    assert sorted(by_text) == ["a", "a b", "a b a", "b", "b a"]


def test_no_answer_has_the_score_of_the_first_token() -> None:
    start, end = logs(7, 1, 2), logs(6, 1, 3)
    result = given_logits("a b", [start], [end], handle_impossible_answer=True, top_k=2)
    assert result["answers"] == [
        {"answer": "", "score": pytest.approx(0.42), "start": 0, "end": 0},
        {"answer": "b", "score": pytest.approx(0.06), "start": 2, "end": 3},
    ]
    assert given_logits("a b", [start], [end])["answer"] == "b"


def test_windows_are_merged_by_their_best_and_nothing_by_its_least() -> None:
    # Windows "a b" and "b c"; b has 0.4 * 0.5 in the first and 0.1 * 0.1 in the second.
    start, end = [logs(2, 4, 4), logs(8, 1, 1)], [logs(1, 4, 5), logs(8, 1, 1)]
    result = given_logits("a b c", start, end, top_k=9, handle_impossible_answer=True)
    by_text = {a["answer"]: a["score"] for a in result["answers"]}
    wanted = {"b": 0.2, "a b": 0.2, "a": 0.16, "": 0.02, "b c": 0.01, "c": 0.01}
    assert by_text == pytest.approx(wanted)
    assert [a["answer"] for a in result["answers"]] == ["a b", "b", "a", "", "b c", "c"], (
        "the earlier of equal ones first"
    )


class Pieces(Tokenizer):
    """Cuts texts into pieces of two characters; words are what stands between spaces, and pieces may begin with one."""

    pad_token_id, padding_side, max_length = 0, "right", None

    def __init__(self, window: int | None = None) -> None:
        self.window = window

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        found = []
        for place, example in enumerate(examples):
            assert not isinstance(example, str)
            text = example["text_pair"]
            tokens = [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]
            step = self.window or len(tokens)
            for window, begin in enumerate(range(0, len(tokens), step)):
                part = tokens[begin : begin + step]
                ids = [1, 2, *[3] * len(part)]
                own: list[int | None] = [text.count(" ", 0, b + (text[b] == " ")) for b, _ in part]
                sequences: list[int | None] = [None, 0, *[1] * len(part)]
                offsets = [(0, 0), (0, 1), *part]
                found.append(Encoding(ids, None, None, offsets, None, [None, 0, *own], sequences, place, 0, window))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def by_pieces(
    context: str, start: Sequence[float], end: Sequence[float], window: int | None = None, **options: Any
) -> Result:
    found, example = stage(**options), asked("q", context)
    windows = Pieces(window).encode(found.prepare(example))
    rows: list[RowOutput] = []
    at = 0
    for encoding in windows:
        count = len(encoding.input_ids) - 2
        logits = [[0.0, 0.0, *v[at : at + count]] for v in (start, end)]
        rows.append({"span_logits": np.array(logits, dtype=np.float32).T})
        at += count
    [result] = found([example], [windows], [rows])
    return result


def test_answers_are_widened_to_words_and_their_scores_added() -> None:
    # Pieces: "ab" "cd" " e" "fg" " h"; words 0 0 1 1 2.
    start, end = logs(1, 4, 1, 1, 1), logs(1, 2, 1, 3, 1)
    result = by_pieces("abcd efg h", start, end)
    # From "ab" or "cd" to " e" or "fg".
    assert result == {"answer": "abcd efg", "score": pytest.approx(5 * 4 / 81), "start": 0, "end": 8}
    tokens = by_pieces("abcd efg h", start, end, align_to_words=False)
    assert tokens == {"answer": "cd efg", "score": pytest.approx(4 * 3 / 81), "start": 2, "end": 8}


def test_white_space_is_no_part_of_an_answer() -> None:
    result = by_pieces("ab  cd  ", logs(1, 9, 1, 1), logs(1, 1, 1, 9), align_to_words=False, top_k=99)
    # "  cd  ", "cd  ", "  cd" and "cd" are one answer; "  " is none.
    assert result["answer"] == "cd"
    assert (result["start"], result["end"]) == (4, 6)
    assert result["score"] == pytest.approx((9 + 1) * (9 + 1) / 169)
    assert {a["answer"] for a in result["answers"]} == {"ab", "cd", "ab  cd"}


def test_a_word_that_two_windows_share_out_is_given_whole() -> None:
    # Windows of two pieces: "ab" "cd" | "ef" " g" | "hi": one word over two windows, another one too.
    result = by_pieces("abcdef ghi", logs(1, 1, 8, 1, 1), logs(1, 1, 8, 1, 1), window=2)
    assert result["answer"] == "abcdef"
    assert (result["start"], result["end"]) == (0, 6)
    last = by_pieces("abcdef ghi", logs(1, 1, 1, 1, 99), logs(1, 1, 1, 1, 99), window=2)
    assert last["answer"] == "ghi"


def test_accents_behind_an_answer_belong_to_it() -> None:
    example = asked("q", "a cafe\u0301 b")
    offsets = [(0, 0), (0, 1), (0, 1), (2, 6), (8, 9)]  # as a tokenizer has them that strips accents
    encoding = Encoding([1, 2, 3, 4, 5], None, None, offsets, None, [None, 0, 0, 1, 2], [None, 0, 1, 1, 1])
    row = {"span_logits": np.array([[0, 0], [0, 0], [0, 0], [9, 9], [0, 0]], dtype=np.float32)}
    assert stage()([example], [[encoding]], [[row]])[0]["answer"] == "cafe\u0301"


def test_logits_so_far_apart_that_no_span_has_a_probability_still_give_an_answer() -> None:
    result = given_logits("a b c", [[0.0, 0.0, 0.0, 1e6]], [[0.0, 1e6, 0.0, 0.0]])
    assert result == {"answer": "a", "score": 0.0, "start": 0, "end": 1}


# Against a table of all spans.


def by_table(
    context: str, windows: Sequence[Encoding], rows: Sequence[np.ndarray[Any, Any]], longest: int
) -> dict[str, float]:
    """Score every span of every window, one by one."""
    found: dict[str, float] = {}
    for window, logits in zip(windows, rows, strict=True):
        inside = [i for i, sequence in enumerate(window.sequence_ids or ()) if sequence == 1]
        chosen = logits[[0, *inside]].astype(np.float64)
        start, end = (np.exp(chosen) / np.exp(chosen).sum(axis=0)).T[:, 1:]
        here: dict[str, float] = {}
        for a, i in enumerate(inside):
            for b, j in enumerate(inside[a : a + longest], a):
                begin, stop = (window.offsets or ())[i][0], (window.offsets or ())[j][1]
                while stop < len(context) and unicodedata.combining(context[stop]):  # accents are tokens here
                    stop += 1
                text = context[begin:stop]
                here[text] = here.get(text, 0.0) + start[a] * end[b]
        for text, score in here.items():
            found[text] = max(found.get(text, 0.0), score)
    return found


A_CONTEXT = st.lists(
    st.sampled_from(["a", "b", "c", "dog", "漢", "e\u0301", "🙂", "שלום", "."]), min_size=1, max_size=24
).map(" ".join)


@settings(max_examples=60)
@given(
    A_CONTEXT, st.integers(8, 20), st.integers(1, 6), st.integers(1, 40), st.integers(0, 99), st.sampled_from([1, 30])
)
def test_answers_are_those_of_a_table_of_all_spans(
    context: str, max_length: int, longest: int, top_k: int, seed: int, scale: float
) -> None:
    example = asked("who", context)
    found = stage(top_k=top_k, max_answer_len=longest)
    windows = words(max_length, 1).encode(found.prepare(example))
    chance = np.random.default_rng(seed)
    rows = [chance.normal(size=(len(w.input_ids), 2)).astype(np.float32) * scale for w in windows]
    [result] = found([example], [windows], [[{"span_logits": row} for row in rows]])
    answers = result.get("answers", [result])
    wanted = by_table(context, windows, rows, longest)
    assert len(answers) == min(top_k, len(wanted))
    assert [a["score"] for a in answers] == pytest.approx(sorted(wanted.values(), reverse=True)[:top_k], abs=1e-6)
    for answer in answers:
        assert answer["score"] == pytest.approx(wanted[answer["answer"]], abs=1e-6)
        assert answer["answer"] == context[answer["start"] : answer["end"]]
        assert 0 <= answer["score"] <= 1
    assert len({a["answer"] for a in answers}) == len(answers)


@settings(max_examples=40)
@given(st.lists(A_CONTEXT, min_size=1, max_size=6), st.integers(1, 9), st.permutations(range(6)))
def test_an_answer_does_not_depend_on_its_batch_nor_on_how_many_are_listed(
    contexts: list[str], top_k: int, order: list[int]
) -> None:
    def pipe(top_k: int, rows: int) -> Any:
        batching = BatchingPolicy(False, None, rows, 64)
        return tiny_pipeline(stage(top_k=top_k), tokenizer=words(), model=SpanModel(), batching=batching)

    examples = [asked("who is it", context) for context in contexts]
    best = [pipe(1, 1)(example) for example in examples]
    places = [i for i in order if i < len(examples)]
    results = pipe(top_k, 4)([examples[i] for i in places])
    for place, result in zip(places, results, strict=True):
        assert result["score"] == pytest.approx(best[place]["score"], abs=1e-6)
        near = [a["answer"] for a in result.get("answers", [result]) if a["score"] > result["score"] - 1e-6]
        assert best[place]["answer"] in near


@settings(max_examples=40)
@given(A_CONTEXT)
def test_a_context_that_fits_has_the_answer_it_has_without_windows(context: str) -> None:
    made = stage(top_k=3)
    [fitting, whole] = [tiny_pipeline(made, tokenizer=words(n), model=SpanModel()) for n in (64, None)]
    assert fitting(asked("who", context)) == whole(asked("who", context))


@settings(max_examples=80)
@given(st.text(alphabet="ab \n\u3000\xa0\u0301é漢🙂", max_size=12))
def test_slices_are_trimmed_and_told_apart_as_strings_are(text: str) -> None:
    context = Context(text)
    pairs = np.array(list(combinations(range(len(text) + 1), 2)), dtype=np.int64).reshape(-1, 2)
    begins, ends = pairs[:, 0], pairs[:, 1]
    starts, stops = context.trimmed(begins, ends)
    places = zip(starts.tolist(), stops.tolist(), strict=True)
    hashes = dict(zip(places, context.hashes(starts, stops).tolist(), strict=True))
    for begin, end, start, stop in zip(begins.tolist(), ends.tolist(), starts.tolist(), stops.tolist(), strict=True):
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        assert text[start : max(start, stop)] == text[begin:end].strip()
    real = {place: text[place[0] : place[1]] for place in hashes if place[0] < place[1]}
    assert len({hashes[place] for place in real}) == len(set(real.values()))
    assert len({(hashes[place], piece) for place, piece in real.items()}) == len(set(real.values()))


def test_every_white_space_is_known() -> None:
    assert max(code for code in range(sys.maxunicode + 1) if chr(code).isspace()) == 0x3000


def test_two_texts_of_one_hash_stay_two(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = given_logits("a b a", [logs(1, 2, 3, 4)], [logs(1, 2, 3, 4)], top_k=9)
    monkeypatch.setattr(Context, "hashes", lambda self, begin, end: np.zeros(len(begin), dtype=np.uint64))
    assert given_logits("a b a", [logs(1, 2, 3, 4)], [logs(1, 2, 3, 4)], top_k=9) == honest


# What is refused.


def test_a_bad_example_is_that_rows_error() -> None:
    pipe = tiny_pipeline(stage(), tokenizer=words(), model=SpanModel())
    good = asked("Who?", "Sarah.")
    first, failed, last = pipe.results_or_failures([good, {"question": "Who?"}, good])
    assert first == last
    assert isinstance(failed, RowFailure)
    assert (failed.index, failed.stage, failed.error) == (1, "input", "ExampleError")
    assert "the field 'context' is missing" in failed.message


def test_a_context_without_tokens_has_no_answer() -> None:
    encoding = Encoding([1, 2, 3], None, None, [(0, 0), (0, 1), (0, 0)], None, [None, 0, None], [None, 0, None])
    row = {"span_logits": np.zeros((3, 2), dtype=np.float32)}
    with pytest.raises(ExampleError, match="the field 'context' has no token"):
        stage()([asked("q", "\u200b")], [[encoding]], [[row]])
    none = stage(handle_impossible_answer=True)([asked("q", "\u200b")], [[encoding]], [[row]])
    assert none == [{"answer": "", "score": 1.0, "start": 0, "end": 0}]


def test_no_answer_needs_a_token_for_it() -> None:
    class Bare(Pieces):
        def encode(self, examples: Sequence[Example]) -> list[Encoding]:
            return [Encoding([1, 2], sequence_ids=[0, 1], offsets=[(0, 1), (0, 1)], word_ids=[0, 0])]

    with pytest.raises(ConfigError, match="handle_impossible_answer"):
        Answers(AnswersConfig(handle_impossible_answer=True), tiny_stage_context(tokenizer=Bare()))


def test_wrong_tensors_are_refused() -> None:
    found, example = stage(), asked("q", "a b")
    windows = words().encode(found.prepare(example))
    with pytest.raises(StageError, match="5 start and end logits for 6 tokens"):
        found([example], [windows], [[{"span_logits": np.zeros((5, 2), dtype=np.float32)}]])


def test_a_question_that_takes_all_the_room_is_that_rows_error() -> None:
    pipe = tiny_pipeline(stage(), tokenizer=words(8), model=SpanModel())
    with pytest.raises(RowError, match="no room"):
        pipe(asked("one two three four five six seven", "a b c"))


@pytest.mark.parametrize("options", [(), ("tokenizer.overflow=truncate",), ("tokenizer.overlap=40",)])
def test_the_error_of_a_long_question_names_it_and_says_what_to_do(options: Sequence[str]) -> None:
    folder = checkpoint("bert", head="question-answering", max_positions=48)
    pipe = pk.load("task=question-answering", f"checkpoint.path={folder}", "device=cpu", *options)
    good, bad = asked("Who?", "a dog " * 60), asked("why " * (20 if "overlap" in str(options) else 60), "a dog " * 60)
    first, failed, last = pipe.results_or_failures([good, bad, good])
    assert isinstance(first, dict)
    assert first == last
    assert isinstance(failed, RowFailure)
    assert (failed.stage, failed.error) == ("tokenizer", "ExampleError")
    assert failed.message.startswith("the field 'question' has")
    assert "the field 'context'" in failed.message
    assert "tokenizer.max_length" in failed.message


def test_a_very_long_context_is_read_to_its_end() -> None:
    context = "word " * 20_000 + "needle"

    class Finder(SpanModel):
        def forward(self, batch: TokenBatch) -> ModelOutput:
            [needle] = words().encode(["needle"])
            hit = (batch.input_ids == needle.input_ids[1]).float() * 20
            return ModelOutput({"start_logits": hit, "end_logits": hit}, frozenset({"start_logits", "end_logits"}))

    result = tiny_pipeline(stage(), tokenizer=words(512, 64), model=Finder())(asked("what", context))
    assert (result["answer"], result["start"], result["end"]) == ("needle", 100_000, 100_006)
    assert result["windows"] > 40
