"""A checkpoint that lacks what a task needs is refused with the task that fits, never given a random head."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from harness import checkpoint, task_of
from model_helpers import HEAD, change, load
from safetensors.torch import load_file, save_file

from pipeline_kit.builtin.models.hf.heads import KINDS, kind_of
from pipeline_kit.cli.presets import presets
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, ConfigError


def refused(folder: Path, head: str = HEAD) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, head)
    assert folder.name in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "gpt2", "llama", "t5", "bart"])
def test_a_base_model_has_no_classifier(architecture: str) -> None:
    message = refused(checkpoint(architecture, head="base"))
    assert "has no sequence-classification head" in message
    assert "It has no head (it is a base model), saved as" in message
    assert "Use task=sentence-embedding or task=feature-extraction with it." in message


@pytest.mark.parametrize(
    ("architecture", "head", "words"),
    [
        ("bert", "masked-lm", ["a masked-lm head, saved as BertForMaskedLM", "task=fill-mask"]),
        ("distilbert", "question-answering", ["a question-answering head", "task=question-answering"]),
        ("bert", "token-classification", ["BertForTokenClassification", "task=token-classification"]),
        ("llama", "token-classification", ["LlamaForTokenClassification", "task=token-classification"]),
        ("bert", "multiple-choice", ["a multiple-choice head", "task=multiple-choice"]),
        ("gpt2", "causal-lm", ["a causal-lm head, saved as GPT2LMHeadModel", "task=text-generation"]),
        ("t5", "seq2seq-lm", ["a seq2seq-lm head", "task=summarization or task=translation"]),
    ],
)
def test_another_head_is_named_with_its_task(architecture: str, head: str, words: list[str]) -> None:
    labels = ("A", "B") if head == "question-answering" else ("A",)
    message = refused(checkpoint(architecture, head=head, labels=labels))
    assert [word for word in words if word not in message] == []


def test_without_architectures_the_weights_tell(tmp_path: Path) -> None:
    folder = change(checkpoint("bert", head="masked-lm"), tmp_path / "my-model", architectures=None)
    message = refused(folder)
    assert "a masked-lm head" in message
    assert "task=fill-mask" in message


def test_any_head_will_do_for_the_base() -> None:
    for head in (HEAD, "token-classification", "masked-lm"):
        load(checkpoint("bert", head=head), "base")


def test_half_a_head_is_no_head(tmp_path: Path) -> None:
    folder = change(checkpoint(), tmp_path / "my-model")
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.bias"]
    assert "lack classifier.bias." in refused(rewrite(folder, weights))


@pytest.mark.parametrize("head", ["base", HEAD])
def test_a_hole_in_the_network(tmp_path: Path, head: str) -> None:
    folder = change(checkpoint(), tmp_path / "my-model")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    assert "encoder.layer.1.output.dense.weight" in refused(rewrite(folder, weights), head)


def test_another_number_of_labels(tmp_path: Path) -> None:
    folder = change(
        checkpoint(), tmp_path / "my-model", id2label={"0": "A", "1": "B", "2": "C"}, label2id={"A": 0, "B": 1, "C": 2}
    )
    message = refused(folder)
    assert "classifier." in message
    assert "[2" in message
    assert "[3" in message
    assert "id2label" in message


def test_an_unknown_architecture(tmp_path: Path) -> None:
    message = refused(change(checkpoint(), tmp_path / "my-model", model_type="distilbertt"))
    assert "model_type 'distilbertt'" in message
    assert "'distilbert'" in message
    assert "None" in refused(change(checkpoint(), tmp_path / "other-model", model_type=None))


def test_static_embeddings(tmp_path: Path) -> None:
    assert "model=static" in refused(change(checkpoint(), tmp_path / "my-model", model_type="static"))


def test_an_architecture_without_that_head(tmp_path: Path) -> None:
    message = refused(change(checkpoint("bart"), tmp_path / "my-model", model_type="marian"))
    assert "is a marian, for which transformers has no sequence-classification head" in message


def test_a_folder_without_safetensors(tmp_path: Path) -> None:
    folder = change(checkpoint(), tmp_path / "my-model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert "could not be loaded as BertForSequenceClassification" in refused(folder)


def test_broken_files(tmp_path: Path) -> None:
    folder = change(checkpoint(), tmp_path / "my-model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a usable safetensors file: it is cut off"):
        load(folder)
    (folder / "model.safetensors").write_bytes(content)
    assert "config.json" in refused(change(folder, tmp_path / "other-model", hidden_size="wide"))


def test_an_unknown_head() -> None:
    with pytest.raises(ConfigError, match="sequence-classification") as caught:
        load(checkpoint(), "sequence_classification")
    assert caught.value.faults[0].suggestion == HEAD


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    folder = change(checkpoint(), tmp_path / "my-model", auto_map={"AutoModelForSequenceClassification": "evil.Evil"})
    (folder / "evil.py").write_text("raise SystemExit('code from the folder ran')", encoding="utf-8")
    load(folder)
    assert "needs its own code" in refused(change(folder, tmp_path / "other-model", model_type="evil"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.head)
def test_every_class_name_of_a_kind_is_recognised(kind: Any) -> None:
    for suffix in kind.suffixes:
        found = kind_of(Checkpoint(Path(), "x", {"architectures": [f"Any{suffix}"]}))
        assert found is not None
        assert found.head == kind.head


def test_class_names_of_transformers() -> None:
    """Each class that transformers maps to a head has a name that is recognised as that head's."""
    maps = {
        HEAD: transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "token-classification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        "masked-lm": transformers.MODEL_FOR_MASKED_LM_MAPPING,
        "question-answering": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        "multiple-choice": transformers.MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
        "base": transformers.MODEL_MAPPING,
    }
    for head, mapping in maps.items():
        for model_type in ("bert", "distilbert", "roberta", "albert", "electra", "deberta-v2", "xlm-roberta", "mpnet"):
            found = mapping[transformers.CONFIG_MAPPING[model_type]].__name__
            kind = kind_of(Checkpoint(Path(), "x", {"architectures": [found]}))
            assert kind is not None
            assert kind.head == head, found


def test_presets_of_a_head_are_those_whose_run_line_has_its_task() -> None:
    found: dict[str, list[str]] = {}
    for preset in presets(Registry(), [], ["checkpoint"]):
        words = dict(word.partition("=")[::2] for word in shlex.split(str(preset.run_line)) if "=" in word)
        task = task_of(words.get("task", "text-classification"))
        kind = next(kind for kind in KINDS if kind.head == task.head)
        able = (kind.tasks[0], "text2text-generation")  # a model that follows instructions summarizes too
        if task.name in able and "override /model: static" not in preset.text:
            found.setdefault(kind.head, []).append(preset.name)
    del found["base"]  # every network is one
    assert {kind.head: sorted(kind.presets) for kind in KINDS if kind.presets} == {
        head: sorted(names) for head, names in found.items()
    }


def test_a_head_that_does_not_fit_names_presets_that_do() -> None:
    assert "fine-tuned for it, such as checkpoint=bert_ner." in refused(checkpoint(), "token-classification")
    assert "fine-tuned for it." in refused(checkpoint(), "masked-lm"), "there is no preset for it"
