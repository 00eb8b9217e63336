"""Averaging checkpoints: the mean of each network's own logits, and what is refused."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pk_ensemble
import pytest
import torch
from pk_ensemble.stage import EnsembleModel

import pipeline_kit as pk
from pipeline_kit import StageContext
from pipeline_kit.kit import Checkpoint, CheckpointError, ConfigError, Device
from pipeline_kit.testing import ModelConformance, tiny_checkpoint

TEXTS = ["I love this.", "", "It was a terrible film, and the plot was so dull that I never want it again!", "ok"]
HEAD = "sequence-classification"


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("members")
    return [tiny_checkpoint(root / f"m{seed}", architecture="bert", head=HEAD, seed=seed) for seed in range(3)]


def words_of(folders: Sequence[Path], *more: str) -> list[str]:
    others = ",".join(map(str, folders[1:]))
    return [f"checkpoint.path={folders[0]}", "model=ensemble", f"model.members=[{others}]", "device.threads=1", *more]


def ensemble(folders: Sequence[Path], *more: str) -> pk.Pipeline:
    return pk.load(*words_of(folders, *more), plugins=["pk_ensemble"])


def refusal(folders: Sequence[Path], *more: str) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        ensemble(folders, *more)
    return str(caught.value)


def alone(folder: Path, *more: str) -> pk.Pipeline:
    return pk.load(f"checkpoint.path={folder}", "device.threads=1", *more)


def test_logits_are_the_mean_of_each_networks_own(members: list[Path]) -> None:
    each = [np.array([row["logits"] for row in alone(folder, "postprocessor=logits")(TEXTS)]) for folder in members]
    found = np.array([row["logits"] for row in ensemble(members, "postprocessor=logits")(TEXTS)])
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-2, "a mean of equal networks would show nothing"


def test_each_token_has_the_mean_of_its_logits(tmp_path: Path) -> None:
    labels = ("O", "B-PER", "I-PER")
    task = ("task=token-classification", "postprocessor.aggregation=none", "postprocessor.ignore_labels=[]")
    head = "token-classification"
    folders = [tiny_checkpoint(tmp_path / f"{seed}", head=head, labels=labels, seed=seed) for seed in (3, 4)]
    batch = sample()
    models = [load_model(folder) for folder in folders]
    expected = np.mean([model.forward(batch)["logits"].numpy() for model in models], axis=0)
    pipe = ensemble(folders, *task)
    np.testing.assert_allclose(pipe.model.forward(batch)["logits"].numpy(), expected, atol=1e-5)
    assert len(pipe("I love this.")["entities"]) > 2


def load_model(folder: Path) -> pk.Model:
    return pk.load(f"checkpoint.path={folder}", "task=token-classification", "device.threads=1").model


def sample() -> pk.TokenBatch:
    ids = torch.tensor([[4, 50, 60, 5], [4, 70, 5, 0]])
    mask = (ids > 0).long()
    return pk.TokenBatch(ids, mask, None, np.array([4, 3]), "right", True)


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


class TestConformance(ModelConformance):
    stage = "ensemble"
    register = pk_ensemble.register
    folders: ClassVar[list[Path]]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def checkpoints(cls, members: list[Path]) -> None:
        cls.folders = members
        cls.options = {"members": [str(folder) for folder in members[1:]]}

    options: ClassVar[Mapping[str, Any]] = {"members": ["x"]}

    def context(self, device: Device | None = None) -> StageContext:
        first, *others = (Checkpoint(folder, folder.name, settings(folder)) for folder in self.folders)
        return StageContext(first, device or Device(threads=1), HEAD, others=tuple(others))


def changed(folder: Path, target: Path, file: str, change: Mapping[str, Any]) -> Path:
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**content, **change}))
    return target


def test_labels_in_another_order_are_refused(members: list[Path], tmp_path: Path) -> None:
    names = {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "label2id": {"POSITIVE": 0, "NEGATIVE": 1}}
    other = changed(members[1], tmp_path / "other", "config.json", names)
    text = refusal([members[0], other])
    assert f"'{members[0]}' and '{other}' have other labels, or in another order" in text
    assert "NEGATIVE, POSITIVE and POSITIVE, NEGATIVE" in text


def test_another_tokenizer_is_refused_by_the_part_that_differs(members: list[Path], tmp_path: Path) -> None:
    vocabulary = json.loads((members[1] / "tokenizer.json").read_text())["model"]
    vocabulary["vocab"] = {**vocabulary["vocab"], "one-more": len(vocabulary["vocab"])}
    other = changed(members[1], tmp_path / "vocabulary", "tokenizer.json", {"model": vocabulary})
    assert f"'{other}' have different tokenizers: 'model' in tokenizer.json" in refusal([members[0], other])
    other = changed(members[1], tmp_path / "normalizer", "tokenizer.json", {"normalizer": {"type": "Lowercase"}})
    assert "different tokenizers: 'normalizer'" in refusal([members[0], other])


def test_stored_padding_makes_no_difference(members: list[Path], tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "[PAD]"}
    other = changed(members[1], tmp_path / "other", "tokenizer.json", {"padding": padding})
    assert ensemble([members[0], other])(TEXTS) == ensemble(members[:2])(TEXTS)


def test_a_member_without_a_tokenizer_or_weights_is_refused(members: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(members[1], tmp_path / "other"))
    (other / "tokenizer.json").unlink()
    assert "no file of a tokenizer in common" in refusal([members[0], other])
    (other / "model.safetensors").unlink()
    assert "holds no safetensors" in refusal([members[0], other])
    assert "no such folder" in refusal([members[0], tmp_path / "gone"])


def test_a_pickle_in_a_member_is_refused(members: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(members[1], tmp_path / "other"))
    (other / "pytorch_model.bin").touch()
    assert "pytorch_model.bin: such a file can run code" in refusal([members[0], other])


def test_states_have_no_mean(members: list[Path]) -> None:
    assert "use a task with labels" in refusal(members, "task=sentence-embedding")


def test_a_text_fits_into_the_network_with_the_fewest_positions(members: list[Path], tmp_path: Path) -> None:
    short = tiny_checkpoint(tmp_path / "short", seed=5, max_positions=16)
    pipe = ensemble([members[0], short], "postprocessor=logits")
    assert pipe.tokenizer.max_length == 16
    assert pipe("very long " * 60)["truncated"] > 0
    with pytest.raises(ConfigError, match=r"tokenizer\.max_length"):
        ensemble([members[0], short], "tokenizer.max_length=40")


def test_what_the_first_network_measures_holds_for_all(members: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([False, True])
    linears = import_module("pipeline_kit.builtin.models.hf.linears")
    monkeypatch.setattr(linears, "_are_faster", lambda layers: next(measured))
    model = ensemble(members[:2]).model
    assert isinstance(model, EnsembleModel)
    assert [member.pinned_options for member in model._members] == [{"linear": "eager"}] * 2
    assert model.pinned_options == {"linear": "eager"}
    assert model.runtime_info["members"] == [str(folder) for folder in members[:2]]


def test_explain_shows_each_networks_logits(members: list[Path]) -> None:
    trace = ensemble(members).explain("I love this.")
    [panel] = [panel for panel in trace.batches[0].panels if panel.title == "logits of each checkpoint"]
    assert panel.columns == ("label", "m0", "m1", "m2", "mean")
    for _, *each, mean in panel.rows:
        assert mean == pytest.approx(np.mean(each), abs=1e-5)


def ran(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run ``python -m pipeline_kit`` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["pipeline-kit", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pipeline_kit", run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_line_runs_a_job_evaluates_and_tunes(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    folders = [Path(shutil.copytree(folder, folder.name)) for folder in members[:2]]
    expected = [row["label"] for row in ensemble(folders)(TEXTS)]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, expected, strict=True)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--plugin", "pk_ensemble", *words_of(folders)]
    job = ["run", *words, "--input", "rows.jsonl", "--output", "out", "output.format=parquet"]
    assert ran(monkeypatch, *job) == 0
    assert pq.read_table("out")["label"].to_pylist() == expected
    capsys.readouterr()
    assert ran(monkeypatch, "evaluate", *words, "--input", "rows.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == 1.0
    assert ran(monkeypatch, "tune", *words, "--input", "rows.jsonl", "--repeats", "1") == 0
    weights = folders[1] / "model.safetensors"
    weights.write_bytes((members[2] / "model.safetensors").read_bytes())
    capsys.readouterr()
    assert ran(monkeypatch, *job) != 0
    assert "checkpoint.others[0].model.safetensors" in capsys.readouterr().err
