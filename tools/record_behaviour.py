"""Record what 200 commands print, return and write, and compare two such records.

    python tools/record_behaviour.py record FILE     run the commands and write FILE
    python tools/record_behaviour.py compare A B     print every difference; exit code 1 if there is one

A record holds, for each command: the exit code, the SHA-256 of stdout, stderr with times and paths replaced, and the
SHA-256 of every file that the command wrote. Record before a change that should not change behaviour, and after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

TEXTS = ["I love this.", "I hate this so much!", "", "naïve café 😀", "שלום עולם", "a b c d e f g h i j k l m n o p"]
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "text-classification": {},
    "token-classification": {"head": "token-classification", "labels": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")},
    "question-answering": {"head": "question-answering"},
    "fill-mask": {"head": "masked-lm"},
    "zero-shot-classification": {"labels": ("contradiction", "neutral", "entailment")},
    "multiple-choice": {"head": "multiple-choice"},
    "text-ranking": {"labels": ("score",)},
    "feature-extraction": {"head": "base"},
    "sentence-embedding": {"head": "base"},
    "text-generation": {"architecture": "gpt2", "head": "causal-lm"},
}


def write_inputs(folder: Path) -> None:
    """Write the input files that the commands name, with a bad row in each format that can have one."""
    rows = [{"id": f"r{i}", "text": text, "stars": i} for i, text in enumerate(TEXTS)]
    lines = [json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join([*lines, "{broken", ""]), encoding="utf-8")
    (folder / "good.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    (folder / "rows.txt").write_text("\n".join([text for text in TEXTS if text]) + "\n", encoding="utf-8")
    cells = [f'{row["id"]},"{row["text"]}",{row["stars"]}' for row in rows]
    (folder / "rows.csv").write_text("\n".join(["id,text,stars", *cells, ""]), encoding="utf-8")
    gold = [json.dumps({"text": text, "label": "POSITIVE"}) for text in TEXTS]
    (folder / "gold.jsonl").write_text("\n".join([*gold, ""]), encoding="utf-8")


def commands() -> list[list[str]]:
    """Return the corpus: every subcommand, format, policy and common mistake."""
    text = ["--text", "I love this.", "--text", "I hate this so much!"]
    found: list[list[str]] = [["run", *text]]
    stages = ["tokenizer=hf", "tokenizer=tokenizers_json", "padding=none", "padding=max_length", "padding=multiple_of"]
    stages += ["batching=fixed", "postprocessor=logits", "postprocessor.top_k=null", "postprocessor.function=sigmoid"]
    stages += ["tokenizer.max_length=4", "tokenizer.max_length=4 tokenizer.overflow=window", "device.threads=1"]
    found += [["run", *words.split(), *text] for words in stages]
    found += [["run", "--format", name, *text] for name in ("jsonl", "table", "csv", "parquet", "nonsense")]
    choices = ["", "input.id=id", "input.carry=[stars]", "input.skip=1 input.limit=2", "input.fields.text=text"]
    choices.append("input.shard=0/2")
    for source, options in itertools.product(("rows.jsonl", "good.jsonl", "rows.txt", "rows.csv"), choices):
        found.append(["run", "--input", source, "--output", "out.jsonl", *options.split()])
        found.append(["run", "--input", source, "--output", "job/", "job.max_failed_rows=9", *options.split()])
    for name in ("csv", "parquet", "jsonl"):
        found.append(["run", "--input", "good.jsonl", "--output", f"out.{name}"])
        found.append(["run", "--input", "good.jsonl", "--output", "job/", f"output.format={name}"])
        found.append(["run", "--input", "good.jsonl", "--output", "job/", "output.rows_per_shard=2", "--format", name])
    sweep = ["run", "-m", "padding=longest,none", *text]
    found += [sweep, [*sweep, "--output", "o.jsonl"]]
    found += [["run", "task=sentence-embedding", *text], ["run", "task=feature-extraction", *text]]
    found += [["run", "checkpoint=tiny_static", "model=static", "tokenizer=tokenizers_json", *text]]
    kinds = ("tokenizer", "model", "postprocessor", "task", "padding", "nonsense")
    found += [["ls"], *(["ls", kind] for kind in kinds)]
    shown = "tokenizer/hf tokenizer/tokenizers_json model/hf model/generate model/static padding input"
    shown += " postprocessor/classification postprocessor/answers postprocessor/entities task nonsense job"
    shown += " postprocessor/pooling postprocessor/zero_shot output runner device batching checkpoint"
    found += [["show", name] for name in shown.split()]
    found += [["cfg", *words.split()] for words in ("", "padding=none", "task=ner", "--package padding", "nonsense=1")]
    found += [["validate"], ["validate", "padding.max_length=-5"]]
    found += [["validate", "tokenizer.max_lenght=5", "padding=nope"]]
    mistakes = "padding=longes tokenizer.max_length=abc tokenizer._target_=os.system a=${oc.env:HOME} x = +"
    mistakes += " hydra.run.dir=x checkpoint.path=/nowhere task=nonsense device=gpu model.dtype=float99 ~padding"
    mistakes += " padding.max_length=999999999 job.max_failed_rows=-1 input.fields.nope=x postprocessor.top_k=0"
    found += [["run", word, *text] for word in mistakes.split()]
    found += [["run"], ["run", "--text"], ["run", "--nonsense"], ["run", "--output", "x.xyz", *text]]
    found += [["run", "--json", row] for row in ("{}", "{", '{"text": 5}')]
    wrong = ("--input none.csv", "--input rows.csv --fields text=nope", "--input-format xml --input rows.csv")
    found += [["run", *words.split()] for words in wrong]
    found += [["run", flag, *text] for flag in ("--restart", "--log-json", "--stream")]
    found += [[word] for word in ("nonsense", "--version", "--help", "help", "")]
    names = "run explain bench evaluate tune ls show cfg validate doctor new-plugin completion"
    found += [[name, "--help"] for name in names.split()]
    found += [["explain", "--text", "I love this.", "--format", name] for name in ("json", "text", "nonsense")]
    found += [["explain", "--text", "I love this."], ["explain", "--text", "a", "--vs", "padding=none"], ["explain"]]
    found += [["evaluate", "--input", "gold.jsonl"], ["evaluate", "--input", "gold.jsonl", "--json"], ["evaluate"]]
    found += [["completion", shell] for shell in ("bash", "zsh", "fish", "nonsense")]
    found += [["new-plugin", kind, "mine"] for kind in ("tokenizer", "nonsense")]
    found += task_commands()
    return found


def task_commands() -> list[list[str]]:
    """Return a run of each task on a tiny checkpoint, as JSON lines and as a job."""
    examples: dict[str, dict[str, Any]] = {
        "text-classification": {"text": "I love this."},
        "token-classification": {"text": "Anna lives in Paris."},
        "question-answering": {"question": "Who lives in Paris?", "context": "Anna lives in Paris."},
        "fill-mask": {"text": "I [MASK] this."},
        "zero-shot-classification": {"text": "I love this.", "labels": ["sport", "film"]},
        "multiple-choice": {"text": "I am", "choices": ["here", "there"]},
        "text-ranking": {"query": "who", "documents": ["Anna", "Bob lives here"]},
        "feature-extraction": {"text": "I love this."},
        "sentence-embedding": {"text": "I love this."},
        "text-generation": {"text": "I love"},
    }
    found = []
    for task, example in examples.items():
        words = [f"task={task}", f"checkpoint.path=tiny/{task}", "--json", json.dumps(example)]
        found += [["run", *words], ["run", *words, "--output", "job/"], ["explain", *words, "--format", "json"]]
    return found


def tiny_checkpoints(folder: Path) -> None:
    """Write a tiny checkpoint for each task."""
    from pipeline_kit.testing import tiny_checkpoint

    for task, options in CHECKPOINTS.items():
        tiny_checkpoint(folder / task, **options)


def run_one(words: list[str], folder: Path) -> dict[str, Any]:
    """Run one command in `folder` and describe what it did."""
    from pipeline_kit.cli import main

    before = {path for path in folder.rglob("*") if path.is_file()}
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = main(words)
        except SystemExit as stop:
            code = f"SystemExit {stop.code}"
    out.flush()
    text = out.buffer.getvalue()  # type: ignore[attr-defined]
    written = sorted({path for path in folder.rglob("*") if path.is_file()} - before)
    files = {path.relative_to(folder).as_posix(): digest(path) for path in written}
    for path in written:
        path.unlink()
    for name in ("job", "mine"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("pipeline-kit-*"):
        shutil.rmtree(path)
    shown = plain(text.decode("utf-8"), folder)
    return {"code": code, "stdout": shown, "stderr": plain(err.getvalue(), folder), "files": files}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a manifest or receipt, only its keys, since it holds times and versions."""
    content = path.read_bytes()
    if path.name == "_manifest.json" or path.parent.name == "_receipts":
        content = json.dumps(sorted(json.loads(content))).encode()
    return "" if path.name == "_lock" else hashlib.sha256(content).hexdigest()


def plain(text: str, folder: Path) -> str:
    """Replace what differs from run to run: times, speeds, the folder's path, memory addresses."""
    text = text.replace(str(folder), "FOLDER")
    text = re.sub(r"\b[\d,]+(\.\d+)?( ?)(ms|s|rows/s|tokens/s|MB|GB|%)(?!\w)", r"N\2\3", text)
    text = re.sub(r'("seconds"|"milliseconds"): [\d.e-]+', r"\1: N", text)
    return re.sub(r"0x[0-9a-f]+", "0xN", text)


def record(file: Path) -> None:
    """Run the corpus and write the record to `file`."""
    file = file.resolve()
    os.environ["PIPELINE_KIT_PLUGINS"] = ""
    os.environ["COLUMNS"] = "120"
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.chdir(folder)
        write_inputs(folder)
        tiny_checkpoints(folder / "tiny")
        for number, words in enumerate(commands()):
            found[f"{number:03} {' '.join(words)}"] = run_one(words, folder)
            print(f"{number:03} {' '.join(words)[:100]}", file=sys.stderr)
        os.chdir("/")
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(found)} commands in {file}", file=sys.stderr)


def compare(left: Path, right: Path) -> int:
    """Print the commands whose records differ; return 1 if there is one."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (left, right))
    different = 0
    for command in sorted({*before, *after}):
        one, two = before.get(command), after.get(command)
        if one == two:
            continue
        different += 1
        print(f"== {command}")
        for key in ("code", "stdout", "stderr", "files"):
            if one is None or two is None:
                print("   only in one of the records")
                break
            if one[key] != two[key]:
                print(f"   {key}: {str(one[key])[:1500]}\n   {' ' * len(key)}  {str(two[key])[:1500]}")
    print(f"{different} of {len({*before, *after})} differ")
    return 1 if different else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"] and len(sys.argv) == 3:
        record(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["compare"] and len(sys.argv) == 4:
        sys.exit(compare(Path(sys.argv[2]), Path(sys.argv[3])))
    else:
        sys.exit(__doc__)
