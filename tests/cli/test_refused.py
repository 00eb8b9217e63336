"""Wrong words of every command: an exit code and one line that helps, before any model is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from harness import cli

import pipeline_kit.compose.python  # noqa: F401  it would keep the build of a test that is the first to import it

ROWS = '{"text": "a", "label": "POSITIVE"}\n'
USAGE = {
    "": "usage: pipeline-kit",
    "rnu": "'rnu' is not a subcommand. Did you mean 'run'?",
    "'I love it'": 'Try: pipeline-kit run --text "I love it"',
    "padding=none": "name a subcommand first, such as: pipeline-kit run padding=none",
    "--text x": "name a subcommand first, such as: pipeline-kit run --text",
    "\x1b[31m": "'\\x1b[31m' is not a subcommand",
    "ls a b": "the choices are",
    "ls padding b": "pipeline-kit ls takes no 'b'",
    "ls tokeniser": "Did you mean 'tokenizer'?",
    "show tokenizer/tokenizer_json": "Did you mean 'tokenizers_json'?",
    "show tokeniser/hf": "Did you mean 'tokenizer/hf'?",
    "completion bahs": "Did you mean 'bash'?",
    "validate --cfg job": "use: pipeline-kit cfg",
    "validate -p model": "--package says how",
    "cfg --cfg hydra": "--cfg hydra: the choices are job",
    "run --text": "--text: expected one argument",
    "run --txt a": "unknown flag '--txt'. Did you mean '--text'?",
    "run --tex=a": "unknown flag '--tex'. Did you mean '--text'?",
    "run -z": "unknown flag '-z'",
    "run --info searchpath": "--info does not work here; use: pipeline-kit ls",
    "run -cp x": "-cp does not work here; use --config-dir",
    "run --shell-completion": "use: pipeline-kit completion",
    "run 'I love it'": 'Did you forget --text "I love it"?',
    "run ner": "Did you mean task=ner?",
    "run ./my-model": "Did you mean checkpoint=./my-model?",
    "ner": "Try: pipeline-kit run task=ner",
    "run ''": "an empty word is neither",
    "cfg tokenizer.max_length = 64": "write KEY=VALUE without spaces",
    "cfg tokenizer.max_length= 64": "write KEY=VALUE without spaces",
    "cfg tokenizer.max_length: 64": "write tokenizer.max_length=VALUE",
    "cfg --config a.yaml --config b.yaml": "one config is the start",
    "cfg postprocessor.top_k=None": "write postprocessor.top_k=null for no value",
    "run mine.yaml": "Did you forget --config mine.yaml?",
    "run rows.csv": "Did you forget --input rows.csv?",
    "run --config none.yaml": "--config none.yaml: pass a YAML file that is there",
    "run --config a.yaml -cn b": "both name the config",
    "run --text a padding=lngest": "padding=lngest: no such option. Did you mean 'longest'?",
    "run --json {": "--json: not JSON",
    "run --json [1]": "a JSON example is a string or an object, not a list",
    "run --input none.txt": "none.txt: cannot be read",
    "run --input a.txt --input none.csv": "none.csv: cannot be read",
    "run --input-format jsnl --text a": "Did you mean 'jsonl'?",
    "run --fields text --text a": "write FIELD=COLUMN",
    "run --fields te.xt=a --text a": "write FIELD=COLUMN",
    "run --fields txt=a --text a": "the fields are text, text_pair. Did you mean 'text'?",
    "run --resolve --text a": "--resolve says how to print a config",
    "run --format xml --text a": "the choices are jsonl, table, csv, parquet",
    "run --format parqet --text a": "Did you mean 'parquet'?",
    "run --format csv --text a": "--format csv is for files: pass --output FILE.csv",
    "run --format table --output x.jsonl --text a": "--output writes jsonl",
    "run --format table --output x --text a": "a folder holds jsonl, csv or parquet",
    "run --restart --text a": "are for jobs: pass --output DIR",
    "run --output x.tsv --text a": "name the file .jsonl, .csv",
    "run --output x/ --text a --input a.txt": "takes --input, or --text and --json, not both",
    "run --output x/ --text a --quiet --log-json": "pass one of the two",
    "run --input - --input -": "stdin is read once",
    "bench --vs transformer": "Did you mean 'transformers'?",
    "bench --vs transformers:0": "--vs transformers:0: write transformers, or transformers:8",
    "bench --vs transformers:x": "write transformers, or transformers:8",
    "bench --vs 'padding=\"none'": "No closing quotation",
    "bench --vs paddin=none": "Did you mean 'padding'?",
    "bench --vs task=question-answering": "takes question, context, the first pipeline text, text_pair?",
    "bench -m padding=none,longest --vs padding=none": "-m runs several pipelines already",
    "bench --sample shrt": "--sample shrt: the choices are short, mixed, long. Did you mean 'short'?",
    "bench --sample short --text a": "--sample is for want of texts",
    "bench --fields text=a": "--fields and --input-format say how to read --input FILE",
    "bench --rows 0": "--rows 0: pass 1 to 1,000,000 texts",
    "bench --rows x": "invalid int value",
    "bench --repeats 0": "--repeats 0: pass 1 to 1000 rounds",
    "bench --format xml": "--format xml: the choices are jsonl, table",
    "bench --plot a.svg": "--plot a.svg: the plot is a PNG",
    "bench --plot not/there/a.png": "there is no folder not/there",
    "bench --input not_there.txt": "not_there.txt",
    "bench --package model": "--package says how to print a config",
    "bench word": "'word' is neither a flag nor an override",
    "tune --minutes 0": "--minutes 0: pass more than 0",
    "tune --minutes nan": "--minutes nan",
    "tune --repeats 0": "--repeats 0: pass 1 to 100",
    "tune --min-agreement 99": "--min-agreement 99: pass a share, 0 to 1",
    "tune --min-agreement nan": "--min-agreement nan",
    "tune --tolerance -1": "--tolerance -1: pass 0 or more",
    "tune --tolerance nan": "--tolerance nan",
    "tune --force": "there is no --save",
    "tune --save tuned.yml": "a config is a .yaml file",
    "tune -m padding=longest,none": "tune takes one",
    "tune --sample shrt": "Did you mean 'short'?",
    "tune --tolerence 1": "Did you mean '--tolerance'?",
    "tune task=sumarization": "Did you mean 'summarization'?",
    "explain --text x --format jsno": "Did you mean 'json'?",
    "explain --text x --vs padding": "write overrides (key=value)",
    'explain --text x --vs "\'padding=none"': "No closing quotation",
    "explain --text x --vs task=question-answering": "both have to take the same texts",
    "explain --text x --vs padding=longst": "longest",
    "explain --text x -m padding=longest,none": "--vs OVERRIDES",
    "explain --text x --htm f": "Did you mean '--html'?",
    "evaluate": "nothing to evaluate on",
    "evaluate --input a.txt": "a line of text has no label; say --input-format jsonl, csv, tsv",
    "evaluate --input a.jsonl input.format=text": "a line of text has no label",
    "evaluate --input -": "stdin: say --input-format",
    "evaluate --input missing.jsonl": "missing.jsonl",
    "evaluate --input a.jsonl --threshold 2": "--threshold 2: pass a score from 0 to 1",
    "evaluate --input a.jsonl --save a.csv": "name the file .jsonl",
    "evaluate --input a.jsonl --label x --fields label=y": "pass one",
    "evaluate --input a.jsonl --fields txt=y": "Did you mean 'text'?",
    "evaluate --input a.jsonl --labels-map a": "write LABEL=NAME",
    "evaluate --input a.jsonl task=feature-extraction": "task 'feature-extraction' cannot be evaluated",
    "evaluate --input a.jsonl --lable x": "Did you mean '--label'?",
    "evaluate --input a.jsonl a.jsonl": "neither a flag nor an override",
    "evaluate --input a.jsonl --resolve": "--cfg job",
    "evaluate --input a.jsonl input.carry=[text]": "--save keeps each row's id",
    "evaluate --input a.jsonl input.id=txt": "Did you mean 'text'?",
    "evaluate --input a.jsonl input.fields.txet=label": "Did you mean 'text'?",
    "evaluate --input a.jsonl input.limit=0": "the input has no row to evaluate",
    "new-plugin tokeniser x": "Did you mean 'tokenizer'?",
    "new-plugin stage x": "the choices are tokenizer, model, postprocessor",
    "new-plugin model My-Model": "Try 'my_model'",
    "new-plugin model 1st": "cannot be a stage's name",
    "new-plugin model a__b": "Try 'a_b'",
    "new-plugin model ''": "cannot be a stage's name",
    "new-plugin model ../x": "Try 'x'",
    f"new-plugin model {'x' * 33}": "at most 32",
    "new-plugin model caf\u00e9": "cannot be a stage's name",
    "new-plugin model class": "keyword of Python",
    "new-plugin model hf": "built in already",
    "new-plugin postprocessor all_labels": "built in already",
}
"""What is wrong with the words, so exit code 2, and part of what is said about it."""
FAILED = {
    "run --text a --output none/x.jsonl": "is there a folder",
    "bench --output none/report.json": "is there a folder",
    "tune --save nowhere/tuned.yaml": "there is no folder 'nowhere'",
    "explain --text Good --html none/page.html": "is there a folder",
}
"""What cannot be done here, so exit code 1."""


@pytest.mark.parametrize(
    ("words", "code", "message"), [(w, 2, m) for w, m in USAGE.items()] + [(w, 1, m) for w, m in FAILED.items()]
)
def test_wrong_words_are_refused_before_a_model_is_loaded(
    words: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_kit.compose.build.build", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text(ROWS)
    done = cli(*shlex.split(words))
    assert message in done.err
    assert (done.code, done.out, "Traceback" in done.err) == (code, "", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.txt"]
