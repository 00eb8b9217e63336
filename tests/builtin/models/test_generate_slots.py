"""Rows that leave the batch as they end, and those that enter it: the memory they share, and that no text changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_helpers import TEXTS, texts, writer
from harness import checkpoint, pipeline_of, with_files
from hypothesis import given
from hypothesis import strategies as st
from test_generate import copied

from pipeline_kit import Pipeline
from pipeline_kit.builtin.models.generate import stage
from pipeline_kit.builtin.models.generate import writer as writing
from pipeline_kit.builtin.models.generate.slots import SlotTable
from pipeline_kit.builtin.models.generate.stage import GenerateModel
from pipeline_kit.builtin.models.hf.linears import can_pack, can_quantize
from pipeline_kit.contract.types import Device, Encoding
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import collate

MANY = [f"{text} {word}" for word in ("one", "three more words") for text in TEXTS]
WRITTEN = 12


@given(st.lists(st.tuples(st.sampled_from(["add", "column", "keep"]), st.integers(0, 2**32 - 1)), max_size=40))
def test_a_table_holds_what_was_put_into_it(steps: Sequence[tuple[str, int]]) -> None:
    """Against a list of rows that are lists: whatever comes and goes, a row's last columns are its own."""
    most = 5
    table, rows, number = SlotTable(most, grows=True), list[list[int]](), 0
    for step, seed in steps:
        chance = torch.Generator().manual_seed(seed)
        if step == "add" and len(rows) < most:
            count = int(torch.randint(1, most - len(rows) + 1, (), generator=chance))
            lengths = torch.randint(1, 90, (count,), generator=chance).tolist()
            fresh = [[number := number + 1 for _ in range(length)] for length in lengths]
            padded = torch.tensor([[-1] * (max(lengths) - len(row)) + row for row in fresh])
            table.add([(padded > 0).long()[..., None], padded[:, None, :, None].expand(-1, 2, -1, 3).float()], lengths)
            rows += fresh
        elif step == "column" and rows:
            table.add_column()
            new = [number := number + 1 for _ in rows]
            table.write(0, 1)
            table.write(1, torch.tensor(new, dtype=torch.float32)[:, None, None, None])
            rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
        elif step == "keep" and rows:
            order = torch.randperm(len(rows), generator=chance).tolist()
            gone = set(order[: int(torch.randint(0, len(rows) + 1, (), generator=chance))])
            count = len(rows) - len(gone)
            movers = [place for place in range(count, len(rows)) if place not in gone]
            kept = [movers.pop() if place in gone else place for place in range(count)]
            table.keep(kept)
            rows = [rows[place] for place in kept]
        if not rows:
            continue
        mask, values = table.view(0)[..., 0], table.view(1)
        assert mask.shape == (len(rows), max(map(len, rows)))
        assert values.shape == (len(rows), 2, mask.shape[1], 3)
        assert bool(values.isfinite().all())
        for place, row in enumerate(rows):
            assert mask[place].tolist() == [0] * (mask.shape[1] - len(row)) + [1] * len(row)
            assert values[place, 1, mask.shape[1] - len(row) :, 2].tolist() == row


def test_a_row_hides_what_another_left() -> None:
    table = SlotTable(2, grows=True)
    table.add([torch.ones(2, 8, 1, dtype=torch.int64)], [8, 8])
    table.keep([0])
    table.add([torch.ones(1, 3, 1, dtype=torch.int64)], [3])
    assert table.view(0)[1, :, 0].tolist() == [0] * 5 + [1] * 3


@pytest.fixture
def llama() -> Path:
    return checkpoint("llama", head="causal-lm")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows side by side and few tokens together, so that a batch of the tests' size waits."""
    monkeypatch.setattr(writing, "ROWS_CPU", 4)
    monkeypatch.setattr(writing, "MAX_TOKENS_CPU", 60)
    monkeypatch.setattr(writing, "_JOINING", 4)


def encoded(pipe: Pipeline, texts: Sequence[str] = MANY) -> list[Encoding]:
    return [encoding for found in pipe.encode(texts) if isinstance(found, list) for encoding in found]


def ending(folder: Path, task: str, place: Path) -> Path:
    """Copy a checkpoint with end tokens out of what it writes, so that its rows have many lengths."""
    pipe = writer(folder, task, most=WRITTEN)
    written = [out["sequences"].tolist() for out in pipe.forward(encoded(pipe))]  # type: ignore[index]
    tokens = sorted({token for row in written for token in row})
    ends = sorted(tokens, key=lambda token: len({row.index(token) for row in written if token in row}))[-2:]
    own = {"eos_token_id": ends, "pad_token_id": 0, "decoder_start_token_id": 0}
    return with_files(copied(folder, place), generation_config=own)


def at_once(pipe: Pipeline) -> Pipeline:
    """All rows in one batch, as far as they may be padded."""
    pipe.batching = BatchingPolicy(True, None, 256, 256, 2**24)
    return pipe


@pytest.mark.parametrize(
    ("architecture", "head", "joins"),
    [
        ("bart", "seq2seq-lm", False),
        ("bloom", "causal-lm", True),
        ("gpt2", "causal-lm", True),
        ("llama", "causal-lm", True),
        ("mamba", "causal-lm", None),
        ("marian", "seq2seq-lm", False),
        ("mistral", "causal-lm", True),
        ("opt", "causal-lm", True),
        ("qwen2", "causal-lm", True),
        ("roformer", "causal-lm", False),
        ("t5", "seq2seq-lm", True),
    ],
)
def test_a_row_writes_what_it_writes_alone(
    architecture: str, head: str, joins: bool | None, narrow: None, tmp_path: Path
) -> None:
    task = "text-generation" if head == "causal-lm" else "summarization"
    pipe = at_once(writer(ending(checkpoint(architecture, head=head), task, tmp_path / "x"), task, most=WRITTEN))
    model = pipe.model
    assert isinstance(model, GenerateModel)
    alone = [pipe(text)["text"] for text in MANY]
    assert model._joins is joins
    assert texts(pipe(MANY)) == alone
    assert texts(pipe(MANY[::-1])) == alone[::-1]
    assert len(set(map(len, alone))) > 1


def test_a_sliding_window_that_is_shorter_than_the_rows(narrow: None, tmp_path: Path) -> None:
    folder = checkpoint("mistral", head="causal-lm", sliding_window=6)
    pipe = at_once(writer(ending(folder, "text-generation", tmp_path / "x"), most=WRITTEN))
    assert isinstance(pipe.model, GenerateModel)
    assert pipe.model._joins is True
    assert texts(pipe(MANY)) == [pipe(text)["text"] for text in MANY]


@pytest.mark.parametrize(
    ("architecture", "generation"),
    [
        ("t5", {"repetition_penalty": 1.8}),
        ("gpt2", {"min_new_tokens": 7}),
        ("gpt2", {"no_repeat_ngram_size": 2}),
        ("t5", {"no_repeat_ngram_size": 2}),
        ("gpt2", {"do_sample": True, "temperature": 1.4, "repetition_penalty": 1.3}),
        ("llama", {"stop_strings": ["e", "the"]}),
    ],
    ids=str,
)
def test_what_changes_scores_knows_its_own_row(
    architecture: str, generation: Mapping[str, Any], narrow: None, tmp_path: Path
) -> None:
    head, task = ("seq2seq-lm", "summarization") if architecture == "t5" else ("causal-lm", "text-generation")
    folder = ending(checkpoint(architecture, head=head), task, tmp_path / "x")
    pipe = at_once(writer(folder, task, generation=generation, most=WRITTEN))
    alone = [pipe(text)["text"] for text in MANY]
    assert texts(pipe(MANY)) == alone
    assert alone != texts(writer(folder, task, most=WRITTEN)(MANY))


class Passes:
    """Notes how many rows, and how many tokens of each, every pass of a network was over."""

    def __init__(self, pipe: Pipeline) -> None:
        assert isinstance(pipe.model, GenerateModel)
        assert pipe.model._joins is not None  # tried out before anything is noted
        self.shapes: list[tuple[int, int]] = []
        pipe.model._network.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, network: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        ids = kwargs["decoder_input_ids"] if network.config.is_encoder_decoder else kwargs["input_ids"]
        self.shapes.append(tuple(ids.shape))


def test_no_row_runs_after_its_end(llama: Path, narrow: None, tmp_path: Path) -> None:
    """A token that a row wrote or ended with is a pass of that row alone, the first of them that of its prompt."""
    most, free = 20, writer(llama, most=20)
    rows = encoded(free, [f"{text} {word}" for word in ("one", "two words", "three more words") for text in TEXTS])
    written = [out["sequences"].tolist() for out in free.forward(rows)]  # type: ignore[index]
    ends = sorted({row[3 + 4 * number % (most - 3)] for number, row in enumerate(written[::4])})
    own = {"eos_token_id": ends, "pad_token_id": 0}
    pipe = at_once(writer(with_files(copied(llama, tmp_path / "x"), generation_config=own), most=most))
    passes = Passes(pipe)
    lengths = [int(found["sequence_lengths"]) for found in pipe.forward(rows)]  # type: ignore[index]
    steps = [count for count, width in passes.shapes if width == 1]
    assert sum(count for count, width in passes.shapes if width > 1) == len(rows)
    assert sum(steps) == sum(min(length, most - 1) for length in lengths)
    assert max(steps) == 4
    assert len(steps) < sum(sorted(lengths, reverse=True)[::4])  # where each four rows wait for the longest of them


def test_memory_bounds_the_rows(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = at_once(writer(llama, most=WRITTEN))
    expected = texts(pipe(MANY))
    passes = Passes(pipe)
    monkeypatch.setattr(writing, "memory_for", lambda network: 1)
    monkeypatch.setattr(writing, "MAX_TOKENS_CPU", 1)
    assert texts(pipe(MANY)) == expected
    assert max(count for count, _ in passes.shapes) == 1


def test_beams_are_searched_in_parts(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = at_once(writer(llama, generation={"num_beams": 2}))
    expected = [pipe(text)["text"] for text in MANY]
    passes = Passes(pipe)
    monkeypatch.setattr(stage, "_ROWS_SEARCHED", 5)
    assert texts(pipe(MANY)) == expected
    assert max(count for count, _ in passes.shapes) == 10


def test_layers_are_those_of_all_rows(llama: Path, narrow: None) -> None:
    """While layers are noted no row waits, or they would be those of the first rows alone."""
    pipe = writer(llama)
    rows = encoded(pipe)
    batch = collate(rows, pipe.padding, "cpu")
    expected = pipe.model.forward(batch)["sequences"]
    with pipe.model.capture_layers() as seen:
        assert torch.equal(pipe.model.forward(batch)["sequences"], expected)
    assert {tuple(states.shape[:2]) for _, states in seen} == {tuple(batch.input_ids.shape)}


def test_a_convolution_of_width_one_is_a_linear_layer() -> None:
    """GPT-2's layers are packed like those of other networks, and its texts stay."""
    folder = checkpoint("gpt2", head="causal-lm")
    if not can_pack(Device()):
        pytest.skip("torch's packed product is not there")
    made = {
        kernel: pipeline_of("text-generation", folder, model={"linear": kernel, "generation": {"max_new_tokens": 8}})
        for kernel in ("eager", "packed")
    }
    assert made["packed"].description["model"]["packed_linears"] == 2 * 4 + 1
    assert texts(made["packed"](MANY)) == texts(made["eager"](MANY))


def test_int8_weights(llama: Path) -> None:
    if not can_quantize():
        pytest.skip("torch's int8 products are not there")
    made = {
        kind: pipeline_of(
            "text-generation", llama, model={"quantization": kind, "generation": {"max_new_tokens": WRITTEN}}
        )
        for kind in ("none", "int8", "int8_per_token")
    }
    plain = [out["sequences"] for out in made["none"].forward(encoded(made["none"]))]  # type: ignore[index]
    for kind in ("int8", "int8_per_token"):
        assert (
            made[kind].description["model"]["int8_linears"] == 2 * 5 + 1
        )  # keys and values have fewer outputs than are rounded
        rounded = [out["sequences"] for out in made[kind].forward(encoded(made[kind]))]  # type: ignore[index]
        firsts = [bool(one[0] == other[0]) for one, other in zip(plain, rounded, strict=True)]
        assert sum(firsts) > len(firsts) * 2 / 3
