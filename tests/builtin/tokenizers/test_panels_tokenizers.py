"""Panels of the built-in tokenizers: what they tell is what the tokenizers library makes of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from generate_helpers import TEMPLATE, with_files, writer
from harness import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from panels_helpers import LONG, WINDOWS, assemble, check_readable, column
from tokenizers import Tokenizer as Backend

from pipeline_kit import Pipeline
from pipeline_kit.contract.stages import Panel
from pipeline_kit.contract.types import Example
from pipeline_kit.testing.checkpoints import tiny_checkpoint, tiny_translator

NAMES = ("bert", "roberta", "xlm-roberta", "albert", "t5", "xlnet", "llama", "qwen2")
MASKED = {"bert": "[MASK]", "albert": "[MASK]", "roberta": "<mask>", "xlm-roberta": "<mask>", "xlnet": "<mask>"}
TEXTS = (
    "I love this movie!",
    "Ünïcödé 漢字 😀 e\u0301 עברית \t zzz",
    "  odd   spaces \n\r\x00 here  ",
    "I love [MASK] this <mask>  movie </s> and [SEP]<s>a[CLS] [UNK] <unk>",
    "👩‍👩‍👧 ﬁne ½ ㎏",
    "a",
)


@pytest.fixture(scope="module")
def folders() -> Mapping[str, Path]:
    return {name: checkpoint(name, head="base", max_positions=500) for name in NAMES}


@pytest.fixture(scope="module")
def pipes(folders: Mapping[str, Path]) -> Mapping[str, Pipeline]:
    post = {"name": "features"}
    return {name: assemble(folder, "feature-extraction", post) for name, folder in folders.items()}


def told(pipe: Pipeline, example: Example) -> Mapping[str, Any]:
    panels = pipe.tokenizer.panels(example, pipe.tokenizer.encode([example]))
    check_readable(panels)
    return {panel.title: panel for panel in panels}


def backend_of(folder: Path) -> Backend:
    """Load what transformers makes of the folder, which may differ from its tokenizer.json."""
    found: Backend = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
    return found


def words(backend: Backend, text: str) -> list[tuple[list[str], int, int]]:
    """Return the tokens of each word of `text` and its place, as the encoding itself tells."""
    encoded = backend.encode(text, add_special_tokens=False)
    found: dict[int, tuple[list[str], int, int]] = {}
    for token, number, (begin, end) in zip(encoded.tokens, encoded.word_ids, encoded.offsets, strict=True):
        word = -1 if number is None else number
        pieces, start, stop = found.get(word, ([], begin, end))
        found[word] = [*pieces, token], min(start, begin), max(stop, end)
    return [found[word] for word in sorted(found)]


def same_words(panel: Panel, backend: Backend, text: str) -> None:
    """Check that the pre-tokens are the words of which the encoding tells, each with its own tokens."""
    expected = words(backend, text)
    assert column(panel, "tokens") == [" ".join(pieces) for pieces, _, _ in expected[:50]]
    for (start, end), (_, begin, stop) in zip(
        zip(column(panel, "start"), column(panel, "end"), strict=True), expected, strict=False
    ):
        assert start <= begin <= stop <= end


@pytest.mark.parametrize("name", NAMES)
def test_pre_tokens_are_the_words_of_the_encoding(
    pipes: Mapping[str, Pipeline], folders: Mapping[str, Path], name: str
) -> None:
    backend = backend_of(folders[name])
    for text in TEXTS:
        same_words(told(pipes[name], text)["pre-tokens"], backend, text)


@settings(max_examples=60)
@given(
    st.text(alphabet="aA eé\u0301漢😀\t\u200d<>[]/smk.MASK", max_size=30),
    st.sampled_from(["", "[MASK]", "<mask>", "</s>"]),
)
@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
def test_any_text(pipes: Mapping[str, Pipeline], folders: Mapping[str, Path], name: str, text: str, more: str) -> None:
    whole = text + more + text[:5]
    same_words(told(pipes[name], whole)["pre-tokens"], backend_of(folders[name]), whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_normalised_text(pipes: Mapping[str, Pipeline], folders: Mapping[str, Path], name: str) -> None:
    backend = backend_of(folders[name])
    for text in (*TEXTS[:3], TEXTS[4]):
        after = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        [row] = told(pipes[name], text)["normalised text"].rows
        assert row == ("text", text, after, len(text), len(after), text != after)
    rule = told(pipes[name], "a")["normalised text"].formula.replace("\n    ", " ")
    assert rule.startswith("normalizer: none" if backend.normalizer is None else f"normalizer: {backend.normalizer}")


@pytest.mark.parametrize("name", MASKED)
def test_an_added_token_is_not_normalised(pipes: Mapping[str, Pipeline], name: str) -> None:
    mask = MASKED[name]
    panels = told(pipes[name], f"So {mask} GOOD")
    [row] = panels["normalised text"].rows
    assert mask in str(row[2])
    assert [row[1].strip() for row in panels["pre-tokens"].rows if row[4] == "added"] == [mask]


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_that_were_added(pipes: Mapping[str, Pipeline], folders: Mapping[str, Path], name: str) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(folders[name])
    examples: Sequence[tuple[str, ...]] = (("I love [SEP] this </s>",), ("I love it", "so good"))
    for texts in examples:
        example: Example = texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]}
        panel = told(pipes[name], example)["special tokens that were added"]
        ids = reference(*texts)["input_ids"]
        plain = [id for text in texts for id in reference(text, add_special_tokens=False)["input_ids"]]
        kept = [id for place, id in enumerate(ids) if place not in (column(panel, "place") if panel.rows else [])]
        assert kept == plain
        assert [ids[row[2]] for row in panel.rows] == [row[1] for row in panel.rows]
        assert all(reference.convert_ids_to_tokens(row[1]) == row[0] for row in panel.rows)
        if name == "bert" and len(texts) == 2:
            assert column(panel, "where") == ["before the text", "between the texts", "behind the text"]


def test_pairs_tell_of_both_texts(pipes: Mapping[str, Pipeline]) -> None:
    panels = told(pipes["bert"], {"text": "So Good", "text_pair": "Grüße"})
    assert column(panels["normalised text"], "normalised") == ["so good", "gruße"]
    assert column(panels["pre-tokens of text"], "pre-token") == ["so", "good"]
    assert column(panels["pre-tokens of text_pair"], "pre-token") == ["gruße"]


@pytest.mark.parametrize("text", ["", " ", "\u200b"])
def test_nothing_to_cut(pipes: Mapping[str, Pipeline], text: str) -> None:
    panels = told(pipes["bert"], text)
    assert panels["pre-tokens"].rows == []
    assert column(panels["special tokens that were added"], "token") == ["[CLS]", "[SEP]"]
    assert column(panels["special tokens that were added"], "where") == ["alone", "alone"]


@pytest.mark.parametrize("overflow", ["truncate", "window"])
def test_a_long_text(folders: Mapping[str, Path], overflow: str) -> None:
    for name in ("hf", "tokenizers_json"):
        tokenizer = {**WINDOWS, "name": name, "overflow": overflow}
        if overflow == "truncate":
            del tokenizer["overlap"]
        pipe = assemble(folders["bert"], "feature-extraction", {"name": "features"}, tokenizer)
        panels = told(pipe, LONG)
        panel = panels["pre-tokens"]
        tokens = [token for token in column(panel, "tokens") if token]
        assert len(panel.rows) == 50
        if overflow == "truncate":
            assert len(tokens) == 22
            assert "truncation took its tokens" in panel.note
        else:
            assert len(tokens) == 50
            assert "windows has them" in panels["special tokens that were added"].note


def test_a_text_cut_at_its_beginning_shows_its_end(tmp_path: Path) -> None:
    folder = checkpoint("gpt2", head="causal-lm")
    pipe = writer(folder)
    panel = told(pipe, LONG + "so good")["pre-tokens"]
    assert panel.rows[-1][-1] == "Ġgood"
    assert panel.rows[0][0] != 0


def test_a_huge_text_costs_little(pipes: Mapping[str, Pipeline]) -> None:
    panels = told(pipes["bert"], "so good " * 100_000)
    assert "20000 characters" in panels["normalised text"].note
    assert len(str(panels["normalised text"].rows)) < 3000
    assert "pre-tokens left out" in panels["pre-tokens"].note


def test_a_written_conversation(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "chat", "llama", head="causal-lm")
    pipe = writer(with_files(folder, tokenizer_config={"chat_template": TEMPLATE}))
    talk = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "Is it good? 🙂\nyes"}]
    [part] = pipe.postprocessor.prepare({"messages": talk})
    panels = told(pipe, part)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    text = loaded.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert panels["chat template"].formula == text
    assert panels["special tokens that were added"].rows == []
    assert "written conversation" in panels["special tokens that were added"].note
    assert [row[1] for row in panels["pre-tokens"].rows if row[4] == "added"].count("<s>") == 3


def test_the_language_of_a_text_is_named(tmp_path: Path) -> None:
    folder = tiny_translator(tmp_path / "nllb", ("eng_Latn", "fra_Latn"))
    pipe = writer(folder, "translation", languages=("fra_Latn", "eng_Latn"))
    rows = told(pipe, "I love it")["special tokens that were added"].rows
    assert ("fra_Latn", "the language fra_Latn") in [(row[0], row[-1]) for row in rows]


def test_without_special_tokens(folders: Mapping[str, Path]) -> None:
    tokenizer = {"add_special_tokens": False}
    pipe = assemble(folders["bert"], "feature-extraction", {"name": "features"}, tokenizer)
    panel = told(pipe, "I love it")["special tokens that were added"]
    assert (panel.rows, panel.note) == ([], "tokenizer.add_special_tokens is false")
