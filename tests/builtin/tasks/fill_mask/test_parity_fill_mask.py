"""Fill-mask gives what transformers.pipeline gives one text at a time, whatever the batch and the padding."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from parity_helpers import policies

from pipeline_kit import Pipeline, builtin
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Side
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.testing.checkpoints import ARCHITECTURES, STYLES, tiny_checkpoint

TOLERANCE = 1e-5
MAX_LENGTH = 48
TEXTS = (
    "This is a very good {}.",
    "{} is in Paris",
    "I love {} and I hate {} too",
    "{}",
    "the{} the",
    "{}{} {}",
    "Ünïcödé 漢{}字 😀 \t zzz",
    "שלום {} עולם e\u0301{}",
    "{} and what a long day it was " + "so the film was good " * 20,
    "ends with </s> and [SEP] and <pad> {}",
)

RIGHT: frozenset[Side] = frozenset({"right"})
BOTH: frozenset[Side] = RIGHT | {"left"}
NEITHER: frozenset[Side] = frozenset()

SIDES: Mapping[str, frozenset[Side]] = {
    **dict.fromkeys(("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra"), BOTH),
    **dict.fromkeys(("longformer", "modernbert", "mpnet", "roberta", "squeezebert", "xlm-roberta"), BOTH),
    **dict.fromkeys(("bart", "mbart", "roformer"), RIGHT),
    **dict.fromkeys(("convbert", "fnet", "funnel", "mobilebert", "nystromformer"), NEITHER),
}

# For each mask of a text: score and token_str by id.
Expected = Sequence[Mapping[int, tuple[float, str]]]


@dataclass(frozen=True)
class Built:
    """A pipeline on a tiny checkpoint, its texts, and what transformers gives for each of them."""

    architecture: str
    folder: Path
    pipe: Pipeline
    texts: Sequence[str]
    expected: Sequence[Expected]
    reference: Any


def assemble(folder: Path, **postprocessor: Any) -> Pipeline:
    registry = Registry()
    builtin.register(registry)
    data = {
        "task": {"name": "fill-mask", "head": "masked-lm"},
        "checkpoint": {"path": str(folder)},
        "tokenizer": {"name": "hf"},
        "model": {"name": "hf", "linear": "eager"},
        "postprocessor": {"name": "fill_mask", **postprocessor},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, registry, []))


def by_mask(found: Any) -> list[dict[int, tuple[float, str]]]:
    lists = found if isinstance(found[0], list) else [found]
    return [{item["token"]: (item["score"], item["token_str"]) for item in items} for items in lists]


@pytest.fixture(scope="module", params=sorted(SIDES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    architecture: str = request.param
    folder = tmp_path_factory.mktemp("parity") / "checkpoint"
    tiny_checkpoint(folder, architecture, head="masked-lm", max_positions=MAX_LENGTH)
    reference = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    mask = STYLES[ARCHITECTURES[architecture].tokenizer].special["mask"]
    texts = [text.replace("{}", mask) for text in TEXTS]
    options = {"top_k": len(reference.tokenizer), "tokenizer_kwargs": {"truncation": True}}
    expected = [by_mask(reference(text, **options)) for text in texts]
    return Built(architecture, folder, assemble(folder, top_k=20), texts, expected, reference)


def worst(results: Sequence[Mapping[str, Any]], expected: Sequence[Expected]) -> float:
    differences = [0.0]
    for result, masks in zip(results, expected, strict=True):
        for items, scores in zip(result["masks"], masks, strict=True):
            differences += [abs(item["score"] - scores[item["id"]][0]) for item in items]
            best = sorted((score for score, _ in scores.values()), reverse=True)[: len(items)]
            differences += [abs(item["score"] - score) for item, score in zip(items, best, strict=True)]
    return max(differences)


def test_sides(built: Built) -> None:
    assert built.pipe.model.supported_sides == SIDES[built.architecture]


def test_the_whole_vocabulary(built: Built) -> None:
    """More tokens than there are give all of them, with transformers' scores and token texts."""
    for result, masks in zip(assemble(built.folder, top_k=10_000)(built.texts), built.expected, strict=True):
        for items, scores in zip(result["masks"], masks, strict=True):
            assert {item["id"]: item["token"] for item in items} == {i: token for i, (_, token) in scores.items()}
    assert worst(assemble(built.folder, top_k=10_000)(built.texts), built.expected) <= TOLERANCE


def test_one_at_a_time(built: Built) -> None:
    assert worst([built.pipe(text) for text in built.texts], built.expected) <= TOLERANCE


def test_any_batch_order_and_padding(built: Built) -> None:
    order = list(range(len(built.texts)))
    chance = random.Random(7)
    for policy in policies(built.pipe, SIDES[built.architecture], MAX_LENGTH):
        for batching in (BatchingPolicy(), BatchingPolicy(max_tokens=100), BatchingPolicy(False, None, 4, 8)):
            chance.shuffle(order)
            pipe = replace(built.pipe, padding=policy, batching=batching)
            expected = [built.expected[place] for place in order]
            assert worst(pipe([built.texts[place] for place in order]), expected) <= TOLERANCE, (policy, batching)


def test_targets(built: Built) -> None:
    """Plain words are the tokens that transformers has to be given as its vocabulary spells them."""
    spelled = {"wordpiece": "{}", "bytes": "Ġ{}", "unigram": "▁{}"}
    spelling = spelled[STYLES[ARCHITECTURES[built.architecture].tokenizer].model]
    words = ["good", "bad", "movie", "Paris" if spelling != "{}" else "paris", "terrible"]
    words = [word for word in words if spelling.format(word) in built.reference.tokenizer.get_vocab()]
    assert len(words) >= 4
    text = built.texts[0]
    expected = by_mask(built.reference(text, targets=[spelling.format(word) for word in words], top_k=len(words)))
    result = assemble(built.folder, targets=words, top_k=10)(text)
    assert [[item["token"].strip() for item in items] for items in result["masks"]] == [
        [token.strip() for _, token in scores.values()] for scores in expected
    ]
    assert worst([result], [expected]) <= TOLERANCE
