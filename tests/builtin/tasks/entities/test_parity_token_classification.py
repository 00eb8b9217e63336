"""Token classification gives what transformers.pipeline gives one text at a time, whatever the batch and the padding.

White space around an entity is the one difference left standing here: transformers' offsets hold it where the
tokenizer's do. test_differences_token_classification.py has the others.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_kit import Pipeline, builtin
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Example
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.testing.checkpoints import tiny_checkpoint

TOLERANCE = 1e-5
MAX_LENGTH = 48
STRATEGIES = ("none", "simple", "first", "average", "max")
PREFIXED = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
PLAIN = ("O", "PER", "LOC")

# Where transformers knows words, in word pieces, any text; elsewhere texts on whose words all agree.
KNOWN = (
    "I love this movie and my life in paris",
    "a",
    "we think that the world is beautiful but the story was not so good",
    "hugging face course in paris is the best of all time and the worst of all places as well they say",
    "water is water",
)
ANY = (
    *KNOWN,
    "",
    "Zq went to Uf (Paris) in 2024, didn't he?",
    "  odd\tspaces \n here  ",
    "Ünïcödé 漢字 😀 عربى 👩‍👩‍👧 z",
    "of [SEP] and [CLS] in a text",
)
# Every token is reported or scored by itself; left out are the characters that several tokens share.
BY_TOKEN = (*KNOWN, "I zq, we uf! (paris) in 2024", "  odd   spaces \n here ")


@dataclass(frozen=True)
class Case:
    """A kind of checkpoint, and the texts for strategies by token and by word."""

    architecture: str
    labels: tuple[str, ...]
    by_token: tuple[str, ...]
    by_word: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.architecture}-{len(self.labels)}"

    def texts(self, strategy: str) -> tuple[str, ...]:
        return self.by_token if strategy in ("none", "simple") else self.by_word


CASES = (
    *(Case(name, PREFIXED, ANY, ANY) for name in ("bert", "distilbert", "electra")),
    Case("bert", PLAIN, ANY, ANY),
    *(Case(name, PREFIXED, BY_TOKEN, KNOWN[2:3]) for name in ("roberta", "gpt2", "llama", "modernbert")),
    Case("qwen2", PLAIN, BY_TOKEN, KNOWN[2:3]),
    *(Case(name, PREFIXED, KNOWN[2:], KNOWN[2:]) for name in ("deberta-v2", "xlm-roberta", "albert", "xlnet")),
)

# Random weights whose answers vary; most seeds do.
SEEDS = {"bert": 4, "electra": 2, "xlm-roberta": 4}

Found = list[tuple[str, str, int, int, float]]


@dataclass(frozen=True)
class Built:
    """A case's checkpoint and transformers' pipeline on it."""

    case: Case
    folder: Path
    reference: Any


def assemble(folder: Path, tokenizer: Mapping[str, Any] | None = None, **postprocessor: Any) -> Pipeline:
    registry = Registry()
    builtin.register(registry)
    data = {
        "task": {"name": "token-classification", "head": "token-classification"},
        "checkpoint": {"path": str(folder)},
        "tokenizer": {"name": "hf", **(tokenizer or {})},
        "model": {"name": "hf"},
        "postprocessor": {"name": "entities", **postprocessor},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, registry, []))


def expected(reference: Any, text: Any, strategy: str, source: str | None = None, **options: Any) -> Found:
    """Return transformers' entities, without white space around them."""
    source = text if source is None else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of words that it has to guess
        entities = reference(text, aggregation_strategy=strategy, **options)
    if options.get("is_split_into_words"):
        [entities] = entities
    found: Found = []
    for entity in entities:
        part = source[entity["start"] : entity["end"]]
        start = entity["start"] + len(part) - len(part.lstrip())
        label = entity["entity" if strategy == "none" else "entity_group"]
        if part.strip():
            found.append((label, part.strip(), start, start + len(part.strip()), float(entity["score"])))
    return found


def same(result: Mapping[str, Any], wanted: Found) -> bool:
    keys = ("label", "text", "start", "end")
    assert all(set(entity) == {*keys, "score"} for entity in result["entities"])
    found = [tuple(entity[key] for key in keys) for entity in result["entities"]]
    assert found == [entity[:4] for entity in wanted]
    scores = zip(result["entities"], wanted, strict=True)
    return all(abs(entity["score"] - entry[4]) <= TOLERANCE for entity, entry in scores)


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("parity") / "checkpoint"
    tiny_checkpoint(
        folder,
        case.architecture,
        head="token-classification",
        labels=case.labels,
        max_positions=MAX_LENGTH,
        seed=SEEDS.get(case.architecture, 3),
    )
    return Built(case, folder, transformers.pipeline("token-classification", model=str(folder), device="cpu"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(built: Built, strategy: str) -> None:
    pipe, texts = assemble(built.folder, aggregation=strategy), built.case.texts(strategy)
    for text, result in zip(texts, pipe(list(texts)), strict=True):
        assert same(result, expected(built.reference, text, strategy)), text


@pytest.mark.parametrize("strategy", ["none", "average"])
def test_ignore_labels(built: Built, strategy: str) -> None:
    ignore = ["LOC" if strategy == "average" else built.case.labels[-1]]
    pipe = assemble(built.folder, aggregation=strategy, ignore_labels=ignore)
    for text in built.case.texts(strategy):
        assert same(pipe(text), expected(built.reference, text, strategy, ignore_labels=ignore)), text


def test_any_batch_order_and_padding(built: Built) -> None:
    pipe = assemble(built.folder, ignore_labels=[])
    texts = list(built.case.by_token)
    wanted = {text: expected(built.reference, text, "simple", ignore_labels=[]) for text in texts}
    pad = pipe.padding.pad_token_id
    policies = [PaddingPolicy("none", "right", pad)]
    for side in pipe.model.supported_sides:
        policies += [
            PaddingPolicy("longest", side, pad, MAX_LENGTH),
            PaddingPolicy("max_length", side, pad, MAX_LENGTH),
            PaddingPolicy("multiple_of", side, pad, MAX_LENGTH, multiple_of=7),
        ]
    chance = random.Random(7)
    for policy in policies:
        for batching in (BatchingPolicy(), BatchingPolicy(max_tokens=60), BatchingPolicy(False, None, 3, 4)):
            chance.shuffle(texts)
            for text, result in zip(texts, replace(pipe, padding=policy, batching=batching)(texts), strict=True):
                assert same(result, wanted[text]), (text, policy, batching)


def test_answers_differ(built: Built) -> None:
    """The checkpoints are of use only if texts have several labels, and entities of several tokens."""
    pipe = assemble(built.folder, ignore_labels=[])
    entities = [entity for result in pipe(list(built.case.by_token)) for entity in result["entities"]]
    assert len({entity["label"] for entity in entities}) == 3
    assert any(" " in entity["text"] for entity in entities)
    assert len({round(entity["score"], 3) for entity in entities}) > 5


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "deberta-v2", "xlm-roberta"])
def test_words_of_ones_own(architecture: str, tmp_path: Path) -> None:
    """Lists of words, as transformers takes them with ``is_split_into_words``; its offsets are the same places."""
    folder = tiny_checkpoint(tmp_path / "c", architecture, head="token-classification", labels=PREFIXED)
    reference = transformers.pipeline("token-classification", model=str(folder), device="cpu")
    lists = [["we", "love", "paris"], ["they", "say", "that", "the", "world", "is", "beautiful"], ["a"]]
    for strategy in STRATEGIES:
        pipe = assemble(folder, aggregation=strategy)
        for words, result in zip(lists, pipe([{"words": words} for words in lists]), strict=True):
            source = " ".join(words)
            assert same(result, expected(reference, words, strategy, source, is_split_into_words=True)), words


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    found = {}
    for architecture in ("bert", "roberta", "xlm-roberta"):
        folder = tmp_path_factory.mktemp("invariant") / "checkpoint"
        tiny_checkpoint(folder, architecture, head="token-classification", labels=PREFIXED, max_positions=MAX_LENGTH)
        found[architecture] = assemble(folder, aggregation="average", ignore_labels=[])
    return found


WORDS = ["love", "Paris", "U.N.", "2024", "zq", "漢字", "😀", "हिन्दी", "שלום", "e\u0301", "\n", " ", "</s>", "…"]
A_TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(A_TEXT, min_size=1, max_size=6),
    rows=st.integers(1, 6),
    sort=st.booleans(),
    name=st.sampled_from(["bert", "roberta", "xlm-roberta"]),
)
def test_an_answer_does_not_depend_on_its_batch(
    pipes: dict[str, Pipeline], texts: Sequence[str], rows: int, sort: bool, name: str
) -> None:
    examples: list[Example] = list(texts)
    alone = [pipes[name]([example])[0] for example in examples]
    together = replace(pipes[name], batching=BatchingPolicy(sort, None, rows, 64))(examples)
    for first, second, text in zip(alone, together, texts, strict=True):
        wanted = [(e["label"], e["text"], e["start"], e["end"], e["score"]) for e in first["entities"]]
        assert same(second, wanted)
        check(text, second["entities"])


def check(text: str, entities: Sequence[Mapping[str, Any]]) -> None:
    """Entities are slices of the text, in order, never overlap, and have scores from 0 to 1."""
    end = 0
    for entity in entities:
        assert end <= entity["start"] < entity["end"] <= len(text)
        assert entity["text"] == text[entity["start"] : entity["end"]] == entity["text"].strip()
        assert type(entity["score"]) is float
        assert 0 <= entity["score"] <= 1
        end = entity["end"]
