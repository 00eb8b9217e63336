"""``postprocessor=generated_text``: what it takes, text in pieces, and the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.builtin.tasks.generation import GeneratedText, before_stop, pieces, text_or_messages, until_stop
from pipeline_kit.builtin.tasks.options import GeneratedTextConfig
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Device, Encoding, Example, ModelOutput, TokenBatch
from pipeline_kit.errors import ConfigError, ExampleError, StageError
from pipeline_kit.testing import PostprocessorConformance, WordTokenizer, WordTokenizerConfig, tiny_stage_context
from pipeline_kit.testing.checkpoints import tiny_tokenizer

NEW = 6


class TestGeneratedText(PostprocessorConformance):
    """Its model writes ids that depend on all of a row's tokens, as many as the row has up to `NEW`."""

    stage = "generated_text"

    def forward(self, batch: TokenBatch, device: Device | None = None) -> ModelOutput:
        sums = (batch.input_ids * batch.attention_mask).sum(dim=1, keepdim=True)
        steps = torch.arange(NEW, device=batch.input_ids.device)
        lengths = torch.from_numpy(batch.lengths).to(batch.input_ids.device).clamp(max=NEW)
        return ModelOutput({"sequences": (sums + steps) % 90 + 3, "sequence_lengths": lengths, "more": sums.float()})


class TestCarriedOn(TestGeneratedText):
    head = "causal-lm"
    options: ClassVar = {"full_text": True}

    def encode(self, examples: Sequence[Example]) -> list[list[Encoding]]:
        """Cut texts, since one that falls into windows cannot be carried on."""
        tokenizer, stage = WordTokenizer(WordTokenizerConfig(max_length=16)), self.build()
        return [tokenizer.encode(stage.prepare(example)) for example in examples]


# What it takes.


def stage(head: str = "causal-lm", config: dict[str, Any] | None = None, **options: Any) -> GeneratedText:
    return GeneratedText(GeneratedTextConfig(**options), tiny_stage_context(head=head, config=config))


MESSAGE = {"role": "user", "content": "Hello"}


def test_an_encoder_decoder_takes_a_text_alone() -> None:
    with pytest.raises(ExampleError, match=r"'text' is missing"):
        stage("seq2seq-lm").prepare({"messages": [MESSAGE]})
    with pytest.raises(ExampleError, match=r"unknown field 'messages'"):
        stage("seq2seq-lm").prepare({"text": "a", "messages": [MESSAGE]})
    with pytest.raises(ExampleError, match=r"'text' is empty"):
        stage("seq2seq-lm").prepare("  ")


def test_good_examples() -> None:
    assert text_or_messages("a") == "a"
    assert text_or_messages({"text": "a", "messages": None}) == "a"
    assert text_or_messages({"text": "", "messages": json.dumps([MESSAGE])}) == [MESSAGE]
    more = {**MESSAGE, "name": "Sarah"}
    assert text_or_messages({"messages": (more,)}) == [more]


def test_a_tokenizer_without_conversations() -> None:
    with pytest.raises(ExampleError, match=r"WordTokenizer has no form for conversations"):
        stage().prepare({"messages": [MESSAGE]})


def test_prefixes() -> None:
    params = {"summarization": {"prefix": "sum: "}, "translation_en_to_de": {"prefix": "de: "}}
    config = {"task_specific_params": params, "prefix": "all: "}

    def prefix(task: str, languages: tuple[str | None, str | None] = (None, None), own: str | None = None) -> str:
        plain = tiny_stage_context(head="seq2seq-lm", config=config)
        context = StageContext(
            plain.checkpoint, head="seq2seq-lm", task=task, tokenizer=plain.tokenizer,
            src_lang=languages[0], tgt_lang=languages[1],
        )  # fmt: skip
        return str(GeneratedText(GeneratedTextConfig(prefix=own), context).prepare("x")[0]).removesuffix("x")

    assert prefix("summarization") == "sum: "
    assert prefix("text2text-generation") == "all: "
    assert prefix("summarization", own="") == ""
    assert prefix("translation") == prefix("translation", ("en", "de")) == "de: "
    assert prefix("translation", ("en", "fr"), own="fr: ") == "fr: "
    with pytest.raises(ConfigError, match=r"translates 1 pairs of languages, not en to fr.*\n.*en to de"):
        prefix("translation", ("en", "fr"))
    with pytest.raises(ConfigError, match=r"no languages to choose from"):
        prefix("text2text-generation", ("en", "fr"))


def test_full_text_of_an_encoder_decoder() -> None:
    with pytest.raises(ConfigError, match=r"postprocessor.full_text.*\n.*text-generation"):
        stage("seq2seq-lm", full_text=True)


def test_a_model_that_does_not_write() -> None:
    batch = TokenBatch(torch.ones(1, 2), torch.ones(1, 2), None, torch.tensor([2]).numpy(), "right", False)
    with pytest.raises(StageError, match=r"needs 'sequences'.*model=generate"):
        stage().reduce(ModelOutput({"logits": torch.zeros(1, 2)}), batch)
    with pytest.raises(StageError, match=r"the shape"):
        stage().reduce(ModelOutput({"sequences": torch.zeros(1, 2)}), batch)


def test_windows_of_a_prompt() -> None:
    row = {"sequences": torch.ones(3, dtype=torch.int64).numpy(), "sequence_lengths": torch.tensor(3).numpy()}
    encodings = [Encoding([5]), Encoding([6], window=1)]
    with pytest.raises(ExampleError, match=r"split into 2 windows"):
        stage()(["a"], [encodings], [[row, row]])


# In pieces.

STYLES = ("gpt2", "t5", "bert", "xlm-roberta")
BACKENDS = {name: tiny_tokenizer(name) for name in STYLES}


@settings(max_examples=150)
@given(
    name=st.sampled_from(STYLES),
    prompt=st.lists(st.integers(0, 340), max_size=5),
    ids=st.lists(st.integers(0, 340), max_size=25),
)
def test_pieces_add_up_to_the_text(name: str, prompt: list[int], ids: list[int]) -> None:
    """Of any ids: half characters, special tokens, pieces of words."""

    def decode(some: Sequence[int]) -> str:
        return str(BACKENDS[name].decode(list(some), skip_special_tokens=True))

    if name == "bert" and not prompt:
        prompt = [50]
    found = list(pieces(prompt, ids, decode))
    assert "".join(found) == decode([*prompt, *ids])[len(decode(prompt)) :]
    assert "" not in found


@pytest.mark.parametrize("text", ["Grüße 🙂🏽 👩‍👩‍👧 漢字 עברית e\u0301", "a b c", "\n\n x \n"])
def test_characters_come_whole(text: str) -> None:
    ids = BACKENDS["gpt2"].encode(text).ids
    found = list(pieces([], ids, lambda some: BACKENDS["gpt2"].decode(list(some))))
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert len(found) > 2


@settings(max_examples=200)
@given(
    text=st.text("abc", max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=6),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_in_pieces(text: str, cuts: list[int], stops: list[str]) -> None:
    """However a text is cut up, it ends before the first stop string that is whole in it."""
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    parts = [text[begin:end] for begin, end in pairwise(places)]
    found = "".join(until_stop(parts, stops))
    read = [text[:place] for place in places if any(stop in text[:place] for stop in stops)]
    assert found == (before_stop(read[0], stops) if read else text)


def test_text_ends_before_the_first_of_several_stop_strings() -> None:
    assert before_stop("one two three", ["three", "two"]) == "one "
    assert before_stop("one two three", ["four"]) == "one two three"


def test_text_is_held_back_only_while_it_may_stop() -> None:
    taken: list[str] = []

    def source() -> Iterator[str]:
        for part in ("ab", "c<", "x", "</", "s>", "never read"):
            taken.append(part)
            yield part

    assert list(until_stop(source(), ["</s>"])) == ["ab", "c", "<x"]
    assert taken[-1] == "s>"


def test_the_checkpoint_has_no_folder() -> None:
    """Nothing is read from the folder: the stage is built on one that is not there."""
    assert not Path(tiny_stage_context().checkpoint.path).exists()
    assert isinstance(tiny_stage_context().checkpoint, Checkpoint)
    assert stage().prepare("a") == ("a",)
