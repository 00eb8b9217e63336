"""What people who know Hydra type: groups of their own, folders with other YAML in them, odd overrides, sweeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline_kit.compose.compose import complete, compose, sweep
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.contract.spelling import command_line
from pipeline_kit.errors import ConfigError

FAST = """\
# @package _global_
defaults:
  - override /padding: none
  - override /postprocessor: logits
tokenizer:
  max_length: 33
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A folder as a project of its own has it, with a config of another program and files that are no configs."""
    folder = tmp_path / "conf"
    (folder / "experiment" / "vision").mkdir(parents=True)
    (folder / "padding").mkdir()
    (folder / "experiment" / "fast.yaml").write_text(FAST)
    (folder / "experiment" / "long.yaml").write_text("# @package _global_\nbatching: {max_tokens: 98}\n")
    (folder / "experiment" / "vision" / "big.yaml").write_text("# @package _global_\nbatching: {max_tokens: 99}\n")
    (folder / "experiment" / "inside.yaml").write_text("tokenizer: {max_length: 3}\n")
    (folder / "experiment" / "broken.yaml").write_text("a: &x 1\n")
    (folder / "padding" / "broken.yaml").write_text("model: {_target_: os.system}\n")
    (folder / "config.yaml").write_text("db: mysql\nmodel: {_target_: os.system}\n")
    (folder / "compose.yaml").write_text("services: {web: {image: x}}\n---\n- 1\n")
    (folder / "mine.yaml").write_text("defaults: [config, _self_]\nbatching: {max_tokens: 7}\n")
    (folder / "with.yaml").write_text("defaults: [config, experiment: long, _self_]\n")
    return folder


def fault(conf: Path, *overrides: str, name: str = "config") -> str:
    with pytest.raises(ConfigError) as caught, command_line():
        compose(overrides, config_dir=[conf], config_name=name)
    return str(caught.value)


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize("name", ["config", "mine", "with"])
def test_a_group_of_ones_own_is_chosen_with_and_without_a_plus(conf: Path, sign: str, name: str) -> None:
    config = compose([f"{sign}experiment=fast"], config_dir=[conf], config_name=name)
    assert (config.padding.name, config.postprocessor.name) == ("none", "logits")
    assert config.data["tokenizer"]["max_length"] == 33
    assert config.batching.max_tokens == (7 if name == "mine" else None)


def test_overrides_win_over_an_experiment_and_several_may_be_chosen(conf: Path) -> None:
    config = compose(["padding=longest", "experiment=fast", "tokenizer.max_length=5"], config_dir=[conf])
    assert (config.padding.name, config.data["tokenizer"]["max_length"]) == ("longest", 5)
    config = compose(["experiment=[fast,long]"], config_dir=[conf])
    assert (config.padding.name, config.batching.max_tokens) == ("none", 98)
    assert compose(["experiment/vision=big"], config_dir=[conf]).batching.max_tokens == 99
    assert compose(config_dir=[conf], config_name="with").batching.max_tokens == 98
    assert compose(["+padding=none"]).padding.name == "none"


def test_a_group_of_ones_own_is_swept_and_completed(conf: Path) -> None:
    assert sweep(["+experiment=fast,long"], config_dir=[conf]) == [["+experiment=fast"], ["+experiment=long"]]
    assert ["experiment=inside"] in sweep(["experiment=glob(*)"], config_dir=[conf])
    assert sweep(["padding=glob(*n*)"], config_dir=[conf])[0] == ["padding=broken"]
    assert complete("experiment=f", load_registry(), [conf]) == ["experiment=fast"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("experiment=fst", "experiment=fst: no such option. Did you mean 'fast'?\n  allowed: broken, fast"),
        ("experiment=fast,long", "to run each value add -m"),
        ("experimnt=fast", "Did you mean 'experiment'?"),
        ("experiment=../mine", "no such option"),
        ("experiment/../padding=broken", "is not the name of an option"),
        ("/experiment=fast", "is not the name of an option"),
        ("experiment@model=fast", "is not the name of an option"),
        ("experiment=inside", "write '# @package _global_' as the first line"),
        ("experiment=broken", "experiment/broken.yaml:1: holds a YAML anchor or alias"),
        ("padding=broken", "padding/broken.yaml:1: names Python to run with '_target_'"),
        ("postprocessor=ner", "Did you mean 'task=ner'?"),
        ("task=hf", "Did you mean 'tokenizer=hf' or 'model=hf'?"),
    ],
)
def test_what_is_wrong_with_a_choice_is_said(conf: Path, override: str, said: str) -> None:
    assert said in fault(conf, override)


def test_only_files_that_are_read_are_checked(conf: Path) -> None:
    for name in ("config", "mine"):
        assert compose(config_dir=[conf], config_name=name).padding.name == "longest"
    (conf / "padding" / "longest.yaml").write_text("name: none\n")
    (conf / "padding" / "none.yaml").write_text("name: longest\n")
    for name in ("config", "mine"):
        found = fault(conf, name=name)
        assert "longest.yaml: has the name of the built-in 'padding=longest'; rename it" in found
        assert "none.yaml" not in found
    (conf / "tokenizer").mkdir()
    (conf / "tokenizer" / "hf.yaml").write_text("name: static\n")
    assert "built-in 'tokenizer=hf'" in fault(conf, "padding=multiple_of")


# Words of Hydra's and OmegaConf's own messages, and names of their errors.
RAW = re.compile(
    r"hydra\.cc|omegaconf|full_key|object_type|Config search path|provider=|Exception|Error\b|antlr|"
    r"mismatched input|viable|token recognition|extraneous|defaults list|ConfigStore|multirun|\+\+|append",
    re.IGNORECASE,
)
ODD = (
    *("a.b.c=1", "task.name.x=1", "tokenizer=[hf]", "tokenizer=null", "model={a: 1}", "padding=", "padding= none"),
    *("+padding.colour=red", "++padding=none=1", "a=b=c", "a==b", "a=[1,2", "a={b:}", "a='x", 'a="x\\"', "a=(1)"),
    *("a=b:c", "a=${b}", "a=${task}", "a=${a}", "a=${tokenizer.name}x", "a.0=1", "a[0]=1", "a[x]=1", "[a]=1"),
    *("a=range(1)", "a=range(0,1,0)", "a=choice()", "a=glob(*)", "a=interval(0,1)", "a=sort(3,1)", "a=int(x)"),
    *("a=foo(1)", "a=tag(x)", "a=shuffle(1,2)", "a=sort(1,x)", "a=cast(1)", "a=\\", "é=1", "a-b=1", "a.b-c=1", "1=1"),
    *("checkpoint.path=${nothing.here}", "checkpoint.path=${oc.env:HOME}", "task={name: x}", "task.takes=x"),
    *("defaults=[x]", "defaults.0=x", "_self_=1", "padding@_global_=none", "override padding=none", "@a=1", "=1"),
)
CONFIGS = {
    "defaults: [config, padding: none, _self_]\n": "chooses 'padding' twice",
    "defaults: [config, override nothing: none, _self_]\n": "overrides 'nothing', of which nothing is chosen yet",
    "defaults: [config, override padding: nothing, _self_]\n": "names 'padding/nothing', and there is no such option",
    "defaults: [config, nothing, _self_]\n": "names 'nothing', and there is no such option",
    "defaults: [_self_, config, _self_]\n": "has _self_ twice",
    "defaults: [override padding: none, config]\n": "must be at the end of its 'defaults'",
    "defaults: [config, padding: '???', _self_]\n": "chooses nothing for 'padding'.\n  write padding=NAME",
    "defaults: [config, _self_]\ntask: [1]\n": "config 'mine': has a list, mapping or value where another kind is due",
    "defaults: [config, _self_]\na: ${b.c}\n": "a: a reference cannot be resolved: it refers to 'b.c'",
    "defaults: [config, _self_]\ncheckpoint: {path: '${checkpoint.path}'}\n": "it refers to itself",
    "defaults: [config, 'padding: ${x}', _self_]\n": "not a name in a config folder",
}


@pytest.mark.parametrize("override", ODD)
def test_no_words_of_hydras_reach_a_user(override: str) -> None:
    said = []
    for act in (compose, sweep):
        try:
            act([override])
        except ConfigError as error:
            said.append(str(error).replace(override, ""))
    assert [text for text in said if RAW.search(text)] == []


@pytest.mark.parametrize("text", CONFIGS)
def test_a_config_that_cannot_be_composed_says_why_in_our_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    found = fault(tmp_path, name="mine")
    assert CONFIGS[text] in found
    assert not RAW.search(found), found
