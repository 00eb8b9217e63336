"""The pooling postprocessor: each mode by hand on both padding sides, windows, and what a folder says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.builtin.tasks.embedding.modules import Mode, pool
from pipeline_kit.builtin.tasks.embedding.stage import Pooling
from pipeline_kit.builtin.tasks.options import PoolingConfig
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Encoding, ModelOutput, Side
from pipeline_kit.errors import CheckpointError
from pipeline_kit.runtime.padding import PaddingPolicy, collate
from pipeline_kit.testing import tiny_stage_context

MODES: tuple[Mode, ...] = ("mean", "cls", "max", "last", "weighted_mean", "mean_sqrt_len")
ROWS = [[[1.0, -5.0], [2.0, 1.0], [6.0, -2.0]], [[3.0, -4.0]]]
BY_HAND: dict[Mode, list[list[float]]] = {
    "mean": [[3.0, -2.0], [3.0, -4.0]],
    "cls": [[1.0, -5.0], [3.0, -4.0]],
    "max": [[6.0, 1.0], [3.0, -4.0]],
    "last": [[6.0, -2.0], [3.0, -4.0]],
    "weighted_mean": [[(1 + 4 + 18) / 6, (-5 + 2 - 6) / 6], [3.0, -4.0]],
    "mean_sqrt_len": [[9 / math.sqrt(3), -6 / math.sqrt(3)], [3.0, -4.0]],
}
WITHOUT_THE_FIRST: dict[Mode, list[float]] = {
    "mean": [4.0, -0.5],
    "cls": [2.0, 1.0],
    "max": [6.0, 1.0],
    "last": [6.0, -2.0],
    "weighted_mean": [(4 + 18) / 5, (2 - 6) / 5],
    "mean_sqrt_len": [8 / math.sqrt(2), -1 / math.sqrt(2)],
}


def padded(rows: Sequence[Sequence[Sequence[float]]], side: Side, junk: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token vectors with `junk`: hidden states ``[B, T, H]`` and the mask."""
    width = max(len(row) for row in rows)
    hidden = torch.full((len(rows), width, len(rows[0][0])), junk)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        hidden[i, place], mask[i, place] = torch.tensor(row), 1
    return hidden, mask


@pytest.mark.parametrize("junk", [0.0, 100.0, math.nan, math.inf])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_by_hand_whatever_stands_at_padding(mode: Mode, side: Side, junk: float) -> None:
    hidden, mask = padded(ROWS, side, junk)
    torch.testing.assert_close(pool(hidden, mask, mode), torch.tensor(BY_HAND[mode]))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", MODES)
def test_tokens_at_the_beginning_can_be_left_out(mode: Mode, side: Side) -> None:
    hidden, mask = padded([*ROWS, ROWS[0] * 2], side, math.nan)
    torch.testing.assert_close(pool(hidden, mask, mode, 1)[0], torch.tensor(WITHOUT_THE_FIRST[mode]))


def embed(
    windows: Sequence[Sequence[Sequence[Sequence[float]]]],
    context: StageContext | None = None,
    **options: Any,
) -> list[list[float]]:
    """Embed examples given as the token vectors of their windows."""
    stage = Pooling(PoolingConfig(**options), context or tiny_stage_context())
    encodings = [[Encoding([1] * len(rows)) for rows in example] for example in windows]
    batch = collate([e for row in encodings for e in row], PaddingPolicy("longest"), "cpu")
    hidden, _ = padded([rows for example in windows for rows in example], "right", math.nan)
    reduced = stage.reduce(ModelOutput({"last_hidden_state": hidden}), batch)
    vectors = iter(reduced["embedding"].numpy())
    outputs = [[{"embedding": next(vectors)} for _ in example] for example in windows]
    results = stage(["text"] * len(windows), encodings, outputs)
    assert all(set(result) == {"embedding"} for result in results)
    json.dumps(results, allow_nan=False)
    return [result["embedding"] for result in results]


def test_the_default_is_the_mean_at_length_one() -> None:
    first, second = embed([[ROWS[0]], [ROWS[1]]])
    assert first == pytest.approx([3 / math.sqrt(13), -2 / math.sqrt(13)])
    assert second == pytest.approx([0.6, -0.8])
    assert type(first[0]) is float


def test_normalizing_can_be_left_out() -> None:
    assert embed([[ROWS[0]], [ROWS[1]]], pooling="cls", normalize=False) == BY_HAND["cls"]


def test_windows_are_merged_before_they_are_normalized() -> None:
    one, two = [[4.0, 0.0]] * 3, [[0.0, 8.0]]
    assert embed([[one, two]], normalize=False) == [pytest.approx([3.0, 2.0])]
    assert embed([[one, two]]) == [pytest.approx([3 / math.sqrt(13), 2 / math.sqrt(13)])]


def test_a_vector_of_zeros_stays_one() -> None:
    assert embed([[[[0.0, 0.0]]]]) == [[0.0, 0.0]]


def test_large_values_do_not_overflow_when_normalized() -> None:
    assert embed([[[[3e30, 4e30]]]]) == [pytest.approx([0.6, 0.8])]


def test_half_precision_is_pooled_in_float32() -> None:
    stage = Pooling(PoolingConfig(), tiny_stage_context())
    batch = collate([Encoding([1] * 3)], PaddingPolicy("longest"), "cpu")
    hidden = torch.tensor([[[2048.0], [1.0], [1.0]]], dtype=torch.float16)
    reduced = stage.reduce(ModelOutput({"last_hidden_state": hidden}), batch)["embedding"]
    assert reduced.dtype == torch.float32
    assert reduced.item() == pytest.approx(2050 / 3)


def folder(path: Path, modules: object, pooling: object = None, name: str = "1_Pooling") -> StageContext:
    """Write ``modules.json`` and a pooling config; give a context on the folder."""
    (path / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(pooling))
    return StageContext(Checkpoint(path, "folder"))


def modules(*names: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{n}", "path": f"{i}_{n}" if i else ""} for i, n in enumerate(names)]


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"word_embedding_dimension": 2}, "mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 2}, "last"),
        ({"pooling_mode": ["weightedmean"]}, "weighted_mean"),
    ],
)
def test_auto_pools_as_the_folder_says(config: dict[str, Any], mode: Mode, tmp_path: Path) -> None:
    context = folder(tmp_path, modules("Transformer", "Pooling"), config)
    assert embed([[ROWS[0]], [ROWS[1]]], context) == [pytest.approx(row) for row in BY_HAND[mode]]


def test_auto_normalizes_as_the_folder_says(tmp_path: Path) -> None:
    context = folder(tmp_path, modules("Transformer", "Pooling", "Normalize"), {"pooling_mode": "cls"})
    assert embed([[ROWS[1]]], context) == [pytest.approx([0.6, -0.8])]
    assert embed([[ROWS[1]]], context, normalize=False) == [[3.0, -4.0]]
    assert embed([[ROWS[0]]], context, pooling="last", normalize=False) == [[6.0, -2.0]]


@pytest.mark.parametrize("mode", [["mean", "splade"], "unheard_of", []])
def test_a_folder_that_pools_in_an_unknown_way_is_refused(mode: object, tmp_path: Path) -> None:
    context = folder(tmp_path, modules("Transformer", "Pooling"), {"pooling_mode": mode})
    with pytest.raises(CheckpointError, match=r"not supported; set postprocessor\.pooling"):
        embed([[ROWS[0]]], context)
    assert embed([[ROWS[0]]], context, pooling="cls") == [BY_HAND["cls"][0]]


def test_several_modes_stand_one_behind_the_other(tmp_path: Path) -> None:
    context = folder(tmp_path, modules("Transformer", "Pooling"), {"pooling_mode": ["max", "cls"]})
    assert embed([[ROWS[0]]], context) == [BY_HAND["max"][0] + BY_HAND["cls"][0]]


def test_old_flags_stand_in_the_order_that_sentence_transformers_gives_them(tmp_path: Path) -> None:
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    context = folder(tmp_path, modules("Transformer", "Pooling"), flags)
    assert embed([[ROWS[0]]], context) == [BY_HAND["cls"][0] + BY_HAND["max"][0] + BY_HAND["mean"][0]]


@pytest.mark.parametrize("path", ["../outside", "/outside", "a/../../outside"])
def test_a_path_out_of_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    entries = [{"type": "sentence_transformers.models.Pooling", "path": path}]
    with pytest.raises(CheckpointError, match="outside the folder"):
        embed([[ROWS[0]]], folder(tmp_path, [*modules("Transformer"), *entries]))


@pytest.mark.parametrize("entries", [{"type": "Pooling"}, "Pooling", [1]])
def test_a_modules_file_of_another_form_is_refused(entries: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"modules\.json' is not a list of modules"):
        embed([[ROWS[0]]], folder(tmp_path, entries))


def test_a_missing_or_wrong_pooling_config_is_refused(tmp_path: Path) -> None:
    context = folder(tmp_path, modules("Transformer", "Pooling"))
    with pytest.raises(CheckpointError, match=r"1_Pooling.config\.json"):
        embed([[ROWS[0]]], context)
    with pytest.raises(CheckpointError, match="not a JSON object"):
        embed([[ROWS[0]]], folder(tmp_path, modules("Transformer", "Pooling"), [1]))


vectors = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.lists(vectors, min_size=1, max_size=5), st.sampled_from(MODES))
def test_a_vector_depends_on_its_row_alone_and_not_on_the_padding_side(
    rows: list[list[list[float]]], mode: Mode
) -> None:
    sides = [pool(*padded(rows, side, math.nan), mode) for side in ("right", "left")]
    alone = torch.cat([pool(*padded([row], "right", math.nan), mode) for row in rows])
    for together in sides:
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


@settings(max_examples=40)
@given(vectors, st.integers(1, 5), st.sampled_from(MODES))
def test_windows_that_are_alike_merge_into_one_of_them(row: list[list[float]], count: int, mode: Mode) -> None:
    [single] = embed([[row]], pooling=mode, normalize=False)
    [merged] = embed([[row] * count], pooling=mode, normalize=False)
    np.testing.assert_allclose(merged, single, rtol=1e-6)


@settings(max_examples=40)
@given(vectors, st.sampled_from(MODES), st.integers(1, 3))
def test_fewer_dimensions_are_the_first_ones_at_length_one(row: list[list[float]], mode: Mode, count: int) -> None:
    [raw] = embed([[row]], pooling=mode, normalize=False)
    assert embed([[row]], pooling=mode, normalize=False, dimensions=count) == [raw[:count]]
    [cut] = embed([[row]], pooling=mode, dimensions=count)
    length = math.hypot(*raw[:count])
    np.testing.assert_allclose(np.array(cut) * length, raw[:count], rtol=1e-5, atol=1e-5)
    assert math.hypot(*cut) == pytest.approx(1, abs=1e-5) or length < 1e-10


def test_windows_count_by_the_tokens_they_stand_for() -> None:
    stage = Pooling(PoolingConfig(normalize=False), tiny_stage_context())
    # Ten tokens; the windows share four, which count half in each: 4 + 2 and 2 + 2.
    windows = [Encoding([1] * 10, window=0, token_span=(0, 8)), Encoding([1] * 8, window=1, token_span=(4, 10))]
    outputs = [{"embedding": np.array([[value]], dtype=np.float32)} for value in (1.0, 2.0)]
    assert stage(["text"], [windows], [outputs]) == [{"embedding": [pytest.approx((6 * 1 + 4 * 2) / 10)]}]
