"""Where text-classification gives another answer than ``transformers.pipeline()`` on purpose, each shown by hand.

transformers 5.23; its raw logits are the model's own, so what is right can be worked out from them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint, pipeline_of

from pipeline_kit.errors import ConfigError, ExampleError, RowError, RowFailure

LABELS = ("BAD", "MIXED", "GOOD")
TEXT = "I love this movie."
LONG = "It was a terrible film, and I love it. " * 20
LENGTH = 64


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoint(labels=LABELS, max_positions=LENGTH)


assemble = partial(pipeline_of, "text-classification", model={"linear": "eager"})


def probabilities(folder: Path, *texts: str, ids: list[int] | None = None) -> np.ndarray[Any, Any]:
    """Softmax of the network's own logits."""
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    given = transformers.AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt") if texts else {}
    with torch.inference_mode():
        logits = network(**given if ids is None else {"input_ids": torch.tensor([ids])}).logits[0].double().numpy()
    exponents: np.ndarray[Any, Any] = np.exp(logits - logits.max())
    return np.asarray(exponents / exponents.sum())


def by_label(result: dict[str, Any]) -> list[float]:
    found = {item["label"]: item["score"] for item in result["labels"]}
    return [found[label] for label in LABELS]


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_the_shape_does_not_depend_on_the_options(top_k: int | None, folder: Path) -> None:
    """One text gives one dict, a list gives a list of them, with any ``top_k``.

    transformers gives ``[{}]`` for a string, ``[{}]`` for a list of one string, ``[{}, {}, {}]`` for a string with
    ``top_k=None`` and ``[[{}, {}, {}]]`` for the list, so that code which reads the one breaks on the
    other. Here what is best and what is listed are two keys.
    """
    pipe = assemble(folder, top_k=top_k)
    expected = probabilities(folder, TEXT)
    one, [same] = pipe(TEXT), pipe([TEXT])
    assert one == same
    assert one["label"] == LABELS[int(expected.argmax())]
    assert one["score"] == pytest.approx(expected.max(), abs=1e-5)
    assert ("labels" in one) == (top_k != 1)
    if top_k != 1:
        assert [item["score"] for item in one["labels"]] == pytest.approx(sorted(expected)[::-1][:top_k], abs=1e-5)


def test_a_pair_has_the_shape_that_a_text_has(folder: Path) -> None:
    """A mapping gives a dict, a list of one mapping a list; transformers gives a dict for a mapping but a list for
    a string."""
    pair = {"text": TEXT, "text_pair": "I hate it"}
    expected = probabilities(folder, TEXT, "I hate it")
    result = assemble(folder, top_k=None)(pair)
    assert by_label(result) == pytest.approx(expected, abs=1e-5)
    assert assemble(folder, top_k=None)([pair]) == [result]


def test_no_texts_give_no_results(folder: Path) -> None:
    """``[]`` gives ``[]``; transformers raises ``IndexError: list index out of range``, which a job meets when a
    filter before it left nothing."""
    assert assemble(folder)([]) == []


def test_a_long_text_is_cut_and_says_so(folder: Path) -> None:
    """The answer is that of the first tokens that fit, with ``truncated``.

    transformers does not truncate unless told and fails inside the network:
    https://github.com/huggingface/transformers/issues/4501. Told to, it cuts without a word.
    """
    result = assemble(folder, top_k=None)(LONG)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(LONG)["input_ids"]
    kept = [*ids[: LENGTH - 1], ids[-1]]
    assert by_label(result) == pytest.approx(probabilities(folder, ids=kept), abs=1e-5)
    assert result["truncated"] == len(ids) - LENGTH


def test_a_long_text_can_be_read_to_its_end(folder: Path) -> None:
    """With windows the score is the mean of the windows' scores by tokens; transformers cannot do this:
    https://github.com/huggingface/transformers/issues/6190."""
    result = assemble(folder, {"overflow": "window", "overlap": 0}, top_k=None)(LONG)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(LONG)["input_ids"]
    text, room = ids[1:-1], LENGTH - 2
    parts = [text[start : start + room] for start in range(0, len(text), room)]
    scores = [probabilities(folder, ids=[ids[0], *part, ids[-1]]) for part in parts]
    assert by_label(result) == pytest.approx(np.average(scores, axis=0, weights=[len(p) for p in parts]), abs=1e-5)
    assert result["windows"] == len(parts) > 1


@pytest.mark.parametrize(
    ("option", "value"), [("return_all_scores", True), ("topk", 3), ("function_to_apply", "softmax")]
)
def test_an_option_that_is_not_there_is_refused(option: str, value: Any, folder: Path) -> None:
    """transformers takes ``return_all_scores=True`` and any typing error, and gives the one
    best label all the same, because what it does not know is handed on to the tokenizer."""
    with pytest.raises(ConfigError, match=rf"postprocessor\.{option}"):
        assemble(folder, **{option: value})


def test_a_wrong_function_names_the_right_ones(folder: Path) -> None:
    """transformers says ``KeyError: 'SOFT'``."""
    with pytest.raises(ConfigError, match=r"postprocessor\.function: 'softmx'[\s\S]*auto, softmax, sigmoid, none"):
        assemble(folder, function="softmx")


def test_a_field_that_is_not_there_is_refused(folder: Path) -> None:
    """transformers hands ``textpair`` on to the tokenizer, which ignores it, and classifies ``text`` alone."""
    with pytest.raises(RowError, match=r"unknown field 'textpair'.*Did you mean 'text_pair'"):
        assemble(folder)({"text": TEXT, "textpair": "I hate it"})


def test_two_texts_in_a_tuple_are_two_texts(folder: Path) -> None:
    """Anything with a length is several texts, and a pair is a mapping with ``text_pair``, so that the number of
    results never depends on what the texts are. transformers fails on ``("a", "b")``, refuses ``[["a", "b"]]`` and
    takes ``[[["a", "b"]]]`` for one pair."""
    pipe = assemble(folder, top_k=None)
    first, second = pipe((TEXT, "I hate it"))
    assert by_label(first) == pytest.approx(probabilities(folder, TEXT), abs=1e-5)
    assert by_label(second) == pytest.approx(probabilities(folder, "I hate it"), abs=1e-5)
    with pytest.raises(RowError, match="a text or a mapping"):
        pipe([["a", "b"]])  # type: ignore[list-item]
    with pytest.raises(ExampleError, match="not int"):
        pipe(3)  # type: ignore[call-overload]


def test_a_bad_row_does_not_take_the_others_with_it(folder: Path) -> None:
    """transformers raises ``ValueError`` for the whole list and gives nothing of what it had."""
    good, bad, after = assemble(folder, top_k=None).results_or_failures([TEXT, None, "I hate it"])  # type: ignore[list-item]
    assert isinstance(bad, RowFailure)
    assert (bad.index, bad.error) == (1, "ExampleError")
    assert by_label(good) == pytest.approx(probabilities(folder, TEXT), abs=1e-5)  # type: ignore[arg-type]
    assert by_label(after) == pytest.approx(probabilities(folder, "I hate it"), abs=1e-5)  # type: ignore[arg-type]


def test_the_function_is_that_of_the_problem_type() -> None:
    """No difference: as in transformers, ``problem_type`` decides first, then the number of labels."""
    multi = checkpoint(labels=LABELS, problem_type="multi_label_classification")
    own = transformers.pipeline("text-classification", model=str(multi), device="cpu")(TEXT, top_k=None)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(multi).eval()
    with torch.inference_mode():
        logits = network(**transformers.AutoTokenizer.from_pretrained(multi)(TEXT, return_tensors="pt")).logits[0]
    result = assemble(multi, top_k=None)(TEXT)
    assert by_label(result) == pytest.approx((1 / (1 + np.exp(-logits.double().numpy()))).tolist(), abs=1e-5)
    assert by_label(result) == pytest.approx(by_label({"labels": own}), abs=1e-5)
