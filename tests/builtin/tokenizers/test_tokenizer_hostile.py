"""Hostile texts and hostile tokenizer files cost a row or a clear error, never the process."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_folders import BOTH, KINDS, from_json, gpt, hf, kept, save, unigram, wordpiece
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from pipeline_kit.builtin.tokenizers.limits import CHARS_PER_TOKEN
from pipeline_kit.contract.stages import ENCODING_FIELDS
from pipeline_kit.contract.stages import Tokenizer as Stage
from pipeline_kit.contract.types import Checkpoint, RunStats
from pipeline_kit.errors import CheckpointError, ExampleError, RowFailure
from pipeline_kit.runtime.calls import StageCalls

NO_EXAMPLE = [None, 5, 1.5, True, b"bytes", ["a"], ("a", "b"), {}, {"texts": "a"}, {"text": 3}, {"text": "a", "x": 1}]

ODD = [
    "\0",
    "a\0b",
    "\u200b\u200d\ufeff",
    "\u202egood bad\u202c",
    "שלום עולם",
    "\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "e\u0301" * 50,
    "a" + "\u0301" * 5000,
    "\x1b[31m",
    "\r\n" * 9,
    "\U0001d50a\U0001d52c\U0001d52c\U0001d521",
    "\ufdfd\ufdfa" * 40,
    "\U0010ffff",
    "\ufb03 \u0130 \u00df \u0131",
]


@cache
def stage_of(kind: str) -> Stage:
    return from_json(kept(kind), ENCODING_FIELDS)


@pytest.mark.parametrize("make", BOTH)
def test_what_is_no_example_fails_its_row_alone(make: Any) -> None:
    stage = make(kept("bert"))
    good, bad = by_row(stage, ["good", "bad"])
    for example in (*NO_EXAMPLE, "lone \ud800", {"text": "a", "text_pair": "\udfff"}):
        with pytest.raises(ExampleError):
            stage.encode([example])
        first, failed, last = by_row(stage, ["good", example, "bad"])
        assert isinstance(failed, RowFailure)
        assert failed.error == "ExampleError"
        assert (first, last) == (good, bad)


def by_row(stage: Stage, examples: list[Any]) -> list[Any]:
    """Encode as the pipeline does: the failing rows are found by calling with fewer of them."""

    def call(part: Any) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in part]
        for encoding in stage.encode(part):
            found[encoding.example].extend(encoding.input_ids)
        return found

    return StageCalls().call("tokenizer", call, examples, range(len(examples)), RunStats())


def test_the_empty_text_is_its_special_tokens() -> None:
    assert list(stage_of("bert").encode([""])[0].input_ids) == [2, 3]
    assert list(stage_of("bert").encode([" \n\t"])[0].input_ids) == [2, 3]
    assert list(stage_of("generic").encode([""])[0].input_ids) == [1]
    with pytest.raises(ExampleError, match="the text has no tokens"):
        stage_of("gpt2").encode([""])


@pytest.mark.parametrize("kind", list(KINDS))
def test_odd_characters_are_encoded_within_the_limit(kind: str) -> None:
    for text in ODD:
        check_encodings(stage_of(kind), f"good {text} story", None)


def check_encodings(stage: Stage, text: str, pair: str | None) -> None:
    example: Any = text if pair is None else {"text": text, "text_pair": pair}
    for found in stage.encode([example]):
        size = len(found.input_ids)
        assert 0 < size <= (stage.max_length or size)
        for field in (*sorted(ENCODING_FIELDS), *(["token_type_ids"] if found.token_type_ids is not None else [])):
            assert len(getattr(found, field)) == size
        assert found.offsets is not None
        assert found.sequence_ids is not None
        for (begin, end), owner in zip(found.offsets, found.sequence_ids, strict=True):
            assert 0 <= begin <= end <= len(text if owner in (0, None) else pair or "")
        assert found.truncated >= 0 <= found.truncated_chars


@settings(max_examples=60)
@given(st.sampled_from(list(KINDS)), st.text(max_size=200), st.none() | st.text(max_size=200))
def test_any_text_gives_sound_encodings_or_a_row_error(kind: str, text: str, pair: str | None) -> None:
    try:
        check_encodings(stage_of(kind), text, pair)
    except ExampleError as error:
        assert "no tokens" in str(error)  # noqa: PT017


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("text", ["." * 1_000_000, "a" * 2_000_000, " " * 4_000_000, "good story, " * 340_000])
def test_a_huge_row_looks_at_a_bounded_part(
    tmp_path: Path, make: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline_kit.builtin.tokenizers import encode as encode_module

    looked: list[int] = []
    original = encode_module._call

    def counted(encoder: Any, views: Any, texts: Any) -> Any:
        looked.append(sum(len(v.text) for row in views for v in row))
        return original(encoder, views, texts)

    monkeypatch.setattr(encode_module, "_call", counted)
    stage = make(save(tmp_path / "bert", config={"max_position_embeddings": 512}, names={"model_max_length": 512}))
    tracemalloc.start()
    try:
        (found,) = stage.encode([text])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert looked[0] <= 16_000
    assert max(looked) <= CHARS_PER_TOKEN * 512
    assert found.truncated_chars >= len(text) - max(looked)
    assert peak < 50_000_000
    if "." in text or "," in text:
        assert len(looked) == 1, "a text that fills the first look is tokenized once"
        assert len(found.input_ids) == 512


def test_a_huge_row_that_must_fit_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline_kit.builtin.tokenizers import encode as encode_module

    stage = hf(save(tmp_path / "bert"), overflow="error")
    monkeypatch.setattr(encode_module, "_call", lambda *_: pytest.fail("it was tokenized"))
    with pytest.raises(ExampleError, match="the text has 1000000 characters"):
        stage.encode(["." * 1_000_000])


# --- hostile files ------------------------------------------------------------------------------


def with_slow_regex() -> Tokenizer:
    backend = wordpiece()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    return backend


@pytest.mark.parametrize("requires", [frozenset(), ENCODING_FIELDS], ids=["fast", "all"])
def test_a_panic_in_the_native_code_fails_its_row_alone(tmp_path: Path, requires: frozenset[str]) -> None:
    stage = from_json(save(tmp_path / "regex", backend=with_slow_regex()), requires)
    bad = "a" * 40 + "b"
    results = by_row(stage, ["good", bad, "story", "a" * 3000 + "b", "bad"])
    assert [isinstance(found, RowFailure) for found in results] == [False, True, False, True, False]
    assert results[1].error == "PanicException"
    assert by_row(stage, ["good"])[0] == results[0], "the tokenizer works as before"


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    "rules",
    [
        [normalizers.Replace("a", "a" * 100)] * 3,
        [normalizers.Replace("a", "b" * 100), normalizers.Replace("b", "c" * 100), normalizers.Replace("c", "d" * 100)],
        [normalizers.Replace(Regex("[a-z]"), "a" * 50)] * 2,
        [normalizers.Replace(Regex(""), "xx")] * 8,
        [normalizers.Prepend("a" * 1_000_000)],
        [normalizers.Replace("zq", "y" * 9000)],
        [normalizers.NFC(), normalizers.Sequence([normalizers.Replace("e", "ee")] * 20)],
    ],
    ids=["cube", "chain", "regex", "empty", "prepend", "single", "doubling"],
)
def test_rules_that_blow_a_text_up_are_refused_at_load(tmp_path: Path, make: Any, rules: list[Any]) -> None:
    backend = unigram()
    backend.normalizer = normalizers.Sequence(rules)
    checkpoint = save(tmp_path / "bomb", "generic", backend=backend)
    with pytest.raises(CheckpointError, match="the normalizer of 'bomb' makes"):
        make(checkpoint)


def test_a_decoder_bomb_and_too_many_rules_are_refused(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "bomb", "generic")
    data = json.loads((checkpoint.path / "tokenizer.json").read_text())
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    data["decoder"] = {"type": "Sequence", "decoders": [rule, rule, rule]}
    (checkpoint.path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="the decoder of 'bomb' makes"):
        from_json(checkpoint)
    data["decoder"] = {"type": "Sequence", "decoders": [{**rule, "content": "a"}] * 1001}
    (checkpoint.path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="1001 rules that rewrite text; at most 1000"):
        from_json(checkpoint)


def test_the_rules_of_real_tokenizers_are_taken(tmp_path: Path) -> None:
    backend = gpt()
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("…", "..."),
            normalizers.Replace("½", "1/2"),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace("\n", "<newline>"),
            normalizers.NFKD(),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    for make in BOTH:
        assert make(save(tmp_path / "real", "gpt2", backend=backend)).encode(["good … ½"])


def test_a_file_nested_too_deep_is_a_checkpoint_error(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "deep", "generic")
    nested = '{"type":"Sequence","normalizers":[' * 5000 + "]}" * 5000
    text = (
        (checkpoint.path / "tokenizer.json")
        .read_text()
        .replace('"normalizer": {', '"normalizer": ' + nested + ', "x": {')
    )
    (checkpoint.path / "tokenizer.json").write_text(text)
    for make in BOTH:
        with pytest.raises(CheckpointError, match="deep"):
            make(checkpoint)


def test_nothing_of_the_folder_is_run(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "code", names={"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    marker = tmp_path / "ran"
    (checkpoint.path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: ...\n")
    for make in BOTH:
        try:
            make(checkpoint)
        except CheckpointError as error:
            assert "trust_remote_code" in str(error) or "custom code" in str(error)  # noqa: PT017
    assert not marker.exists()


def test_memory_of_a_hostile_row_stays_small_in_native_code(tmp_path: Path) -> None:
    checkpoint: Checkpoint = save(
        tmp_path / "bert", config={"max_position_embeddings": 512}, names={"model_max_length": 512}
    )
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline_kit.builtin.tokenizers.options import TokenizersJsonConfig\n"
        "from pipeline_kit.builtin.tokenizers.hf import TokenizersJson\n"
        "from pipeline_kit.contract.stages import StageContext\n"
        "from pipeline_kit.contract.types import Checkpoint\n"
        "context = StageContext(Checkpoint(Path(sys.argv[1]), 'x'), required_fields=frozenset({'offsets'}))\n"
        "stage = TokenizersJson(TokenizersJsonConfig(max_length=512), context)\n"
        "text = '.' * 1_000_000\n"
        "stage.encode(['good'])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "stage.encode([text])\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 50_000, f'{grown} kB'\n"
    )
    command = [sys.executable, "-c", code, str(checkpoint.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
