"""Windows of a long text: every token is in one, neighbours share the overlap, offsets point into the source."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_folders import KINDS, WORDS, from_json, hf, kept, save

from pipeline_kit.builtin.tokenizers.encode import SpanLayout, windows
from pipeline_kit.contract.stages import ENCODING_FIELDS
from pipeline_kit.contract.types import Encoding
from pipeline_kit.errors import ExampleError

TEXT = st.lists(st.sampled_from([*WORDS, "Zürich", "xqzw", "😀", "."]), max_size=70).map(" ".join)
QUICK = settings(max_examples=40, suppress_health_check=list(HealthCheck))


def content(found: Encoding, text: int) -> list[tuple[int, tuple[int, int]]]:
    """Return the ids and offsets of one text's tokens."""
    assert found.sequence_ids is not None
    assert found.offsets is not None
    rows = zip(found.input_ids, found.offsets, found.sequence_ids, strict=True)
    return [(token, place) for token, place, owner in rows if owner == text]


def special(found: Encoding) -> list[int]:
    """Return the ids of the tokens that belong to no text."""
    assert found.sequence_ids is not None
    return [token for token, owner in zip(found.input_ids, found.sequence_ids, strict=True) if owner is None]


@pytest.mark.parametrize("kind", list(KINDS))
def test_windows_cover_every_token_and_share_the_overlap(kind: str) -> None:
    tokens, step = 24, 5
    checkpoint = kept(kind)
    stage = from_json(checkpoint, ENCODING_FIELDS, max_length=tokens, overflow="window", overlap=step)
    plain = from_json(
        save(
            checkpoint.path.parent / f"{kind}-whole",
            kind,
            config={"max_position_embeddings": None, "n_positions": None},
        ),
        ENCODING_FIELDS,
        max_length=4000,
    )

    @QUICK
    @given(TEXT.filter(bool), st.none() | st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join))
    def check(text: str, pair: str | None) -> None:
        example = text if pair is None else {"text": text, "text_pair": pair}
        (whole,) = plain.encode([example])
        found = stage.encode([example])
        assert [e.window for e in found] == list(range(len(found)))
        assert all(len(e.input_ids) <= tokens and e.truncated == 0 for e in found)
        if len(whole.input_ids) <= tokens:
            assert found == [whole]
            return
        split = 0 if pair is None or len(content(whole, 0)) > len(content(whole, 1)) else 1
        joined = content(found[0], split)
        for before, after in pairwise(found):
            assert len(before.input_ids) == tokens, "only the last window may be shorter"
            assert content(before, split)[-step:] == content(after, split)[:step]
            joined += content(after, split)[step:]
        assert joined == content(whole, split)
        for window in found:
            assert special(window) == special(whole)
            if pair is not None:
                assert content(window, 1 - split) == content(whole, 1 - split), "the other text stays whole"

    check()


def test_offsets_of_windows_point_into_the_source() -> None:
    text = "the STORY was a good one " * 20
    stage = hf(kept("bert"), frozenset({"offsets", "tokens"}), max_length=16, overflow="window", overlap=3)
    for window in stage.encode([text]):
        for token, (begin, end) in zip(window.tokens or (), window.offsets or (), strict=True):
            assert token.startswith("[") or text[begin:end].lower() == token


def test_a_shorter_text_that_leaves_no_room_is_that_rows_error() -> None:
    stage = hf(kept("bert"), max_length=16, overflow="window", overlap=4)
    with pytest.raises(ExampleError, match="the first text of the pair has 9 tokens, which leaves 4"):
        stage.encode([{"text": "good " * 9, "text_pair": "bad " * 30}])
    assert len(stage.encode([{"text": "good " * 8, "text_pair": "bad " * 30}])) > 20


@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 29), st.integers(0, 3))
def test_windows_are_as_few_as_the_overlap_allows(count: int, room: int, overlap: int, specials: int) -> None:
    if overlap >= room or count <= room:
        return
    found = windows(SpanLayout(count + specials, (specials,), (count,)), room + specials, overlap)
    assert len(found) == 1 + -(-(count - room) // (room - overlap))


def test_of_two_equally_long_texts_the_second_is_split() -> None:
    stage = hf(kept("bert"), frozenset({"sequence_ids"}), max_length=16, overflow="window", overlap=1)
    found = stage.encode([{"text": "good " * 8, "text_pair": "bad " * 8}])
    assert [list(e.sequence_ids or ()).count(0) for e in found] == [8] * len(found)
    assert len(found) > 1
