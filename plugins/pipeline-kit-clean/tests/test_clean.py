"""The stage: what it returns is what ``hf`` returns for the cleaned text, with the source's offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pk_clean
import pytest
from pk_clean import CleanConfig, register
from pk_clean.stage import CleanTokenizer

from pipeline_kit import Example, ExampleError, Registry, StageContext
from pipeline_kit.kit import (
    ENCODING_FIELDS,
    Device,
    HfTokenizer,
    HfTokenizerConfig,
)
from pipeline_kit.testing import TokenizerConformance, checkpoint_context, compose_config, tiny_checkpoint

TWEET = "@bob said: <b>good</b> &amp; bad https://example.com/a again"


@pytest.fixture(scope="module", params=["bert", "roberta"])
def context(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), request.param)
    return replace(checkpoint_context(folder), required_fields=frozenset({"offsets", "tokens"}))


class TestConformance(TokenizerConformance):
    stage = "clean"
    register = pk_clean.register
    options: ClassVar[Mapping[str, Any]] = {"mentions": "@user", "urls": "http", "unicode": "NFKC"}
    examples = (*TokenizerConformance.examples, TWEET, {"text": "@ann <i>good</i>", "text_pair": "&amp;"})

    @pytest.fixture(autouse=True)
    def use_checkpoint(self, context: StageContext) -> None:
        self.given = context

    def context(self, device: Device | None = None) -> StageContext:
        return replace(self.given, device=device or Device())


class TestConformanceOfWindows(TestConformance):
    options: ClassVar[Mapping[str, Any]] = {
        **TestConformance.options,
        "overflow": "window",
        "overlap": 3,
        "max_length": 16,
    }


def tokenizer(context: StageContext, **options: Any) -> CleanTokenizer:
    return CleanTokenizer(CleanConfig(**{"mentions": "@user", "urls": "http", **options}), context)


def test_ids_are_those_of_the_cleaned_text(context: StageContext) -> None:
    plain = HfTokenizer(HfTokenizerConfig(), context)
    [mine] = tokenizer(context).encode([TWEET])
    [theirs] = plain.encode(["@user said: good & bad http again"])
    assert list(mine.input_ids) == list(theirs.input_ids)
    assert list(mine.tokens or ()) == list(theirs.tokens or ())


def test_nothing_to_clean_means_nothing_changes(context: StageContext) -> None:
    full = StageContext(context.checkpoint, required_fields=ENCODING_FIELDS)
    texts: list[Example] = ["good again", "", {"text": "bad", "text_pair": "good"}]
    assert tokenizer(full).encode(texts) == HfTokenizer(HfTokenizerConfig(), full).encode(texts)


def test_offsets_are_places_in_the_source(context: StageContext) -> None:
    [encoding] = tokenizer(context).encode([TWEET])
    pieces = {TWEET[begin:end].strip() for begin, end in encoding.offsets or ()}
    assert {"@bob", "&amp;", "https://example.com/a", "said"} <= pieces
    [special, *_] = encoding.offsets or ()
    assert special == (0, 0)


def test_offsets_of_a_pair_belong_to_their_own_text(context: StageContext) -> None:
    pair = {"text": "@bob good", "text_pair": "<b>bad</b> @ann"}
    [encoding] = tokenizer(context).encode([pair])
    found: dict[int, set[str]] = {0: set(), 1: set()}
    for (begin, end), sequence in zip(encoding.offsets or (), encoding.sequence_ids or (), strict=True):
        if sequence is not None:
            found[sequence].add(list(pair.values())[sequence][begin:end].strip())
    assert "@bob" in found[0]
    assert "@ann" in found[1]
    assert not any("<" in piece for piece in found[1])


def test_offsets_of_windows(context: StageContext) -> None:
    text = " ".join(f"@user{i} good<i> bad</i>" for i in range(30))
    encodings = tokenizer(context, overflow="window", overlap=4, max_length=20).encode([text])
    assert len(encodings) > 2
    for encoding in encodings:
        pieces = [text[begin:end].strip() for begin, end in encoding.offsets or () if end]
        assert set(pieces) & {"good", "bad"}
        assert not any("<" in piece for piece in pieces)


def test_no_offsets_unless_they_are_asked_for(context: StageContext) -> None:
    bare = StageContext(context.checkpoint)
    [encoding] = tokenizer(bare).encode([TWEET])
    assert encoding.offsets is None
    assert encoding.sequence_ids is None


def test_a_huge_row_is_cut_before_it_is_cleaned(context: StageContext) -> None:
    text = "<b>good</b> " * 300_000
    [encoding] = tokenizer(context, max_length=16).encode([text])
    assert len(encoding.input_ids) <= 16
    assert encoding.truncated_chars > len(text) - 250 * 16
    with pytest.raises(ExampleError, match="characters"):
        tokenizer(context, max_length=16, overflow="error").encode([text])


@pytest.mark.parametrize("example", [None, 3, {"txt": "x"}, {"text": None}, "\ud800"])
def test_what_is_no_text_is_an_error_of_its_row(context: StageContext, example: Any) -> None:
    with pytest.raises(ExampleError):
        tokenizer(context).encode([example])


def test_the_rest_is_that_of_hf(context: StageContext) -> None:
    plain, mine = HfTokenizer(HfTokenizerConfig(), context), tokenizer(context)
    assert (mine.pad_token_id, mine.padding_side, mine.max_length) == (
        plain.pad_token_id,
        plain.padding_side,
        plain.max_length,
    )
    [encoding] = mine.encode(["good"])
    assert mine.decode(encoding.input_ids) == plain.decode(encoding.input_ids)


def test_registering() -> None:
    registry = Registry()
    register(registry)
    assert registry.get("tokenizer", "clean").load() is CleanTokenizer
    assert "pkg://pk_clean.conf" in registry.conf_packages


def test_the_preset_composes() -> None:
    overrides = ("tokenizer=tweets", "tokenizer.html=true", "tokenizer.max_length=32")
    config = compose_config(*overrides, plugins=["pk_clean"])
    options = config.tokenizer.options
    assert (config.tokenizer.name, options.mentions, options.urls, options.html) == ("clean", "@user", "http", True)
    assert (options.whole_words, options.unicode, options.max_length) == (True, None, 32)
