"""Checkpoints whose tokenizer is a file of sentencepiece, with no tokenizer.json beside it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizer_folders import from_json, hf, opened
from tokenizers import normalizers
from transformers import AutoTokenizer

from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.builtin.tokenizers.hf import HfTokenizer
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.contract.stages import StageContext
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
        ("marian", "source.spm", r"source\.spm, which is read with sentencepiece"),
        ("m2m_100", "sentencepiece.bpe.model", r"sentencepiece\.bpe\.model, which is read with sentencepiece"),
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


WORDS = ("a good movie about life", "we love paris", "what a long day it was", "Zürich 1984!", "nicht so gut")
ODD = (
    "",
    "   ",
    " a  b ",
    "a\nb\tc",
    "漢字 😀 e\u0301 עברית zzz",
    "½ ﬁ ①",
    "\u200b x",
    "</s> b",
    "a </s> b <unk>",
    "x" * 300,
)


def trained(kind: str, texts: Sequence[str], size: int) -> tuple[bytes, list[str]]:
    """Train pieces on texts; return their file and their names."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts] * 9),
        model_writer=made,
        vocab_size=size,
        hard_vocab_limit=False,
        model_type=kind,
        minloglevel=2,
    )
    found = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    return made.getvalue(), [found.id_to_piece(i) for i in range(3, found.get_piece_size())]


@pytest.fixture(scope="module")
def opus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPUS-MT folder whose vocab.json lacks pieces of the source, and has some that only the target knows."""
    folder: Path = tmp_path_factory.mktemp("opus")
    source, ours = trained("unigram", WORDS[:3], 60)
    target, theirs = trained("unigram", WORDS[3:], 60)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    listed = ["</s>", "<unk>", *sorted({*ours[::2], *ours[-9:], *theirs, "goo", "▁love▁paris"}), ">>fra<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(listed)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))
    return folder


@pytest.fixture(scope="module")
def m2m100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An M2M100 folder."""
    folder: Path = tmp_path_factory.mktemp("m2m100")
    file, pieces = trained("bpe", WORDS, 70)
    (folder / "sentencepiece.bpe.model").write_bytes(file)
    listed = ["<s>", "<pad>", "</s>", "<unk>", *(piece for i, piece in enumerate(pieces) if i % 5)]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(listed)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "M2M100Tokenizer", "src_lang": "en"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "m2m_100"}))
    return folder


@pytest.fixture(scope="module", params=["opus", "m2m100"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Our tokenizer and transformers' own, which runs in Python."""
    folder = request.getfixturevalue(request.param)
    with quiet():
        return hf(opened(folder)), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=150)
@given(st.text(st.sampled_from("abdegilmnoprstuvwyZü189! ▁<>/😀"), max_size=24) | st.text(max_size=12))
@example(">>fra<< we love paris")
@example(">>fra<<we")
@example("\x85")
def test_ids_are_those_of_the_tokenizer_in_python(pair: tuple[Any, Any], text: str) -> None:
    ours, theirs = pair
    assume(">>fra<<" not in text[1:])  # as a language it counts in front, for us anywhere
    ids = theirs(text).input_ids
    assert ours.encode([text])[0].input_ids == ids
    # transformers writes the language that stands in front where no other file lists it as a special token.
    written = theirs.decode([id for id in ids if id not in ours.languages.values()], skip_special_tokens=True)
    assert ours.decode(ids) == written


def test_odd_texts_in_bulk_with_all_fields(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    texts = [*WORDS, *ODD]
    expected = [theirs(text).input_ids for text in texts]
    assert [found.input_ids for found in ours.encode(texts)] == expected
    assert [found.input_ids for found in ours.encode_fully(texts)] == expected
    assert ours.pad_token_id == theirs.pad_token_id
    unknown = sum(ids.count(theirs.unk_token_id) for ids in expected[: len(WORDS)])
    assert 0 < unknown < sum(map(len, expected[: len(WORDS)]))


def test_the_language_of_the_source_stands_in_front(m2m100: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(m2m100, src_lang="fr")
    stage = HfTokenizer(HfTokenizerConfig(), StageContext(opened(m2m100), task="translation", src_lang="fr"))
    assert stage.encode(["we love paris"])[0].input_ids == theirs("we love paris").input_ids
    assert stage.languages["fr"] == theirs.get_lang_id("fr")


@pytest.mark.parametrize(
    "vocab",
    [{"</s>": 0, "<unk>": 1, "<pad>": 1}, {"</s>": 0, "<unk>": 1, "<pad>": 9}, {"</s>": 0, "<unk>": "1", "<pad>": 2}],
)
def test_a_vocabulary_that_numbers_nothing_is_refused(opus: Path, tmp_path: Path, vocab: dict[str, Any]) -> None:
    folder = shutil.copytree(opus, tmp_path / "broken")
    (folder / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(CheckpointError, match=r"vocab\.json does not number its tokens from 0|cannot load a tokenizer"):
        hf(opened(folder))


def test_rules_of_writing_that_cannot_be_read_are_refused(opus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sentencepiece reads the file, and the fast tokenizer does not."""

    def broken(charsmap: bytes) -> Any:
        raise ValueError("Cannot parse precompiled_charsmap")

    monkeypatch.setattr(normalizers, "Precompiled", broken)
    with pytest.raises(CheckpointError, match=r"cannot load a tokenizer from.*Cannot parse precompiled_charsmap"):
        hf(opened(opus))
