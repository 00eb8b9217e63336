"""Where fill-mask deliberately differs from transformers.pipeline, each shown right from the model's raw logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint, pipeline_of

from pipeline_kit import Pipeline
from pipeline_kit.errors import ConfigError, RowError


class Both:
    """A tiny checkpoint with our pipeline, transformers' pipeline, and its raw probabilities."""

    def __init__(self, architecture: str) -> None:
        self.folder = checkpoint(architecture, head="masked-lm", max_positions=48)
        self.theirs = transformers.pipeline("fill-mask", model=str(self.folder), device="cpu")
        self.tokenizer: Any = self.theirs.tokenizer

    def ours(self, tokenizer: dict[str, Any] | None = None, **options: Any) -> Pipeline:
        return pipeline_of("fill-mask", self.folder, tokenizer, **options)

    def probabilities(self, text: str) -> list[np.ndarray[Any, Any]]:
        """Return the whole vocabulary's probabilities for each mask, from the logits."""
        rows = self.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            logits = self.theirs.model(**rows).logits[0].double().numpy()
        places = np.flatnonzero(rows["input_ids"][0].numpy() == self.tokenizer.mask_token_id)
        return [np.exp(logits[i] - logits[i].max()) / np.exp(logits[i] - logits[i].max()).sum() for i in places]


@pytest.fixture(scope="module")
def bert() -> Both:
    return Both("bert")


@pytest.fixture(scope="module")
def roberta() -> Both:
    return Both("roberta")


@pytest.fixture(scope="module")
def xlm() -> Both:
    return Both("xlm-roberta")


def close(items: Sequence[Any], probabilities: np.ndarray[Any, Any]) -> None:
    """Assert that `items` have the probabilities of their ids."""
    np.testing.assert_allclose(
        [item["score"] for item in items], [probabilities[item["id"]] for item in items], atol=1e-6
    )


def test_one_mask_gives_a_list_of_lists_too(bert: Both) -> None:
    """transformers gives a list for one mask, a list of lists for two, and drops the outer list of one text.

    The shape of ours does not depend on the data, so that a file of texts with one and with several masks can
    be read by one program: https://github.com/huggingface/transformers/pull/10222
    """
    assert isinstance(bert.theirs("a [MASK] day")[0], dict)
    assert isinstance(bert.theirs("a [MASK] [MASK]")[0], list)
    pipe = bert.ours()
    for text in ("a [MASK] day", "a [MASK] [MASK]"):
        result = pipe(text)
        assert len(result["masks"]) == text.count("[MASK]")
        for items, probabilities in zip(result["masks"], bert.probabilities(text), strict=True):
            assert len(items) == 5
            close(items, probabilities)


def test_the_text_is_the_users(bert: Both, roberta: Both, xlm: Both) -> None:
    """transformers decodes the ids, which loses case, white space and accents, and frames several masks.

    https://github.com/huggingface/transformers/issues/17394 has the frames and the lost space before a mask
    that stays. Ours puts the token in the mask's place in the source, by its offsets.
    """
    for both, source, theirs, ours in (
        (bert, "Déjà  VU [MASK] !", "deja vu {}!", "Déjà  VU {} !"),
        (roberta, "so <mask> and <mask>", "<s>so{} and<mask></s>", "so{} and <mask>"),
        (xlm, "it is <mask>.", "it is {} .", "it is {}."),
    ):
        items = both.ours(top_k=5000)(source)["masks"][0]
        close(items, both.probabilities(source)[0])
        found = both.theirs(source, top_k=len(both.tokenizer))
        found = found[0] if isinstance(found[0], list) else found
        [token] = [item["token_str"] for item in found if item["token_str"].strip() == "good"]
        assert theirs.format(token) in [item["sequence"] for item in found]
        assert ours.format(token) in [item["text"] for item in items]


def test_a_target_is_a_word_not_a_vocabulary_entry(roberta: Both) -> None:
    """For a byte-level vocabulary transformers takes a target without its space, where the mask swallows one.

    ``targets=["a"]`` behind a space scores the token ``a``, as in "thea", and not the word ``Ġa``, without a
    warning since both are in the vocabulary. Ours scores the token that the word would be in that place, so
    that "the a day", encoded, is what was scored.
    """
    text = "it is <mask> day"
    [probabilities] = roberta.probabilities(text)
    inside, word = (roberta.tokenizer.convert_tokens_to_ids(token) for token in ("a", "Ġa"))
    [theirs] = roberta.theirs(text, targets=["a"])
    assert theirs["token"] == inside
    [[ours]] = roberta.ours(targets=["a"])(text)["masks"]
    assert ours["id"] == word
    close([ours], probabilities)
    assert ours["text"] == "it is a day"
    assert word in roberta.tokenizer(ours["text"])["input_ids"]


def test_a_target_of_several_tokens_is_refused(bert: Both) -> None:
    """transformers scores the first piece of such a target as if it were the target, with a warning in the log.

    ``goody`` then has the score of ``good``. The probability of several tokens is not that of the first one,
    so there is no right number to give; ours names the pieces when the pipeline is built.
    """
    text = "a [MASK] day"
    [theirs] = bert.theirs(text, targets=["goody"])
    assert theirs["token_str"] == "good"
    assert theirs["score"] == pytest.approx(bert.probabilities(text)[0][bert.tokenizer.convert_tokens_to_ids("good")])
    with pytest.raises(ConfigError, match=r"'goody' is 2 tokens of '.*', not one: 'good', '##y'"):
        bert.ours(targets=["goody"])


def test_an_unknown_target_is_refused(bert: Both) -> None:
    """transformers scores the unknown token in its place, with a warning in the log."""
    [theirs] = bert.theirs("a [MASK] day", targets=["漢"])
    assert theirs["token"] == bert.tokenizer.unk_token_id
    with pytest.raises(ConfigError, match="'漢' is unknown to the tokenizer"):
        bert.ours(targets=["漢"])


def test_a_mask_that_is_cut_off_is_an_error(bert: Both) -> None:
    """With truncation transformers leaves out the masks that were cut off, and the shape changes with them.

    ``masks`` of ours has a list for each mask of the text or there is no result; windows give all of them.
    """
    text = "a [MASK] day " + "so the film was good " * 20 + "[MASK]"
    found = bert.theirs(text, tokenizer_kwargs={"truncation": True})
    assert isinstance(found[0], dict)  # one mask, says the shape
    with pytest.raises(RowError, match="1 of the 2 masks are in a part of the text that was cut off"):
        bert.ours()(text)
    assert len(bert.ours({"overflow": "window"})(text)["masks"]) == 2


def test_more_tokens_than_there_are(bert: Both) -> None:
    """transformers fails for a top_k above the size of the vocabulary; ours gives all there are."""
    with pytest.raises(RuntimeError):
        bert.theirs("a [MASK] day", top_k=10_000)
    [items] = bert.ours(top_k=10_000)("a [MASK] day")["masks"]
    [probabilities] = bert.probabilities("a [MASK] day")
    assert len(items) == len(probabilities)
    close(items, probabilities)
