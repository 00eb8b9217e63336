"""What the project set out to reach, and what a set of measurements says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline_kit.bench.machine import paired_ratio

from .engines import OURS, REFERENCE
from .script import Measurement

__all__ = ["GOALS", "Found", "Goal"]

Measurements = Mapping[str, Measurement]


@dataclass(frozen=True)
class Found:
    """A value with its spread over the rounds.

    :param low: the smallest of a round; None where a value has no rounds.
    :param what: between which sides, or of which engine; empty where the goal says it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    what: str = ""


@dataclass(frozen=True)
class Goal:
    """One line of the goals.

    :param unit: ``x`` for a ratio of speeds, ``%`` for a share, ``of its time``, ``MB``.
    :param find: returns the value, or None where its measurement or a side is missing.
    """

    work: str
    wanted: float
    find: Callable[[Measurements], Found | None]
    unit: Literal["x", "%", "of its time", "MB"] = "x"
    most: bool = False

    def reached(self, found: Found) -> bool:
        """Return whether a value is good enough: at least `wanted`, or at the most."""
        return found.value <= self.wanted if self.most else found.value >= self.wanted


def _sides(found: Measurements, name: str) -> dict[str, dict[str, Any]]:
    measurement = found.get(name)
    return {} if measurement is None else {side["name"]: side for side in measurement["report"]["sides"]}


def _fastest(sides: Mapping[str, dict[str, Any]], names: Iterable[str]) -> str | None:
    """Return the one with the smallest median among those names that are there."""
    present = [name for name in names if name in sides]
    return min(present, key=lambda name: float(sides[name]["seconds"]["median"]), default=None)


def _ours(sides: Iterable[str], word: str = "") -> list[str]:
    """Return our engines' sides with `word` in their names, ``int8`` say."""
    return [name for name in sides if name.startswith(OURS) and word in name]


def _faster(
    name: str, mine: Callable[[Mapping[str, Any]], Iterable[str]], theirs: Callable[[Mapping[str, Any]], Iterable[str]]
) -> Callable[[Measurements], Found | None]:
    """Describe how many times as fast as the fastest of `theirs` the fastest of `mine` is."""

    def find(found: Measurements) -> Found | None:
        sides = _sides(found, name)
        a, b = _fastest(sides, mine(sides)), _fastest(sides, theirs(sides))
        if a is None or b is None:
            return None
        ratio: dict[str, Any] = paired_ratio(sides[a]["seconds"]["rounds"], sides[b]["seconds"]["rounds"])
        return Found(ratio["median"], ratio["min"], ratio["max"], f"{a} against {b}")

    return find


def _agreement(word: str, measured: str) -> Callable[[Measurements], Found | None]:
    """Return the share of labels that stay, of the engine of a kind that was the fastest in another measurement."""

    def find(found: Measurements) -> Found | None:
        sides = _sides(found, measured)
        fastest = _fastest(sides, _ours(sides, word))
        shares: dict[str, float] = found.get("shipped/agreement", {}).get("agreement", {})
        return None if fastest not in shares else Found(shares[fastest], what=fastest)

    return find


def _share(name: str) -> Callable[[Measurements], Found | None]:
    def find(found: Measurements) -> Found | None:
        side = _sides(found, name).get(REFERENCE)
        share = None if side is None else side["matrix_limit"]["share"]
        if side is None or share is None:
            return None
        per_round = [share * side["seconds"]["median"] / seconds for seconds in side["seconds"]["rounds"]]
        return Found(share, min(per_round), max(per_round))

    return find


def _value(name: str) -> Callable[[Measurements], Found | None]:
    def find(found: Measurements) -> Found | None:
        value = found[name].get("value") if name in found else None
        return None if value is None else Found(value["median"], value["min"], value["max"])

    return find


def _only(*names: str) -> Callable[[Mapping[str, Any]], Iterable[str]]:
    return lambda sides: names


def _with(prefix: str, word: str = "") -> Callable[[Mapping[str, Any]], Iterable[str]]:
    return lambda sides: [name for name in sides if name.startswith(prefix) and word in name]


_FLOAT32, _AS_IT_COMES, _BATCHES = _only(REFERENCE), _only("pipeline()"), _with("pipeline() batch")
_ANY, _INT8, _BFLOAT16 = _with(OURS), _with(OURS, "int8"), _with(OURS, "bfloat16")
_SHORT, _MIXED, _SHIPPED = "classifier/short", "classifier/mixed", "shipped/short"

GOALS = (
    Goal("short sentences, float32, against pipeline() as it comes", 3.5, _faster(_SHORT, _FLOAT32, _AS_IT_COMES)),
    Goal("short sentences, float32, against pipeline() at its best batch", 2.2, _faster(_SHORT, _FLOAT32, _BATCHES)),
    Goal("short and long mixed, float32, against pipeline() as it comes", 2.1, _faster(_MIXED, _FLOAT32, _AS_IT_COMES)),
    Goal(
        "short and long mixed, float32, against pipeline() batch 8",
        5.0,
        _faster(_MIXED, _FLOAT32, _only("pipeline() batch 8")),
    ),
    Goal("float32, share of the packed matrix-product limit, short sentences", 0.88, _share("limit/short"), "%"),
    Goal("float32, share of the packed matrix-product limit, 512-token texts", 0.88, _share("limit/long"), "%"),
    *(
        Goal(
            f"float32, against {label} driven by hand, {texts} texts",
            1.05,
            _faster(f"runtimes/{texts}", _FLOAT32, _with(f"{runtime} by hand", "float32")),
        )
        for runtime, label in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO"))
        for texts in ("short", "mixed")
    ),
    *(
        Goal(f"bfloat16, against our float32, {texts} texts", 1.8, _faster(f"classifier/{texts}", _BFLOAT16, _FLOAT32))
        for texts in ("short", "mixed")
    ),
    Goal("bfloat16, labels as in float32", 0.995, _agreement("bfloat16", _SHORT), "%"),
    *(
        Goal(f"int8, against our float32, {texts} texts", 2.5, _faster(f"classifier/{texts}", _INT8, _FLOAT32))
        for texts in ("short", "mixed")
    ),
    *(
        Goal(
            f"int8, against ONNX Runtime int8 driven by hand, {texts} texts",
            1.1,
            _faster(f"runtimes/{texts}", _INT8, _with("onnxruntime by hand", "int8")),
        )
        for texts in ("short", "mixed")
    ),
    Goal("int8, labels as in float32", 0.99, _agreement("int8", _SHORT), "%"),
    Goal("shipped checkpoint, float32, against pipeline() as it comes", 4.0, _faster(_SHIPPED, _FLOAT32, _AS_IT_COMES)),
    Goal(
        "shipped checkpoint, float32, against pipeline() at its best batch", 1.8, _faster(_SHIPPED, _FLOAT32, _BATCHES)
    ),
    Goal(
        "shipped checkpoint, fastest engine, against pipeline() as it comes", 6.0, _faster(_SHIPPED, _ANY, _AS_IT_COMES)
    ),
    Goal(
        "shipped checkpoint, fastest engine, against pipeline() at its best batch",
        2.6,
        _faster(_SHIPPED, _ANY, _BATCHES),
    ),
    Goal(
        "MiniLM sentence embeddings, float32, against sentence-transformers at its best batch",
        1.5,
        _faster("embeddings/short", _FLOAT32, _with("sentence-transformers")),
    ),
    Goal(
        "5 to 120 new tokens a row, GPT-2-small shape, against generate() at its best batch",
        1.5,
        _value("generation/gpt2"),
    ),
    Goal(
        "5 to 120 new tokens a row, T5-small shape, against generate() at its best batch", 1.5, _value("generation/t5")
    ),
    Goal("one text at a time, DistilBERT-base shape", 0.8, _value("latency/classifier"), "of its time", most=True),
    Goal("one text at a time, shipped checkpoint", 0.7, _value("latency/shipped"), "of its time", most=True),
    Goal("memory over the model, 10 times the input", 20.0, _value("memory/shipped"), "MB", most=True),
    Goal("cold start to the first result", 0.55, _value("cold_start"), "of its time", most=True),
    Goal("a durable job's peak memory, ten times the rows", 50.0, _value("job/memory"), "MB", most=True),
    Goal("a durable job, against pipe.stream", 1.05, _value("job/stream"), "of its time", most=True),
    Goal("a durable job, against one plain JSONL file", 1.03, _value("job/plain"), "of its time", most=True),
)
