"""How fast this machine multiplies matrices: what no network of linear layers can pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_kit.bench.sides import TextBatch
from pipeline_kit.checkpoint.resolve import resolve_checkpoint
from pipeline_kit.checkpoint.weights import read_header, weight_files
from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.types import Device

__all__ = ["Cost", "MatrixLimit", "cost_of", "matrix_limit", "network_cost", "share_of"]

_REPEATS = 12
_SECONDS = 0.3  # for each shape: a slow machine repeats less
# Rows, inputs, outputs. A CPU gets what a batch and a base-sized network have, a GPU enough to be full.
_ON_CPU = ((256, 768, 3072), (1024, 768, 3072))
_ELSEWHERE = ((4096, 4096, 4096), (8192, 4096, 4096))


@dataclass(frozen=True)
class MatrixLimit:
    """The best that was measured.

    :param gflops: 10^9 floating point operations a second, a multiplication and an addition counted as two.
    :param kernel: ``eager`` (torch's linear layer) or ``packed`` (its weight packed for oneDNN).
    """

    device: str
    dtype: str
    threads: int
    gflops: float
    kernel: str


def matrix_limit(device: Device, clock: Callable[[], float] = time.perf_counter) -> MatrixLimit:
    """Multiply rows by the weight of a linear layer, on `device` in its dtype with its threads; keep the best time.

    On a CPU the weight is also tried packed for oneDNN, where this build of torch can do that.
    """
    import torch
    from torch import nn

    from pipeline_kit.builtin.models.hf.linears import PackedLinear, can_pack

    if device.kind == "cpu" and torch.get_num_threads() != device.threads:
        torch.set_num_threads(device.threads)
    best = (0.0, "eager")
    for rows, inputs, outputs in _ON_CPU if device.kind == "cpu" else _ELSEWHERE:
        kind: dict[str, Any] = {"device": device.name, "dtype": getattr(torch, device.dtype)}
        linear = nn.Linear(inputs, outputs).to(**kind)
        layers: dict[str, Any] = {"packed": PackedLinear(linear)} if can_pack(device) else {}
        layers["eager"] = linear
        data = torch.ones(rows, inputs, **kind)
        end = clock() + _SECONDS
        with torch.inference_mode():
            for number in range(_REPEATS):
                if number and clock() > end:
                    break
                for name, layer in layers.items():
                    start = clock()
                    layer(data)
                    _wait(device)
                    seconds = max(clock() - start, 1e-9)
                    best = max(best, (2e-9 * rows * inputs * outputs / seconds, name))
    return MatrixLimit(device.name, device.dtype, device.threads, *best)


def _wait(device: Device) -> None:
    import torch

    if device.kind == "cuda":
        torch.cuda.synchronize(device.name)
    elif device.kind == "mps":
        torch.mps.synchronize()


_EMBEDDINGS = ("wte", "wpe", "shared", "relative_attention_bias")
_NO_EMBEDDINGS = ("project", "mapping", "transformation", "embed_out")  # linear layers in spite of an "embed"
_ONCE_A_TEXT = frozenset(
    ("pooler", "classifier", "pre_classifier", "score", "classification_head", "sequence_summary", "head")
)
_PRETRAINING = frozenset(
    ("cls", "lm_head", "predictions", "vocab_transform", "vocab_projector", "embed_out", "generator_predictions")
)
# Their attention is not every token against every other, or there is none.
_OTHER_ATTENTION = frozenset(("big_bird", "fnet", "longformer", "modernbert", "nystromformer"))
_BY_TEXT = ("sequence-classification", "multiple-choice")


@dataclass(frozen=True)
class Cost:
    """What a network computes.

    :param token: operations for each token.
    :param text: operations for each text besides, such as those of a classifier behind a pooled vector.
    :param attention: operations of attention for each pair of tokens of a text, over all layers.
    """

    token: int
    text: int
    attention: int

    def total(self, tokens: int, texts: int, pairs: int) -> int:
        """Add up the operations for `texts` sequences of `tokens` in all; `pairs` is the sum of their squares."""
        return tokens * self.token + texts * self.text + pairs * self.attention


def share_of(cost: Cost | str, work: TextBatch, seconds: float, limit: MatrixLimit) -> dict[str, Any]:
    """Return which part of `limit` a side reached that did `work` in `seconds`, with what it was computed from."""
    if isinstance(cost, str):
        return {"share": None, "unknown": cost, "gflops": None, "flops_per_token": None}
    total = cost.total(work.tokens, work.sequences, work.pairs)
    gflops = 1e-9 * total / max(seconds, 1e-9)
    return {
        "share": gflops / limit.gflops,
        "unknown": None,
        "gflops": gflops,
        "flops_per_token": total / work.tokens if work.tokens else 0.0,
    }


def cost_of(config: PipelineConfig) -> Cost | str:
    """Return what the network of a config computes for its texts, or why that cannot be known."""
    if config.model.name == "generate":
        return "a network that writes runs once for each token written"
    if config.model.name == "static":
        return "static vectors are looked up, not computed"
    if config.model.name != "hf":
        return f"what model={config.model.name} computes is not known"
    checkpoint = resolve_checkpoint(config.checkpoint)
    return network_cost(checkpoint.path, checkpoint.config, config.model.options.head or config.task.head)


def network_cost(folder: Path, config: Mapping[str, Any], head: str) -> Cost | str:
    """Estimate the operations of a forward pass of the checkpoint in `folder`; say why if that cannot be done.

    ``2 x N`` for each token, where N counts the entries of the weights of linear layers (Kaplan et al. 2020,
    https://arxiv.org/abs/2001.08361, section 2.1): the two-dimensional weights that are not embeddings. Those of
    a pooler, and of a classifier for whole texts, count once for each text. Attention adds ``4 x T x H`` for each
    layer and token of a text of T tokens: the products with the keys and with the values, H wide. A head over the
    vocabulary whose weight is that of the embedding, and therefore not in the file, is counted.

    Left out: embeddings, biases, normalisation, activations, softmax, rotary and relative positions (a few per cent),
    and attention that does not reach over all tokens. Padding costs time and counts as no work. A causal mask
    counts as none.

    :param head: the head that runs on top, see ``task.head``.
    """
    shapes = {name: e["shape"] for path in weight_files(folder) for name, e in read_header(path).items()}
    reason = _unknown(config, shapes)
    if reason is not None:
        return reason
    token = text = 0
    vocabulary = config.get("vocab_size")
    projected = False
    for name, shape in shapes.items():
        parts = set(name.split("."))
        if len(shape) != 2 or not name.endswith(".weight") or _is_embedding(name) or _is_unused(parts, head):
            continue
        projected = projected or shape[0] == vocabulary
        if parts & {"pooler"} or (head in _BY_TEXT and parts & _ONCE_A_TEXT):
            text += 2 * shape[0] * shape[1]
        else:
            token += 2 * shape[0] * shape[1]
    if head == "masked-lm" and not projected:
        token += 2 * max((s[0] * s[1] for s in shapes.values() if len(s) == 2 and s[0] == vocabulary), default=0)
    return Cost(token, text, _attention(config))


def _unknown(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> str | None:
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder runs its parts a different number of times"
    if "num_hidden_groups" in config:
        return "its layers share weights"
    if str(config.get("model_type")).startswith("deberta"):
        return "much of its work is on relative positions, not on tokens"
    if "block_sizes" in config:
        return "it pools tokens between its layers"
    if any(len(shape) > 2 for shape in shapes.values()):
        return "it has convolutions, experts or other weights that are no plain matrices"
    return None


def _is_embedding(name: str) -> bool:
    last = name.removesuffix(".weight").rpartition(".")[2]
    return last in _EMBEDDINGS or ("embed" in last and not any(word in last for word in _NO_EMBEDDINGS))


def _is_unused(parts: set[str], head: str) -> bool:
    """Return whether a weight belongs to another head than the one that runs."""
    if head == "base":
        return bool(parts & (_PRETRAINING | _ONCE_A_TEXT - {"pooler"} | {"qa_outputs"}))
    return head != "masked-lm" and bool(parts & _PRETRAINING)


def _attention(config: Mapping[str, Any]) -> int:
    if config.get("model_type") in _OTHER_ATTENTION:
        return 0
    layers = _first(config, "num_hidden_layers", "n_layers", "n_layer", "num_layers")
    width = _first(config, "hidden_size", "dim", "n_embd", "d_model")
    if isinstance(config.get("head_dim"), int):
        width = config["head_dim"] * _first(config, "num_attention_heads", "n_heads", "n_head")
    return 4 * layers * width


def _first(config: Mapping[str, Any], *names: str) -> int:
    return next((config[name] for name in names if type(config.get(name)) is int), 0)
