"""What people type by habit: each works, or is answered with words that work when they are typed next.

One habit a line. The words of WORKS and ANSWERS stand behind ``pipeline-kit cfg``, those of COMMANDS and
COMMANDS_ANSWERED behind ``pipeline-kit``.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from harness import checkpoint, cli

import pipeline_kit as pk
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.compose import aliases
from pipeline_kit.compose.schema import GROUPS

pytestmark = pytest.mark.usefixtures("composed_once")

WORKS = {
    "batch_size=8": "batching.max_rows=8",
    "--batch-size 8": "batching.max_rows=8",
    "dtype=bfloat16": "device.dtype=bfloat16",
    "dtype=fp16": "device.dtype=float16",
    "torch_dtype=torch.float16": "device.dtype=float16",
    "fp16=true": "device.dtype=float16",
    "--fp16": "device.dtype=float16",
    "--bf16 device=cpu": "device.dtype=bfloat16 device.name=cpu",
    "device=cuda:0": "device.name=cuda device.index=0",
    "device=cuda:1": "device.name=cuda device.index=1",
    "device=0": "device.name=cuda device.index=0",
    "device=-1": "device.name=cpu device.index=null",
    "device=gpu": "device.name=cuda device.index=null",
    "device_map=auto": "device.name=auto",
    "--task ner --device cuda:0": "task.name=token-classification device.name=cuda device.index=0",
    "--task=zero-shot": "task.name=zero-shot-classification",
    "task=text_classification": "task.name=text-classification",
    "task=qa": "task.name=question-answering",
    "checkpoint=./folder": "checkpoint.path=./folder",
    "checkpoint=org/name": "checkpoint.path=org/name",
    "checkpoint=bert-base-uncased": "checkpoint.path=bert-base-uncased",
    "model=./folder": "checkpoint.path=./folder model.name=hf",
    "--model org/name --revision v1": "checkpoint.path=org/name checkpoint.revision=v1",
    "model_name_or_path=org/name": "checkpoint.path=org/name",
    "--checkpoint minilm": "checkpoint.path=sentence-transformers/all-MiniLM-L6-v2",
    "local_files_only=true": "checkpoint.offline=true",
    "max_length=64": "tokenizer.max_length=64",
    "--max-length 64": "tokenizer.max_length=64",
    "--tokenizer.max_length 64": "tokenizer.max_length=64",
    "truncation=true": "tokenizer.overflow=truncate",
    "padding=true": "padding.name=longest",
    "padding=false": "padding.name=none",
    "doc_stride=32": "tokenizer.overlap=32",
    "threads=2": "device.threads=2",
    "load_in_8bit=true": "model.quantization=int8",
    "trust_remote_code=false": "tokenizer.name=hf",
    "top_k=null": "postprocessor.top_k=null",
    "return_all_scores=true": "postprocessor.top_k=null",
    "function_to_apply=sigmoid": "postprocessor.function=sigmoid",
    "task=text-generation top_k=50": "model.generation.top_k=50",
    "task=text-generation max_new_tokens=20": "model.generation.max_new_tokens=20",
    "task=ner aggregation_strategy=first": "postprocessor.aggregation=first",
    "task=ner --grouped-entities": "postprocessor.aggregation=simple",
    "task=zero-shot candidate_labels=[sport,politics]": "postprocessor.labels=[sport,politics]",
    "task=zero-shot --candidate-labels sport,politics": "postprocessor.labels=[sport,politics]",
    "task=zero-shot --hypothesis-template 'It is about {}.'": "postprocessor.hypothesis_template='It is about {}.'",
    "task=translation src_lang=en tgt_lang=fr": "task.src_lang=en task.tgt_lang=fr",
    "--column review": "input.fields.text=review",
    "+padding=none": "padding.name=none",
    "++tokenizer.max_length=9": "tokenizer.max_length=9",
}
"""Words, and what the config holds that they compose."""

ANSWERS = {
    "truncation=false": "tokenizer.overflow=window",
    "task=zero-shot candidate_labels=sport,politics": "candidate_labels=[sport,politics]",
    "candidate_labels=[sport]": "task=zero-shot-classification",
    "aggregation_strategy=simple": "task=token-classification",
    "max_new_tokens=20": "model=generate",
    "hypothesis_template=x": "postprocessor=zero_shot",
    "task=text-generation max_length=64": "model.generation.max_new_tokens=50",
    "task=translation_en_to_fr": "task=translation",
    "num_workers=4": "runner.workers=2",
    "batchsize=8": "batch_size",
    "model_kwargs={}": "model.attn_implementation=eager",
    "checkpoint=tiny-sentiment": "tiny_sentiment",
    "padding=longest,none": "-m",
}
"""Words, and words of the answer: in place of the ones that were wrong, or beside them, they work."""

COMMANDS = {
    "predict --text 'I love this.' --device cpu": "POSITIVE",
    "list task": "token-classification",
    "benchmark --help": "usage: pipeline-kit bench",
    "eval --help": "usage: pipeline-kit evaluate",
    "config --task ner": "entities",
    "show ner": "task/ner: ",
    "show hf": "tokenizer  hf ",
    "check": "ok",
}
"""Words, and what they print."""

COMMANDS_ANSWERED = {
    "plugin": "new-plugin tokenizer NAME",
}
"""Words, and the words of the answer, which work."""


def _at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(("words", "held"), WORKS.items())
def test_a_habit_sets_the_option_it_means(words: str, held: str) -> None:
    done = cli("cfg", *shlex.split(words))
    assert done.code == 0, done.err
    config = yaml.safe_load(done.out)
    for setting in shlex.split(held):
        path, _, value = setting.partition("=")
        assert _at(config, path) == (value if "{" in value else yaml.safe_load(value)), path
    assert not set(config) & set(aliases.ALIASES)  # what is recorded are options


@pytest.mark.parametrize(("words", "following"), ANSWERS.items())
def test_a_habit_without_one_meaning_is_answered_with_words_that_work(words: str, following: str) -> None:
    done = cli("cfg", *shlex.split(words))
    assert done.code == 2
    assert following in done.err
    *others, wrong = shlex.split(words)
    if following.partition("=")[0] in GROUPS and wrong.partition("=")[0] not in GROUPS:  # beside what was typed
        following = f"{wrong} {following}"
    if "=" not in following:  # the name, or the value, that was meant; or a flag
        key, _, value = wrong.partition("=")
        following = (
            f"{wrong} {following}" if following[0] == "-" else wrong.replace(value if key in GROUPS else key, following)
        )
    done = cli("cfg", *others, *shlex.split(following))
    assert done.code == 0, done.err


@pytest.mark.parametrize(("words", "printed"), COMMANDS.items())
def test_another_name_of_a_command_is_that_command(words: str, printed: str) -> None:
    done = cli(*shlex.split(words))
    assert done.code == 0, done.err
    assert printed in done.out


@pytest.mark.parametrize(("words", "following"), COMMANDS_ANSWERED.items())
def test_a_command_there_is_not_is_answered_with_one_that_works(
    words: str, following: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*shlex.split(words))
    assert done.code == 2
    assert following in done.err
    done = cli(*shlex.split(following.replace("NAME", "mine")))
    assert done.code == 0, done.err


PAGE = Path(__file__).parents[2] / "docs" / "from-transformers.md"
CALLS = re.findall(r"^\| `(pipeline\(.*?\))` \| (?:`(.*?)`.*? \| )?`(.*?)`", PAGE.read_text(encoding="utf-8"), re.M)
HEADS = {
    "token-classification": ("token-classification", ("O", "B-PER", "I-PER")),
    "fill-mask": ("masked-lm", ("0", "1")),
    "zero-shot-classification": ("sequence-classification", ("contradiction", "neutral", "entailment")),
    "text-ranking": ("sequence-classification", ("0",)),
    "feature-extraction": ("base", ("0", "1")),
    "sentence-embedding": ("base", ("0", "1")),
    "question-answering": ("question-answering", ("0", "1")),
    "text-generation": ("causal-lm", ("0", "1")),
    "summarization": ("seq2seq-lm", ("0", "1")),
}


PLAIN = ("str", "int", "float", "float32")


def _form(value: Any) -> str:
    """Write what a result is made of, as the page does."""
    if isinstance(value, dict):
        inner = ((key, _form(item)) for key, item in value.items() if key != "truncated")
        return f"{{{', '.join(key if form in PLAIN else f'{key}: {form}' for key, form in inner)}}}"
    if isinstance(value, list):
        return f"[{_form(value[0])}]"
    return type(value).__name__


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [found for item in (value.values() if isinstance(value, dict) else value) for found in _numbers(item)]
    return [float(value)] if hasattr(value, "__float__") and not isinstance(value, int) else []


@pytest.mark.parametrize(("call", "theirs", "ours"), CALLS, ids=[call[10:40] for call, _, _ in CALLS])
def test_the_calls_of_the_page_work_in_both_libraries_and_agree(call: str, theirs: str, ours: str) -> None:
    task = call.split('"')[1]
    head, labels = HEADS.get(task, ("sequence-classification", ("NEGATIVE", "POSITIVE")))
    architecture = {"text-generation": "gpt2", "summarization": "t5"}.get(task, "bert")
    folder = checkpoint(architecture, head=head, labels=labels)
    call = call.replace("./my-model", str(folder))
    result = eval(call, {"pipeline": pk.pipeline})
    assert _form(result) == ours
    if theirs:
        with quiet():
            other = eval(call, {"pipeline": transformers.pipeline})
        assert _form(other) == theirs
        found = _numbers(result)
        assert all(any(abs(number - mine) < 1e-5 for mine in found) for number in _numbers(other))
        assert task != "text-generation" or other[0]["generated_text"] == "I love" + result["text"]
