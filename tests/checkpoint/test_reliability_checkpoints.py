"""Checkpoints that are incomplete, inconsistent or hostile: one error that says what to do, and no wrong answer."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import checkpoint
from model_helpers import change, checkpoint_of, load
from safetensors.torch import load_file, save_file

import pipeline_kit
from pipeline_kit.builtin.models.hf.loading import load_network
from pipeline_kit.builtin.models.options import StaticModelConfig
from pipeline_kit.builtin.models.static import StaticModel
from pipeline_kit.builtin.tokenizers.hf import HfTokenizer, TokenizersJson
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig, TokenizersJsonConfig
from pipeline_kit.checkpoint.json import open_file
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Device
from pipeline_kit.errors import CheckpointError, PipelineKitError, RowError
from pipeline_kit.testing.checkpoints import ARCHITECTURES

CPU = Device(threads=1)


def pipe(folder: Path, task: str = "text-classification", *more: str) -> pipeline_kit.Pipeline:
    return pipeline_kit.load(f"task={task}", f"checkpoint.path={folder}", "device.threads=1", *more)


def refusal(folder: Path, task: str = "text-classification", *more: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        pipe(folder, task, *more)
    return str(caught.value)


# H6: a folder without the files of its tokenizer


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_h6_no_tokenizer_is_made_up(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    context = StageContext(Checkpoint(tmp_path, "my-model", {"model_type": architecture}))
    for build in (
        lambda: HfTokenizer(HfTokenizerConfig(), context),
        lambda: TokenizersJson(TokenizersJsonConfig(), context),
    ):
        with pytest.raises(CheckpointError, match=r"has no tokenizer: .* lacks tokenizer\.json.*") as caught:
            build()
        assert f"AutoTokenizer.from_pretrained('NAME').save_pretrained('{tmp_path}')" in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "head", "task"),
    [
        ("bert", "sequence-classification", "text-classification"),
        ("roberta", "masked-lm", "fill-mask"),
        ("gpt2", "causal-lm", "text-generation"),
        ("t5", "seq2seq-lm", "text2text-generation"),
    ],
)
def test_h6_what_save_pretrained_of_a_model_leaves(tmp_path: Path, architecture: str, head: str, task: str) -> None:
    folder = change(checkpoint(architecture, head=head), tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "lacks tokenizer.json" in refusal(folder, task)


# H7: weights that do not match the config


@pytest.mark.parametrize(
    ("architecture", "head", "change_to", "expected"),
    [
        ("bert", "sequence-classification", {"num_hidden_layers": 1}, "does not use: bert.encoder.layer.1."),
        ("bert", "base", {"num_hidden_layers": 1}, "does not use: encoder.layer.1."),
        ("bert", "sequence-classification", {"num_hidden_layers": 3}, "lack bert.encoder.layer.2."),
        ("bert", "sequence-classification", {"hidden_size": 64}, "check the sizes"),
        ("bert", "sequence-classification", {"intermediate_size": 40}, "config.json asks for [40"),
        ("distilbert", "question-answering", {"n_layers": 1}, "does not use: distilbert.transformer.layer.1."),
        ("roberta", "masked-lm", {"num_hidden_layers": 1}, "does not use: roberta.encoder.layer.1."),
        ("electra", "token-classification", {"num_hidden_layers": 1}, "does not use: electra.encoder.layer.1."),
        ("llama", "causal-lm", {"num_hidden_layers": 1}, "does not use: model.layers.1."),
        ("bart", "seq2seq-lm", {"decoder_layers": 1}, "does not use: model.decoder.layers.1."),
        ("t5", "seq2seq-lm", {"num_layers": 1}, "does not use: encoder.block.1."),
    ],
)
def test_h7_another_network_than_the_weights(
    tmp_path: Path, architecture: str, head: str, change_to: dict[str, Any], expected: str
) -> None:
    folder = change(checkpoint(architecture, head=head), tmp_path / "copy", **change_to)
    with pytest.raises(CheckpointError) as caught:
        load_network(checkpoint_of(folder), CPU, head, None)
    assert expected in str(caught.value)


def test_h7_a_base_network_of_a_checkpoint_with_a_head_has_all_layers(tmp_path: Path) -> None:
    for architecture in ("bert", "distilbert", "gpt2"):
        load(checkpoint(architecture), "base")
        folder = change(checkpoint(architecture), tmp_path / architecture, num_hidden_layers=1, n_layer=1, n_layers=1)
        with pytest.raises(CheckpointError, match="does not use"):
            load(folder, "base")


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("bert.embeddings.position_ids", True),
        ("cls.predictions.bias", True),
        ("cls.seq_relationship.weight", True),
        ("lm_head.bias", True),
        ("qa_outputs.weight", True),
        ("bert.encoder.layer.0.attention.bias", True),
        ("classifier.dense.weight", False),
        ("bert.encoder.layer.0.adapter.weight", False),
        ("bert.pooler.more.weight", False),
        ("stray.weight", False),
    ],
)
def test_h7_only_what_is_known_may_be_left_unused(tmp_path: Path, name: str, taken: bool) -> None:
    folder = change(checkpoint(), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    if taken:
        load(folder)
        return
    with pytest.raises(CheckpointError, match=f"does not use: {name}"):
        load(folder)


def test_h7_a_static_checkpoint_holds_nothing_else(tmp_path: Path) -> None:
    weights = {"embeddings.weight": torch.ones(4, 3), "classifier.weight": torch.ones(2, 3)}
    save_file(
        {**weights, "classifier.bias": torch.ones(2), "more.weight": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    config = {"model_type": "static", "id2label": {"0": "a", "1": "b"}}
    context = StageContext(Checkpoint(tmp_path, "x", config), CPU, "sequence-classification")
    with pytest.raises(CheckpointError, match=r"does not use: more\.weight"):
        StaticModel(StaticModelConfig(), context)


# H29: the head is compared before a class refuses the config


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert", "bert"])
def test_h29_a_classifier_asked_for_answers(architecture: str) -> None:
    text = refusal(checkpoint(architecture, labels=("a", "b", "c")), "question-answering")
    assert "has no question-answering head. It has a sequence-classification head" in text
    assert "Use task=text-classification" in text


# H17: sizes that no weights back


@pytest.mark.parametrize(
    ("architecture", "head", "change_to"),
    [
        ("bert", "sequence-classification", {"num_hidden_layers": 1_000_000}),
        ("bert", "sequence-classification", {"num_hidden_layers": 10**15}),
        ("bert", "sequence-classification", {"num_labels": 999_999}),
        ("bert", "sequence-classification", {"vocab_size": 10**11}),
        ("bert", "sequence-classification", {"hidden_size": 10**9}),
        ("bert", "sequence-classification", {"intermediate_size": 10**18}),
        ("bert", "sequence-classification", {"max_position_embeddings": 10**11}),
        ("albert", "sequence-classification", {"num_hidden_layers": 1_000_000}),
        ("funnel", "sequence-classification", {"block_repeats": [1_000_000, 1]}),
        ("bart", "seq2seq-lm", {"decoder_layers": 1_000_000}),
        ("bart", "seq2seq-lm", {"encoder_ffn_dim": 10**11}),
        ("llama", "causal-lm", {"num_hidden_layers": 200}),
        ("llama", "causal-lm", {"text_config": {"num_hidden_layers": 10**9}}),
    ],
)
def test_h17_sizes_without_weights_are_refused_at_once(
    tmp_path: Path, architecture: str, head: str, change_to: dict[str, Any]
) -> None:
    folder = change(checkpoint(architecture, head=head), tmp_path / "copy", **change_to)
    before = time.process_time()
    with pytest.raises(CheckpointError):
        load_network(resolve_checkpoint(CheckpointConfig(path=str(folder))), CPU, head, None)
    assert time.process_time() - before < 2


def test_h17_pieces_of_layers_are_not_followed(tmp_path: Path) -> None:
    folder = change(checkpoint(), tmp_path / "copy", chunk_size_feed_forward=7)
    texts = ["a good film", "a really good film by my friend"]
    assert pipe(folder)(texts) == pipe(checkpoint())(texts)


# H16: regular files only


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "FIFO": fifo,
    "socket": listening,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
}
NAMES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json"),
    *("modules.json", "1_Pooling/config.json", "vocab.txt"),
)


# Each name with two of the kinds, each kind with half of the names.
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for i, kind in enumerate(sorted(FOREIGN)) for j, name in enumerate(NAMES) if (i + j) % 2],
)
def test_h16_what_is_not_a_file(tmp_path: Path, kind: str, name: str) -> None:
    folder = change(checkpoint(), tmp_path / "copy")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    FOREIGN[kind](folder / name)
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(CheckpointConfig(path=str(folder)))
    assert f"{folder / name} is a {kind}, not a regular file" in str(caught.value)


def test_h16_opening_waits_for_nothing(tmp_path: Path) -> None:
    for kind, build in FOREIGN.items():
        build(tmp_path / kind)
        with pytest.raises(CheckpointError, match="is not a regular file"), open_file(tmp_path / kind):
            pass


# H12: short rows in any company


@pytest.mark.parametrize("architecture", ["bart", "convbert", "funnel", "gpt2", "mobilebert", "xlnet"])
def test_h12_a_short_row_is_the_same_in_any_company(architecture: str) -> None:
    texts = ["", "a", "a good", "a good film", "a good film by my friend and it is great"]
    built = pipe(checkpoint(architecture))

    def answer(text: str, company: list[str]) -> float | str:
        try:
            row = built([text, *company])[0]
        except RowError as error:
            return error.failure.error
        return float(row["score"]) if row["label"] == "POSITIVE" else 1 - float(row["score"])

    for text in texts:
        alone = answer(text, [])
        for company in ([texts[-1]], texts[1:4]):
            assert answer(text, company) == (alone if isinstance(alone, str) else pytest.approx(alone, abs=2e-5))


# H27: whatever a library raises while a checkpoint is read

CASES = (
    ("bert", "sequence-classification", "text-classification"),
    ("xlnet", "sequence-classification", "text-classification"),
    ("funnel", "sequence-classification", "text-classification"),
    ("longformer", "sequence-classification", "text-classification"),
    ("bart", "seq2seq-lm", "text2text-generation"),
    ("llama", "causal-lm", "text-generation"),
)
KNOWN_HOLES: tuple[tuple[int, dict[str, Any]], ...] = (
    (0, {"text_config": {"a": 1}}),
    (0, {"num_attention_heads": 2.5}),
    (1, {"architectures": 1_000_000}),
    (1, {"pad_token_id": 10**12}),
    (2, {"decoder": False}),
    (2, {"sep_token_id": {"0": None}}),
    (3, {"attention_window": 10**10}),
    (4, {"eos_token_id": -1}),
    (5, {"model_type": [None]}),
)
ODD: tuple[Any, ...] = (
    *(None, [], {}, "x", -1, 0, 2.5, 1e30, True, [1, 2], ["a"], {"a": 1}, 10**12, 10**30, [None], -(10**9)),
)


def outcome(target: Path, case: tuple[str, str, str], settings: dict[str, Any]) -> str:
    architecture, head, task = case
    folder = change(checkpoint(architecture, head=head), target, **settings)
    try:
        pipe(folder, task)
    except PipelineKitError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder)
    return "built"


@pytest.mark.parametrize(("case", "settings"), KNOWN_HOLES)
def test_h27_a_value_that_no_library_checks(tmp_path: Path, case: int, settings: dict[str, Any]) -> None:
    text = outcome(tmp_path / "copy", CASES[case], settings)
    assert text.startswith("CheckpointError")
    assert str(tmp_path / "copy") in text


def test_h27_random_values_in_config_json(tmp_path: Path) -> None:
    chance = random.Random(7)
    for _ in range(8):
        case = chance.choice(CASES)
        keys = sorted(json.loads((checkpoint(case[0], head=case[1]) / "config.json").read_text()))
        outcome(tmp_path / "copy", case, {chance.choice(keys): chance.choice(ODD)})


def test_h27_a_list_of_end_tokens_is_taken(tmp_path: Path) -> None:
    assert outcome(tmp_path / "copy", CASES[4], {"eos_token_id": [2, 1]}) == "built"
