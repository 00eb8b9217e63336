"""What a trace holds: the run as it was, whatever the stages tell and whatever the texts are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline_kit
from pipeline_kit import Encoding, Pipeline, Trace
from pipeline_kit.contract.stages import Model, Panel, Postprocessor, Tokenizer
from pipeline_kit.contract.types import Example, ModelOutput, Result, RowOutput, Side, TokenBatch
from pipeline_kit.errors import ExampleError
from pipeline_kit.explain.terminal import to_text
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.testing import WordTokenizer, WordTokenizerConfig, tiny_pipeline
from pipeline_kit.testing.checkpoints import tiny_checkpoint

SENTENCES = ["I've been waiting for a HuggingFace course my whole life.", "I hate this so much!"]
HOSTILE = [
    "",
    " ",
    "\x00\x1b[31m",
    "<script>alert(1)</script>",
    "‮abc‬ שלום",
    "👩‍👩‍👧‍👦" * 9,
    "x" * 5000,
    "[MASK] [SEP]",
    "é",
]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline_kit.load()


class Bare(Tokenizer):
    """A plugin's tokenizer that gives ids and nothing else."""

    pad_token_id, padding_side, max_length = 0, "right", None

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return [Encoding([1, *(ord(c) % 90 + 2 for c in str(e)[:20])], example=i) for i, e in enumerate(examples)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(id + 30) for id in ids if id != 1)


class Lengths(Postprocessor):
    """Gives how many numbers a row has; fails where it is told to."""

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        if any("fail" in str(example) for example in examples):
            raise ValueError("this one \x1b[2J fails")
        return [{"numbers": sum(int(a.size) for row in found for a in row.values())} for found in outputs]


class Loud(Model):
    """A model that tells all it may, some of it wrongly."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.watching = broken, False

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        return frozenset({"right", "left"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        if bool((batch.input_ids == 13).any()):
            raise ValueError("unlucky")
        return ModelOutput({"ids": batch.input_ids.float()}, frozenset({"ids"}))

    @contextmanager
    def capture_layers(self) -> Any:
        if self.broken:
            raise RuntimeError("no hooks here")
        yield [("mine", torch.ones(1, 4, 2))]

    def attentions(self, batch: TokenBatch) -> Mapping[str, Any]:
        if self.broken:
            raise RuntimeError("no attention either")
        return {"mine": torch.ones(len(batch.lengths), 1, *batch.input_ids.shape[1:], batch.input_ids.shape[1])}

    def panels(self, batch: TokenBatch, output: ModelOutput) -> Sequence[Panel]:
        if self.broken:
            raise KeyError("panel")
        return (Panel("mine", ("a",), ((1,),)),)


def test_the_result_is_the_pipelines_own_and_padding_shows(pipe: Pipeline) -> None:
    trace = pipe.explain(SENTENCES)
    assert [row.result for row in trace.rows] == pipe(SENTENCES)
    batch = trace.batches[0]
    encoded = pipe.tokenizer.encode(SENTENCES)
    for place, row in enumerate(trace.rows):
        number, where = row.places[0]
        ids, mask = batch.input_ids[where], batch.attention_mask[where]
        assert number == 0
        assert ids[mask == 1].tolist() == list(encoded[place].input_ids)
        assert [token.id for token in row.sequences[0].tokens] == list(encoded[place].input_ids)
        assert batch.rows[where] == (place, 0)
        for token in row.sequences[0].tokens:
            assert token.special == (token.start is None)
            if token.start is not None and token.end is not None:
                assert SENTENCES[place][token.start : token.end].lower() == token.text.removeprefix("##")
    assert (batch.attention_mask == 0).sum() == 10
    assert trace.labels == ("NEGATIVE", "POSITIVE")
    assert [stage.kind for stage in trace.stages] == ["tokenizer", "padding", "model", "postprocessor"]
    assert all(stage.inputs and stage.outputs for stage in trace.stages)
    assert 0 < batch.seconds <= trace.stages[2].seconds <= trace.seconds


def test_one_example_several_and_none(pipe: Pipeline) -> None:
    assert pipe.explain(SENTENCES[0]).rows[0].result == pipe(SENTENCES[0])
    assert pipe.explain({"text": "Good."}).rows[0].result == pipe("Good.")
    empty = pipe.explain([])
    assert (empty.rows, empty.batches) == ((), ())
    assert "text-classification" in to_text(empty)
    with pytest.raises(ExampleError, match="not int"):
        pipe.explain(7)  # type: ignore[arg-type]


def hooks_of(pipe: Pipeline) -> int:
    network: Any = pipe.model._network  # type: ignore[attr-defined]
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules())


def test_tracing_leaves_the_pipeline_and_its_observer_alone() -> None:
    pipe, seen = pipeline_kit.load(), []
    pipe.observer = lambda stage, given, gave: seen.append(stage)
    before, result = dict(pipe.__dict__), pipe(SENTENCES)
    seen.clear()
    pipe.explain(SENTENCES)
    assert seen == ["tokenizer", "padding", "model", "reduce", "postprocessor"]
    assert hooks_of(pipe) == 0
    pipe.explain(SENTENCES, attentions=True)
    left = hooks_of(pipe)  # transformers puts its own on a network once, and they sleep until it is asked
    pipe.explain(SENTENCES, attentions=True)
    assert hooks_of(pipe) == left
    assert dict(pipe.__dict__) == before
    assert pipe.model.runtime_info["attn_implementation"] == "sdpa"
    assert pipe(SENTENCES) == result


def test_what_truncation_cuts_is_shown(tmp_path: Any) -> None:
    folder = f"checkpoint.path={tiny_checkpoint(tmp_path)}"
    text = "I love this film and the people in it"
    row = pipeline_kit.load(folder, "tokenizer.max_length=5").explain(text).rows[0]
    assert row.sequences[0].cut == " film and the people in it"
    assert row.sequences[0].truncated == row.result["truncated"]
    pair = {"text": text, "text_pair": "so good"}
    cut = pipeline_kit.load(folder, "tokenizer.max_length=8").explain(pair).rows[0].sequences[0]
    assert cut.cut == " film and the people in it"
    row = pipeline_kit.load(folder, "tokenizer.max_chars=12").explain(text + "!").rows[0]
    assert (row.sequences[0].cut, row.sequences[0].truncated_chars) == (" film and the people in it!", 27)
    assert pipeline_kit.load(folder).explain(text).rows[0].sequences[0].cut is None


def test_the_cut_beginning_of_a_prompt_is_shown(tmp_path: Any) -> None:
    tiny_checkpoint(tmp_path, "gpt2", head="causal-lm")
    options = ("model.generation.max_new_tokens=2", "tokenizer.max_length=4")
    pipe = pipeline_kit.load("task=text-generation", f"checkpoint.path={tmp_path}", *options)
    sequence = pipe.explain("We love this film and the people").rows[0].sequences[0]
    assert sequence.cut is not None
    assert sequence.cut.startswith("We love")
    assert "people" not in sequence.cut


def test_windows_are_sequences_with_their_spans(tmp_path: Any) -> None:
    overrides = ("tokenizer.max_length=8", "tokenizer.overflow=window", "tokenizer.overlap=2")
    pipe = pipeline_kit.load(f"checkpoint.path={tiny_checkpoint(tmp_path)}", *overrides)
    text = "I love this film and the people in it and the city too"
    row = pipe.explain([text, "Good"]).rows[0]
    assert row.result == pipe(text)
    assert [sequence.span for sequence in row.sequences] == [(0, 6), (4, 10), (8, 13)]
    assert [sequence.window for sequence in row.sequences] == [0, 1, 2]
    assert all(place != (-1, -1) for place in row.places)


def test_stages_that_tell_nothing_are_shown_by_what_they_take_and_give() -> None:
    pipe = tiny_pipeline(Lengths(), tokenizer=Bare())
    trace = pipe.explain(["abc", "fail", "hello"])
    outcomes = list(pipe.results_or_failures(["abc", "fail", "hello"]))
    assert [row.result or row.failure for row in trace.rows] == outcomes
    assert trace.rows[1].failure is not None
    assert trace.rows[1].failure.message == "this one \x1b[2J fails"
    assert [token.text for token in trace.rows[0].sequences[0].tokens] == ["#1", "'", "(", ")"]
    assert any("does not tell where its tokens stand" in note for note in trace.notes)
    assert any("does not report its layers" in note for note in trace.notes)
    assert trace.stages[0].name == "Bare"
    assert trace.stages[0].source.endswith("test_explain.py")
    shown = to_text(trace)
    assert "fails" in shown
    assert "\x1b" not in shown


def test_a_stage_that_tells_is_heard() -> None:
    trace = tiny_pipeline(Lengths(), tokenizer=Bare(), model=Loud()).explain(["abc"], attentions=True)
    assert trace.batches[0].panels == (Panel("mine", ("a",), ((1,),)),)
    assert trace.batches[0].layers[0].name == "mine"
    assert trace.batches[0].attentions["mine"].shape == (1, 1, 4, 4)


def test_a_stage_whose_account_fails_does_no_harm() -> None:
    pipe = tiny_pipeline(Lengths(), tokenizer=Bare(), model=Loud(broken=True))
    trace = pipe.explain(["abc"], attentions=True)
    assert trace.rows[0].result == pipe("abc")
    assert sum("failed" in note for note in trace.notes) == 3, trace.notes


def test_a_row_that_fails_in_the_model_is_in_no_batch() -> None:
    pipe = tiny_pipeline(Lengths(), tokenizer=Bare(), model=Loud())
    trace = pipe.explain(["abc", "e", "xyz"])  # 'e' is the id 13
    assert [row.failure is not None for row in trace.rows] == [False, True, False]
    assert trace.rows[1].places == ((-1, -1),)
    assert sorted(place for batch in trace.batches for place in batch.rows) == [(0, 0), (2, 0)]
    assert "unlucky" in to_text(trace)


def test_a_row_that_cannot_be_read_has_its_failure(pipe: Pipeline) -> None:
    trace = pipe.explain([{"txt": "typo"}, "Good."])
    assert trace.rows[0].failure is not None
    assert trace.rows[0].sequences == ()
    assert trace.rows[1].result == pipe("Good.")
    assert "typo" in to_text(trace)


class Liar(Bare):
    """A tokenizer whose full encodings are not those that ran."""

    def encode_fully(self, examples: Sequence[Example]) -> list[Encoding]:
        return [Encoding([9], offsets=[(0, 1)], tokens=["lie"], example=i) for i, _ in enumerate(examples)]


def test_full_encodings_are_used_only_if_their_ids_ran() -> None:
    trace = tiny_pipeline(Lengths(), tokenizer=Liar()).explain("abc")
    assert [token.id for token in trace.rows[0].sequences[0].tokens] == trace.batches[0].input_ids[0].tolist()
    assert any("other ids" in note for note in trace.notes)


def test_left_padding_and_a_kit_tokenizer() -> None:
    words = WordTokenizer(WordTokenizerConfig(padding_side="left"))
    trace = tiny_pipeline(Lengths(), tokenizer=words, padding=PaddingPolicy("longest", "left", 0)).explain(
        ["a b c", "d"]
    )
    batch = trace.batches[0]
    assert batch.side == "left"
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert [(t.text, t.start, t.word, t.special) for t in trace.rows[1].sequences[0].tokens] == [
        ("[CLS]", None, None, True),
        ("d", 0, 0, False),
        ("[SEP]", None, None, True),
    ]


def test_hostile_texts_are_shown_and_harm_nothing(pipe: Pipeline) -> None:
    trace = pipe.explain(HOSTILE)
    assert [row.result or row.failure for row in trace.rows] == list(pipe.results_or_failures(HOSTILE))
    for shown in (to_text(trace), to_text(trace, full=True)):
        assert not set(shown) & set("\x00\x1b‮‬")
    json.dumps(trace.to_dict(), allow_nan=False)


@settings(max_examples=15)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_texts(texts: list[str]) -> None:
    pipe = tiny_pipeline(Lengths(), tokenizer=WordTokenizer())
    trace = pipe.explain(texts)
    assert [row.result or row.failure for row in trace.rows] == list(pipe.results_or_failures(texts))
    lines = to_text(trace).split("\n")
    assert all(line.isprintable() for line in lines)


def test_json_has_all_of_it_and_sums_up_large_arrays(pipe: Pipeline) -> None:
    trace = pipe.explain(SENTENCES)
    whole = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    assert whole["rows"][0]["result"] == pipe(SENTENCES[0])
    np.testing.assert_array_equal(
        np.float32(whole["batches"][0]["outputs"]["logits"]), trace.batches[0].outputs["logits"]
    )
    short = trace.to_dict(most=5)["batches"][0]
    assert short["input_ids"]["shape"] == [2, 18]
    assert short["outputs"]["logits"] == whole["batches"][0]["outputs"]["logits"]


def test_json_says_what_it_has_no_number_for() -> None:
    trace = Trace("", {"a": float("nan"), "b": object()}, (), (), (), (), 0.0)
    found = trace.to_dict()["config"]
    assert found["a"] == "NaN"
    assert "object" in found["b"]


def test_a_notebook_shows_a_page_or_the_text(pipe: Pipeline) -> None:
    shown = pipe.explain("<b>Good</b>")._repr_html_()
    assert "<b>Good" not in shown
    assert "Good" in shown
