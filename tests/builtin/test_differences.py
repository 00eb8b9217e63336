"""What the docs say that ``transformers.pipeline()`` does otherwise, it does: one line for each deliberate difference.

What this package does in its place is tested with each stage. Differences from transformers 4, which has no place here,
are in test_differences_question_answering.py.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint, scratch
from safetensors.torch import load_file, save_file

from pipeline_kit.testing.checkpoints import tiny_checkpoint

LABELS, BIO, NLI = ("BAD", "MIXED", "GOOD"), ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), ("no", "maybe", "entailment")
TEXT, LONG = "I love this movie.", "It was a terrible film. " * 30
SPORTS = ["good", "bad"]


def pipe(task: str, architecture: str = "bert", **options: Any) -> Any:
    heads = {"text-classification": "sequence-classification", "zero-shot-classification": "sequence-classification"}
    heads |= {"feature-extraction": "base", "fill-mask": "masked-lm", "text-generation": "causal-lm"}
    folder = checkpoint(architecture, head=heads.get(task, task), **options)
    return transformers.pipeline(task, model=str(folder), device="cpu")


def raises(error: type[Exception], call: Callable[[], Any]) -> bool:
    with pytest.raises(error):
        call()
    return True


def classify() -> Any:
    return pipe("text-classification", labels=LABELS)


def tag(architecture: str, text: Any, how: str = "simple", seed: int = 3, labels: Any = BIO, **more: Any) -> list[Any]:
    """Return their entities as label, start and end."""
    sizes = {key: more.pop(key) for key in ("max_positions",) if key in more}
    tagger = pipe("token-classification", architecture, labels=labels, seed=seed, **sizes)
    found = tagger(text, aggregation_strategy=how, ignore_labels=[], **more)
    found = found[0] if isinstance(found[0], list) else found
    return [(item.get("entity_group", item.get("entity")), item["start"], item["end"], item["word"]) for item in found]


def write(prompt: str, architecture: str = "gpt2", **options: Any) -> str:
    asked = {"do_sample": False, "max_new_tokens": 8, **options}
    text: str = pipe("text-generation", architecture, seed=5)(prompt, **asked)[0]["generated_text"]
    return text


def drawn(seed: int) -> str:
    torch.manual_seed(seed)
    text: str = pipe("text-generation", "gpt2", seed=5)(TEXT, max_new_tokens=8)[0]["generated_text"]
    return text


def stopped() -> bool:
    writer = pipe("text-generation", "gpt2", seed=5)
    asked = {"do_sample": False, "max_new_tokens": 16, "return_full_text": False}
    stop: str = writer(TEXT, **asked)[0]["generated_text"][5:7]
    found: str = writer(TEXT, **asked, stop_strings=[stop], tokenizer=writer.tokenizer)[0]["generated_text"]
    return stop in found


def fill(text: str, architecture: str = "bert", **options: Any) -> Any:
    return pipe("fill-mask", architecture, max_positions=48)(text, **options)


def sequences(text: str, architecture: str) -> set[str]:
    filler = pipe("fill-mask", architecture, max_positions=48)
    found = filler(text, top_k=len(filler.tokenizer))
    items = found[0] if isinstance(found[0], list) else found
    return {
        item["sequence"].replace(item["token_str"], "*", 1) for item in items if item["token_str"].strip() == "good"
    }


def unknown_target() -> bool:
    filler = pipe("fill-mask", max_positions=48)
    return bool(filler("a [MASK] day", targets=["漢"])[0]["token"] == filler.tokenizer.unk_token_id)


def zero(candidates: list[str], labels: Any = NLI, text: str = TEXT, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = pipe("zero-shot-classification", labels=labels)(text, candidates, **options)
    return found


def neutral_is_taken_for_contradiction() -> bool:
    names = ("neutral", "contradiction", "entailment")
    folder = checkpoint(labels=names, seed=3)
    found = transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")(TEXT, "good")
    pair = transformers.AutoTokenizer.from_pretrained(folder)(TEXT, "This example is good.", return_tensors="pt")
    with torch.inference_mode():
        logits = transformers.AutoModelForSequenceClassification.from_pretrained(folder)(**pair).logits[0]
    return bool(abs(found["scores"][0] - float(logits[[0, 2]].softmax(0)[1])) < 1e-5)


def overflows() -> bool:
    folder: Path = tiny_checkpoint(scratch() / "large", labels=NLI)
    weights = load_file(folder / "model.safetensors")
    large = {name: value * 300 if name.startswith("classifier") else value for name, value in weights.items()}
    save_file(large, folder / "model.safetensors", {"format": "pt"})
    theirs = transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")
    return any(map(math.isnan, theirs("The film was dull and the food was good.", ["good", "bad", "food"])["scores"]))


def rows_of_vectors() -> list[int]:
    found = pipe("feature-extraction")(["I love", "I love this movie and the film"], batch_size=2)
    return [len(np.array(text)[0]) for text in found]


def one_of_each(names: list[Any]) -> bool:
    return len(set(names)) > 1


DIFFERENCES: dict[str, Callable[[], Any]] = {
    # text classification
    "the shape depends on the options": lambda: isinstance(classify()(TEXT), list) and len(classify()(TEXT)) == 1,
    "with top_k=None a text has a list of dicts": lambda: isinstance(classify()(TEXT, top_k=None)[0], dict),
    "with top_k=None a list has a list of lists": lambda: isinstance(classify()([TEXT], top_k=None)[0], list),
    "no texts are an error": lambda: raises(IndexError, lambda: classify()([])),
    "a long text fails inside the network": lambda: raises((RuntimeError, IndexError), lambda: classify()(LONG)),  # type: ignore[arg-type]
    "an option that is not there is taken": lambda: len(classify()(TEXT, topk=3)) == 1,
    "a field that is not there is taken": lambda: (
        classify()({"text": TEXT, "textpair": "no"}) == classify()({"text": TEXT})
    ),
    # feature extraction
    "padding has vectors": lambda: rows_of_vectors() == [9, 9],
    "a text has a list of one list": lambda: np.array(pipe("feature-extraction")(TEXT)).shape[0] == 1,
    # fill-mask
    "one mask has a list": lambda: isinstance(fill("a [MASK] day")[0], dict),
    "two masks have a list of lists": lambda: isinstance(fill("a [MASK] [MASK]")[0], list),
    "case, accents and spaces are lost": lambda: "deja vu *!" in sequences("Déjà  VU [MASK] !", "bert"),
    "several masks are framed": lambda: "<s>so* and<mask></s>" in sequences("so <mask> and <mask>", "roberta"),
    "a mask in SentencePiece keeps a space": lambda: "it is * ." in sequences("it is <mask>.", "xlm-roberta"),
    "a target is an entry of the vocabulary": lambda: (
        fill("it is <mask> day", "roberta", targets=["a"])[0]["token_str"] == "a"
    ),
    "of a target the first piece is scored": lambda: fill("a [MASK] day", targets=["goody"])[0]["token_str"] == "good",
    "an unknown target is scored": unknown_target,
    "a mask that is cut off is left out": lambda: isinstance(
        fill("a [MASK] day " + LONG + "[MASK]", tokenizer_kwargs={"truncation": True})[0], dict
    ),
    "more tokens than there are fail": lambda: raises(RuntimeError, lambda: fill("a [MASK] day", top_k=10_000)),
    # text generation
    "the prompt is in the text": lambda: write(TEXT).startswith(TEXT),
    "a checkpoint that says nothing is drawn from": lambda: one_of_each([drawn(seed) for seed in range(6)]),
    "a long prompt runs past the positions": lambda: raises(IndexError, lambda: write(LONG)),
    "a stop string is kept": stopped,
    "temperature alone has no effect": lambda: write(TEXT, temperature=0.5) == write(TEXT),
    "an empty prompt is carried on": lambda: bool(write("")),
    # token classification
    "a word is decoded": lambda: tag("bert", "I Love PARIS", "none")[1][3] == "love",
    "an entity may begin with a blank": lambda: tag("gpt2", "I love paris", "none")[1][1:3] == (1, 6),
    "the bytes of a character may be several entities": lambda: any(
        one[2] > other[1] for one, other in pairwise(tag("modernbert", "I 😀 so"))
    ),
    "a long text is cut": lambda: tag("bert", "i love the world " * 9, max_positions=16)[-1][2] < 100,
    "a full stop is a part of the word": lambda: tag("roberta", "I love paris.", "first", seed=2)[-1][2] == 13,
    "a line break does not separate words": lambda: tag("roberta", "I love\nparis so", "first")[-1][1:3] == (1, 15),
    "an accent that is dropped joins two words": lambda: (
        tag("bert", "we lo\u0301ve so", "max", seed=6)[0][1:3] == (0, 8)
    ),
    "a list of words is split again": lambda: (
        [entity[1:3] for entity in tag("bert", ["we", "say", "U.N."], "first", seed=4, is_split_into_words=True)][-2:]
        == [(7, 9), (9, 11)]
    ),
    "a hyphen in a label is a prefix": lambda: (
        tag("bert", "i love paris", seed=4, labels=("E-mail", "E-mail-address"))[0][0] in ("mail", "mail-address")
    ),
    # zero-shot classification
    "neutral may be taken for contradiction": neutral_is_taken_for_contradiction,
    "large logits overflow": overflows,
    "of equal labels the later one is first": lambda: zero(["good", "GOOD"])["labels"] == ["GOOD", "good"],
    "a doubled label has half of its score": lambda: len(zero([*SPORTS, "good"])["labels"]) == 3,
    "a checkpoint without entailment is taken": lambda: zero(SPORTS, ("LABEL_0", "LABEL_1", "LABEL_2"))["scores"],
    "a blank text is scored": lambda: zero(SPORTS, text="  ")["scores"],
    "nothing says that a text was cut": lambda: set(zero(SPORTS, text=LONG)) == {"sequence", "labels", "scores"},
}


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_transformers_does_otherwise(difference: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert DIFFERENCES[difference]()
