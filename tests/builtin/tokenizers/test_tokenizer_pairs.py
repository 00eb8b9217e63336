"""Pairs with a text in common are tokenized as if they had none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding as Encoded
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline_kit.builtin.tokenizers.encode import WORTH, Joined, encode_rows
from pipeline_kit.builtin.tokenizers.options import TokenizersJsonConfig
from pipeline_kit.builtin.tokenizers.tokenizers_json import TokenizersJson
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.stages import ENCODING_FIELDS, StageContext
from pipeline_kit.testing.checkpoints import STYLES, tiny_checkpoint, tiny_tokenizer

FIELDS = ("ids", "type_ids", "sequence_ids", *sorted(ENCODING_FIELDS - {"sequence_ids"}))
Rows = list[tuple[str, ...]]


def odd(style: str, processor: processors.PostProcessor) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = tiny_tokenizer(style)
        tokenizer.post_processor = processor
        return tokenizer

    return make


def no_filler() -> Tokenizer:
    """Make a tokenizer that has no token for the filler."""
    tokenizer = Tokenizer(models.BPE({"b": 0, "c": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


ENDS = (("</s>", 2), ("<s>", 0))
KINDS: dict[str, Callable[[], Tokenizer]] = {
    **{style: (lambda style=style: tiny_tokenizer(style)) for style in STYLES},  # type: ignore[misc]
    "roberta trims": odd("roberta", processors.RobertaProcessing(*ENDS, trim_offsets=True, add_prefix_space=False)),
    "roberta trims, prefix": odd("roberta", processors.RobertaProcessing(*ENDS, trim_offsets=True)),
    "bert processing": odd("bert", processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))),
    "bytes trims": odd("gpt2", processors.ByteLevel(trim_offsets=True)),
    "bytes trims and frames": odd(
        "roberta",
        processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing("<s> $A", "<s> $A </s> $B:1", [("<s>", 0), ("</s>", 2)]),
            ]
        ),
    ),
    "no token for the filler": no_filler,
}


def plain(tokenizer: Tokenizer, specials: bool, fast: bool) -> Callable[[Sequence[tuple[str, ...]]], list[Encoded]]:
    batch = tokenizer.encode_batch_fast if fast else tokenizer.encode_batch
    return lambda rows: batch([row if len(row) == 2 else row[0] for row in rows], add_special_tokens=specials)


WORDS = [
    "good",
    "food",
    " ",
    "Paris",
    "[SEP]",
    "</s>",
    "<mask>",
    "zq",
    "漢字",
    "🙂🏽",
    "e\u0301",
    "שלום",
    "\n",
    "'s",
    "b c",
]
TEXT = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
LONG = st.lists(st.sampled_from(WORDS), min_size=WORTH // 2, max_size=60).map(" ".join)


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Draw pairs out of few texts, so that many are shared, first or second, and some single texts."""
    texts = draw(st.lists(LONG, min_size=1, max_size=3)) + draw(st.lists(TEXT, min_size=1, max_size=3))
    pick = st.sampled_from(texts)
    return draw(st.lists(st.one_of(st.tuples(pick), st.tuples(pick, pick), st.tuples(TEXT, pick)), max_size=8))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=some_rows(), specials=st.booleans())
def test_shared_texts_give_what_plain_pairs_give(kind: str, rows: Rows, specials: bool) -> None:
    tokenizer = TOKENIZERS.setdefault(kind, KINDS[kind]())
    call = plain(tokenizer, specials, False)
    for place, (found, wanted) in enumerate(zip(encode_rows(call, rows, FIELDS), call(rows), strict=True)):
        assert len(found) == len(wanted)
        for name in FIELDS:
            assert list(getattr(found, name)) == getattr(wanted, name), (place, name)


TOKENIZERS: dict[str, Tokenizer] = {}


def test_each_long_text_is_tokenized_once() -> None:
    seen: list[Sequence[tuple[str, ...]]] = []
    call = plain(tiny_tokenizer(), True, True)

    def spy(rows: Sequence[tuple[str, ...]]) -> list[Encoded]:
        seen.append(rows)
        return call(rows)

    context, other = "a good film " * 20, "the best food " * 20
    rows = [("who", context), ("what", context), ("who", other), ("when", context), (other, "x"), (other, "y")]
    found = encode_rows(spy, rows, ())
    assert [len(batch) for batch in seen] == [len(rows)], "one call, so that the tokenizer has all its threads"
    texts = [text for row in seen[0] for text in row]
    assert texts.count(context) == 1
    assert texts.count(other) == 2, "once as a second text and once as a first one"
    assert [isinstance(row, Joined) for row in found] == [False, True, False, True, False, True]


def test_short_texts_and_texts_without_pair_are_left_alone() -> None:
    rows = [("a" * (WORTH - 1), "b"), ("a" * (WORTH - 1), "c"), ("a" * 99,), ("a" * 99,)]
    found = encode_rows(plain(tiny_tokenizer(), True, True), rows, ())
    assert not any(isinstance(row, Joined) for row in found)
    assert encode_rows(plain(tiny_tokenizer(), True, True), [], ()) == []


@pytest.mark.parametrize("options", [{"overflow": "window", "overlap": 4}, {"overflow": "truncate"}, {"max_chars": 90}])
def test_windows_and_cuts_of_shared_texts_are_those_of_each_pair_alone(tmp_path: Path, options: dict[str, str]) -> None:
    folder = tiny_checkpoint(tmp_path / "bert", "bert", head="question-answering")
    context = StageContext(
        resolve_checkpoint(CheckpointConfig(path=str(folder))),
        requires=ENCODING_FIELDS,
        truncation="only_second",
    )
    stage = TokenizersJson(TokenizersJsonConfig(max_length=24, **options), context)  # type: ignore[arg-type]
    text = "My friend made that beautiful movie about one small city, 漢字 e\u0301 last year. " * 4
    pairs = [{"text": question, "text_pair": text} for question in ("Who?", "What is it?", "When was that, my friend?")]
    together = stage.encode(pairs)
    alone = [replace(e, example=place) for place, pair in enumerate(pairs) for e in stage.encode([pair])]
    assert [replace(e) for e in together] == alone
