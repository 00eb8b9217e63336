"""The way in from Python: keywords are data, mean what overrides mean, and options may change at a call."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from harness import checkpoint, cli
from omegaconf import OmegaConf

import pipeline_kit as pk
from pipeline_kit.compose import aliases, python
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.overrides import OverrideSorter
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import GROUPS, PipelineConfig
from pipeline_kit.errors import ConfigError, UsageError
from pipeline_kit.files.storage.retries import patience, use_storage

pytestmark = pytest.mark.usefixtures("composed_once")

EXAMPLES: dict[str, Any] = {"candidate_labels": ["a", "b"], "dtype": "fp16", "device_map": "cpu"}


@pytest.fixture
def composing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `load` and `pipeline` return the config in place of what is built from it."""
    monkeypatch.setattr(python, "build", lambda config, plugins=(): config)


def config_of(*overrides: Any, **options: Any) -> PipelineConfig:
    return python.composed((*overrides, options), load_registry())


def sorted_out(override: str | Mapping[str, Any]) -> tuple[list[str], list[Any], list[str]]:
    faults: list[Any] = []
    chosen = OverrideSorter(load_registry(), [], faults)
    chosen.add(override)
    settings = [(setting.typed, setting.value) for setting in chosen.settings]
    return chosen.accepted, settings, [str(fault) for fault in faults]


@pytest.mark.parametrize("name", aliases.ALIASES)
def test_an_alias_means_the_same_as_an_override_a_keyword_and_a_flag(name: str) -> None:
    value = EXAMPLES.get(name, next((key for key in aliases.ALIASES[name].values if key is not None), 3))
    text = "[a,b]" if isinstance(value, list) else str(value).replace("True", "true").replace("False", "false")
    found = sorted_out({name: value})
    assert any(found) or value in aliases.ALIASES[name].values
    assert sorted_out(f"{name}={text}") == found
    flag = aliases.override_of_flag(f"--{name.replace('_', '-')}", deque([text]))
    assert sorted_out(str(flag)) == found


def test_every_alias_sets_an_option_that_there_is() -> None:
    registry = load_registry()
    schemas = [(spec.kind, spec.config) for spec in registry.specs()]
    for name, alias in aliases.ALIASES.items():
        assert alias.options or alias.words, name
        for option in alias.options:
            group, _, path = option.partition(".")
            data = [{group: {"name": spec.name}} for spec in registry.specs(group)] or [{group: {}}]
            assert group in GROUPS
            assert not path or any(aliases._has(each, option, registry) for each in data), (name, schemas)


def test_the_keywords_that_an_ide_completes_are_groups_and_aliases() -> None:
    typed = set(get_type_hints(python.Options))
    assert set(GROUPS) <= typed
    assert typed - set(GROUPS) <= set(aliases.ALIASES)


def test_keywords_mappings_and_overrides_compose_the_same() -> None:
    wanted = compose(
        ["task=ner", "tokenizer=windows", "tokenizer.max_length=64", "checkpoint.path=./x", "device=cpu"]
    ).data
    assert (
        config_of(task="ner", tokenizer={"name": "windows", "max_length": 64}, checkpoint="./x", device="cpu").data
        == wanted
    )
    assert (
        config_of(
            {"task": "ner", "tokenizer.max_length": 64}, "tokenizer=windows", {"model": Path("./x")}, device=-1
        ).data
        == wanted
    )
    surrounding = OmegaConf.create(
        {"length": 64, "pipeline": {"task": "ner", "tokenizer": {"name": "windows", "max_length": "${length}"}}}
    )
    assert config_of(surrounding.pipeline, "device=cpu", checkpoint=Path("x")).data["tokenizer"] == wanted["tokenizer"]
    assert config_of(compose(["task=ner", "device=cpu"]).data).data == compose(["task=ner", "device=cpu"]).data


def test_keywords_win_over_overrides_and_none_leaves_a_group_as_it_is() -> None:
    config = config_of("tokenizer.max_length=8", tokenizer={"max_length": 16}, device=None)
    assert config.tokenizer.options.max_length == 16
    assert config.device.name == "auto"


def test_a_text_is_data_whatever_is_in_it() -> None:
    pieces = [
        "a",
        ",",
        "=",
        "${",
        "}",
        "$",
        "\\",
        "'",
        '"',
        "${task.name}",
        "${oc.env:HOME}",
        ": ",
        "[",
        "{",
        "_target_",
        "\n",
    ]
    draw = random.Random(0)
    texts = ["null", "true", "1", "???x", *("".join(draw.choices(pieces, k=6)) for _ in range(300))]
    prompts = {text: text for text in texts}
    config = config_of(task="sentence-embedding", prompt=texts[-1], checkpoint={"path": texts[-2], "prompts": prompts})
    assert config.postprocessor.options.prompt == texts[-1]
    assert config.checkpoint.path == texts[-2]
    assert config.checkpoint.prompts == prompts


PYTHON_ANSWERS = {
    "load('ner')": 'task="ner"',
    "load('./my-model')": 'checkpoint="./my-model"',
    "load(truncation=False)": 'tokenizer={"overflow": "window"}',
    "load('candidate_labels=sport,politics', task='zero-shot')": 'candidate_labels=["sport", "politics"]',
    "load(max_length=64, task='text-generation')": 'model={"generation": {"max_new_tokens": 50}}',
    "load(task='translation_en_to_fr')": 'task="translation" src_lang="en" tgt_lang="fr"',
    "load(num_workers=4)": 'runner={"workers": 2}',
    "pipeline('ner', model=object())": 'checkpoint="./my-model"',
    "pipeline(model_kwargs={'x': 1})": 'model={"attn_implementation": "eager"}',
    "pipeline(candidate_labels=['a'])": 'task="zero-shot-classification"',
}
"""Calls, and words of the answer that work as keywords of `load`."""
HEADS = {"candidate_labels": "zero-shot", 'model={"gen': "text-generation"}
"""The tasks that the calls of such answers have."""


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize(("call", "following"), PYTHON_ANSWERS.items())
def test_an_answer_names_keywords_that_work(call: str, following: str) -> None:
    with pytest.raises((ConfigError, UsageError)) as caught:
        eval(f"pk.{call}")
    assert following in str(caught.value)
    assert "--" not in str(caught.value)
    more = next((f', task="{task}"' for part, task in HEADS.items() if following.startswith(part)), "")
    config = eval(f"pk.load({re.sub(' (?=[a-z_]+=)', ', ', following)}{more})")
    assert isinstance(config, PipelineConfig)


@pytest.mark.usefixtures("composing")
def test_messages_name_arguments_in_python() -> None:
    for options in ({"config": "none.yaml"}, {"config_dir": "none"}, {"plugins": ["none.py"]}, {"config_name": "none"}):
        [name] = options
        with pytest.raises((ConfigError, UsageError), match=re.escape(f"{name}='none")):
            pk.load(**options)
    for wrong in ({"taks": "ner"}, {"batchsize": 8}, {"tokenizer": {"max_lenght": 8}}):
        with pytest.raises(ConfigError, match="Did you mean"):
            pk.load(wrong)
    with pytest.raises(ConfigError, match=r"tokenizer\.max_length: ndarray is not the type of an option"):
        pk.load({"tokenizer": {"max_length": np.zeros(2)}})
    deep: Any = {}
    for _ in range(3000):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match="nested more than"):
        pk.load(checkpoint={"prompts": deep})


def test_no_data_trusts_a_pickle() -> None:
    for options in ({"checkpoint": {"trust": "pickle"}}, {"checkpoint.trust": "pickle"}):
        with pytest.raises(ConfigError, match="as the text"):
            config_of(options)
    assert config_of("checkpoint.trust=pickle").checkpoint.trust == "pickle"


def test_a_group_of_the_users_own_is_a_keyword_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "fast.yaml").write_text("# @package _global_\nbatching: {max_rows: 3}\n")
    config = python.composed([{"experiment": "fast"}], load_registry(), config_dir=tmp_path)
    assert config.batching.max_rows == 3
    with pytest.raises(ConfigError, match=r"experiment=fats: no such option\. Did you mean 'fast'"):
        python.composed([{"experiment": "fats"}], load_registry(), config_dir=tmp_path)


@pytest.mark.usefixtures("composing")
def test_the_arguments_of_transformers_set_options(tmp_path: Path) -> None:
    import torch

    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nbatching: {max_rows: 3}\n")
    arguments: Any = {
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "tokenizer": str(tmp_path),
        "batch_size": 4,
    }
    made: Any = pk.pipeline("ner", str(tmp_path), framework="pt", aggregation_strategy="max", **arguments)
    assert (made.task.name, made.checkpoint.path) == ("token-classification", str(tmp_path))
    assert (made.device.name, made.device.dtype, made.batching.max_rows) == ("cpu", "bfloat16", 4)
    assert made.postprocessor.options.aggregation == "max"
    loaded: Any = pk.load(config=tmp_path / "mine.yaml", revision="v1")
    assert (loaded.batching.max_rows, loaded.checkpoint.revision) == (3, "v1")
    for options in ({"trust_remote_code": True}, {"framework": "tf"}, {"use_fast": False}, {"token": "hf_x"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            pk.pipeline("ner", **options)


def test_options_of_a_call_hold_for_that_call_alone() -> None:
    pipe = pk.load(device={"name": "cpu", "threads": 1})
    plain, full = pipe("I love this."), pipe("I love this.", top_k=None)
    assert [label["label"] for label in full["labels"]] == ["POSITIVE", "NEGATIVE"]
    assert pipe("I love this.") == plain == {key: full[key] for key in plain}
    assert pipe(["I love this."] * 2, batch_size=1, truncation=True, padding=True) == [plain, plain]
    cut = pipe("I love this film so much.", max_length=4)
    assert cut["truncated"] > 0
    assert "truncated" not in pipe("I love this film so much.")
    other = pipe.adapter(pipe, {"batch_size": 1, "top_k": 2})  # type: ignore[misc]
    assert (other.batching.max_rows, pipe.batching.max_rows) == (1, None)
    assert (other.model, other.tokenizer) == (pipe.model, pipe.tokenizer)  # the same objects
    assert other.description["options"]["postprocessor"]["top_k"] == 2
    assert pipe(text="I love this.", top_k=None) == full  # the fields of one example
    with pytest.raises(pk.RowError, match="text"):
        pipe()
    for wrong, said in (
        ({"device": "cpu"}, "device: cannot change at a call"),
        ({"attn_implementation": "eager"}, "model: cannot change at a call"),
        ({"postprocessor": "logits"}, "postprocessor: cannot change at a call"),
        ({"top_k": 0}, "out of range"),
        ({"topk": 1}, "Did you mean 'top_k'?"),
        ({"candidate_labels": ["a"]}, "zero-shot-classification"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            pipe("I love this.", **wrong)


def test_generation_may_change_at_a_call_and_shares_the_network() -> None:
    folder = checkpoint("gpt2", head="causal-lm")
    pipe = pk.pipeline("text-generation", model=folder, device="cpu", max_new_tokens=8)
    shorter = pk.pipeline("text-generation", model=folder, device="cpu", max_new_tokens=3, num_beams=2)
    assert pipe("I love", max_new_tokens=3, num_beams=2) == shorter("I love")
    assert len(pipe("I love")["text"]) > len(shorter("I love")["text"])
    other: Any = pipe.adapter(pipe, {"max_new_tokens": 3})  # type: ignore[misc]
    assert other.tokenizer.max_length == shorter.tokenizer.max_length  # what is not written may be read
    assert other.model._network is pipe.model._network  # type: ignore[attr-defined]


def test_composing_changes_nothing_of_the_process_and_loading_sets_its_patience_with_stores() -> None:
    before = patience()
    try:
        compose(["storage.retries=3"])
        assert patience() is before
        pk.load("storage.retries=4", device="cpu")
        assert patience().retries == 4
        assert cli("run", "--text", "ok", "--quiet", "storage.retries=5", "device=cpu").code == 0
        assert patience().retries == 5
    finally:
        use_storage(before)
