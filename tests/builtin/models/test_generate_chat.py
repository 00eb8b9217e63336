"""Conversations: the checkpoint's template, its special tokens once, and templates that are hostile."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from generate_helpers import NEW, TEMPLATE, TEXTS, texts, writer
from harness import checkpoint, with_files

from pipeline_kit import Pipeline
from pipeline_kit.builtin.tokenizers.encode import Rendered
from pipeline_kit.builtin.tokenizers.hf import HfTokenizer
from pipeline_kit.errors import RowError
from pipeline_kit.testing import tiny_checkpoint

TALK = [
    {"role": "system", "content": "be nice"},
    {"role": "user", "content": "Is the food good? 🙂"},
]
LONGER = [*TALK, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why </s> so?"}]
BEGUN = [*TALK, {"role": "assistant", "content": "I think that"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tiny_checkpoint(tmp_path_factory.mktemp("chat") / "checkpoint", "llama", head="causal-lm")
    return with_files(found, tokenizer_config={"chat_template": TEMPLATE})


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return writer(folder)


def with_template(folder: Path, target: Path, template: str) -> Pipeline:
    shutil.copytree(folder, target)
    return writer(with_files(target, tokenizer_config={"chat_template": template}))


def ids(pipe: Pipeline, messages: Sequence[dict[str, Any]]) -> list[int]:
    parts = pipe.postprocessor.prepare({"messages": messages})
    return list(pipe.tokenizer.encode(parts)[0].input_ids)


@pytest.mark.parametrize("messages", [TALK, LONGER, BEGUN])
def test_ids_are_those_of_transformers(folder: Path, pipe: Pipeline, messages: list[dict[str, Any]]) -> None:
    """The template writes ``<s>`` itself; the tokenizer, which adds one to texts, adds none here."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    begun = messages[-1]["role"] == "assistant"
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=not begun, continue_final_message=begun)
    kept = expected["input_ids"][-(64 - NEW) :]
    assert ids(pipe, messages) == kept
    assert pipe.tokenizer.encode(["hi"])[0].input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.encode("hi")[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("messages", [TALK, LONGER, BEGUN])
def test_answers_are_those_of_transformers(folder: Path, pipe: Pipeline, messages: list[dict[str, Any]]) -> None:
    reference = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    reference.tokenizer.truncation_side = "left"
    room = {"truncation": True, "max_length": 64 - NEW}
    asked = {"do_sample": False, "max_new_tokens": NEW, "return_full_text": False}
    expected = reference(messages, tokenizer_encode_kwargs=room, **asked)[0]["generated_text"]
    assert pipe({"messages": messages})["text"] == expected


def test_conversations_and_texts_in_one_batch(pipe: Pipeline) -> None:
    examples: list[Any] = [TEXTS[0], {"messages": TALK}, {"text": TEXTS[1]}, {"messages": LONGER}, {"messages": BEGUN}]
    alone = [pipe(example)["text"] for example in examples]
    assert texts(pipe(examples)) == alone
    assert texts(pipe(examples[::-1])) == alone[::-1]
    assert "".join(pipe.stream_text({"messages": TALK})) == alone[1]


def test_a_text_cannot_pretend(pipe: Pipeline) -> None:
    """A text of the user's that reads like a written conversation still gets the tokenizer's own frame."""
    written = pipe.tokenizer.render_chat(TALK)
    assert isinstance(written, Rendered)
    plain, framed = (pipe.tokenizer.encode([text])[0].input_ids for text in (str(written), written))
    assert list(plain[1:]) == list(framed)


def test_a_long_conversation_keeps_its_end(pipe: Pipeline) -> None:
    long = [TALK[0], {"role": "user", "content": "what a long day " * 30}, *LONGER]
    result = pipe({"messages": long})
    assert result["truncated"] > 0
    # Cut before tokenizing too, where a text is far longer than what fits: the marker must survive that.
    huge = [{"role": "user", "content": "what a long day " * 3000}, *LONGER]
    assert ids(pipe, huge)[-20:] == ids(pipe, LONGER)[-20:]
    assert pipe({"messages": huge})["truncated_chars"] > 0


def test_full_text_is_the_written_conversation(folder: Path, pipe: Pipeline) -> None:
    full = writer(folder, postprocessor={"full_text": True})
    assert full({"messages": TALK})["text"] == str(pipe.tokenizer.render_chat(TALK)) + pipe({"messages": TALK})["text"]
    assert "".join(full.stream_text({"messages": TALK})) == full({"messages": TALK})["text"]


def test_no_template() -> None:
    pipe = writer(checkpoint("gpt2", head="causal-lm"))
    with pytest.raises(RowError, match=r"input: ExampleError: .* has no chat template.*'text' instead of 'messages'"):
        pipe({"messages": TALK})


def test_tokenizers_json_writes_none(folder: Path) -> None:
    pipe = writer(folder, tokenizer={"name": "tokenizers_json"})
    with pytest.raises(RowError, match=r"use tokenizer=hf"):
        pipe({"messages": TALK})
    assert pipe(TEXTS[0]) == writer(folder)(TEXTS[0])


def test_a_template_refuses_a_message(folder: Path, tmp_path: Path) -> None:
    """``raise_exception`` in a template fails the row, with its words; the rows beside it are not affected."""
    template = "{{ raise_exception('roles must alternate') if messages|length > 1 else messages[0].content }}"
    pipe = with_template(folder, tmp_path / "x", template)
    found = list(pipe.results_or_failures([{"messages": TALK}, {"messages": TALK[:1]}, "a"]))
    assert "roles must alternate" in found[0].message  # type: ignore[union-attr]
    assert [type(item) for item in found[1:]] == [dict, dict]


HOSTILE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch %s') }}",
    "{{ raise_exception.__globals__['jinja2'] }}",
    "{{ messages.append(1) }}",
    "{% set x = messages[0].update({'role': 'x'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch %s') }}",
    "{{ namespace.__init__.__globals__.os.popen('touch %s').read() }}",
    "{{ range(100000000)|list }}",
    "{{ unclosed ",
    "{{ 1 / 0 }}",
)


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_fails_the_row(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """It is run in Jinja's immutable sandbox: no way to Python, to files, or to the caller's messages."""
    mark = tmp_path / "mark"
    assert isinstance(pipe.tokenizer, HfTokenizer)
    monkeypatch.setattr(pipe.tokenizer._loaded, "chat_template", template.replace("%s", str(mark)))
    messages = [dict(message) for message in TALK]
    with pytest.raises(RowError, match=r"input: ExampleError: the chat template of .* does not take these messages"):
        pipe({"messages": messages})
    assert not mark.exists()
    assert messages == TALK


def test_a_template_sees_copies(folder: Path, pipe: Pipeline) -> None:
    examples = [{"messages": [dict(message) for message in TALK]}]
    replace(pipe)(examples)
    assert examples == [{"messages": TALK}]
