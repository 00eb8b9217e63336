"""The limit that benchmarks compare with: the best product, a network's operations, and the share that was reached."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from common import limit
from common.limit import Cost, MatrixLimit, matrix_limit, network_cost, share_of
from harness import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pipeline_kit import load
from pipeline_kit.bench.sides import TextBatch
from pipeline_kit.contract.types import Device, TokenBatch


def test_a_share_is_that_of_the_operations_in_the_time_there_was() -> None:
    work, known = TextBatch([]), MatrixLimit("cpu", "float32", 1, 4.0, "eager")
    work.count(np.array([2, 4]), 8)
    # 6 tokens, 2 sequences, 2 x 2 + 4 x 4 pairs, in 2 seconds, of 4 GFLOP/s
    found = share_of(Cost(token=10**9, text=5 * 10**8, attention=10**7), work, 2.0, known)
    assert found["gflops"] == pytest.approx((6 + 1 + 0.2) / 2)
    assert found["share"] == pytest.approx(3.6 / 4)
    assert share_of("it is secret", work, 2.0, known) == {
        "share": None,
        "unknown": "it is secret",
        "gflops": None,
        "flops_per_token": None,
    }


CASES = [
    *((name, "sequence-classification", "text-classification") for name in ("bert", "distilbert", "electra", "mpnet")),
    *((name, "sequence-classification", "text-classification") for name in ("gpt2", "llama", "opt", "fnet")),
    ("bert", "base", "feature-extraction"),
    ("distilbert", "masked-lm", "feature-extraction"),
    ("bert", "masked-lm", "fill-mask"),
    ("electra", "token-classification", "token-classification"),
]


@pytest.mark.parametrize(("architecture", "head", "task"), CASES, ids=["-".join(case) for case in CASES])
def test_the_estimate_of_operations_is_what_torch_counts(architecture: str, head: str, task: str) -> None:
    folder = checkpoint(architecture, head=head)
    plain = ("model.linear=eager", "model.attn_implementation=eager", "padding=none")
    pipe = load(f"checkpoint.path={folder}", f"task={task}", *plain)
    batches: list[TokenBatch] = []
    pipe.observer = lambda stage, given, made: batches.append(made) if stage == "padding" else None
    for _ in range(2):  # the first repetition of a pass runs the network too
        pipe("I love this film and nobody else does" + " [MASK]." * (task == "fill-mask"))
    tokens = int(batches[0].lengths[0])
    with FlopCounterMode(display=False) as counter:
        pipe.model.forward(replace(batches[0], wanted=None))
    config = json.loads((folder / "config.json").read_text())
    cost = network_cost(folder, config, {"feature-extraction": "base"}.get(task, head))
    assert isinstance(cost, Cost)
    assert cost.total(tokens, 1, tokens**2) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("bart", "an encoder-decoder"),
        ("albert", "its layers share weights"),
        ("deberta", "much of its work is on relative positions"),
        ("funnel", "it pools tokens"),
        ("squeezebert", "it has convolutions"),
    ],
)
def test_what_cannot_be_estimated_is_not(architecture: str, reason: str) -> None:
    folder = checkpoint(architecture)
    cost = network_cost(folder, json.loads((folder / "config.json").read_text()), "sequence-classification")
    assert isinstance(cost, str)
    assert cost.startswith(reason)


def test_the_limit_is_the_best_product_that_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_ON_CPU", ((4, 8, 16), (8, 8, 16)))
    ticks = iter(range(1000))
    found = matrix_limit(Device("cpu", "bfloat16", 1), lambda: float(next(ticks)))
    assert found.gflops == pytest.approx(2e-9 * 8 * 8 * 16)
    assert (found.dtype, found.threads) == ("bfloat16", 1)
    for dtype in ("float32", "bfloat16"):
        real = matrix_limit(Device("cpu", dtype, 1))
        assert real.gflops > 0
        assert real.kernel in ("eager", "packed")
