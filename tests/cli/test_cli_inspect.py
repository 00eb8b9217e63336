"""The subcommands that tell: ls, show, cfg, validate, doctor, completion, --version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_plugins import ROOT
from harness import Done, cli

from pipeline_kit import __version__
from pipeline_kit.cli.commands import doctor
from pipeline_kit.cli.commands.completion import completions
from pipeline_kit.cli.commands.doctor import Finding
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.overrides import options
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import GROUPS
from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import Fault

PLUGIN = """
from dataclasses import dataclass

from pipeline_kit import option


@dataclass
class Config:
    words: list[str] = option([], "words to look for", least=1)
    level: float = option(0.5, "how much", minimum=0)


def register(registry):
    registry.postprocessor("keyword", "nowhere.stage:Keyword", Config, summary="score words")
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "keyword_plugin.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with a preset and a whole config."""
    conf = tmp_path / "conf"
    (conf / "tokenizer").mkdir(parents=True)
    (conf / "tokenizer" / "short.yaml").write_text(
        "# what: short texts\ndefaults:\n  - hf\n  - _self_\nmax_length: 16\n"
    )
    (conf / "mine.yaml").write_text("defaults:\n  - config\n  - override tokenizer: short\n  - _self_\n")
    return conf


def ran(*argv: object, code: int = 0) -> str:
    """Run and return stdout of a success, stderr of a failure."""
    done = cli(*argv)
    assert done.code == code, done.err
    assert not (code and done.out)
    return done.err if code else done.out


def as_json(*argv: object) -> Any:
    return json.loads(ran(*argv, "--json"))


def test_what_only_lists_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline_kit.cli import main; main(['--version']); main(['ls']);"
        "listed = [m for m in ('torch', 'transformers', 'rich') if m in sys.modules];"
        "main(['__complete', 'pipeline-kit run padding=no']); print(listed, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, *listed, completed = done.stdout.splitlines()
    assert version.startswith(f"pipeline-kit {__version__} (python 3.")
    assert "torch 2." in version
    assert any("tokenizer" in line for line in listed)
    assert completed == "padding=none"
    assert done.stderr.strip() == "[] False"


def test_ls_names_stages_and_presets_with_their_source(plugin: str, folder: Path) -> None:
    text = ran("ls", "--plugin", plugin, "--config-dir", str(folder))
    rows = [line.split() for line in text.splitlines()]
    assert ["postprocessor", "keyword", "score", "words", f"[{plugin}]"] in rows
    assert ["tokenizer", "short", "short", "texts", f"[{folder}]"] in rows
    assert "pipeline-kit]" not in text
    assert {row[0] for row in rows if row} - {"KIND", "GROUP"} == {
        *GROUPS,
        "input_format",
        "output_format",
        "scheme",
    }


@pytest.mark.parametrize("width", [80, 120])
def test_lists_are_folded_inside_their_columns(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("pipeline_kit.cli.tables.is_terminal", lambda stream: True)
    for words in (["ls"], ["ls", "task"], ["show", "tokenizer"]):
        lines = ran(*words).splitlines()
        assert max(map(len, lines)) <= width
        names = {line[: line.index("SUMMARY")].split()[-1] for line in lines if "SUMMARY" in line}
        assert names
    lines = ran("ls", "task").splitlines()
    begin = lines[0].index("SUMMARY")
    assert all(line[begin - 2 : begin] in ("  ", "") for line in lines)
    assert {line.split()[1] for line in lines if line.startswith("task ")} == set(options(load_registry())["task"])
    summaries = " ".join(" ".join(line[begin:] for line in lines).split())
    assert "The best of several choices for a text." in summaries
    shown = ran("show", "tokenizer/hf").partition("\nyaml")[0].splitlines()
    assert max(map(len, shown)) <= width


def test_help_shows_what_is_often_needed_and_help_config_the_rest() -> None:
    common, rare = ran("run", "--help"), ran("run", "--help-config")
    for flag in ("--text", "--input", "--output", "--config FILE", "--multirun", "--help-config"):
        assert f"\n  {flag}" in common
        assert f"\n  {flag}" not in rare
    for flag in ("--config-name", "--config-dir", "--plugin", "--cfg", "--package", "--resolve"):
        assert f"\n  {flag}" in rare
        assert f"\n  {flag}" not in common


def test_ls_of_one_kind() -> None:
    found = as_json("ls", "padding")
    assert {stage["name"] for stage in found["stages"]} == {"longest", "max_length", "multiple_of", "none"}
    assert found["presets"] == []


def test_ls_task_tells_what_each_takes_and_gives() -> None:
    tasks = {task["name"]: task for task in as_json("ls", "task")["stages"]}
    assert tasks["question-answering"]["takes"] == "question, context"
    assert tasks["text-classification"]["gives"] == "label, score, labels?"
    for alias, name in (("sentiment-analysis", "text-classification"), ("ner", "token-classification")):
        assert [tasks[alias][key] for key in ("takes", "gives")] == [tasks[name][key] for key in ("takes", "gives")]
    assert all(task["takes"] and task["gives"] for task in tasks.values())


def test_a_broken_plugin_is_a_warning_in_ls_and_a_fault_for_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_registry()
    registry.failed["sad (pk-sad 0.1)"] = ImportError("no module named 'tears'")
    monkeypatch.setattr("pipeline_kit.cli.commands.inspect.load_registry", lambda *_, **__: registry)
    assert "warning: plugin sad (pk-sad 0.1) failed to load: ImportError: no module" in cli("ls").err
    (finding,) = doctor.plugins(registry)
    assert finding.level == "fail"


def test_show_a_stage(plugin: str, folder: Path) -> None:
    text = ran("show", "postprocessor/keyword", "--plugin", plugin)
    assert "postprocessor/keyword: score words" in text
    assert "nowhere.stage:Keyword" in text
    assert ["level", "float", "0.5", "how", "much"] in [line.split() for line in text.splitlines()]
    found = as_json("show", "tokenizer/hf", "--config-dir", str(folder))
    assert "short" in found["presets"]
    assert {"name", "type", "default", "help"} == set(found["options"][0])


def test_what_show_prints_can_be_used(tmp_path: Path) -> None:
    for spec in (spec for spec in load_registry().specs() if spec.kind in GROUPS):
        name = spec.detail.name if spec.kind == "task" else spec.name
        shown = as_json("show", f"{spec.kind}/{spec.name}")
        if spec.kind.endswith("_format"):
            assert shown["run"].endswith(f"FILE.{spec.name}")
            continue
        overrides = [word for word in shown["run"].split() if "=" in word]
        assert {word.partition("=")[0].partition(".")[0] for word in overrides} <= set(GROUPS), overrides
        if spec.kind != "task":
            data, faults = yaml.safe_load(shown["yaml"]), list[Fault]()
            assert data.pop("defaults") == [name, "_self_"]
            parse_options(spec.config, data, spec.kind, faults)
            assert faults == [], spec.name
        if (tmp_path / spec.kind).exists():
            continue  # Hydra is slow, and the files of a kind are written by the same lines
        (tmp_path / spec.kind).mkdir()
        (tmp_path / spec.kind / "mine.yaml").write_text(shown["yaml"])
        assert compose([f"{spec.kind}=mine"], config_dir=[tmp_path]).data[spec.kind]["name"] == name
        assert compose(overrides).data[spec.kind]["name"] == name


@pytest.mark.parametrize(
    "what", ["checkpoint/tiny_sentiment", "task/text-classification", "padding/none", "device=cpu"]
)
def test_show_a_preset(what: str) -> None:
    found = as_json("show", what)
    assert found["yaml"].startswith("#")
    assert found["run"].startswith("pipeline-kit run ")
    text = ran("show", what)
    assert found["yaml"].splitlines()[-1] in text


def test_show_finds_a_name_in_every_kind() -> None:
    assert ran("show", "ner").startswith("task/ner: ")
    assert as_json("show", "bert_ner")["kind"] == "checkpoint"
    rows = [line.split()[:2] for line in ran("show", "hf").splitlines()[1:]]
    assert rows == [["model", "hf"], ["tokenizer", "hf"]]
    assert "Did you mean 'postprocessor/classification'?" in ran("show", "clasification", code=2)
    assert "Did you mean" not in ran("show", "nothing_like_it", code=2)


def test_show_a_group() -> None:
    found = as_json("show", "padding")
    assert {option["name"] for option in found["options"]} >= {"name", "max_length", "side"}
    assert "max_length" in found["presets"]
    assert "tokenizers_json" in ran("show", "tokenizer")
    for group in GROUPS:
        ran("show", group)


def test_cfg_prints_what_was_composed(folder: Path) -> None:
    text = ran("cfg", "padding=none", "--config-dir", str(folder), "-cn", "mine.yaml", "batching.max_tokens=77")
    found = yaml.safe_load(text)
    assert set(found) == set(GROUPS) - {"input_format", "output_format", "steps"}
    assert (found["padding"]["name"], found["tokenizer"]["max_length"], found["batching"]["max_tokens"]) == (
        "none",
        16,
        77,
    )
    assert text == ran(
        "run", "padding=none", "--config", str(folder / "mine.yaml"), "--cfg", "job", "batching.max_tokens=77"
    )
    assert ran("cfg", "-p", "tokenizer.name") == "hf\n"
    assert yaml.safe_load(ran("cfg", "-p", "padding"))["name"] == "longest"


def test_cfg_of_a_sweep() -> None:
    text = ran("cfg", "-m", "padding=longest,none", "device.threads=range(1,3)", "-p", "padding")
    documents = list(yaml.safe_load_all(text))
    assert [document["name"] for document in documents] == ["longest", "longest", "none", "none"]
    assert "# padding=none device.threads=2" in text


def test_validate(folder: Path) -> None:
    assert ran("validate") == "ok\n"
    assert ran("validate", str(folder / "mine.yaml"), "padding=none") == "ok\n"
    assert ran("validate", "-m", "padding=none,longest") == "ok padding=none\nok padding=longest\n"


def test_validate_tells_every_fault_at_once(folder: Path) -> None:
    (folder / "tokenizer" / "short.yaml").write_text("defaults:\n  - hf\n  - _self_\nmax_lenght: 16\n")
    text = ran("validate", str(folder / "mine.yaml"), "device.threads=-1", "postprocesor.top_k=2", code=2)
    for part in ("tokenizer.max_lenght", "'max_length'", "device.threads", "out of range", "'postprocessor'"):
        assert part in text
    assert text.count("error: ") == 3
    assert "Traceback" not in text


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline_kit", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'nothing' is not a subcommand.")


def test_doctor_reports_versions_processor_and_clashes(folder: Path, tmp_path: Path) -> None:
    found = {finding.topic: finding for finding in doctor.versions()}
    assert found["torch"].level == found["python"].level == "ok"
    assert ">=2.10" in found["torch"].text
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags : fpu avx2 amx_tile\n")
    (cpu,) = doctor.processor(info)
    assert "avx2 amx_tile" in cpu.text
    (cpu,) = doctor.processor(tmp_path / "none")
    assert cpu.level == "ok"
    registry = load_registry()
    (fine,) = doctor.doubled(registry, [str(folder)])
    assert fine.level == "ok"
    (folder / "tokenizer" / "hf.yaml").write_text("name: hf\n")
    (clash,) = doctor.doubled(registry, [str(folder)])
    assert clash.level == "fail"
    assert "tokenizer=hf is there 2 times: pipeline-kit (a stage)" in clash.text


def test_doctor_fails_when_a_floor_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: ["torch>=99", "not-there-at-all>=1"])
    levels = {finding.topic: finding.level for finding in doctor.versions()}
    assert (levels["torch"], levels["not-there-at-all"]) == ("fail", "fail")


@pytest.mark.parametrize("level", ["ok", "note", "fail"])
def test_doctors_exit_code(level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding(level, "answer", "so it is")
    monkeypatch.setattr(doctor, "answers", lambda registry: [finding])
    done = cli("doctor")
    assert done.code == (1 if level == "fail" else 0)
    assert f"{level:<4}  answer          so it is" in done.out


def test_completion_candidates() -> None:
    for line, expected in {
        "r": ["run"],
        "tu": ["tune"],
        "ev": ["evaluate"],
        "run pad": ["padding.", "padding="],
        "run -q padding=no": ["padding=none"],
        "run a=1 --quiet padding=no": ["padding=none"],
        "run --text padding=no": [],
        "run tokenizer.over": ["tokenizer.overflow=", "tokenizer.overlap="],
        "run tokenizer.overflow=w": ["tokenizer.overflow=window"],
        "run --te": ["--text"],
        "run --format t": ["table"],
        "run --format p": ["parquet"],
        "run --input-format c": ["csv"],
        f"run --plugin {ROOT / 'tests' / 'policy_plugin.py'} --input-format ver": ["verse"],
        f"run --plugin {ROOT / 'tests' / 'policy_plugin.py'} --format ver": ["verse"],
        "explain --vi": ["--view"],
        "explain padding=lon": ["padding=longest"],
        "evaluate --la": ["--label", "--labels-map"],
        "evaluate padding=l": ["padding=longest"],
        "tune --min": ["--min-agreement", "--minutes"],
        "tune --sample s": ["short"],
        "bench --vs t": ["transformers", "transformers:8"],
        "tune model=h": ["model=hf"],
        "show padding/m": ["padding/max_length", "padding/multiple_of"],
        "ls tok": ["tokenizer"],
        "completion z": ["zsh"],
        "nothing x": [],
    }.items():
        assert completions(f"pipeline-kit {line}") == expected, line


def test_every_command_that_composes_has_help_and_prints_its_config() -> None:
    for command in ("run", "explain", "bench", "evaluate", "tune"):
        assert ran(command, "--cfg", "job", "--package", "padding.name", "padding=none") == "none\n"
        assert "examples:" in ran(command, "--help")


def test_completion_of_nonsense_is_silent() -> None:
    assert cli("__complete", "pipeline-kit run --nonsense --config x ") == Done(0, "", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_bash_script_completes(tmp_path: Path) -> None:
    program = tmp_path / "pipeline-kit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline_kit "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(pipeline-kit completion bash)"
        COMP_LINE="pipeline-kit run padding=m"; COMP_POINT=${#COMP_LINE}
        COMP_WORDS=(pipeline-kit run padding = m); COMP_CWORD=4
        compopt() { :; }
        _pipeline_kit
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["max_length", "multiple_of"]
    assert done.stderr == ""


def test_completion_of_another_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "__complete" in ran("completion", shell)


def test_doctor_checks_a_store(tmp_path: Path) -> None:
    done = cli("doctor", "--storage", "memory://doctor/out")
    assert done.code == 0
    assert [line.split()[1] for line in done.out.splitlines()] == [
        "obstore",
        "fsspec",
        "access",
        "put-if-absent",
        "swap",
        "clock",
    ]
    done = cli("doctor", "--storage", f"file://{tmp_path}")
    assert (done.code, "note  writing" in done.out) == (0, True)
    done = cli("doctor", "--storage", "s33://b/out")
    assert done.code == 1
    assert "fail  access          s33://: no storage has this scheme. Did you mean 's3'?" in done.out
