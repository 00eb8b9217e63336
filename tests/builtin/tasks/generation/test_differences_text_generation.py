"""Where text generation differs from ``transformers.pipeline()`` on purpose, each shown right by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from generate_helpers import TEXTS, texts, writer
from harness import checkpoint, with_files

from pipeline_kit.testing import tiny_checkpoint

PROMPT = "I love this movie"


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoint("gpt2", head="causal-lm", seed=5)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.pipeline("text-generation", model=str(folder), device="cpu")


def by_hand(folder: Path, ids: list[int], count: int) -> list[int]:
    """Take the likeliest token `count` times, from raw logits, without ``generate``."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = list(ids)
    start = len(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_the_text_is_what_was_written(folder: Path, reference: Any) -> None:
    """transformers gives prompt and text in one string (``return_full_text=True``).

    A result is what the model made; the caller has the prompt. ``postprocessor.full_text=true`` gives both.
    """
    pipe = writer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT)["input_ids"]
    written = tokenizer.decode(by_hand(folder, ids, 8), skip_special_tokens=True)
    assert pipe(PROMPT) == {"text": written}
    full = reference(PROMPT, do_sample=False, max_new_tokens=8)[0]["generated_text"]
    assert full == PROMPT + written
    assert writer(folder, postprocessor={"full_text": True})(PROMPT) == {"text": full}


def test_a_checkpoint_that_says_nothing_is_not_drawn_from(folder: Path, reference: Any) -> None:
    """transformers' pipeline draws at a temperature of 0.7 where the checkpoint has no settings of its own.

    The model's own ``generate`` takes the likeliest token then, and so does this: a run can be repeated. A
    checkpoint that asks for draws gets them.
    """
    theirs = set()
    for seed in range(8):
        torch.manual_seed(seed)
        theirs.add(reference(PROMPT, max_new_tokens=8)[0]["generated_text"])
    assert len(theirs) > 1
    pipe = writer(folder)
    written = by_hand(folder, list(pipe.tokenizer.encode([PROMPT])[0].input_ids), 8)
    assert pipe(PROMPT)["text"] == pipe.tokenizer.decode(written)


def test_a_draw_does_not_depend_on_the_batch(folder: Path) -> None:
    """In transformers the rows of a batch share one generator, so a row's draw depends on those before it.

    Here each row has a generator of its own, seeded by its ids and the seed. By hand: the same row, alone, first
    and last in a batch, has one text; in transformers it has several.
    """
    pipe = writer(folder, generation={"do_sample": True, "temperature": 2.0, "seed": 3})
    alone = pipe(PROMPT)["text"]
    batches = [[PROMPT, *TEXTS[:3]], [*TEXTS[:3], PROMPT], [PROMPT] * 4]
    assert {texts(pipe(batch))[batch.index(PROMPT)] for batch in batches} == {alone}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = set()
    for batch in batches:
        torch.manual_seed(3)
        given = tokenizer(batch, return_tensors="pt", padding=True)
        out = network.generate(**given, do_sample=True, temperature=2.0, max_new_tokens=8)
        theirs.add(tokenizer.decode(out[batch.index(PROMPT)][given["input_ids"].shape[1] :], skip_special_tokens=True))
    assert len(theirs) > 1


def test_a_long_prompt_leaves_room_and_says_so(folder: Path, reference: Any) -> None:
    """transformers runs past the positions: it raises IndexError here, and other models write nonsense.

    The prompt keeps its end, the part that is carried on, and ``truncated`` counts what was cut.
    """
    long = " ".join(TEXTS) + " so we are waiting for"
    pipe = writer(folder, most=20)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(long)["input_ids"]
    kept = ids[-(64 - 20) :]
    assert pipe(long) == {"text": tokenizer.decode(by_hand(folder, kept, 20)), "truncated": len(ids) - len(kept)}
    with pytest.raises(IndexError):
        reference(long, do_sample=False, max_new_tokens=20)


def test_a_stop_string_is_not_part_of_the_text(folder: Path, reference: Any) -> None:
    """transformers keeps it, and what else its last token holds.

    A stop string is a mark between the program and the model; what stands before it is the answer.
    """
    free = writer(folder, most=16)(PROMPT)["text"]
    stop = free[5:7]
    found = writer(folder, most=16, generation={"stop_strings": [stop]})(PROMPT)["text"]
    assert found == free[: free.index(stop)]
    asked = {"do_sample": False, "max_new_tokens": 16, "return_full_text": False, "stop_strings": [stop]}
    theirs = reference(PROMPT, tokenizer=reference.tokenizer, **asked)[0]["generated_text"]
    assert theirs.startswith(found + stop)


def test_an_option_without_effect_is_an_error(folder: Path, reference: Any) -> None:
    """transformers takes ``temperature`` without ``do_sample`` and warns at most; the draw never happens."""
    with pytest.raises(Exception, match="temperature: has no effect where nothing is drawn"):
        writer(folder, generation={"temperature": 0.5})
    cold = reference(PROMPT, do_sample=False, temperature=0.5, max_new_tokens=4)
    assert cold == reference(PROMPT, do_sample=False, max_new_tokens=4)


def test_a_task_keeps_its_own_length() -> None:
    """transformers 4.57 writes 256 tokens whatever ``max_length`` the checkpoint names for the task; the pipelines'
    default was put over it. Here the checkpoint's word counts; it includes the token that the decoder starts with.
    """
    params = {"summarization": {"prefix": "sum: ", "max_length": 9}}
    folder = checkpoint("t5", head="seq2seq-lm", task_specific_params=params)
    pipe = writer(folder, "summarization", most=None)
    assert pipe.description["model"]["generation"]["max_new_tokens"] == 8
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = network.generate(**tokenizer("sum: " + PROMPT, return_tensors="pt"), max_length=9)[0]
    assert len(ids) <= 9
    assert pipe(PROMPT)["text"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_blank_prompt_is_an_error(folder: Path, reference: Any) -> None:
    """transformers carries an empty prompt on from nothing; in data it is a row that is missing something."""
    with pytest.raises(Exception, match="the field 'text' is empty"):
        writer(folder)("")
    assert reference("", do_sample=False, max_new_tokens=2)[0]["generated_text"]


def test_min_length_does_not_count_padding(folder: Path, tmp_path: Path) -> None:
    """A checkpoint's ``min_length`` counts the prompt, and in a batch the padding before it as well, so that in
    transformers a row's text depends on the longest prompt beside it. ``min_new_tokens`` counts what is written.
    """
    other = tiny_checkpoint(tmp_path / "x", "gpt2", head="causal-lm", seed=5)
    with_files(other, generation_config={"min_length": 30, "eos_token_id": 0})
    assert "min_length" not in writer(other).description["model"]["generation"]
    assert texts(writer(other)(list(TEXTS))) == [writer(other)(text)["text"] for text in TEXTS]
