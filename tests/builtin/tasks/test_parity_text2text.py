"""Summaries, translations and text2text equal what the pipelines of transformers 4.57 gave, in any batch.

tests/golden/text2text.json was made by tools/golden/text2text.py; transformers 5 has no such pipelines.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_helpers import NEW, TEXTS, shuffled_agree, texts, writer
from harness import checkpoint
from safetensors.torch import load_file

from pipeline_kit import Pipeline
from pipeline_kit.runtime.padding import collate
from pipeline_kit.testing.checkpoints import tiny_checkpoint, tiny_translator

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "text2text.json").read_text(encoding="utf-8"))
LANGUAGES = ("src_lang", "tgt_lang")


def weights_sum(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()


def load(case: dict[str, Any], folder: Path) -> Pipeline:
    """Ask for what the pipeline of transformers was asked; of `own` cases the checkpoint says it itself."""
    name, _, pair = case["task"].partition("_")
    languages = (case["call"].get("src_lang"), case["call"].get("tgt_lang"))
    if pair:
        languages = tuple(pair.split("_to_"))
    options = {key: value for key, value in case["call"].items() if key not in LANGUAGES}
    return writer(folder, name, generation={} if case["own"] else options, languages=languages, most=None)


@pytest.fixture(scope="module", params=sorted(GOLDEN["cases"]))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Pipeline]:
    case = GOLDEN["cases"][request.param]
    if case["architecture"] == "translator":
        folder = tiny_translator(tmp_path_factory.mktemp("golden") / "checkpoint")
    else:
        folder = checkpoint(case["architecture"], head="seq2seq-lm", **case["config"])
    assert weights_sum(folder) == case["weights"], "the tiny checkpoint is another one than the answers are for"
    return case, load(case, folder)


def test_any_batch_order_and_padding(built: tuple[dict[str, Any], Pipeline]) -> None:
    """One architecture with beams in every way, the others in one batch."""
    case, pipe = built
    if case["call"].get("num_beams", 1) > 1 and case["architecture"] not in ("t5", "translator"):
        assert texts(pipe(GOLDEN["texts"])) == case["texts"]
    else:
        shuffled_agree(pipe, GOLDEN["texts"], case["texts"])


@pytest.mark.parametrize("built", ["bart-greedy", "t5-greedy", "nllb"], indirect=True)
def test_ids(built: tuple[dict[str, Any], Pipeline]) -> None:
    """The ids are those of transformers without the one that the decoder starts with and the end token."""
    case, pipe = built
    ends = json.loads((Path(pipe.description["checkpoint"]["path"]) / "generation_config.json").read_text())
    for text, expected in zip(GOLDEN["texts"], case["ids"], strict=True):
        (part,) = pipe.postprocessor.prepare(text)
        batch = collate(pipe.tokenizer.encode([part]), pipe.padding, "cpu")
        output = pipe.model.forward(batch).tensors
        length = int(output["sequence_lengths"][0])
        assert output["sequences"][0, :length].tolist() == [id for id in expected[1:] if id != ends["eos_token_id"]]


@pytest.mark.parametrize("built", ["bart-greedy", "marian-greedy", "nllb"], indirect=True)
def test_one_at_a_time_and_in_pieces(built: tuple[dict[str, Any], Pipeline]) -> None:
    case, pipe = built
    assert [pipe(text)["text"] for text in GOLDEN["texts"]] == case["texts"]
    assert ["".join(pipe.stream_text(text)) for text in GOLDEN["texts"]] == case["texts"]


def test_padding_sides() -> None:
    found = {}
    for name in ("bart", "m2m_100", "marian", "mbart", "pegasus", "t5"):
        folder = checkpoint(name, head="seq2seq-lm")
        found[name] = writer(folder, "summarization").model.safe_padding_sides
    either = frozenset({"left", "right"})
    right = frozenset({"right"})
    assert found == {"bart": right, "m2m_100": either, "marian": right, "mbart": right, "pegasus": right, "t5": either}


def test_windows_are_joined() -> None:
    """Each window of a long text is written to by itself; the texts are joined by a space."""
    folder = checkpoint("t5", head="seq2seq-lm")
    options = {"overflow": "window", "overlap": 0, "max_length": 9}
    pipe = writer(folder, "summarization", tokenizer=options, postprocessor={"details": True})
    long = "I love this movie so much it is good the film was great fun for all of us"
    result = pipe(long)
    encodings = pipe.tokenizer.encode([long])
    assert result["windows"] == len(encodings) > 1
    parts, tokens = [], 0
    for encoding in encodings:
        output = pipe.model.forward(collate([encoding], pipe.padding, "cpu")).tensors
        tokens += int(output["sequence_lengths"][0])
        parts.append(pipe.tokenizer.decode(output["sequences"][0, : int(output["sequence_lengths"][0])].tolist()))
    assert result["text"] == " ".join(parts)
    assert result["tokens"] == tokens
    assert len(set(parts)) > 1


def test_a_row_that_ends_early_does_not_change_the_others(tmp_path: Path) -> None:
    """With an end token that comes often, rows stop at different places; the sequences hold padding behind it."""
    folder = tiny_checkpoint(tmp_path / "t5", "t5", head="seq2seq-lm", seed=4)
    plain = writer(folder, "summarization")
    batch = collate(plain.tokenizer.encode(TEXTS), plain.padding, "cpu")
    common = np.bincount(plain.model.forward(batch).tensors["sequences"].numpy().ravel()).argsort()[-3:].tolist()
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": common}))
    pipe = writer(folder, "summarization")
    output = pipe.model.forward(batch).tensors
    lengths = output["sequence_lengths"].tolist()
    assert len(set(lengths)) > 1
    for row, length in zip(output["sequences"].tolist(), lengths, strict=True):
        assert set(row[length:]) <= {0}
        assert not set(row[:length]) & set(common)
        assert len(row) == NEW
    shuffled_agree(pipe, TEXTS, texts([pipe(text) for text in TEXTS]))
