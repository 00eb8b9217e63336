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

from pipeline_kit import __version__
from pipeline_kit.cli.app import main
from pipeline_kit.cli.commands import doctor as doctor_config
from pipeline_kit.cli.commands import doctor as doctor_machine
from pipeline_kit.cli.commands.complete import completions
from pipeline_kit.cli.commands.doctor import Finding
from pipeline_kit.cli.presets import GROUPS
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry

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


def ran(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """Run and give stdout of a success, stderr of a failure."""
    got = main(argv)
    printed = capsys.readouterr()
    assert got == code, printed.err
    if code:
        assert printed.out == ""
    return printed.err if code else printed.out


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(ran(capsys, *argv, "--json"))


def test_ls_names_stages_and_presets_with_their_source(
    capsys: pytest.CaptureFixture[str], plugin: str, folder: Path
) -> None:
    text = ran(capsys, "ls", "--plugin", plugin, "--config-dir", str(folder))
    rows = [line.split() for line in text.splitlines()]
    assert ["tokenizer", "hf", "pipeline-kit"] in [row[:3] for row in rows]
    assert ["postprocessor", "keyword", plugin, "score", "words"] in rows
    assert ["tokenizer", "short", str(folder), "short", "texts"] in rows
    assert {row[0] for row in rows if row} - {"KIND", "GROUP"} == set(GROUPS)


def test_ls_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "ls", "padding")
    assert found["stages"] == []
    assert {preset["name"] for preset in found["presets"]} == {"longest", "max_length", "multiple_of", "none"}
    assert "Did you mean 'tokenizer'?" in ran(capsys, "ls", "tokeniser", code=2)


def test_ls_task_tells_what_each_takes_and_gives(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {preset["name"]: preset for preset in as_json(capsys, "ls", "task")["presets"]}
    assert tasks["question-answering"]["takes"] == "question, context"
    assert tasks["text-classification"]["gives"] == "label, score, labels?"
    for alias, name in (("sentiment-analysis", "text-classification"), ("ner", "token-classification")):
        assert [tasks[alias][key] for key in ("takes", "gives")] == [tasks[name][key] for key in ("takes", "gives")]
    assert all(preset["takes"] and preset["gives"] for preset in tasks.values())


def test_ls_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline_kit.cli import main; main(['ls']);"
        "print([m for m in ('torch', 'transformers', 'rich', 'numpy.random') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "tokenizer" in done.stdout


def test_a_broken_plugin_is_a_warning_in_ls_and_a_fault_for_the_doctor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load_registry()
    registry.failed["sad (pk-sad 0.1)"] = ImportError("no module named 'tears'")
    monkeypatch.setattr("pipeline_kit.cli.commands.ls.load_registry", lambda *_, **__: registry)
    assert main(["ls"]) == 0
    assert "warning: plugin sad (pk-sad 0.1) failed to load: ImportError: no module" in capsys.readouterr().err
    (finding,) = doctor_config.plugins(registry)
    assert finding.level == "fail"


def test_show_a_stage(capsys: pytest.CaptureFixture[str], plugin: str, folder: Path) -> None:
    text = ran(capsys, "show", "postprocessor/keyword", "--plugin", plugin)
    assert "postprocessor/keyword: score words" in text
    assert "nowhere.stage:Keyword" in text
    assert ["level", "float", "0.5", "how", "much"] in [line.split() for line in text.splitlines()]
    found = as_json(capsys, "show", "tokenizer/hf", "--config-dir", str(folder))
    assert "short" in found["presets"]
    assert {"name", "type", "default", "help"} == set(found["options"][0])


def test_what_show_prints_can_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for spec in load_registry().specs():
        shown = as_json(capsys, "show", f"{spec.kind}/{spec.name}")
        (tmp_path / spec.kind).mkdir(exist_ok=True)
        (tmp_path / spec.kind / "mine.yaml").write_text(shown["yaml"])
        config = compose([f"{spec.kind}=mine"], config_dir=[tmp_path])
        assert config.data[spec.kind]["name"] == spec.name
        (tmp_path / spec.kind / "mine.yaml").unlink()
        overrides = [word for word in shown["run"].split() if "=" in word]
        assert compose(overrides).data[spec.kind]["name"] == spec.name


@pytest.mark.parametrize(
    "what", ["checkpoint/tiny_sentiment", "task/text-classification", "padding/none", "device=cpu"]
)
def test_show_a_preset(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "show", what)
    assert found["yaml"].startswith("#")
    assert found["run"].startswith("pipeline-kit run ")
    text = ran(capsys, "show", what)
    assert found["yaml"].splitlines()[-1] in text


def test_show_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "show", "padding")
    assert {option["name"] for option in found["options"]} >= {"name", "max_length", "side"}
    assert "max_length" in found["presets"]
    assert "tokenizers_json" in ran(capsys, "show", "tokenizer")
    for group in GROUPS:
        ran(capsys, "show", group)


def test_show_something_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'tokenizers_json'?" in ran(capsys, "show", "tokenizer/tokenizer_json", code=2)
    assert "Did you mean 'tokenizer/hf'?" in ran(capsys, "show", "tokeniser/hf", code=2)


def test_cfg_prints_what_was_composed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    text = ran(capsys, "cfg", "padding=none", "--config-dir", str(folder), "-cn", "mine", "batching.max_tokens=77")
    found = yaml.safe_load(text)
    assert set(found) == set(GROUPS)
    assert (found["padding"]["name"], found["tokenizer"]["max_length"], found["batching"]["max_tokens"]) == (
        "none",
        16,
        77,
    )
    assert text == ran(
        capsys, "run", "padding=none", "--config", str(folder / "mine.yaml"), "--cfg", "job", "batching.max_tokens=77"
    )
    assert ran(capsys, "cfg", "-p", "tokenizer.name") == "hf\n"
    assert yaml.safe_load(ran(capsys, "cfg", "-p", "padding"))["name"] == "longest"


def test_cfg_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    text = ran(capsys, "cfg", "-m", "padding=longest,none", "device.threads=range(1,3)", "-p", "padding")
    documents = list(yaml.safe_load_all(text))
    assert [document["name"] for document in documents] == ["longest", "longest", "none", "none"]
    assert "# padding=none device.threads=2" in text


def test_validate(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert ran(capsys, "validate") == "ok\n"
    assert ran(capsys, "validate", str(folder / "mine.yaml"), "padding=none") == "ok\n"
    assert "use: pipeline-kit cfg" in ran(capsys, "validate", "--cfg", "job", code=2)
    assert "--package says how" in ran(capsys, "validate", "-p", "model", code=2)
    assert ran(capsys, "validate", "-m", "padding=none,longest") == "ok padding=none\nok padding=longest\n"


def test_validate_tells_every_fault_at_once(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "tokenizer" / "short.yaml").write_text("defaults:\n  - hf\n  - _self_\nmax_lenght: 16\n")
    text = ran(capsys, "validate", str(folder / "mine.yaml"), "device.threads=-1", "postprocesor.top_k=2", code=2)
    for part in ("tokenizer.max_lenght", "'max_length'", "device.threads", "out of range", "'postprocessor'"):
        assert part in text
    assert text.count("error: ") == 3
    assert "Traceback" not in text


def test_the_version_imports_nothing() -> None:
    code = "import sys; from pipeline_kit.cli import main; main(['--version']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, heavy = done.stdout.splitlines()
    assert version.startswith(f"pipeline-kit {__version__} (python 3.")
    assert "torch 2." in version
    assert heavy == "False"


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline_kit", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'nothing' is not a subcommand.")


def test_doctor_reports_versions_processor_and_clashes(folder: Path, tmp_path: Path) -> None:
    found = {finding.topic: finding for finding in doctor_machine.versions()}
    assert found["torch"].level == found["python"].level == "ok"
    assert ">=2.10" in found["torch"].text
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags : fpu avx2 amx_tile\n")
    (cpu,) = doctor_machine.processor(info)
    assert "avx2 amx_tile" in cpu.text
    (cpu,) = doctor_machine.processor(tmp_path / "none")
    assert cpu.level == "ok"
    registry = load_registry()
    (fine,) = doctor_config.doubled(registry, [str(folder)])
    assert fine.level == "ok"
    (folder / "tokenizer" / "hf.yaml").write_text("name: hf\n")
    (clash,) = doctor_config.doubled(registry, [str(folder)])
    assert clash.level == "fail"
    assert "tokenizer=hf is there 2 times: pipeline-kit (a stage)" in clash.text


def test_doctor_fails_when_a_floor_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "requirements", lambda: ["torch>=99", "not-there-at-all>=1"])
    levels = {finding.topic: finding.level for finding in doctor_machine.versions()}
    assert (levels["torch"], levels["not-there-at-all"]) == ("fail", "fail")


@pytest.mark.parametrize("level", ["ok", "note", "fail"])
def test_doctors_exit_code(level: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(level, "answer", "so it is")
    monkeypatch.setattr(doctor_config, "answers", lambda registry: [finding])
    assert main(["doctor"]) == (1 if level == "fail" else 0)
    assert f"{level:<4}  answer          so it is" in capsys.readouterr().out


def test_completion_candidates() -> None:
    assert completions("pipeline-kit r") == ["run"]
    assert completions("pipeline-kit run pad") == ["padding.", "padding="]
    assert completions("pipeline-kit run -q padding=no") == ["padding=none"]
    assert completions("pipeline-kit run --text padding=no") == []
    assert completions("pipeline-kit run tokenizer.over") == ["tokenizer.overflow=", "tokenizer.overlap="]
    assert completions("pipeline-kit run tokenizer.overflow=w") == ["tokenizer.overflow=window"]
    assert completions("pipeline-kit run --te") == ["--text"]
    assert completions("pipeline-kit run --format t") == ["table"]
    assert completions("pipeline-kit show padding/m") == ["padding/max_length", "padding/multiple_of"]
    assert completions("pipeline-kit ls tok") == ["tokenizer"]
    assert completions("pipeline-kit completion z") == ["zsh"]
    assert completions("pipeline-kit nothing x") == []


def test_completion_of_nonsense_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["__complete", "pipeline-kit run --nonsense --config x "]) == 0
    assert capsys.readouterr() == ("", "")


def test_completion_is_light() -> None:
    code = (
        "import sys; from pipeline_kit.cli import main; main(['__complete', 'pipeline-kit run padding=no']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["padding=none", "False"]


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


def test_completion_of_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "__complete" in ran(capsys, "completion", shell)
    assert "Did you mean 'bash'?" in ran(capsys, "completion", "bahs", code=2)
