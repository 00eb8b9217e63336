"""Where entities differ from transformers' on purpose; each answer is worked out from the model's raw output.

In the hand computations ``best[i]`` is the label of token i, special tokens counted, and ``sure[i]`` its score.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint, pipeline_of

from pipeline_kit.errors import ConfigError

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
Entity = tuple[str, int, int, Any]


@dataclass(frozen=True)
class Raw:
    """A checkpoint with transformers' model and tokenizer on it."""

    folder: Path
    labels: tuple[str, ...]
    model: Any
    tokenizer: Any

    def scores(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return torch.softmax(self.model(torch.tensor([list(ids)])).logits[0], dim=-1).numpy()

    def tokens(self, text: str) -> tuple[list[str], list[str], np.ndarray[Any, Any]]:
        """Return the tokens, and the label and score of each."""
        ids = self.tokenizer(text)["input_ids"]
        scores = self.scores(ids)
        return self.tokenizer.convert_ids_to_tokens(ids), [self.labels[i] for i in scores.argmax(-1)], scores.max(-1)

    def ours(self, example: Any, how: str = "simple", ignored: Sequence[str] = ()) -> dict[str, Any]:
        pipe = pipeline_of("token-classification", self.folder, aggregation=how, ignore_labels=list(ignored))
        result: dict[str, Any] = pipe(example)
        return result

    def theirs(self, text: Any, how: str = "simple", **options: Any) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            pipe = transformers.pipeline("token-classification", model=str(self.folder), device="cpu")
            found: list[Any] = pipe(text, aggregation_strategy=how, ignore_labels=[], **options)
        return found


def make(architecture: str, labels: tuple[str, ...] = LABELS, seed: int = 3, **options: Any) -> Raw:
    folder = checkpoint(architecture, head="token-classification", labels=labels, seed=seed, **options)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    return Raw(folder, labels, model, transformers.AutoTokenizer.from_pretrained(folder))


def entities(result: dict[str, Any]) -> list[Entity]:
    return [(e["label"], e["start"], e["end"], e["score"]) for e in result["entities"]]


def near(score: float) -> Any:
    return pytest.approx(float(score), abs=1e-5)


def tag(label: str) -> str:
    return label[2:] if label[:2] in ("B-", "I-") else label


def grouped(pieces: Sequence[tuple[str, int, int, float]]) -> list[Entity]:
    """Join pieces (label, start, end, score) by the rule of B- and I-, one after the other."""
    found: list[list[Any]] = []
    last = ""
    for label, start, end, score in pieces:
        if found and tag(label) == tag(last) and not label.startswith("B-"):
            found[-1][2] = end
            found[-1][3].append(score)
        else:
            found.append([tag(label), start, end, [score]])
        last = label
    return [(label, start, end, near(float(np.mean(scores)))) for label, start, end, scores in found]


def test_text_is_a_slice_of_the_source_without_white_space() -> None:
    """Theirs: ``word`` is decoded from tokens (lower case here), and offsets may begin with a blank.

    https://github.com/huggingface/transformers/issues/18738. A slice is what can be found again in the source,
    and a name does not begin with a blank.
    """
    text = "I Love PARIS"
    lower = make("bert", seed=4)
    assert [e["word"] for e in lower.theirs(text, "none")][:2] == ["i", "love"]
    assert [e["text"] for e in lower.ours(text, "none")["entities"]][:2] == ["I", "Love"]
    blank = make("gpt2")
    tokens, best, sure = blank.tokens("I love paris")
    assert tokens == ["I", "Ġlove", "Ġparis"]
    assert [(e["start"], e["end"]) for e in blank.theirs("I love paris", "none")] == [(0, 1), (1, 6), (6, 12)]
    places = [(0, 1), (2, 6), (7, 12)]
    assert entities(blank.ours("I love paris", "none")) == [
        (label, *place, near(score)) for label, place, score in zip(best, places, sure, strict=True)
    ]


def test_a_character_of_several_tokens_is_in_one_entity() -> None:
    """Theirs: each byte of an emoji by itself, so entities overlap. Ours: the emoji takes what its first byte has."""
    text = "I 😀 so"
    raw = make("modernbert")
    tokens, best, sure = raw.tokens(text)
    assert tokens[1:-1] == ["I", "Ġ", "ð", "Ł", "ĺ", "Ģ", "Ġso"]
    assert len(set(best[3:7])) > 1, "the bytes should not agree"
    theirs = raw.theirs(text)
    assert any(a["end"] > b["start"] for a, b in pairwise(theirs))
    places = [(0, 1), (1, 2), *[(2, 3)] * 4, (3, 6)]
    pieces = [(best[i], *places[i - 1], sure[i]) for i in (1, 2)]
    pieces += [(best[3], 2, 3, sure[3])] * 4 if not best[3].startswith("B-") else []
    if best[3].startswith("B-"):
        pieces += [(best[3], 2, 3, sure[3]), *[("I-" + best[3][2:], 2, 3, sure[3])] * 3]
    pieces.append((best[7], 4, 6, sure[7]))
    trimmed = [e for e in grouped(pieces) if text[e[1] : e[2]].strip()]
    found = [(label, start + (text[start] == " "), end, score) for label, start, end, score in trimmed]
    assert entities(raw.ours(text)) == found


def test_a_long_text_is_never_cut_in_silence() -> None:
    """Theirs: tokens beyond the model's limit are dropped without a word.

    https://github.com/huggingface/transformers/issues/15177. Ours: windows, put together token by token, each token
    from the window where it is farther from the border; then entities are made, as of a short text.
    """
    raw = make("bert", seed=4, max_positions=16)
    text = "i love the world and water is good for all people in paris but not as good as rain was to me"
    words = text.split()
    assert raw.theirs(text)[-1]["end"] == text.index(" not as good")
    ids = raw.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(words) == 22
    begin, end = raw.tokenizer.cls_token_id, raw.tokenizer.sep_token_id
    # Fourteen tokens of text a window; seven are shared, so the second window begins with token 7, the third with 14.
    windows = {start: raw.scores([begin, *ids[start : start + 14], end])[1:-1] for start in (0, 7, 14)}
    rows = [windows[0][i] for i in range(11)]  # 7 to 13 are shared; 10, the middle one, is the first window's
    rows += [windows[7][i - 7] for i in range(11, 18)]
    rows += [windows[14][i - 14] for i in range(18, 22)]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
    pieces = [
        (LABELS[int(row.argmax())], start, start + len(word), float(row.max()))
        for row, start, word in zip(rows, starts, words, strict=False)
    ]
    result = raw.ours(text)
    assert result["windows"] == 3
    assert entities(result) == grouped(pieces)
    # With their `stride` each window has entities of its own: of two that overlap the longer one stays, so what
    # reaches over a border is cut, or stands there in two parts.
    theirs = [(e["entity_group"], e["start"], e["end"]) for e in raw.theirs(text, stride=7)]
    assert theirs != [e[:3] for e in entities(result)]


def test_a_full_stop_is_no_part_of_the_word() -> None:
    """Theirs: for tokenizers without a prefix such as ``##`` words are what blanks separate, so ``paris.`` is one.

    The tokenizer itself says where its words are, and has the full stop apart, as word pieces have it too.
    """
    text = "I love paris."
    raw = make("roberta", seed=2)
    tokens, best, sure = raw.tokens(text)
    assert tokens == ["<s>", "I", "Ġlove", "Ġparis", ".", "</s>"]
    pieces = [(best[i + 1], *place, sure[i + 1]) for i, place in enumerate([(0, 1), (2, 6), (7, 12), (12, 13)])]
    assert best[3:5] == ["B-PER", "B-LOC"], "paris and the full stop should not agree"
    assert entities(raw.ours(text, "first")) == grouped(pieces)
    assert raw.theirs(text, "first")[-1]["end"] == 13


def test_a_line_break_separates_words() -> None:
    """Theirs: only the blank does, so ``love\\nparis`` is one word. Ours: any white space."""
    text = "I love\nparis so"
    raw = make("roberta")
    tokens, best, sure = raw.tokens(text)
    assert tokens[2:4] == ["Ġlove", "Ċ"]
    assert tokens[4:-2] == list("paris")
    assert [best[i] for i in (1, 2, 3, 4, 9)] == ["B-PER", "B-LOC", "B-PER", "I-LOC", "I-LOC"]
    # The line break has a label of its own, as the first token of what it is to the tokenizer; it is no entity.
    assert entities(raw.ours(text, "first")) == [
        ("PER", 0, 1, near(sure[1])),
        ("LOC", 2, 6, near(sure[2])),
        ("LOC", 7, 15, near((sure[4] + sure[9]) / 2)),
    ]
    assert [(e["start"], e["end"]) for e in raw.theirs(text, "first")] == [(0, 1), (1, 15)]


def test_the_blank_before_a_word_belongs_to_it() -> None:
    """Theirs: a blank that is a piece of its own is a word of its own, and the label that it has is lost.

    A checkpoint is trained with a word's label on its first piece, which is that blank.
    """
    text = "I zq"
    raw = make("deberta-v2")
    tokens, best, sure = raw.tokens(text)
    assert tokens[1:-1] == ["▁", "I", "▁", "z", "q"]
    assert entities(raw.ours(text, "first")) == grouped([(best[1], 0, 1, sure[1]), (best[3], 2, 4, sure[3])])
    assert (2, 3) not in [(e["start"], e["end"]) for e in raw.ours(text, "first")["entities"]]


def test_words_are_not_told_by_the_length_of_tokens() -> None:
    """Theirs: a word piece goes on with a word if it is not as long as its slice of the source.

    That holds for ``##q``, but also for a letter whose accent the tokenizer drops and for [MASK], whose slice begins
    with the blank before it. The tokenizer itself knows that both begin a word.
    """
    raw = make("bert", seed=6)
    for text, known, places in (
        ("we lo\u0301ve so", ["we", "love", "so"], [(0, 2), (3, 8), (9, 11)]),
        ("so [MASK] is", ["so", "[MASK]", "is"], [(0, 2), (3, 9), (10, 12)]),
    ):
        tokens, best, sure = raw.tokens(text)
        assert tokens[1:-1] == known
        assert len(set(best[1:3])) == 2, "the first two words should not agree"
        pieces = [(best[i + 1], *place, sure[i + 1]) for i, place in enumerate(places)]
        assert entities(raw.ours(text, "max")) == grouped(pieces)
        assert (raw.theirs(text, "max")[0]["start"], raw.theirs(text, "max")[0]["end"]) == (0, places[1][1])


def test_a_list_of_words_is_the_words() -> None:
    """Theirs: with ``is_split_into_words`` a word such as U.N. is split again. Ours: it has one label."""
    words = ["we", "say", "U.N."]
    raw = make("bert", seed=4)
    tokens, best, sure = raw.tokens(" ".join(words))
    assert tokens[1:-1] == ["we", "say", "u", ".", "n", "."]
    pieces = [(best[i], *place, sure[i]) for i, place in ((1, (0, 2)), (2, (3, 6)), (3, (7, 11)))]
    assert entities(raw.ours({"words": words}, "first")) == grouped(pieces)
    [theirs] = raw.theirs(words, "first", is_split_into_words=True)
    assert [(e["start"], e["end"]) for e in theirs][-2:] == [(7, 9), (9, 11)]


def test_a_hyphen_in_a_label_is_no_prefix() -> None:
    """Theirs: all before the first hyphen is dropped, ``E-mail`` becomes ``mail``. Ours: only B- and I- are."""
    raw = make("bert", labels=("E-mail", "E-mail-address"), seed=4)
    _, best, sure = raw.tokens("i love paris")
    found = entities(raw.ours("i love paris"))
    assert found == grouped([(best[1], 0, 1, sure[1]), (best[2], 2, 6, sure[2]), (best[3], 7, 12, sure[3])])
    assert {e["entity_group"] for e in raw.theirs("i love paris")} <= {"mail", "mail-address"}


def test_the_schemes_with_e_and_s() -> None:
    """Theirs: ``I-PER E-PER`` are two entities, and of two entities ``S-PER S-PER`` they make one.

    Ours: where a tag has a B- label, E- goes on with an entity and S- begins one.
    """
    labels = ("B-X", "E-X", "S-X", "I-X")
    raw = make("bert", labels=labels, seed=0)
    text = "i love paris and water so they say it is good"
    _, best, sure = raw.tokens(text)
    starts = np.cumsum([0, *(len(word) + 1 for word in text.split())]).tolist()
    begins = {"B-X": "B-X", "S-X": "B-X", "E-X": "I-X", "I-X": "I-X"}
    assert {"E-X", "S-X"} & set(best[1:-1])
    pieces = [
        (begins[label], start, start + len(word), score)
        for label, start, word, score in zip(best[1:], starts, text.split(), sure[1:], strict=False)
    ]
    assert entities(raw.ours(text)) == grouped(pieces)


def test_ignore_labels_with_a_prefix_is_an_error() -> None:
    """Theirs: ``ignore_labels=["B-PER"]`` does nothing with an aggregation. Ours: an error that says what to write."""
    raw = make("bert", seed=4)
    with pytest.raises(ConfigError, match="'B-PER' has a prefix, which an aggregation drops"):
        raw.ours("i", "simple", ["B-PER"])
