"""The batch plan and the padding."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_kit.contract.types import Device, Encoding, Side
from pipeline_kit.runtime import batching
from pipeline_kit.runtime.batching import BatchingPolicy, plan_batches
from pipeline_kit.runtime.config import BatchingConfig
from pipeline_kit.runtime.padding import PaddingPolicy, collate

names = st.sampled_from(["longest", "max_length", "multiple_of", "none"])
limits = st.none() | st.integers(1, 300)
few = st.none() | st.integers(1, 4)
CPU = Device()


@given(st.lists(st.integers(1, 100), max_size=80), st.booleans(), limits, few, names, st.integers(1, 16))
def test_a_plan_covers_every_row_once_within_its_limits(
    lengths: list[int], sort: bool, max_tokens: int | None, max_rows: int | None, name: Any, multiple: int
) -> None:
    padding = PaddingPolicy(name, "right", 0, 100, multiple)
    batches = plan_batches(lengths, BatchingPolicy(sort, max_tokens, max_rows), padding)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        rows = [lengths[place] for place in batch]
        if len(batch) > 1:
            assert max_rows is None or len(batch) <= max_rows
            assert max_tokens is None or len(batch) * padding.padded(max(rows)) <= max_tokens
        if name == "none":
            assert len(set(rows)) == 1
    if not sort and name != "none":
        assert [place for batch in batches for place in batch] == list(range(len(lengths)))


def test_a_sorted_plan_pads_less() -> None:
    lengths = [5, 100] * 20
    padding = PaddingPolicy("longest")

    def slots(sort: bool) -> int:
        batches = plan_batches(lengths, BatchingPolicy(sort, 1024), padding)
        return sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)

    assert slots(True) < 0.65 * slots(False)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 8), st.integers(6, 20), few)
def test_a_plan_is_the_cheapest_of_all(lengths: list[int], cost: int, max_tokens: int, max_rows: int | None) -> None:
    ordered = sorted(lengths, reverse=True)
    best = [0.0] + [float("inf")] * len(ordered)
    for end in range(1, len(ordered) + 1):
        for start in range(end):
            fits = (end - start) * ordered[start] <= max_tokens and end - start <= (max_rows or len(ordered))
            if fits or end - start == 1:
                best[end] = min(best[end], best[start] + (end - start) * ordered[start] + cost)
    found = plan_batches(lengths, BatchingPolicy(True, max_tokens, max_rows, batch_cost=cost), PaddingPolicy("longest"))
    assert sum(len(batch) * max(lengths[i] for i in batch) + cost for batch in found) == best[-1]


@pytest.mark.parametrize("amx", [True, False])
def test_the_budget_follows_the_device_and_its_dtype(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "has_amx", lambda: amx)
    assert BatchingPolicy.of(BatchingConfig(), CPU) == BatchingPolicy()
    half = BatchingPolicy.of(BatchingConfig(), Device("cpu", "bfloat16"))
    assert half.max_tokens == (4096 if amx else 1024)
    assert BatchingPolicy.of(BatchingConfig(max_tokens=300), Device("cpu", "bfloat16")).max_tokens == 300
    assert BatchingPolicy.of(BatchingConfig(), Device("cuda:0")) == BatchingPolicy(True, 16384, None, 2048, 256)


def test_a_model_that_writes_chooses_its_rows_itself() -> None:
    written = BatchingPolicy.of(BatchingConfig(), CPU, writes=True)
    assert (written.max_tokens, written.max_rows) == (None, 256)
    assert len(plan_batches([1000, *[1] * 600], written, PaddingPolicy("longest"))) == 3
    assert BatchingPolicy.of(BatchingConfig(max_rows=5), CPU, writes=True).max_rows == 5
    assert BatchingPolicy.of(BatchingConfig(), CPU).max_rows is None


@given(st.integers(1, 200), st.integers(1, 64), st.none() | st.integers(1, 128))
def test_padded_lengths(longest: int, multiple: int, limit: int | None) -> None:
    assert PaddingPolicy("longest").padded(longest) == longest
    assert PaddingPolicy("max_length", max_length=limit).padded(longest) == max(longest, limit or 0)
    rounded = PaddingPolicy("multiple_of", max_length=limit, multiple_of=multiple).padded(longest)
    assert rounded >= longest
    assert rounded % multiple == 0 or rounded in (limit, longest)


rows = st.lists(st.lists(st.integers(0, 2**31), min_size=1, max_size=20), min_size=1, max_size=12)


@given(rows, st.sampled_from(["left", "right"]), names, st.booleans())
def test_collate_equals_padding_row_by_row(ids: list[list[int]], side: Side, name: Any, types: bool) -> None:
    policy = PaddingPolicy(name, side, 7, 16, 8)
    if name == "none":
        ids = [row[: len(min(ids, key=len))] for row in ids]
    batch = collate([Encoding(row, [1] * len(row) if types else None) for row in ids], policy, "cpu")
    width = policy.padded(max(map(len, ids)))
    for row, written, mask in zip(ids, batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True):
        gap = width - len(row)
        assert written == (row + [7] * gap if side == "right" else [7] * gap + row)
        assert mask == ([1] * len(row) + [0] * gap if side == "right" else [0] * gap + [1] * len(row))
    assert batch.lengths.tolist() == [len(row) for row in ids]
    assert batch.has_padding == any(len(row) < width for row in ids)
    assert (batch.token_type_ids is not None) == types
    if batch.token_type_ids is not None:
        assert batch.token_type_ids.tolist() == batch.attention_mask.tolist()
