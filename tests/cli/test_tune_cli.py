"""``pipeline-kit tune``: flags, table, report, plugins, preset; real models, with given times where that matters."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import checkpoint, cli

from pipeline_kit.bench import machine
from pipeline_kit.bench.rounds import Timing
from pipeline_kit.bench.sides import BenchSide, PipelineSide
from pipeline_kit.builtin.models.hf.linears import can_quantize
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.tune import search as measuring
from pipeline_kit.tune import space

TINY = f"checkpoint.path={checkpoint()}"
PLUGIN = '''
from dataclasses import dataclass
from typing import Literal

from pipeline_kit import Model, option
from pipeline_kit.builtin.models.options import HfModelConfig


@dataclass
class Config:
    """Options."""

    head: str | None = option(None, "the head")
    precision: Literal["float32", "noisy", "missing"] = option("float32", "how well")


class Twin(Model):
    """The built-in model again; noisy turns its answers round."""

    def __init__(self, config, context):
        from pipeline_kit.builtin.models.hf.stage import HfModel

        if config.precision == "missing":
            raise ModuleNotFoundError("No module named 'fast_engine'")
        self.inner, self.sign = HfModel(HfModelConfig(config.head), context), -1 if config.precision == "noisy" else 1

    @property
    def safe_padding_sides(self):
        return self.inner.safe_padding_sides

    def forward(self, batch):
        from pipeline_kit.contract.types import ModelOutput

        found = self.inner.forward(batch)
        return ModelOutput({name: self.sign * tensor for name, tensor in found.tensors.items()}, found.per_token)


def register(registry):
    registry.model("twin", f"{__name__}:Twin", Config, summary="for a test")
'''


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is always idle, few budgets to try, and no time spent on collecting garbage."""
    monkeypatch.setattr(machine, "load_per_cpu", lambda: 0.0)
    monkeypatch.setattr(space, "BUDGETS_CPU", (512, 1024))
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "twin.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text number {i} is {'good' if i % 3 else 'bad'} , é\n" for i in range(24)))
    return str(path)


@pytest.fixture
def given_times(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], float]], None]:
    """Let every side run but take the seconds that a function of its config gives."""

    def give(seconds: Callable[[Any], float]) -> None:
        def fake(sides: Sequence[BenchSide], timings: Sequence[Timing], examples: Any, *more: Any) -> None:
            for side, timing in zip(sides, timings, strict=True):
                assert isinstance(side, PipelineSide)
                side.run(examples)
                timing.seconds.append(seconds(side.config))

        monkeypatch.setattr(measuring, "alternate", fake)

    return give


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only budgets are tried, since loading engines takes long."""
    monkeypatch.setattr(space.SearchSpace, "engines", lambda self: [])
    monkeypatch.setattr(space.SearchSpace, "threads", lambda self, leader, now: [])


def tune(*argv: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """Run on one thread unless another number is passed; return the report and what stderr said."""
    threads = [] if any(word.startswith("device.threads") for word in argv) else ["device.threads=1"]
    done = cli("tune", "--repeats", "1", *threads, *argv)
    assert done.code == code, done.err
    [line] = done.out.splitlines()
    return json.loads(line), done.err


def by_engine(report: dict[str, Any]) -> dict[str, Any]:
    return {trial["engine"]: trial for trial in reversed(report["trials"])}


def test_a_real_search_from_start_to_preset(texts: str, plugin: str) -> None:
    argv = ["--input", texts, "--plugin", plugin, "--minutes", "2", "--min-agreement", "0.9", TINY]
    report, err = tune(*argv)
    trials = by_engine(report)
    assert report["texts"] == {"source": "given", "rows": 24, "different": 24, "left_out": 0}
    assert report["reference"] == "model=hf in float32, your config"
    assert trials["model=twin model.precision=float32"]["largest_difference"] < 1e-5
    assert trials["model=twin model.precision=missing"]["problem"].startswith(
        "ModuleNotFoundError: No module named 'fast"
    )
    assert trials["model=twin model.precision=noisy"]["agreement"] == 0
    assert "is under 90.0%" in trials["model=twin model.precision=noisy"]["excluded"]
    assert trials["your config"]["agreement"] == 1
    for trial in report["trials"]:
        if trial["problem"] is None:
            assert trial["texts_per_second"]["median"] > 0
            assert trial["tokens_per_second"]["median"] > trial["texts_per_second"]["median"]
            assert trial["ratio"]["min"] <= trial["ratio"]["median"] <= trial["ratio"]["max"]
    assert {trial["max_tokens"] for trial in report["trials"] if trial["problem"] is None} == {512, 1024}
    assert "model=twin model.precision=float32" in err
    if report["winner"] is None:
        assert report["preset"] is None
        assert "keep what you have" in err
    else:
        assert not report["trials"][report["winner"]]["excluded"]
        assert "not saved; --save FILE.yaml" in err


def test_the_winner_is_saved_and_run_can_use_it(texts: str, plugin: str, tmp_path: Path, given_times: Any) -> None:
    given_times(
        lambda config: (
            {"hf": 1.0, "twin": 0.5 if config.batching.max_tokens == 512 else 0.6}[config.model.name]
            * (0.8 if config.device.threads == 1 else 1.0)
        )
    )
    save = tmp_path / "tuned.yaml"
    argv = ["--input", texts, "--plugin", plugin, TINY, "padding=max_length", "padding.max_length=24"]
    argv += ["model.attn_implementation=eager", "device.threads=2"]
    report, err = tune(*argv, "--save", str(save))
    chosen = report["trials"][report["winner"]]
    assert chosen["overrides"][0] == "model=twin"
    assert {"batching.max_tokens=512", "device.threads=1"} <= set(chosen["overrides"])
    assert chosen["ratio"]["median"] == pytest.approx(2.5)
    text = save.read_text()
    assert text == report["preset"]
    for part in (f"Run: pipeline-kit run --plugin {plugin} --config tuned.yaml", "2.50x", "100.0% of 24 given texts"):
        assert part in text
    assert "saved; use it with" in err
    wanted = compose(chosen_words(argv, chosen), registry=load_registry([plugin]))
    saved = compose(registry=load_registry([plugin]), config_dir=[tmp_path], config_name="tuned")
    assert saved.data == wanted.data
    tuned = cli("run", "--config", save, "--plugin", plugin, "--text", "text number 4")
    plain = cli("run", "--text", "text number 4", TINY)
    assert json.loads(tuned.out)["label"] == json.loads(plain.out)["label"]
    assert "is there already" in cli("tune", "--save", save).err
    assert save.read_text() == text


def chosen_words(argv: Sequence[str], chosen: dict[str, Any]) -> list[str]:
    """The user's overrides that a change does not replace, and the changes."""
    kept = [word for word in argv if "=" in word and not word.startswith(("model.", "device.threads"))]
    return [*kept, *chosen["overrides"]]


def test_nothing_faster_means_keep_what_you_have(
    texts: str, tmp_path: Path, given_times: Any, no_engines: None
) -> None:
    given_times(lambda config: 1.0)
    save = tmp_path / "tuned.yaml"
    report, err = tune("--input", texts, TINY, "--save", str(save))
    assert (report["winner"], report["preset"]) == (None, None)
    assert f"keep what you have: nothing that was tried and is close enough to float32 is 3% faster; {save}" in err
    assert not save.exists()


def test_the_table_is_for_people(texts: str, plugin: str, monkeypatch: pytest.MonkeyPatch, given_times: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    given_times(lambda config: 1.0 if config.model.name == "hf" else 0.5)
    done = cli(
        "tune", "--input", texts, "--plugin", plugin, "--format", "table", "--repeats", "1", TINY, "device.threads=1"
    )
    out = done.out
    table = out[: out.index("ratio:")]
    squeezed = " ".join(out.split())
    assert max(map(len, table.splitlines())) <= 80
    assert table.splitlines()[1].split() == ["engine", "budget", "thr", "texts/s", "tokens/s", "ratio", "same", "diff"]
    assert "2.00* 100.0%" in squeezed
    assert "take this" in table
    assert "24 given texts, 24 different; answers are compared with model=hf in float32, your config" in out
    assert "is under" in squeezed
    assert "override model: twin" in done.err


def test_other_tasks_can_be_tuned(tmp_path: Path, given_times: Any, no_engines: None) -> None:
    given_times(lambda config: 1.0 if config.batching.max_tokens != 512 else 0.5)
    for task, head in (
        ("token-classification", "token-classification"),
        ("sentence-embedding", "base"),
        ("question-answering", "question-answering"),
    ):
        folder = checkpoint(head=head)
        report, _ = tune("--rows", "4", "--quiet", f"task={task}", f"checkpoint.path={folder}")
        chosen = report["trials"][report["winner"]]
        assert chosen["overrides"][-1] == "batching.max_tokens=512"
        assert chosen["agreement"] == 1
        assert chosen["largest_difference"] < 1e-4
        assert f"override task: {task}" in report["preset"]
        assert any("only 4 different texts" in note for note in report["notes"])


@pytest.mark.skipif(not can_quantize(), reason="torch has no products in int8 here")
def test_ctrl_c_shows_what_is_known_and_saves_nothing(texts: str, tmp_path: Path, given_times: Any) -> None:
    def seconds(config: Any) -> float:
        if config.model.options.quantization == "int8_per_token":
            raise KeyboardInterrupt
        return 1.0 if config.device.dtype == "auto" and config.model.options.quantization == "none" else 0.5

    given_times(seconds)
    save = tmp_path / "tuned.yaml"
    argv = ["--input", texts, TINY, "--min-agreement", "0", "--save", str(save)]
    report, err = tune(*argv, code=130)
    assert report["interrupted"]
    assert by_engine(report)["model=hf model.quantization=int8_per_token"]["problem"] == "interrupted"
    assert report["trials"][report["winner"]]["ratio"]["median"] == 2
    assert "not saved" in err
    assert not save.exists()


def test_the_report_may_go_to_a_file(texts: str, tmp_path: Path, given_times: Any, no_engines: None) -> None:
    given_times(lambda config: 1.0)
    path = tmp_path / "report.jsonl"
    done = cli("tune", "--input", texts, "--output", path, "--repeats", "1", "--quiet", TINY)
    assert (done.code, done.out) == (0, "")
    assert json.loads(path.read_text())["winner"] is None
