"""Traces made by hand, for the tests of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_kit.contract.stages import Panel
from pipeline_kit.errors import RowFailure
from pipeline_kit.explain.blocks import StageTrace, Value
from pipeline_kit.explain.trace import BatchTrace, Layer, RowTrace, SequenceTrace, Token, Trace
from pipeline_kit.explain.view import marked_tokens

HOSTILE = (
    "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=2'>\"'&amp; {{ 7*7 }} \u202egnp.exe\u2066 "
    "\u2028\u2029\x00\x1b[31m \ud800 " + "x" * 5000
)
LABELS = ("NEGATIVE", "POSITIVE")


def sequence(
    text: str, pair: str | None = None, window: int = 0, part: int = 0, cut: str | None = None
) -> SequenceTrace:
    """Tokens are the words of `text`, their ids made of their letters, between [CLS] and [SEP]."""
    tokens = [Token(101, "[CLS]", special=True, type=0)]
    for which, source in enumerate([text] if pair is None else [text, pair]):
        at = 0
        for word, piece in enumerate(source.split(" ")):
            end = at + len(piece)
            half = at + len(piece) // 2
            number = sum(map(ord, piece)) % 30_000
            if len(piece) > 8:
                tokens.append(Token(number, source[at:half], at, half, False, word, which, which))
                tokens.append(Token(number + 1, "##" + source[half:end], half, end, False, word, which, which))
            elif piece:
                tokens.append(Token(number, piece, at, end, False, word, which, which))
            at = end + 1
        tokens.append(Token(102, "[SEP]", special=True, type=which))
    source_texts = (text,) if pair is None else (text, pair)
    span = (window * 4, window * 4 + len(tokens) - 2) if window else None
    return SequenceTrace(part, window, source_texts, tuple(tokens), 3 if cut else 0, 0, cut, span)


def batch(
    rows: Sequence[tuple[int, int, SequenceTrace]],
    outputs: Mapping[str, Any],
    per_token: Sequence[str] = (),
    *,
    side: str = "right",
    layers: int = 2,
    heads: int = 0,
    width: int | None = None,
) -> BatchTrace:
    """Pad the sequences' ids; layers' norms and attention are drawn from a fixed seed."""
    draw = np.random.default_rng(7)
    size = max(width or 0, *(len(s.tokens) for _, _, s in rows))
    ids = np.zeros((len(rows), size), dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for line, (_, _, found) in enumerate(rows):
        count = len(found.tokens)
        place = slice(0, count) if side == "right" else slice(size - count, size)
        ids[line, place] = [token.id for token in found.tokens]
        types[line, place] = [token.type or 0 for token in found.tokens]
        mask[line, place] = 1
    named = [f"layer {i}" if i else "embeddings" for i in range(layers + 1)]
    norms = [draw.gamma(4.0, 2.0 + i, (len(rows), size)).astype(np.float32) for i in range(layers + 1)]
    attentions = {}
    for name in named[1:] if heads else []:
        weights = np.exp(3 * draw.standard_normal((len(rows), heads, size, size), dtype=np.float32))
        weights *= mask[:, None, None, :]
        attentions[name] = weights / weights.sum(axis=-1, keepdims=True)
    return BatchTrace(
        ids,
        mask,
        types,
        side,  # type: ignore[arg-type]
        tuple((example, place) for example, place, _ in rows),
        outputs,
        {"scores": _softmax(outputs["logits"])} if "logits" in outputs else {},
        frozenset(per_token) | (frozenset({"scores"}) if "logits" in per_token else frozenset()),
        tuple(Layer(n, (len(rows), size, 8), "float32", x) for n, x in zip(named, norms, strict=True)),
        attentions,
        (Panel("embeddings", ("part", "size"), (("words", 30_522), ("positions", 512))),),
        0.0042,
    )


def _softmax(values: Any) -> Any:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def stages(text: str) -> tuple[StageTrace, ...]:
    return (
        StageTrace(
            "tokenizer",
            "hf",
            "pipeline_kit",
            {"max_length": 512, "overflow": "truncate"},
            (Value("examples", "list of str", (2,), shown=text),),
            (Value("encodings", "list of Encoding", (2,), shown="9 and 5 tokens"),),
            0.0006,
        ),
        StageTrace(
            "model",
            "hf",
            "pipeline_kit",
            {"head": "sequence-classification"},
            (Value("input_ids", "tensor", (2, 9), "int64"), Value("attention_mask", "tensor", (2, 9), "int64")),
            (Value("logits", "tensor", (2, 2), "float32", "-3.9 to 4.2"),),
            0.0042,
        ),
        StageTrace(
            "postprocessor",
            "classification",
            "pipeline_kit",
            {},
            (Value("scores", "array", (2, 2), "float32"),),
            (Value("results", "list of dict", (2,), shown="POSITIVE 0.9998"),),
            0.0003,
        ),
    )


def trace(
    task: str, rows: Sequence[RowTrace], batches: Sequence[BatchTrace], text: str = "I love this.", **config: Any
) -> Trace:
    settings = {"task": task, "checkpoint": {"name": "tiny"}, "padding": {"name": "longest", "side": "right"}, **config}
    return Trace(task, settings, LABELS, stages(text), tuple(rows), tuple(batches), 0.0061, ("float32 on cpu",))


def classification(*texts: str, heads: int = 2, shift: float = 0.0, **options: Any) -> Trace:
    """A trace of a classifier over `texts` in one batch; `shift` moves the logits, `options` are of :func:`batch`."""
    texts = texts or ("I've been waiting for a wonderful HuggingFace course my whole life.", "I hate this so much!")
    sequences = [sequence(text, cut=" and more" if place == 1 else None) for place, text in enumerate(texts)]
    logits = np.array([[-3.9 + shift, 4.2] if i % 2 == 0 else [2.5 + shift, -2.25] for i in range(len(texts))])
    made = batch([(i, 0, s) for i, s in enumerate(sequences)], {"logits": logits}, heads=heads, **options)
    rows = [_row(text, place, sequences[place], logits[place], made) for place, text in enumerate(texts)]
    return trace("text-classification", rows, [made], texts[0])


def _row(text: str, place: int, found: SequenceTrace, logits: Any, made: BatchTrace) -> RowTrace:
    best = int(logits.argmax())
    scores = made.reduced["scores"][place]
    panel = Panel(
        "logits to probabilities",
        ("label", "logit", "score"),
        tuple((label, float(z), float(p)) for label, z, p in zip(LABELS, logits, scores, strict=True)),
        bar="score",
        formula=f"softmax: exp({logits[best]:.2f}) / sum of exp = {scores[best]:.5f}",
        note="The largest wins.",
    )
    moved = np.sin(np.arange(len(found.tokens), dtype=np.float64)) / 3
    bars = Panel(
        "", ("token", "score"), [(token.text, float(x)) for token, x in zip(found.tokens, moved, strict=True)], "score"
    )
    view = (marked_tokens(f"logit of '{LABELS[best]}'", found, moved.tolist()), bars)
    result = {"label": LABELS[best], "score": float(scores[best])}
    panels = {"postprocessor": (panel,)}
    return RowTrace(text, (found,), ((0, place),), result, None, panels, {"attribution": view})


def entities() -> Trace:
    """Token classification in two windows, the second padded."""
    windows = [sequence("Sarah lives in Zürich"), sequence("in Zürich now", window=1)]
    draw = np.random.default_rng(3)
    made = batch([(0, i, s) for i, s in enumerate(windows)], {"logits": draw.normal(size=(2, 6, 2)) * 3}, ["logits"])
    result = {"entities": [{"label": "PER", "score": 0.98, "text": "Sarah", "start": 0, "end": 5}]}
    row = RowTrace("Sarah lives in Zürich now", tuple(windows), ((0, 0), (0, 1)), result)
    return trace("token-classification", [row], [made])


def pair() -> Trace:
    found = sequence("A man eats.", "Somebody is eating.")
    logits = np.array([[1.0, -1.0]])
    made = batch([(0, 0, found)], {"logits": logits}, side="left", width=14)
    example = {"text": "A man eats.", "text_pair": "Somebody is eating."}
    return trace(
        "text-classification", [RowTrace(example, (found,), ((0, 0),), {"label": "NEGATIVE", "score": 0.88})], [made]
    )


def embedding() -> Trace:
    found = sequence("A man eats.")
    vector = np.random.default_rng(5).normal(size=(1, 384)).astype(np.float32)
    made = batch(
        [(0, 0, found)], {"last_hidden_state": np.zeros((1, 5, 384)), "embedding": vector}, ["last_hidden_state"]
    )
    row = RowTrace("A man eats.", (found,), ((0, 0),), {"embedding": vector[0].astype(float).tolist()})
    return trace("sentence-embedding", [row], [made])


def generation() -> Trace:
    found = sequence("Once upon a time")
    outputs = {"sequences": np.arange(40)[None], "sequence_lengths": np.array([40])}
    made = batch([(0, 0, found)], outputs, side="left", width=8, layers=0)
    return trace(
        "text-generation", [RowTrace("Once upon a time", (found,), ((0, 0),), {"text": " there was\na fox"})], [made]
    )


def failure() -> Trace:
    told = RowFailure(0, "tokenizer", "ExampleError", "the text is <empty>")
    return trace("text-classification", [RowTrace("", (), (), None, told)], [])


def odd() -> Trace:
    """Panels with cells of any kind, too many of them, a wide one, and a result of all kinds of values."""
    wide = ("window", "token", "from", "to", "start logit", "p(start)", "end logit", "p(end)")
    panels = (
        Panel("no table", formula="1 + 1 = 2"),
        Panel("t[red]", ("n", "v"), (("a", 2.0), ("b", -1.0), ("c", float("nan")), (None, None), ("e", True)), bar="v"),
        Panel("no such bar", ("a",), ((1,),), bar="z"),
        Panel("no columns", rows=(("just", "cells"),)),
        Panel("wide", wide, ((3, "a long token " * 3, 189, 191, -0.2182, 0.0344, 3.9124, 0.1861),), bar="p(end)"),
        Panel("long", ("a",), [(i,) for i in range(300)]),
    )
    records = [{"label": "a", "score": 0.5}] * 60
    result = {"label": None, "labels": records, "embedding": [0.5] * 100, "scores": [0.1, 0.2], "deep": {"a": 1}}
    row = RowTrace("", (sequence(""),), ((-1, -1),), result, None, {"postprocessor": panels})
    return trace("text-classification", [row], [])


def all_traces() -> dict[str, Trace]:
    return {
        "classification": classification(),
        "entities": entities(),
        "pair": pair(),
        "embedding": embedding(),
        "generation": generation(),
        "failure": failure(),
        "odd": odd(),
        "hostile": classification(HOSTILE),
    }


def golden_cases() -> list[tuple[Trace, ...]]:
    """What the golden renderings show; packed attention depends on the version of zlib."""
    one = classification("I love Zürich", "same", heads=0)
    two = classification("I love Bern", "same", heads=0, width=12, side="left", shift=2.0)
    return [(classification(heads=0),), (entities(),), (pair(),), (embedding(),), (generation(),), (odd(),), (one, two)]
