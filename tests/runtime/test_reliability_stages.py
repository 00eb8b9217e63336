"""H8, H10, H14, H18: what a stage may do wrong, and what options may ask for, without a wrong answer or a hang."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from echo_job import (
    EchoModel,
    EchoPostprocessor,
    EchoTokenizer,
    dead_of,
    echo,
    echo_config,
    ids_of,
    lines_of,
    run_echo,
    text_of,
    write_rows,
)
from generate_helpers import writer
from harness import checkpoint, cli, pipeline_of, task_of

from pipeline_kit import Pipeline
from pipeline_kit.builtin.models.generate.stage import finite_scores
from pipeline_kit.builtin.tokenizers.chat import render
from pipeline_kit.compose.compose import compose
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ConfigError, ExampleError, JobError, RowError, RowFailure, StageError, Stopped
from pipeline_kit.job import workers as crew
from pipeline_kit.job.run import run_job
from pipeline_kit.runtime.calls import is_interruption, no_exit
from pipeline_kit.runtime.padding import check_finite

ANY = "job.max_failed_rows=null"
BERT = checkpoint()


# ---- H10: a stage that ends the process


class LeavingTokenizer(EchoTokenizer):
    error: BaseException

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        if any("row 5" in text_of(example) for example in examples):
            raise self.error
        return super().encode(examples)


class LeavingModel(EchoModel):
    error: BaseException

    def forward(self, batch: TokenBatch) -> ModelOutput:
        if any(b"row 5" in bytes(row) for row in batch.input_ids.tolist()):
            raise self.error
        return super().forward(batch)


class LeavingPostprocessor(EchoPostprocessor):
    error: BaseException
    at: str

    def prepare(self, example: Example) -> Sequence[Example]:
        if self.at == "input" and "row 5" in text_of(example):
            raise self.error
        return (example,)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        if self.at == "reduce" and any(b"row 5" in bytes(row) for row in batch.input_ids.tolist()):
            raise self.error
        return output

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        if self.at == "postprocessor" and any("row 5" in text_of(example) for example in examples):
            raise self.error
        return super().__call__(examples, encodings, outputs)


def leaving(at: str, error: BaseException) -> dict[str, Any]:
    stage: Any = {"tokenizer": LeavingTokenizer, "model": LeavingModel}.get(at, LeavingPostprocessor)()
    stage.error, stage.at = error, at
    return {at if at in ("tokenizer", "model") else "postprocessor": stage}


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), StopIteration(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("at", ["input", "tokenizer", "model", "reduce", "postprocessor"])
def test_h10_a_stage_that_leaves_costs_one_row(tmp_path: Path, at: str, error: BaseException) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [{"text": f"row {i}"} for i in range(8)])
    config = echo_config(BERT, ANY)
    summary = run_echo(config, [rows], tmp_path / "out", build=lambda config: echo(config, **leaving(at, error)))
    assert (summary.rows, summary.written, summary.dead) == (8, 7, 1)
    (letter,) = dead_of(tmp_path / "out")
    stage = "postprocessor" if at == "reduce" else at
    assert (letter["index"], letter["stage"], letter["error"]) == (5, stage, type(error).__name__)
    assert ids_of(lines_of(tmp_path / "out")) == [f"in.jsonl:{i + 1}" for i in range(8) if i != 5]


@pytest.mark.parametrize("at", ["input", "tokenizer", "model", "reduce", "postprocessor"])
def test_h10_without_a_job_too_on_either_thread(at: str) -> None:
    pipe = echo(echo_config("unused"), **leaving(at, SystemExit(0)))
    texts = [f"row {i}" for i in range(6)] * 40  # more than one chunk, so that a second thread tokenizes
    found = list(pipe.results_or_failures(iter(texts)))
    assert [isinstance(outcome, RowFailure) for outcome in found] == ["row 5" in text for text in texts]
    with pytest.raises(RowError, match=r"row 5: \w+: SystemExit: 0"):
        pipe(texts)


@pytest.mark.parametrize("at", ["input", "tokenizer", "model", "postprocessor"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(143)], ids=repr)
def test_h10_an_interruption_is_no_bad_row(at: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        list(echo(echo_config("unused"), **leaving(at, error)).results_or_failures(["row 1", "row 5"]))


def test_h10_a_handler_of_the_users_own_ends_the_run() -> None:
    """What a signal handler raises lands in the stage that runs; that is no failure of its row."""

    class Signalled(EchoModel):
        def forward(self, batch: TokenBatch) -> ModelOutput:
            os.kill(os.getpid(), signal.SIGUSR1)
            return super().forward(batch)

    def leave(number: int, frame: object) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit) as caught:
            echo(echo_config("unused"), model=Signalled())(["a"])
        assert is_interruption(caught.value)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_h10_what_would_end_the_process_names_its_place() -> None:
    with (
        pytest.raises(StageError, match=r"^loading: SystemExit\(0\) was raised in .*stages\.py, l"),
        no_exit("loading"),
    ):
        sys.exit(0)
    with pytest.raises(Stopped), no_exit("loading x"):
        raise Stopped(143)


LEAVING = """
import sys
from dataclasses import dataclass
from pipeline_kit import Postprocessor, option

@dataclass
class Config:
    at: str = option("build", "where to leave")

class Leaving(Postprocessor):
    def __init__(self, config, context):
        self.at = config.at
        if self.at == "build":
            sys.exit()

    def __call__(self, examples, encodings, outputs):
        if self.at == "call":
            sys.exit(0)
        return [{"label": "A", "score": 0.5} for example in examples]

    def panels(self, seen):
        sys.exit(0)

def register(registry):
    registry.postprocessor("leaving", __name__ + ":Leaving", Config)
"""


def test_h10_the_command_line_never_ends_with_0(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    common = ["--plugin", str(tmp_path / "leaving.py"), "postprocessor=leaving", "device=cpu"]
    common += [f"checkpoint.path={BERT}", "model.linear=eager"]
    text = ["--text", "a", "--text", "b"]
    rows = ["--input", str(write_rows(tmp_path / "in.jsonl", [{"text": "a", "label": "NEGATIVE"}] * 3))]
    calls = [
        (["run", *text], "build", 1),
        (["run", *text], "call", 1),
        (["run", *rows, "--output", f"{tmp_path}/job/"], "build", 1),
        (["run", *rows, "--output", f"{tmp_path}/job2/"], "call", 1),
        (["explain", "--text", "a"], "build", 1),
        (["explain", "--text", "a"], "panels", 0),
        (["evaluate", *rows], "call", 1),
        (["bench", "--repeats", "1", *rows], "call", 1),
        (["tune", *rows], "build", 1),
    ]
    for words, at, code in calls:
        assert cli(*words, *common, f"postprocessor.at={at}").code == code, (words, at)


# ---- H14: a chat template that never ends, and a stage that never returns

BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for k in range(99999) if k < 0 %}{% endfor %}{% endfor %}",
    "{% for x in 'a' * 3000000 %}{% for y in 'a' * 3000000 %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ 2 ** 999999999 }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '%*d'|format(999999999, 1) }}",
    "{{ '{:>999999999}'.format('x') }}",
    "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'|indent(10**9) }}",
    "{{ ('a\n' * 9999)|indent(9999) }}",
    "{{ [1]|batch(10**9, 0)|list }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ (1).to_bytes(999999999, 'big') }}",
    "{{ range(99999)|list|tojson(indent=9999) }}",
    "{{ range(99999)|map('string')|join('x' * 99999) }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s|join(ns.s) %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=1) %}{% for i in range(60) %}{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}{{ ns.s }}",
    "{% set s = 'ab' * 99999 %}{% for a in range(99999) %}{% set x = 'c' in s %}{% endfor %}",
    "{% set s = 'ab' * 99999 %}{% for a in range(99999) %}{% set x = s[1:] %}{% endfor %}",
    "{% set s = 'ab' * 99999 %}{% for a in range(99999) %}{% set x = s.split('b') %}{% endfor %}",
    "{% set x %}{% for a in range(99999) %}" + "text " * 9999 + "{% endfor %}{% endset %}",
    "{% macro m() %}" + "text " * 9999 + "{% endmacro %}{% for a in range(99999) %}{% set x = m() %}{% endfor %}",
    "{% for a in range(99999) %}" + "{% set x = 'a' in 'bbb' %}" * 999 + "{% endfor %}",
    "x" * 100_001,
]


class Loaded(transformers.PreTrainedTokenizerBase):  # type: ignore[misc]
    """A tokenizer as far as a chat template sees it."""

    special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}  # noqa: RUF012

    def __init__(self, template: str) -> None:
        self.chat_template = template


def explode() -> None:
    """Run every bomb in a process that may take 200 MB more; print those that do not end as they should."""
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    render(Loaded("a"), "ck", [{"role": "user", "content": "hello"}])
    resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20, -1))
    for template in BOMBS:
        begun = time.process_time()
        try:
            found = f"{len(render(Loaded(template), 'ck', [{'role': 'user', 'content': 'hello'}]))} characters"
        except ExampleError as error:
            found = str(error)
        seconds = time.process_time() - begun
        if seconds > 2 or not re.match(r"the chat template of 'ck' was ended: .*\d,\d{3}", found):
            sys.stdout.write(f"{seconds:.1f} s {template[:99]} {found}\n")
    sys.stdout.write("all\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_h14_a_template_that_does_not_end_is_ended() -> None:
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}  # where the tests' own modules are
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=200, env=path)
    assert (done.stdout, done.returncode) == ("all\n", 0), done.stderr


PLAIN = [
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m['content'] | trim + eos_token }}\n{% endfor %}",
    "{%- set ns = namespace(found=false, seen=[]) %}{% for m in messages if m.role != 'system' %}{% if loop.first %}"
    "{{ bos_token }}{% elif loop.last %}last {{ loop.index0 }}/{{ loop.length }}{% else %}{% continue %}{% endif %}"
    "{% set ns.seen = ns.seen + [m.role] %}{{ m.content.split('o')[-1].strip() }}{% endfor %}{{ ns.seen|join(', ') }}",
    "{% macro show(m, sep='\n') %}{{ m.role ~ ': ' ~ m.content }}{{ sep }}{% endmacro %}{% for m in messages[::-1] %}"
    "{{ show(m, sep=' | ') }}{% endfor %}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages|tojson(indent=2) }}{{ messages|map(attribute='role')|unique|list }}{{ messages[0].keys()|list }}",
    "{% generation %}{{ messages[-1].content|upper|replace('HE', 'he') }}{% endgeneration %}{{ tools is defined }}",
    "{% set x = {'a': [1, (2, 3)], 'b': 'c' in 'abc'} %}{% for k, v in x.items() %}{{ k }}={{ v }}{% endfor %}"
    "{{ '%s-%5.2f' % ('a', 1.5) }}{{ '{:>5}|{}'.format('a', 2) }}{{ 7 // 2 + 2 ** 5 % 7 - 1 }}{{ x.a[1][0] * 3 }}",
    "{{ messages|last|string|length }}"
    "{% macro m() %}<{{ caller('x') }}>{% endmacro %}{% call(y) m() %}{{ y }}{% endcall %}",
    "{% if messages[0]['role'] == 'system' %}{% set first, rest = messages[0].content, messages[1:] %}{% else %}"
    "{% set first, rest = '', messages %}{% endif %}{{ first }}{{ rest|length }}{{ none is none }}{{ missing }}",
    "{% for c in messages recursive %}{{ c.role }}{% if c.sub is defined %}{{ loop(c.sub) }}{% endif %}{% endfor %}",
    "{% filter upper %}{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{% endfor %}{% endfilter %}"
    "{{ 'a' if 1 else 2 }}",
]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("template", PLAIN)
def test_h14_other_templates_write_what_they_write_in_transformers(template: str, begun: bool) -> None:
    messages = [
        {"role": role, "content": f"hello {i}"} for i, role in enumerate(["system", "user", "assistant", "user"])
    ]
    messages += [{"role": "assistant", "content": "I think"}] if begun else []
    loaded = Loaded(template)
    try:
        expected = loaded.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
    except ValueError:
        with pytest.raises(ExampleError, match="does not take these messages"):
            render(loaded, "ck", messages)
        return
    assert render(loaded, "ck", messages) == expected


def test_h14_long_conversations_are_written() -> None:
    short = [{"role": "user", "content": "hello " * 9} for _ in range(3000)]
    assert len(render(Loaded(PLAIN[0]), "ck", short)) > 150_000
    assert len(render(Loaded(PLAIN[0]), "ck", [{"role": "user", "content": "hello " * 350_000}])) > 2_000_000


HANGING = """
import time
from dataclasses import dataclass
from pipeline_kit import Postprocessor, option

@dataclass
class Config:
    build: bool = option(False, "hang while it is built")

class Hanging(Postprocessor):
    def __init__(self, config, context):
        if config.build:
            time.sleep(600)

    def prepare(self, example):
        if "hang" in str(example):
            time.sleep(600)
        return (example,)

    def __call__(self, examples, encodings, outputs):
        return [{"label": "A", "score": 0.5} for example in examples]

def register(registry):
    registry.postprocessor("hanging", __name__ + ":Hanging", Config)
"""


def hanging(folder: Path, *more: str) -> Any:
    """Run a job of three rows, of which the second hangs while it is prepared."""
    (folder / "hanging.py").write_text(HANGING)
    given = [f"checkpoint.path={BERT}", "device=cpu", "model.linear=eager", "postprocessor=hanging", ANY, *more]
    rows = ["a", "hang", "b"]
    return run_job(*given, rows=rows, output=folder / "out", plugins=[str(folder / "hanging.py")])


def test_h14_a_row_that_hangs_while_it_is_prepared_is_ended(tmp_path: Path) -> None:
    summary = hanging(tmp_path, "runner.batch_timeout=3")
    assert (summary.written, summary.dead) == (2, 1)
    (letter,) = dead_of(tmp_path / "out")
    assert (letter["index"], letter["stage"], letter["error"]) == (1, "input", "StageTimeout")


def test_h14_loading_has_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SECONDS_TO_LOAD", 4.0)
    with pytest.raises(JobError, match=r"worker 0 did not load in 4 s; its process was ended.*runner\.batch_timeout"):
        hanging(tmp_path, "runner.batch_timeout=1", "postprocessor.build=true")


# ---- H8: numbers that are none


class Broken(EchoModel):
    """Gives `value` in the place of one number of each row that has a marked byte."""

    def __init__(self, value: float, per_token: bool = False, at_padding: bool = False) -> None:
        self.value, self.per_token, self.at_padding = value, per_token, at_padding

    def forward(self, batch: TokenBatch) -> ModelOutput:
        output = super().forward(batch)
        states = torch.ones(*batch.input_ids.shape, 2)
        marked = torch.tensor([b"!" in bytes(row) for row in batch.input_ids.tolist()])
        if self.at_padding:
            states[batch.attention_mask == 0] = self.value
        elif self.per_token:
            states[marked, 0, 1] = self.value
        else:
            output.tensors["sum"][marked] = self.value
        return ModelOutput({**output.tensors, "states": states}, frozenset({"states"}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("per_token", [False, True])
def test_h8_a_row_of_no_numbers_fails_alone_whatever_the_postprocessor_makes_of_it(
    value: float, per_token: bool
) -> None:
    texts = ["a", "bb!", "cc", "ddd", "e!"]
    model = Broken(value, per_token)
    found = list(echo(echo_config("unused"), model=model).results_or_failures(texts))
    clean = echo(echo_config("unused"))(["a", "cc", "ddd"])
    assert [found[0], found[2], found[3]] == clean
    for place in (1, 4):
        failure = found[place]
        assert isinstance(failure, RowFailure)
        assert (failure.stage, failure.error) == ("model", "ExampleError")
        assert "not all finite numbers" in failure.message


def test_h8_what_stands_at_padding_does_not_count() -> None:
    texts = ["a", "bbbbbb", "cc"]
    assert echo(echo_config("unused"), model=Broken(math.nan, at_padding=True))(texts) == echo(echo_config("unused"))(
        texts
    )


def test_h8_finite_numbers_whose_sum_overflows_are_finite() -> None:
    large = torch.full((2, 4), torch.finfo(torch.float32).max)
    batch = TokenBatch(
        torch.ones(2, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64), None, np.array([1, 1]), "right", False
    )
    check_finite(ModelOutput({"logits": large}), batch)
    check_finite(ModelOutput({"ids": torch.ones(2, dtype=torch.int64)}), batch)


TASKS: dict[str, Any] = {
    "text-classification": "?",
    "token-classification": "good ?",
    "question-answering": {"question": "good", "context": "what a ?"},
    "fill-mask": "? [MASK]",
    "zero-shot-classification": {"text": "?", "labels": ["food"]},
    "text-ranking": {"query": "good", "documents": ["?", "food"]},
    "multiple-choice": {"text": "good", "choices": ["?", "food"]},
    "sentence-embedding": "?",
    "feature-extraction": "?",
    "text-generation": "?",
    "summarization": "?",
    "translation": "?",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "zero-shot-classification": {"entailment_label": "POSITIVE", "contradiction_label": "NEGATIVE"},
    "text-ranking": {"label": "POSITIVE"},
}
KINDS = {"causal-lm": "llama", "seq2seq-lm": "t5"}


def folder_of(head: str) -> Path:
    return checkpoint(KINDS.get(head, "bert"), head=head)


def put(example: Any, word: str) -> Any:
    """Put `word` in the place of each question mark."""
    return json.loads(json.dumps(example).replace("?", word))


def spoil(pipe: Pipeline, value: float) -> None:
    """Let `value` stand in the vectors of the tokens of 'zzzz' that no other text here has."""
    plain = {number for text in ("[CLS] good food what a [MASK] I love it",) for number in ids_in(pipe, text)}
    spoiled = torch.tensor(sorted(set(ids_in(pipe, "zzzz")) - plain))

    def hook(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        if output.shape[1] > 1:  # the text, not what is written to it
            output[torch.isin(given[0], spoiled)] = value
        return output

    network: Any = pipe.model._network  # type: ignore[attr-defined]
    reader = network.get_encoder() if network.config.is_encoder_decoder else network
    reader.get_input_embeddings().register_forward_hook(hook)


def ids_in(pipe: Pipeline, text: str) -> list[int]:
    return list(pipe.tokenizer.encode([text])[0].input_ids)


@pytest.mark.parametrize("task", TASKS)
def test_h8_in_every_task(task: str) -> None:
    head, example = task_of(task).head, TASKS[task]
    model: dict[str, Any] = {"generation": {"max_new_tokens": 4}} if head in KINDS else {}
    pipe = pipeline_of(task, folder_of(head), model={"linear": "eager", **model}, **OPTIONS.get(task, {}))
    spoil(pipe, math.nan)
    found = list(pipe.results_or_failures([put(example, "food"), put(example, "zzzz"), put(example, "what")]))
    failure = found[1]
    assert isinstance(failure, RowFailure), failure
    assert (failure.stage, failure.error) == ("model", "ExampleError")
    assert "finite numbers" in failure.message
    assert not any(isinstance(outcome, RowFailure) for outcome in (found[0], found[2]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("head", sorted(KINDS))
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_h8_however_a_text_is_written(head: str, settings: dict[str, Any], value: float) -> None:
    pipe = writer(folder_of(head), "text-generation" if head == "causal-lm" else "summarization", generation=settings)
    texts = ["I love it", "zzzz", "what a food"]
    clean = pipe(texts)
    spoil(pipe, value)
    found = list(pipe.results_or_failures(texts))
    assert [found[0], found[2]] == [clean[0], clean[2]]
    assert isinstance(found[1], RowFailure)
    assert "not finite numbers" in found[1].message
    if "num_beams" not in settings:
        assert "".join(pipe.stream_text(texts[0])) == clean[0]["text"]
        with pytest.raises(RowError, match=r"row 0: model: ExampleError: .*not finite numbers"):
            list(pipe.stream_text("zzzz"))


def test_h8_tokens_that_a_network_rules_out_are_no_fault() -> None:
    class Network(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> Any:
            return SimpleNamespace(logits=logits)

    for best, fine in ((1.0, True), (-math.inf, False), (math.nan, False), (math.inf, False)):
        network, logits = Network(), torch.full((2, 3, 4), -math.inf)
        logits[:, :, 1] = 0.5
        logits[1, -1, 1] = best
        with nullcontext() if fine else pytest.raises(ExampleError), finite_scores(network, at_once=False):
            network(logits)


# ---- H18: options that no machine can have


SIZED = ["device.threads", "device.index", "runner.workers", "runner.retries", "runner.retry_delay", "input.limit"]
SIZED += ["runner.batch_timeout", "batching.max_tokens", "batching.max_rows", "batching.window", "tokenizer.max_length"]
SIZED += ["output.rows_per_shard", "padding.max_length", "padding.multiple_of", "tokenizer.max_chars", "input.skip"]
SIZED += ["tokenizer.overlap", "input.max_decompressed_bytes", "postprocessor.top_k"]
COUNTS = ("input", "postprocessor", "tokenizer.max_chars")
"""A billion is not too many: files may have as many rows, and texts as many characters."""


@pytest.mark.parametrize("value", [10**9, 10**30])
def test_h18_what_no_machine_has_is_refused_by_the_options_name(value: int) -> None:
    options = [option for option in SIZED if value > 10**9 or not option.startswith(COUNTS)]
    with pytest.raises(ConfigError) as caught:
        compose([f"{option}={value}" for option in options])
    found = {fault.key: str(fault) for fault in caught.value.faults}
    assert sorted(found) == sorted(options), "and nothing else, such as the checkpoint"
    for option, text in found.items():
        assert re.match(rf"^{option}: \S+ is out of range\.\n  allowed: ", text), text


if __name__ == "__main__":
    explode()
