"""Checkpoints that only their model stage can read, and the one way to trust a pickle."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import checkpoint, pipeline_of
from omegaconf import OmegaConf

import pipeline_kit as pk
from pipeline_kit.cli.app import main
from pipeline_kit.compose.build import build, checkpoint_of
from pipeline_kit.compose.compose import compose, sweep
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import PipelineConfig, parse_config
from pipeline_kit.contract.options import option
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.stages import Model, StageContext
from pipeline_kit.contract.types import Checkpoint, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import CheckpointError, ConfigError
from pipeline_kit.job.manifest import identity_of
from pipeline_kit.testing.kit import register as register_words

WEIGHTS, PICKLE = "weights.npy", "weights.pkl"


def settings_of(found: Checkpoint) -> Mapping[str, Any]:
    if not (found.path / WEIGHTS).is_file() and not (found.trust == "pickle" and (found.path / PICKLE).is_file()):
        raise CheckpointError(f"{found.path} lacks {WEIGHTS}: write the rows of the classes with numpy.save")
    return {"id2label": {"0": "low", "1": "high"}}


@dataclass
class RowsConfig:
    others: list[str] = option([], "checkpoints beside this one")


class Rows(Model):
    """Logits of the sum of a row's ids, by two numbers in a file of numpy's."""

    checkpoint_format = staticmethod(settings_of)

    def __init__(self, config: RowsConfig, context: StageContext) -> None:
        self.others = context.others
        path = context.checkpoint.path
        trusted = context.checkpoint.trust == "pickle"
        self.weights = pickle.loads((path / PICKLE).read_bytes()) if trusted else np.load(path / WEIGHTS)

    @classmethod
    def other_checkpoints(cls, config: RowsConfig) -> list[str]:
        return config.others

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        return frozenset({"left", "right"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        total = (batch.input_ids * batch.attention_mask).sum(1).float()
        return ModelOutput({"logits": total[:, None] * torch.tensor(self.weights, dtype=torch.float32)})


class Nothing(Rows):
    """The same without any file."""

    @staticmethod
    def checkpoint_format(checkpoint: Checkpoint) -> Mapping[str, Any]:
        del checkpoint
        return {}

    def __init__(self, config: RowsConfig, context: StageContext) -> None:
        del config, context
        self.weights = np.array([0.0, 1.0])


def register(registry: Registry) -> None:
    register_words(registry)
    registry.model("rows", f"{__name__}:Rows", RowsConfig, summary="two weights, for tests")
    registry.model("nothing", f"{__name__}:Nothing", RowsConfig, summary="no weights, for tests")


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = load_registry()
    register(found)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "rows"
    path.mkdir()
    np.save(path / WEIGHTS, np.array([-1.0, 1.0]))
    return path


def config_of(
    registry: Registry,
    folder: Path | str,
    tokenizer: str = "words",
    model: str = "rows",
    others: Sequence[Path] = (),
    **checkpoint: str,
) -> PipelineConfig:
    """Return the config without Hydra; `checkpoint` are options of that group."""
    data = {
        "task": {"name": "text-classification"},
        "checkpoint": {"path": str(folder), **checkpoint},
        "tokenizer": {"name": tokenizer},
        "model": {"name": model, **({"others": [str(path) for path in others]} if others else {})},
        "postprocessor": {"name": "classification"},
        "device": {"name": "cpu", "threads": 1},
    }
    return parse_config(data, registry, [])


def composed(registry: Registry, folder: Path, *words: str, **options: Any) -> PipelineConfig:
    words = (f"checkpoint.path={folder}", "model=rows", "tokenizer=words", *words)
    return compose(words, registry=registry, **options)


def refusal(config: PipelineConfig) -> str:
    with pytest.raises(CheckpointError) as caught:
        build(config)
    return str(caught.value)


def test_it_needs_no_file_of_hugging_face(registry: Registry, folder: Path) -> None:
    pipe = build(config_of(registry, folder))
    assert pipe("I love this.")["label"] == "high"


def test_it_may_need_no_file_at_all_and_has_two_labels(registry: Registry, tmp_path: Path) -> None:
    pipe = build(config_of(registry, tmp_path, model="nothing"))
    assert pipe("I love this.")["label"] == "LABEL_1"


@pytest.mark.parametrize("tokenizer", ["hf", "tokenizers_json"])
def test_the_built_in_tokenizers_read_their_files_beside_it(registry: Registry, folder: Path, tokenizer: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint() / name, folder / name)
    pipe = build(config_of(registry, folder, tokenizer))
    expected = pipeline_of("text-classification", checkpoint()).tokenizer
    assert pipe.tokenizer.encode(["I love this."]) == expected.encode(["I love this."])
    assert (pipe.tokenizer.pad_token_id, pipe.tokenizer.max_length) == (expected.pad_token_id, expected.max_length)


def test_what_is_missing_is_what_the_stage_says(registry: Registry, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "lacks weights.npy" in refusal(config_of(registry, folder))


def test_the_other_format_is_named_where_a_stage_does_not_read_it(registry: Registry, folder: Path) -> None:
    (folder / "model.skops").touch()
    text = refusal(config_of(registry, folder, model="hf"))
    assert "has no config.json" in text
    assert "a model of scikit-learn (model.skops); pipeline-kit-sklearn has stages for it" in text
    assert "pipeline-kit ls model" in text


def test_a_built_in_tokenizer_without_files_names_the_way_to_another(registry: Registry, folder: Path) -> None:
    text = refusal(config_of(registry, folder, "hf"))
    assert "lacks tokenizer.json. Choose the tokenizer that goes with its model stage" in text


def test_a_hub_id_has_to_be_downloaded(registry: Registry) -> None:
    assert "hf download acme/tiny --local-dir my-model" in refusal(config_of(registry, "acme/tiny"))


def test_wrong_label_tables_are_refused(registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rows, "checkpoint_format", staticmethod(lambda found: {"id2label": {"a": "b"}}))
    assert "'id2label' has the index 'a'" in refusal(config_of(registry, folder))
    monkeypatch.setattr(Rows, "checkpoint_format", staticmethod(lambda found: None))
    assert "checkpoint_format of the model stage returned NoneType; it returns" in refusal(config_of(registry, folder))
    monkeypatch.setattr(Rows, "checkpoint_format", staticmethod(lambda found: {"id2label": {0: "a", 1: "b"}}))
    assert checkpoint_of(config_of(registry, folder)).labels == ("a", "b")


def test_a_job_notices_that_a_file_changed(registry: Registry, folder: Path) -> None:
    config = config_of(registry, folder)
    before = identity_of(config, [])
    assert list(before["checkpoint"]["files"]) == [WEIGHTS]
    np.save(folder / WEIGHTS, np.array([-1.0, 2.0]))
    assert identity_of(config, []) != before


def test_other_checkpoints_are_checked_and_belong_to_a_job(registry: Registry, folder: Path, tmp_path: Path) -> None:
    config = config_of(registry, folder, others=[checkpoint()])
    model = build(config).model
    assert isinstance(model, Rows)
    assert [other.path for other in model.others] == [checkpoint()]
    assert "model.safetensors" in identity_of(config, [])["checkpoint"]["others"][0]
    assert "has no config.json" in refusal(config_of(registry, folder, others=[tmp_path]))


class Payload:
    """Creates a file when it is unpickled, and is two weights."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (opened, (self.marker,))


def opened(marker: Path) -> list[float]:
    marker.touch()
    return [-1.0, 1.0]


@pytest.fixture
def pickled(folder: Path, tmp_path: Path) -> Path:
    """A folder with a pickle that touches the file ``opened`` beside it."""
    (folder / PICKLE).write_bytes(pickle.dumps(Payload(tmp_path / "opened")))
    return folder


def test_a_pickle_is_refused_without_trust(registry: Registry, pickled: Path, tmp_path: Path) -> None:
    text = refusal(config_of(registry, pickled))
    assert "weights.pkl: such a file can run code when it is opened" in text
    assert "pass the text 'checkpoint.trust=pickle'" in text
    assert "save_pretrained" not in text
    build(config_of(registry, pickled, unsafe_files="ignore"))
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("word", ["checkpoint.trust=pickle", "+checkpoint.trust=pickle", "++checkpoint.trust=pickle"])
def test_an_override_trusts_a_pickle(registry: Registry, pickled: Path, tmp_path: Path, word: str) -> None:
    config = composed(registry, pickled, word)
    assert config.checkpoint.trust == "pickle"
    assert build(config)("I love this.")["label"] == "high"
    assert (tmp_path / "opened").exists()


def test_code_is_never_trusted(registry: Registry, pickled: Path) -> None:
    (pickled / "model.py").touch()
    assert "model.py: such a file is code" in refusal(config_of(registry, pickled, trust="pickle"))


def test_the_last_override_counts(registry: Registry, pickled: Path) -> None:
    assert composed(registry, pickled, "checkpoint.trust=pickle", "checkpoint.trust=data").checkpoint.trust == "data"


def test_a_built_in_model_opens_no_pickle_whatever_is_trusted(registry: Registry) -> None:
    config = config_of(registry, checkpoint(), "hf", "hf", trust="pickle")
    assert "reads safetensors alone" in refusal(config)


def test_each_run_of_a_sweep_may_trust(registry: Registry) -> None:
    found = sweep(["checkpoint.trust=data,pickle"], registry=registry)
    assert found == [["checkpoint.trust=data"], ["checkpoint.trust=pickle"]]


HOSTILE: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "a preset": ("checkpoint/mine.yaml", "path: x\ntrust: pickle\n", ("checkpoint=mine",)),
    "a preset for all of the config": (
        "task/mine.yaml",
        "# @package _global_\ndefaults: [text-classification]\ncheckpoint: {trust: pickle}\n",
        ("task=mine",),
    ),
    "a preset in the place of another group": (
        "device/mine.yaml",
        "# @package checkpoint\ntrust: pickle\n",
        ("device=mine",),
    ),
    "a group of the user's own": (
        "experiment/mine.yaml",
        "# @package _global_\ncheckpoint: {trust: pickle}\n",
        ("+experiment=mine",),
    ),
    "a config": ("mine.yaml", "defaults: [config, _self_]\ncheckpoint: {trust: pickle}\n", ()),
    "a reference to a value": (
        "mine.yaml",
        "defaults: [config, _self_]\ncheckpoint: {trust: '${task.src_lang}'}\ntask: {src_lang: pickle}\n",
        (),
    ),
    "a reference to a mapping": (
        "mine.yaml",
        "defaults: [config, override checkpoint: null, _self_]\n"
        "checkpoint: ${task.more}\ntask: {more: {path: x, trust: pickle}}\n",
        (),
    ),
    "a reference in an override": (
        "mine.yaml",
        "defaults: [config, _self_]\ntask: {src_lang: pickle}\n",
        ("checkpoint.trust=${task.src_lang}",),
    ),
    "a quoted override": ("mine.yaml", "defaults: [config, _self_]\n", ("checkpoint.trust='pickle'",)),
    "one beside an override": (
        "mine.yaml",
        "defaults: [config, _self_]\ncheckpoint: {trust: pickle}\n",
        ("checkpoint.trust=data",),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_but_an_override_can_trust(registry: Registry, pickled: Path, tmp_path: Path, name: str) -> None:
    file, text, words = HOSTILE[name]
    (tmp_path / "conf" / file).parent.mkdir(parents=True)
    (tmp_path / "conf" / file).write_text(text)
    start = "mine" if file == "mine.yaml" else "config"
    words = ("model=rows", "tokenizer=words", *words)
    with pytest.raises(ConfigError) as caught:
        compose(words, registry=registry, config_dir=[tmp_path / "conf"], config_name=start)
    assert "checkpoint.trust: no config can set it to 'pickle'" in str(caught.value)
    assert not (tmp_path / "opened").exists()


STEPS = """
defaults: [config, _self_]
steps:
  first: {{checkpoint: {{path: {folder}, trust: {trust}}}, model: rows, tokenizer: words}}
  second: {{take: {{text: text}}}}
"""


@pytest.mark.parametrize("words", [(), ("steps.first.checkpoint.trust=data",)])
def test_a_step_of_a_config_cannot_trust(
    registry: Registry, pickled: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "mine.yaml").write_text(STEPS.format(folder=pickled, trust="pickle"))
    with pytest.raises(ConfigError) as caught:
        compose(words, registry=registry, config_dir=[tmp_path], config_name="mine")
    assert "checkpoint.trust: no config can set it to 'pickle'" in str(caught.value)


def test_an_override_trusts_the_checkpoint_of_one_step(registry: Registry, pickled: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(STEPS.format(folder=pickled, trust="data"))
    words = ["steps.first.checkpoint.trust=pickle"]
    config = compose(words, registry=registry, config_dir=[tmp_path], config_name="mine")
    assert [part.checkpoint.trust for part in config.parts.values()] == ["pickle", "data"]
    assert build(config)("I love this.")["first"]["label"] == "high"


@pytest.mark.parametrize(
    "mapping",
    [
        "checkpoint={path: x, trust: pickle}",
        "++checkpoint={path: x, trust: pickle}",
        {"checkpoint": {"path": "x", "trust": "pickle"}},
        {"checkpoint.trust": "pickle"},
        OmegaConf.create({"checkpoint": {"trust": "pickle"}}),
    ],
    ids=str,
)
def test_neither_can_a_mapping_that_may_come_from_a_file(registry: Registry, mapping: Any) -> None:
    with pytest.raises(ConfigError):
        compose([mapping], registry=registry)


def test_a_config_may_say_what_holds_anyway(registry: Registry, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\ncheckpoint: {trust: data}\n")
    config = composed(registry, folder, config_dir=[tmp_path], config_name="mine")
    assert config.checkpoint.trust == "data"


def test_the_command_line_and_python(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"checkpoint.path={pickled}", "model=rows", "tokenizer=words"]
    plugin = ["--plugin", __name__]
    assert main(["run", *plugin, *words, "--text", "a"]) != 0
    assert "add checkpoint.trust=pickle on the command line" in capsys.readouterr().err
    Path("mine.yaml").write_text("defaults: [config, _self_]\ncheckpoint: {trust: pickle}\n")
    assert main(["run", *plugin, "--config", "mine.yaml", *words, "--text", "a"]) != 0
    assert "no config can set it" in capsys.readouterr().err
    assert not (tmp_path / "opened").exists()
    assert main(["run", *plugin, *words, "checkpoint.trust=pickle", "--text", "a"]) == 0
    pk.load(*words, "checkpoint.trust=pickle", plugins=[__name__])


def test_a_job_that_trusted_does_not_lend_its_trust(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    words = ["run", "--plugin", __name__, f"checkpoint.path={pickled}", "model=rows", "tokenizer=words"]
    words += ["--input", "rows.jsonl", "--output", "out"]
    assert main([*words, "checkpoint.trust=pickle"]) == 0
    assert json.loads(Path("out/_manifest.json").read_text())["identity"]["config"]["checkpoint"]["trust"] == "pickle"
    Path("opened").unlink()
    assert main(words) != 0
    assert main([*words, "checkpoint.unsafe_files=ignore"]) != 0
    assert not Path("opened").exists()
