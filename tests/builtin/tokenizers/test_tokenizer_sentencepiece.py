"""Checkpoints whose tokenizer is a file of sentencepiece, with no tokenizer.json beside it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizer_folders import from_json, hf, opened
from transformers import AutoTokenizer

from pipeline_kit.errors import CheckpointError


def pieces_only(folder: Path, model_type: str, file: str, kind: str = "unigram", **names: Any) -> Any:
    """Write a folder with a tokenizer of sentencepiece alone, and return what reads its file."""
    folder.mkdir()
    trained, texts = io.BytesIO(), ["a good movie about life", "we love paris", "what a long day it was"] * 9
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        vocab_size=60,
        hard_vocab_limit=False,
        model_type=kind,
        minloglevel=2,
    )
    (folder / file).write_bytes(trained.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())


@pytest.mark.parametrize(
    ("model_type", "file", "kind", "owner"),
    [
        ("t5", "spiece.model", "unigram", "T5Tokenizer"),
        ("llama", "tokenizer.model", "bpe", "LlamaTokenizer"),
        ("xlm-roberta", "sentencepiece.bpe.model", "unigram", "XLMRobertaTokenizer"),
    ],
)
def test_a_file_of_sentencepiece_is_converted(
    tmp_path: Path, model_type: str, file: str, kind: str, owner: str
) -> None:
    """As it loads, and once for all by ``save_pretrained``: the pieces are those of sentencepiece itself."""
    reference = pieces_only(tmp_path / "old", model_type, file, kind, tokenizer_class=owner)
    texts = ["we love a good movie", "paris", "what a long life it was"]
    stage = hf(opened(tmp_path / "old"))
    found = stage.encode_fully(texts)
    for encoding, text in zip(found, texts, strict=True):
        assert encoding.tokens is not None
        assert encoding.special_tokens_mask is not None
        tokens = zip(encoding.tokens, encoding.special_tokens_mask, strict=True)
        pieces = [token for token, special in tokens if not special]
        assert pieces == reference.encode(text, out_type=str)
    AutoTokenizer.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert from_json(opened(tmp_path / "new")).encode(texts) == stage.encode(texts)


def test_a_file_of_sentencepiece_without_the_library(tmp_path: Path) -> None:
    cases = (
        ("t5", "spiece.model", r"no tokenizer\.json but spiece\.model.*pip install 'pipeline-kit\[sentencepiece\]'$"),
        ("marian", "source.spm", "marian, has no fast version.* NLLB.*pipeline-kit new-plugin tokenizer NAME$"),
        ("m2m_100", "sentencepiece.bpe.model", "m2m_100, has no fast version"),
    )
    for model_type, file, _ in cases:
        (tmp_path / model_type).mkdir()
        (tmp_path / model_type / file).write_bytes(b"pieces")
        (tmp_path / model_type / "config.json").write_text(json.dumps({"model_type": model_type}))
    code = (
        "import sys; sys.modules['sentencepiece'] = None\n"
        "import pipeline_kit as pk\n"
        "from pipeline_kit.contract.stages import StageContext\n"
        "from pipeline_kit.contract.types import Checkpoint\n"
        "from pipeline_kit.builtin.tokenizers.hf import HfTokenizer, HfTokenizerConfig\n"
        "from pathlib import Path\n"
        "for name in sys.argv[2:]:\n"
        "    checkpoint = Checkpoint(Path(sys.argv[1], name), 'old', {'model_type': name})\n"
        "    try: HfTokenizer(HfTokenizerConfig(), StageContext(checkpoint))\n"
        "    except pk.PipelineKitError as error: print(str(error).replace('\\n', ' '))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *(model_type for model_type, _, _ in cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for (_, _, message), line in zip(cases, done.stdout.splitlines(), strict=True):
        assert re.search(message, line), done.stdout + done.stderr


@pytest.mark.parametrize("owner", ["MarianTokenizer", "M2M100Tokenizer"])
def test_a_slow_tokenizer_of_translation(tmp_path: Path, owner: str) -> None:
    """With sentencepiece they load, and are refused."""
    reference = pieces_only(tmp_path / "old", "t5", "source.spm", tokenizer_class=owner)
    for name in ("target.spm", "sentencepiece.bpe.model"):
        shutil.copy(tmp_path / "old" / "source.spm", tmp_path / "old" / name)
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *(reference.id_to_piece(i) for i in range(3, reference.get_piece_size()))]
    (tmp_path / "old" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    with pytest.raises(CheckpointError, match=f"{owner}, has no fast version.*NLLB"):
        hf(opened(tmp_path / "old"))
