"""A pass repeated from its operators: the walk's answers for every size and order, and never a stale one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from harness import checkpoint, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline_kit.builtin.models.hf import recorded
from pipeline_kit.builtin.models.hf.recorded import RecordedNetwork
from pipeline_kit.contract.types import Encoding, ModelOutput, TokenBatch
from pipeline_kit.runtime.padding import PaddingPolicy, collate

Rows = list[list[int]]


def batch_of(rows: Rows) -> TokenBatch:
    return collate([Encoding(row) for row in rows], PaddingPolicy("longest"), "cpu")


class Counted:
    """A pass that counts how often it walked."""

    def __init__(self, logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.logits, self.walks = logits, 0

    def __call__(self, batch: TokenBatch) -> ModelOutput:
        self.walks += 1
        return ModelOutput({"logits": self.logits(batch.input_ids, batch.attention_mask)})


def repeat(logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], batches: list[Rows]) -> list[int]:
    """Run `batches` and compare each answer with the plain function's; return after each how often it walked."""
    run = Counted(logits)
    network, walks = RecordedNetwork(run, 1e-6), []
    with torch.inference_mode():
        for rows in batches:
            batch = batch_of(rows)
            torch.testing.assert_close(network(batch)["logits"], logits(batch.input_ids, batch.attention_mask))
            walks.append(run.walks)
    return walks


TABLE = torch.linspace(-1, 1, 60).reshape(10, 6)
LAYER = nn.Linear(6, 3)


def plain(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows, width = ids.shape
    states = nn.functional.dropout(nn.functional.embedding(ids, TABLE), 0.5, training=False)
    halves = states.view(rows * width, 2, 3).unbind(1)
    states = torch.cat(halves, dim=-1).view(rows, width, 6).masked_fill(mask[:, :, None] == 0, 0.0)
    states += 1.0
    logits: torch.Tensor = LAYER(states.sum(dim=1))
    return logits


def test_the_second_row_of_a_width_is_repeated_and_the_first_repetition_compared() -> None:
    assert repeat(plain, [[[1, 2]], [[3, 4]], [[5, 6]], [[7, 8]], [[1, 9]]]) == [1, 2, 2, 2, 2]


def test_rows_of_any_number_are_repeated_once_two_numbers_were_seen() -> None:
    sizes = [2, 3, 5, 7, 11, 2, 1, 1, 1, 4]
    walks = repeat(plain, [[[row % 9, 3, size % 9] for row in range(size)] for size in sizes])
    assert walks == [1, 2, 3, 4, 4, 4, 5, 5, 5, 5]


def test_padding_is_a_size_of_its_own() -> None:
    whole, padded = [[1, 2], [3, 4]], [[1, 2], [3]]
    assert repeat(plain, [whole, padded, whole, padded, whole, padded, whole]) == [1, 2, 3, 4, 5, 5, 5]


def test_a_branch_on_numbers_is_taken_anew() -> None:
    def branches(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ids.sum(1) * 2 if bool((ids > 5).any()) else -ids.sum(1)

    walks = repeat(branches, [[[1, 2]], [[3, 4]], [[1, 1]], [[2, 2]], [[7, 1]], [[3, 3]], [[8, 8]]])
    assert walks == [1, 2, 2, 2, 3, 3, 4]


def test_a_number_that_is_computed_with_is_compared() -> None:
    def item(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.arange(int(ids.max())).sum() + ids.sum(1)

    assert repeat(item, [[[1, 5]], [[5, 2]], [[5, 5]], [[5, 3]], [[6, 5]]]) == [1, 2, 2, 2, 3]


STATE = torch.zeros(1)
READS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "a list": lambda ids, mask: ids.sum(1) + sum(ids[0].tolist()),
    "an array": lambda ids, mask: ids.sum(1) + int(ids.numpy()[0, 0]),
    "a state": lambda ids, mask: ids.sum(1) + STATE.zero_().long(),
    "a size that is neither": lambda ids, mask: ids.sum(1) + torch.ones(len(ids) + 1).sum().long(),
    "an answer from nowhere": lambda ids, mask: TABLE,
}


@pytest.mark.parametrize("what", READS)
def test_what_cannot_be_repeated_walks(what: str) -> None:
    batches = [[[number % 9 + 1, 2]] * (2 + number % 3) for number in range(8)]
    assert repeat(READS[what], batches) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_network_that_reads_unseen_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TokenBatch] = []
    begin = recorded._Recorder.__init__

    def counted(self: Any, batch: TokenBatch) -> None:
        made.append(batch)
        begin(self, batch)

    monkeypatch.setattr(recorded._Recorder, "__init__", counted)
    repeat(READS["a list"], [[[1] * width] for width in (1, 2, 3, 1, 2, 3)])
    assert len(made) == 1


def test_a_constant_made_of_hidden_numbers_is_found_by_the_comparison() -> None:
    def hidden(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ids.sum(1) + torch.from_numpy(np.from_dlpack(ids)[:, 0].copy())

    assert repeat(hidden, [[[number, 2]] for number in range(1, 8)])[-1] == 7


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_MOST_SIZES", 2)
    run = Counted(plain)
    network = RecordedNetwork(run, 1e-6)
    with torch.inference_mode():
        for width in range(1, 9):
            network(batch_of([[1] * width]))
    assert len(network._passes) <= 2


@pytest.fixture(scope="module")
def networks() -> tuple[RecordedNetwork, Any]:
    model: Any = pipeline_of("text-classification", checkpoint("bert"), function="none").model
    return RecordedNetwork(model._walk, 1e-5), model._walk


@settings(max_examples=30)
@given(rows=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=5))
def test_any_batches_in_any_order_have_the_answers_of_the_walk(networks: Any, rows: Rows) -> None:
    network, walk = networks
    with torch.inference_mode():
        batch = batch_of(rows)
        for _ in range(3):
            torch.testing.assert_close(network(batch)["logits"], walk(batch)["logits"], atol=1e-6, rtol=1e-6)


TEXTS = ["I love this movie.", "a", "It was a terrible film, and the plot was so dull that I never want it again!"]


@pytest.mark.parametrize(
    "architecture", ["bart", "bert", "deberta-v2", "gpt2", "llama", "modernbert", "mpnet", "t5", "xlnet"]
)
def test_networks_are_repeated_with_their_own_answers(architecture: str) -> None:
    pipe = pipeline_of("text-classification", checkpoint(architecture), function="none")
    model: Any = pipe.model
    batches = [[*TEXTS, *TEXTS[:number]] for number in range(3)]
    before, model._recorded = model._recorded, None
    expected = [*[pipe(texts) for texts in batches], [pipe(text) for text in TEXTS]]
    model._recorded = before
    for _ in range(3):
        for found, wanted in zip([*map(pipe, batches), [pipe(text) for text in TEXTS]], expected, strict=True):
            for left, right in zip(found, wanted, strict=True):
                assert left == {"label": right["label"], "score": pytest.approx(right["score"], abs=1e-6)}
    programs = [known.program for known in model._recorded._passes.values()]
    assert any(program.proven for program in programs)
    assert not any(program.refused for program in programs)


def test_explaining_walks_through_the_layers() -> None:
    pipe = pipeline_of("text-classification", checkpoint("bert"), function="none")
    for _ in range(4):
        pipe(TEXTS[0])
    model: Any = pipe.model
    with model.capture_layers() as seen:
        pipe(TEXTS[0])
    assert [name for name, _ in seen] == ["embeddings", "layer 1", "layer 2"]
