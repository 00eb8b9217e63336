"""The fill_mask postprocessor: which mask, which tokens, what text, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from harness import checkpoint, pipeline_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline_kit as pk
from pipeline_kit import Pipeline
from pipeline_kit.builtin.tasks.fill_mask.stage import FillMask, best
from pipeline_kit.builtin.tasks.fill_mask.tokens import MaskSpan, Specials, TokenText, Writer, place_of
from pipeline_kit.builtin.tasks.options import FillMaskConfig
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.stages import ENCODING_FIELDS, StageContext
from pipeline_kit.contract.types import Device, Encoding, Example, ModelOutput, Result, RowOutput
from pipeline_kit.errors import CheckpointError, ConfigError, RowError, StageError
from pipeline_kit.runtime.padding import PaddingPolicy, collate
from pipeline_kit.testing import PostprocessorConformance, WordTokenizer, tiny_stage_context


def folder_of(architecture: str) -> Path:
    return checkpoint(architecture, head="masked-lm", max_positions=48)


@cache
def built(folder: Path, **tokenizer: Any) -> Pipeline:
    return pipeline_of("fill-mask", folder, tokenizer, model={"linear": "eager"})


def load(source: str | Path, tokenizer: Mapping[str, Any] | None = None, **options: Any) -> Pipeline:
    """Return a pipeline by architecture, or folder, and options; tokenizer and model are loaded once."""
    folder = source if isinstance(source, Path) else folder_of(source)
    pipe = built(folder, **(tokenizer or {}))
    context = StageContext(resolve_checkpoint(CheckpointConfig(path=str(folder))), tokenizer=pipe.tokenizer)
    return replace(pipe, postprocessor=FillMask(FillMaskConfig(**options), context))


def change(folder: Path, target: Path, **settings: Any) -> Path:
    """Copy a checkpoint with other settings in its tokenizer_config.json; None takes one away."""
    shutil.copytree(folder, target)
    file = target / "tokenizer_config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), **settings}
    kept = {key: value for key, value in config.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")
    return target


def texts(result: Result, mask: int = 0) -> list[str]:
    return [item["text"] for item in result["masks"][mask]]


# What a result holds.


def test_a_list_for_each_mask_with_these_keys() -> None:
    pipe = load("bert", top_k=3)
    one, three = pipe(["A [MASK] film.", {"text": "[MASK] is [MASK]. Or [MASK]?"}])
    assert [len(items) for items in one["masks"]] == [3]
    assert [len(items) for items in three["masks"]] == [3, 3, 3]
    for items in (*one["masks"], *three["masks"]):
        for item in items:
            assert list(item) == ["token", "id", "score", "text"]
            assert [type(value) for value in item.values()] == [str, int, float, str]


def test_the_other_masks_stay() -> None:
    result = load("bert", targets=["good", "bad"])("[MASK] or  [MASK]\n?")
    assert sorted(texts(result)) == ["bad or  [MASK]\n?", "good or  [MASK]\n?"]
    assert sorted(texts(result, 1)) == ["[MASK] or  bad\n?", "[MASK] or  good\n?"]


def test_scores_are_of_the_whole_vocabulary_by_hand() -> None:
    pipe = load("bert", targets=["good", "bad", "movie"], top_k=2)
    text = "What a [MASK] movie"
    encodings = pipe.tokenizer.encode([text, "good", "bad", "movie"])
    batch = collate(encodings[:1], pipe.padding, "cpu")
    logits = pipe.model.forward(batch)["logits"][0, 3].double().numpy()
    scores = np.exp(logits) / np.exp(logits).sum()
    ids = [encoding.input_ids[1] for encoding in encodings[1:]]
    expected = sorted(((scores[i], i) for i in ids), reverse=True)[:2]
    [items] = pipe(text)["masks"]
    assert [item["id"] for item in items] == [i for _, i in expected]
    np.testing.assert_allclose([item["score"] for item in items], [score for score, _ in expected], atol=1e-6)


def test_nothing_as_wide_as_the_vocabulary_leaves_the_device() -> None:
    pipe = load("bert", top_k=3)
    batch = collate(pipe.tokenizer.encode(["so [MASK]", "no mask here", "[MASK] and [MASK]"]), pipe.padding, "cpu")
    reduced = pipe.postprocessor.reduce(pipe.model.forward(batch), batch)
    count, width = batch.input_ids.shape
    assert {name: (list(t.shape), t.dtype) for name, t in reduced.tensors.items()} == {
        "scores": ([count, width, 3], torch.float32),
        "ids": ([count, width, 3], torch.int64),
    }
    assert reduced["scores"].any(-1).sum(-1).tolist() == [1, 0, 2]


def test_half_precision_is_summed_in_float32() -> None:
    stage = blank_stage(top_k=2)
    [encoding] = WordTokenizer().encode(["blank"])
    batch = collate([encoding], PaddingPolicy("longest"), "cpu")
    logits = torch.zeros(1, 3, 5000, dtype=torch.bfloat16)
    reduced = stage.reduce(ModelOutput({"logits": logits}), batch)
    assert reduced["scores"].dtype == torch.float32
    np.testing.assert_allclose(reduced["scores"][0, 1].numpy(), [1 / 5000] * 2, rtol=1e-6)
    assert reduced["ids"][0, 1].tolist() == [0, 1]


def test_targets_that_are_the_same_token_are_listed_once() -> None:
    result = load("bert", targets=["good", "Good", " good", "bad"])("a [MASK] day")
    assert sorted(item["token"] for item in result["masks"][0]) == ["bad", "good"]


# Ties.


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=0, max_size=5), count=st.integers(1, 9)
)
def test_of_equal_values_the_first_come_first(rows: list[list[int]], count: int) -> None:
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    top, places = best(values, count)
    for row, found, where in zip(rows, top.tolist(), places.tolist(), strict=True):
        order = sorted(range(6), key=lambda place: (-row[place], place))[:count]
        assert where == order
        assert found == [row[place] for place in order]


# The text.


@pytest.mark.parametrize(
    ("architecture", "source", "target", "expected"),
    [
        ("bert", "Un  film [MASK] !", "good", "Un  film good !"),
        ("bert", "Un  film [MASK] !", ".", "Un  film. !"),
        ("bert", "[MASK] day", "good", "good day"),
        ("bert", "漢[MASK]字", "good", "漢good字"),
        ("bert", "It is\n[MASK]", "good", "It is\ngood"),
        ("roberta", "It is <mask>.", "good", "It is good."),
        ("roberta", "It is  \n<mask>.", "good", "It is  \ngood."),
        ("roberta", "It is<mask>", " good", "It is good"),
        ("roberta", "It is <mask>", ".", "It is."),
        ("roberta", "<mask> day", " good", "good day"),
        ("mpnet", "It is <mask>.", "good", "It is good."),
        ("xlm-roberta", "It is <mask>.", "good", "It is good."),
        ("xlm-roberta", "<mask> it is", "good", "good it is"),
        ("xlm-roberta", "It is <mask>", "q", "It isq"),
        ("albert", "שלום [MASK] 🙂🏽 e\u0301[MASK]", "good", "שלום good 🙂🏽 e\u0301[MASK]"),
        ("modernbert", "😀[MASK]😀", " good", "😀 good😀"),
    ],
)
def test_the_text_stays_as_the_user_wrote_it(architecture: str, source: str, target: str, expected: str) -> None:
    assert expected in texts(load(architecture, targets=[target])(source))


def test_a_special_token_is_written_by_its_name() -> None:
    result = load("bert", targets=["[SEP]"])("a [MASK] day")
    assert [(item["token"], item["text"]) for item in result["masks"][0]] == [("[SEP]", "a [SEP] day")]


def test_a_mask_is_found_in_what_its_token_stands_for() -> None:
    assert place_of("is \n <mask>.", "<mask>", 2, 11) == MaskSpan(2, 5, 11, True)
    assert place_of("is <mask> .", "<mask>", 3, 10) == MaskSpan(2, 3, 9, False)
    assert place_of("<mask>", "<mask>", 0, 6) == MaskSpan(0, 0, 6, False)
    assert place_of("is [mask].", "<mask>", 3, 9) == MaskSpan(2, 3, 9, False)


@settings(max_examples=60)
@given(
    before=st.text(alphabet="ab .\n漢é\u0301😀ש", max_size=12),
    after=st.text(alphabet="ab .\n漢é\u0301😀ש", max_size=12),
    piece=st.sampled_from([TokenText("x", "x", " "), TokenText("x", "x", ""), TokenText("[X]", "[X]", None)]),
    taken=st.booleans(),
)
def test_filling_changes_only_the_space_before_the_mask(before: str, after: str, piece: TokenText, taken: bool) -> None:
    source = f"{before}[M]{after}"
    begin = len(before.rstrip()) if taken else len(before)
    place = place_of(source, "[M]", begin, len(before) + 3)
    text = Writer(WordTokenizer(), Specials({}, frozenset())).fill(source, place, piece)
    assert text.startswith(before.rstrip())
    assert text.endswith(piece.text + after)
    assert text[len(before.rstrip()) : len(text) - len(piece.text + after)].strip() == ""


# Targets.


def test_a_target_is_the_token_it_would_be_at_the_mask() -> None:
    """Behind a space, at the beginning of a text and inside a word, byte-level words are other tokens."""
    pipe = load("roberta", targets=["a"])
    spaced, start, glued = pipe(["it is <mask> day", "<mask> day", "it is<mask> day"])
    ids = {text: pipe.tokenizer.encode([text])[0].input_ids[1] for text in ("a", " a")}
    assert ids["a"] != ids[" a"]
    assert [result["masks"][0][0]["id"] for result in (spaced, start, glued)] == [ids[" a"], ids["a"], ids["a"]]
    assert texts(spaced) == ["it is a day"]
    assert texts(glued) == ["it isa day"]
    explicit = load("roberta", targets=[" a"])("<mask> day")
    assert explicit["masks"][0][0]["id"] == ids[" a"]


def test_a_target_inside_a_word_is_another_one_in_a_sentencepiece_vocabulary() -> None:
    pipe = load("xlm-roberta", targets=["a"])
    spaced, start, glued = pipe(["it is <mask> day", "<mask> day", "it is<mask> day"])
    word, inside = pipe.tokenizer.encode(["a"])[0].input_ids[1], pipe.tokenizer.encode(["qa"])[0].input_ids[-2]
    assert word != inside
    assert [result["masks"][0][0]["id"] for result in (spaced, start, glued)] == [word, word, inside]
    assert [texts(result)[0] for result in (spaced, start, glued)] == ["it is a day", "a day", "it isa day"]


def test_every_bad_target_is_named_with_what_the_tokenizer_makes_of_it() -> None:
    with pytest.raises(ConfigError) as raised:
        load("bert", targets=["good", "goody", "", "漢", "bad bad"])
    problems = [fault.problem for fault in raised.value.faults]
    name = folder_of("bert")
    assert problems == [
        f"'goody' is 2 tokens of '{name}', not one: 'good', '##y'.",
        "'' is empty.",
        f"'漢' is unknown to the tokenizer of '{name}'.",
        f"'bad bad' is 2 tokens of '{name}', not one: 'bad', 'bad'.",
    ]
    assert all("a target is one token" in str(fault) for fault in raised.value.faults)


@pytest.mark.parametrize("architecture", ["albert", "mpnet", "xlm-roberta", "roberta"])
def test_an_unknown_target_is_refused_whatever_the_vocabulary(architecture: str) -> None:
    with pytest.raises(ConfigError, match=r"postprocessor\.targets: '漢' is (unknown|3 tokens)"):
        load(architecture, targets=["漢"])


def test_a_target_beyond_the_model_is_a_stage_error() -> None:
    stage = blank_stage(targets=["good"])
    batch = collate(WordTokenizer().encode(["blank"]), PaddingPolicy("longest"), "cpu")
    with pytest.raises(StageError, match="the model returns 4 logits"):
        stage.reduce(ModelOutput({"logits": torch.zeros(1, 3, 4)}), batch)


# Bad input.


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"text": "a [MASK]", "text_pair": "b"}, "unknown field 'text_pair'"),
        ("", "the text has no mask; the mask of"),
        ("no mask at all", r"is '\[MASK\]': write that where a token is to be filled in"),
        ("a <mask> here", r"the text has no mask, only '<mask>'; the mask of '.*' is '\[MASK\]'"),
        ("a [mask] here", r"only '\[mask\]'"),
        ("a ____ here", "only '____'"),
    ],
)
def test_bad_examples_fail_their_row_in_the_input(example: Any, message: str) -> None:
    rows: list[Any] = ["good [MASK]", example, "bad [MASK]"]
    outcomes = list(load("bert").results_or_failures(rows))
    assert [isinstance(outcome, dict) for outcome in outcomes] == [True, False, True]
    with pytest.raises(RowError, match=message) as raised:
        load("bert")([example])
    assert raised.value.failure.stage == "input"
    assert raised.value.failure.error == "ExampleError"


def test_a_generic_mask_is_named_for_a_checkpoint_with_another_one() -> None:
    with pytest.raises(RowError, match=r"no mask, only '\[MASK\]'; the mask of '.*' is '<mask>'"):
        load("roberta")("This film is [MASK].")


# Which token is the mask.


def test_the_mask_is_found_without_a_name_in_the_files(tmp_path: Path) -> None:
    for architecture, mask in (("bert", "[MASK]"), ("roberta", "<mask>")):
        folder = change(folder_of(architecture), tmp_path / architecture, mask_token=None)
        assert load(folder)(f"a {mask}") == load(architecture)(f"a {mask}")


def test_the_mask_may_stand_in_the_special_tokens_map(tmp_path: Path) -> None:
    folder = change(folder_of("bert"), tmp_path / "mapped", mask_token=None)
    mapped = {"mask_token": {"content": "[SEP]", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(mapped), encoding="utf-8")
    assert len(load(folder, {"name": "tokenizers_json"})("a [SEP]")["masks"]) == 2  # the frame's is one


def test_a_mask_of_the_users_choice() -> None:
    result = load("bert", mask_token="dull")("a dull day")
    assert len(result["masks"]) == 1
    with pytest.raises(ConfigError, match=r"mask_token: '\[MSK\]' is not one token(.|\n)*Did you mean '\[MASK\]'"):
        load("bert", mask_token="[MSK]")
    with pytest.raises(ConfigError, match="'漢' is not one token"):
        load("bert", mask_token="漢")


def test_a_checkpoint_without_a_mask_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"names no mask token(.|\n)*postprocessor\.mask_token"):
        FillMask(FillMaskConfig(), tiny_stage_context())
    context = tiny_stage_context()
    context.checkpoint.__dict__["tokenizer_config"] = {"mask_token": "[M A]"}
    with pytest.raises(CheckpointError, match=r"names '\[M A\]' as its mask, but its tokenizer has no such token"):
        FillMask(FillMaskConfig(), context)


# Long texts.


def test_a_mask_that_was_cut_off_is_an_error() -> None:
    pipe = load("bert")
    long = "so the film was good " * 40
    kept = pipe(f"a [MASK] day {long}")
    assert len(kept["masks"]) == 1
    assert kept["truncated"] > 0
    for text, message in (
        (f"{long} [MASK]", "1 of the 1 masks are in a part of the text that was cut off, since 48 tokens fit"),
        (f"a [MASK] day {long} [MASK] [MASK]", "2 of the 3 masks"),
        (f"a [MASK] day {'x ' * 100_000} [MASK]", "1 of the 2 masks"),
    ):
        with pytest.raises(RowError, match=message) as raised:
            pipe(text)
        assert "tokenizer.overflow=window" in raised.value.failure.message


def test_a_mask_cut_off_on_the_left(tmp_path: Path) -> None:
    folder = change(folder_of("roberta"), tmp_path / "left", truncation_side="left")
    long = "so the film was good " * 40
    assert len(load(folder)(f"{long} <mask>")["masks"]) == 1
    with pytest.raises(RowError, match="1 of the 2 masks"):
        load(folder)(f"<mask> {long} <mask>")


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_windows_score_each_mask_once_where_it_has_the_most_context(architecture: str) -> None:
    pipe = load(architecture, {"overflow": "window", "max_length": 24, "overlap": 12}, top_k=4)
    mask = "[MASK]" if architecture == "bert" else "<mask>"
    source = " ".join(f"{mask if i % 5 == 2 else 'good'}" for i in range(60))
    result = pipe(source)
    assert len(result["masks"]) == 12
    assert result["windows"] > 2
    encodings = pipe.tokenizer.encode([source])
    batch = collate(encodings, pipe.padding, "cpu")
    probabilities = pipe.model.forward(batch)["logits"].softmax(-1)
    mask_id = pipe.tokenizer.encode([mask])[0].input_ids[1]
    chosen: dict[int, tuple[int, Any]] = {}
    for row, encoding in enumerate(encodings):
        assert encoding.offsets is not None
        for token, (id, (begin, _)) in enumerate(zip(encoding.input_ids, encoding.offsets, strict=True)):
            context = min(token, len(encoding.input_ids) - 1 - token)
            if id == mask_id and (begin not in chosen or context > chosen[begin][0]):
                chosen[begin] = context, probabilities[row, token]
    for items, begin in zip(result["masks"], sorted(chosen), strict=True):
        found = [item["score"] for item in items]
        np.testing.assert_allclose(found, chosen[begin][1].topk(4).values.numpy(), atol=1e-6)


def test_very_long_texts_run_in_windows() -> None:
    text = "so the film was good " * 2000
    result = load("bert", {"overflow": "window"}, top_k=1)(f"{text}[MASK] {text}")
    assert len(result["masks"]) == 1
    assert result["masks"][0][0]["text"].endswith(f" {text}")


# Properties.

WORDS = ["good", "bad", "a", "day", "Paris", "q!", "漢", "é", "😀", "{}", "{}"]
A_TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(lambda words: " ".join([*words, "{}"]))


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def filler(request: pytest.FixtureRequest) -> tuple[Pipeline, str]:
    return load(request.param, top_k=1000), "[MASK]" if request.param == "bert" else "<mask>"


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(sources=st.lists(A_TEXT, min_size=1, max_size=4))
def test_scores_are_a_distribution_in_order(filler: tuple[Pipeline, str], sources: Sequence[str]) -> None:
    pipe, mask = filler
    rows = [source.replace("{}", mask) for source in sources]
    together = pipe(rows)
    for row, result in zip(rows, together, strict=True):
        assert len(result["masks"]) == row.count(mask)
        for items in result["masks"]:
            assert abs(sum(item["score"] for item in items) - 1) < 1e-4
            assert all(0 <= item["score"] <= 1 for item in items)
            ranks = [(-item["score"], item["id"]) for item in items]
            assert ranks == sorted(ranks)
            assert len({item["id"] for item in items}) == len(items)
    for row, result in zip(rows, together, strict=True):
        [alone] = pipe([row])
        for items, others in zip(result["masks"], alone["masks"], strict=True):
            scores = {item["id"]: item["score"] for item in others}
            assert max(abs(item["score"] - scores[item["id"]]) for item in items) <= 1e-5


# The conformance suite, on a vocabulary of the word tokenizer's 97 ids.

VOCABULARY = [f"token {i}" for i in range(97)]


def blank_stage(**options: Any) -> FillMask:
    return FillMask(FillMaskConfig(mask_token="blank", **options), tiny_stage_context())


class TestFillMask(PostprocessorConformance):
    stage = "fill_mask"
    options: ClassVar = {"mask_token": "blank"}
    head = "token-classification"  # the tiny model's per-token logits
    examples: ClassVar = (
        "I love this blank.",
        "blank",
        {"text": "A longer text, so that the blank rows of a batch are not all of one blank length."},
        "I hate it, and I would blank do it again!",
        "Good day, blank blank",
    )

    def context(self, device: Device | None = None) -> StageContext:
        return tiny_stage_context(device=device, head=self.head, labels=VOCABULARY, requires=ENCODING_FIELDS)

    def example(self, text: str) -> Example:
        return f"{text} blank"


class TestFillMaskWithTargets(TestFillMask):
    options: ClassVar = {"mask_token": "blank", "targets": ["good", "bad", "day"], "top_k": 2}


def test_scores_that_are_no_numbers_fail_the_row() -> None:
    stage = blank_stage()
    windows = [WordTokenizer().encode(["blank"])]
    row: RowOutput = {"scores": np.full((3, 2), np.nan, dtype=np.float32), "ids": np.zeros((3, 2), dtype=np.int64)}
    with pytest.raises(pk.ExampleError, match="finite"):
        stage(["blank"], windows, [[row]])


def test_a_mask_that_the_tokenizer_does_not_take_for_one_fails_the_row() -> None:
    stage = blank_stage()
    encoding = Encoding([1, 5, 2], offsets=[(0, 0), (0, 6), (0, 0)])
    row: RowOutput = {"scores": np.zeros((3, 2), dtype=np.float32), "ids": np.zeros((3, 2), dtype=np.int64)}
    with pytest.raises(pk.ExampleError, match="does not take 'blank' in this text for its mask"):
        stage(["blanks"], [[encoding]], [[row]])
