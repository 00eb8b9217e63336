"""Where feature-extraction gives another answer than ``transformers.pipeline()`` on purpose, each shown by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint, pipeline_of

from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy

TEXTS = ["I love", "It was a terrible film, and the plot was so dull that I never want to see it again!", "Grüße 🙂"]
LONG = "It was a terrible film. " * 30
LENGTH = 64
ARCHITECTURES = ("bert", "xlnet", "convbert")  # test_models.py has more


assemble = partial(pipeline_of, "feature-extraction", model={"linear": "eager"})


def states(folder: Path, text: str = "", ids: list[int] | None = None) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the tokens of a text and the network's own last hidden state, without any padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given: Any = tokenizer(text, return_tensors="pt") if ids is None else {"input_ids": torch.tensor([ids])}
    network = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = network(**given).last_hidden_state[0].numpy()
    return given.tokens() if ids is None else tokenizer.convert_ids_to_tokens(ids), found


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoint(head="base", max_positions=LENGTH)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_there_is_one_vector_a_token_and_none_for_padding(architecture: str) -> None:
    """transformers gives all texts of a batch as many rows as the longest has, and no mask to tell which are padding:
    https://github.com/huggingface/transformers/issues/22137. A mean over them is wrong. Here each text has the vectors
    of its tokens, in any batch and padding, and the tokens beside them."""
    folder = checkpoint(architecture, head="base")
    pipe = assemble(folder)
    expected = [states(folder, text) for text in TEXTS]
    pad = pipe.padding.pad_token_id
    policies = [pipe.padding, *(PaddingPolicy("max_length", side, pad, 64) for side in pipe.model.safe_padding_sides)]
    for policy in policies:
        for rows in (1, 3):
            batching = BatchingPolicy(False, None, rows)
            results = replace(pipe, padding=policy, batching=batching)(TEXTS)
            for result, (tokens, vectors) in zip(results, expected, strict=True):
                assert set(result) == {"tokens", "vectors"}
                assert result["tokens"] == tokens
                np.testing.assert_allclose(result["vectors"], vectors, atol=1e-5, rtol=1e-5)


def test_the_padding_rows_of_transformers_are_not_those_of_the_text(folder: Path) -> None:
    """The same text has 9 rows in a batch and 4 alone in transformers; its own first 4 are what is given here."""
    reference = transformers.pipeline("feature-extraction", model=str(folder), device="cpu")
    batch = reference(["I love", "I love this movie and the film"], batch_size=2)
    own = np.array(batch[0][0])
    found = np.array(assemble(folder)("I love")["vectors"])
    assert len(own) > len(found) == 4
    np.testing.assert_allclose(found, own[:4], atol=1e-5)
    assert np.abs(found.mean(axis=0) - own.mean(axis=0)).max() > 0.01


def test_special_tokens_can_be_left_out(folder: Path) -> None:
    """transformers always gives them, and says nowhere which rows they are."""
    tokens, vectors = states(folder, TEXTS[0])
    result = assemble(folder, special_tokens=False)(TEXTS[0])
    assert result["tokens"] == tokens[1:-1]
    np.testing.assert_allclose(result["vectors"], vectors[1:-1], atol=1e-5)


def test_a_long_text_is_cut_and_says_so(folder: Path) -> None:
    """transformers fails inside the network unless it is given ``tokenize_kwargs={"truncation": True}``, an option
    that has another name in each of its tasks; then it cuts without a word."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(LONG)["input_ids"]
    tokens, vectors = states(folder, ids=[*ids[: LENGTH - 1], ids[-1]])
    result = assemble(folder)(LONG)
    assert (result["tokens"], result["truncated"]) == (tokens, len(ids) - LENGTH)
    np.testing.assert_allclose(result["vectors"], vectors, atol=1e-5)


def test_a_long_text_can_be_read_to_its_end(folder: Path) -> None:
    """Each token has the vector of the first window that holds it; transformers has no windows here."""
    ids = transformers.AutoTokenizer.from_pretrained(folder)(LONG)["input_ids"]
    result = assemble(folder, {"overflow": "window", "overlap": 10}, special_tokens=False)(LONG)
    text, room = ids[1:-1], LENGTH - 2
    expected: list[Any] = []
    for start in range(0, len(text) - 10, room - 10):
        _, vectors = states(folder, ids=[ids[0], *text[start : start + room], ids[-1]])
        expected.extend(vectors[1:-1] if start == 0 else vectors[11:-1])
    assert len(result["tokens"]) == len(text)
    np.testing.assert_allclose(result["vectors"], np.array(expected), atol=1e-5)


def test_no_texts_give_no_results(folder: Path) -> None:
    """transformers raises ``IndexError``."""
    assert assemble(folder)([]) == []


def test_one_text_gives_one_result(folder: Path) -> None:
    """transformers gives ``[1][T][H]``, a list around the vectors that means nothing."""
    result = assemble(folder)(TEXTS[0])
    assert np.array(result["vectors"]).shape == (len(result["tokens"]), 32)
