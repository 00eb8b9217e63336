"""Composing: what composes, every fault at once, state of Hydra left alone."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import pytest
import warm
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from pipeline_kit.builtin.tasks.options import PoolingConfig
from pipeline_kit.compose.compose import complete, compose, sweep
from pipeline_kit.compose.overrides import options
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import GROUPS
from pipeline_kit.contract.spelling import command_line
from pipeline_kit.errors import ConfigError, for_message


def faults(*overrides: str, config_dir: Path | None = None, config_name: str = "config") -> dict[str, str]:
    """Compose and give the faults by key; no fault is a failure."""
    folders = [] if config_dir is None else [config_dir]
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir=folders, config_name=config_name)
    assert caught.value.exit_code == 2
    return {fault.key: str(fault) for fault in caught.value.faults}


def test_the_default_composes_and_is_typed() -> None:
    config = compose()
    assert config.task.name == "text-classification"
    assert (config.tokenizer.name, config.model.name, config.postprocessor.name) == ("hf", "hf", "classification")
    assert config.batching.window == 2048


def test_every_option_of_every_group_composes() -> None:
    """One of each group at a time, until each was there; none depends on another."""
    for chosen in zip_longest(
        *([f"{group}={name}" for name in names] for group, names in options(load_registry()).items())
    ):
        words = [word for word in chosen if word is not None]
        data = compose(words).data
        groups = {*data, *data.get("steps", {}).get("english", ()), *data.get("steps", {}).get("entities", ())}
        assert all(word.partition("=")[0] in groups for word in words)


def test_every_packaged_yaml_says_what_it_is_how_to_run_it_and_what_to_override() -> None:
    conf = Path(__file__).parents[2] / "conf"
    for path in conf.rglob("*.yaml"):
        if path.name != "config.yaml":
            comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            assert any("pipeline-kit run" in line or "pipeline-kit serve" in line for line in comments), path
            assert any("override" in line for line in comments), path


def test_a_task_picks_stages_and_a_stage_override_wins_over_it() -> None:
    assert isinstance(compose(["task=sentence-embedding"]).postprocessor.options, PoolingConfig)
    assert compose(["task=sentence-embedding"]).task.head == "base"
    assert compose(["postprocessor=logits", "task=sentence-embedding"]).postprocessor.name == "logits"
    assert compose(["task=sentiment-analysis"]).task.name == "text-classification"


def test_a_checkpoint_brings_the_stages_that_read_it_and_a_stage_override_wins_over_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [config, override checkpoint: tiny_static, override model: hf, _self_]"
    )
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "own.yaml").write_text("# @package _global_\ndefaults: [tiny_static, _self_]\n")

    def stages(*overrides: str, config_name: str = "config") -> tuple[str, str]:
        config = compose(overrides, config_dir=[tmp_path], config_name=config_name)
        return config.tokenizer.name, config.model.name

    assert stages("checkpoint=tiny_static") == stages("checkpoint=own") == ("tokenizers_json", "static")
    assert stages("model=hf", "checkpoint=tiny_static") == ("tokenizers_json", "hf")
    assert stages("checkpoint=tiny_static", "tokenizer=hf") == ("hf", "static")
    assert stages(config_name="mine") == ("tokenizers_json", "hf")
    assert stages() == stages("checkpoint=tiny_sentiment") == ("hf", "hf")


def test_all_faults_come_at_once_with_key_value_choices_and_closest() -> None:
    found = faults(
        "padding=longst",
        "tokenizer.max_lenght=5",
        "tokenizer.max_length=-5",
        "device.threads=many",
        "model.head=clasification",
        "postprocesor.top_k=1",
        "postprocessor.thresholds={NEGATIVE: high}",
    )
    assert "Did you mean 'longest'?" in found["padding=longst"]
    assert "max_length, multiple_of, none" in found["padding=longst"]
    assert "Did you mean 'max_length'?" in found["tokenizer.max_lenght"]
    assert "pipeline-kit show tokenizer/hf" in found["tokenizer.max_lenght"]
    assert "-5 is out of range" in found["tokenizer.max_length"]
    assert "1 to 16777216" in found["tokenizer.max_length"]
    assert "'many' is not an integer" in found["device.threads"]
    assert "sequence-classification" in found["model.head"]
    assert "Did you mean 'postprocessor'?" in found["postprocesor"]
    assert "'high' is not a number" in found["postprocessor.thresholds.NEGATIVE"]
    assert len(found) == 7


WRONG = {
    "padding=longest,none": "add -m",
    "tokenizer.max_length=1,2": "add -m",
    "I love this.": "--text",
    "~padding": "cannot be removed",
    "checkpoint.revision=a(b": "quote a value",
    "model@other=hf": "not the name of an option",
    "a/b=c": "not the name of an option",
    "=": "not the name of an option",
    "model=" + "x" * 10_000: "no such option",
    "model=a\0b": "no such option",
    "model=os.system": "no such option",
    "padding={side: left, colour: red}": "no such option",
    "x" * 70_000 + "=1": "at the most",
    # Found when the rest is checked against the options' types, by the name of the option.
    "device.threads=true": "is not an integer",
    "runner.batch_timeout=1e400": "is not",
    "batching.window=1.5": "is not an integer",
    "checkpoint.path=null": "null is not a string",
    "task.src_lang=true": "quote it",
}


def test_every_wrong_override_has_a_message() -> None:
    with command_line():
        found = faults(*WRONG)
    assert len(found) == len(WRONG)
    for override, said in WRONG.items():
        name, _, value = override.partition("=")
        keys = (for_message(override, 80), f"{name}={for_message(value, 80)}", name)
        message = next(found[key] for key in keys if key in found)
        assert said in message
        assert len(message) < 2000


NAMING_PYTHON = (
    "model._target_=os.system",
    "+model._target_=logging.os.system",
    "++_target_=builtins.open",
    "postprocessor.thresholds={_target_: os.system}",
    "postprocessor.thresholds={a: {_partial_: true}}",
    "checkpoint.path=[{_target_: os.system}]",
    "tokenizer._convert_=all",
    "model._args_=[1]",
)
RESOLVERS = (
    "${oc.env:SECRET}",
    "${oc.env:SECRET,x}",
    "a${oc.env:SECRET}b",
    "${oc.decode:1}",
    "${oc.create:{}}",
    "${hydra:runtime.cwd}",
    "${oc.select:task.name}",
    "${${task.name}}",
    "${oc.dict.keys:task}",
    "${ oc.env:SECRET }",
)
HYDRAS_OWN = (
    "hydra.run.dir=/tmp/x",
    "hydra.searchpath=[file:///tmp]",
    "+hydra.callbacks.x._target_=os.system",
    "hydra/job_logging=default",
    "++hydra.job.chdir=true",
    "hydra.verbose=true",
    "~hydra",
)


def test_python_resolvers_and_hydras_own_options_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "canary-value")
    resolving = [
        form.format(value) for value in RESOLVERS for form in ("checkpoint.path={}", "checkpoint.path='{}'", "task={}")
    ]
    found = faults(*NAMING_PYTHON, *resolving, *HYDRAS_OWN)
    for overrides, said in ((NAMING_PYTHON, "not allowed"), (resolving, "resolver"), (HYDRAS_OWN, "Hydra's own")):
        assert [override for override in overrides if said not in found[for_message(override, 80)]] == []
    assert "canary-value" not in str(found)


def test_a_plain_reference_is_resolved() -> None:
    assert compose(["checkpoint.path=${task.name}"]).checkpoint.path == "text-classification"
    assert "cannot be resolved" in "\n".join(faults("checkpoint.path=${no.such}").values())


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "anchor or alias"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested"),
        ("# " + "x" * 70_000, "bytes"),
        ("model:\n  _target_: os.system\n", "not allowed"),
        ("model:\n  - a:\n      - _target_: os.system\n", "not allowed"),
        ("checkpoint:\n  path: ${oc.env:SECRET}\n", "resolver"),
        ("hydra:\n  run:\n    dir: /\n", "Hydra"),
        ("defaults:\n  - override hydra/job_logging: default\n", "Hydra"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]\n", "tag"),
        ("\x00", "not valid YAML"),
        ("batching: {}\nbatching: {}\n", "duplicate key"),
    ],
)
def test_hostile_yaml_is_refused_before_it_is_built(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert said in "\n".join(faults(config_dir=tmp_path, config_name="mine").values())


def test_a_users_folder_adds_presets_and_whole_configs(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "short.yaml").write_text("defaults: [hf, _self_]\nmax_length: 16\n")
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - config\n  - override tokenizer: short\n  - override padding: none\n  - _self_\n"
        "batching:\n  max_tokens: 99\n"
    )
    config = compose(["tokenizer=short"], config_dir=[tmp_path])
    assert config.data["tokenizer"]["max_length"] == 16
    config = compose(["tokenizer.overlap=3"], config_dir=[tmp_path], config_name="mine")
    assert config.data["tokenizer"]["max_length"] == 16
    assert config.data["tokenizer"]["overlap"] == 3
    assert config.padding.name == "none"
    assert config.batching.max_tokens == 99


def test_faults_in_a_users_yaml_are_found_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\ntokenizer:\n  overflw: window\nextra: 1\n")
    found = faults(config_dir=tmp_path, config_name="mine")
    assert "Did you mean 'overflow'?" in found["tokenizer.overflw"]
    assert "extra" in found
    assert "Did you mean 'mine'?" in "\n".join(faults(config_dir=tmp_path, config_name="mien").values())
    assert "does not exist" in "\n".join(faults(config_dir=tmp_path / "none").values())


def test_a_users_file_may_not_hide_a_built_in_option(tmp_path: Path) -> None:
    (tmp_path / "padding").mkdir()
    (tmp_path / "padding" / "longest.yaml").write_text("name: none\n")
    assert "rename it" in "\n".join(faults(config_dir=tmp_path).values())


def test_folders_with_odd_names_work(tmp_path: Path) -> None:
    folder = tmp_path / "a 'b', [c]"
    folder.mkdir()
    (folder / "mine.yaml").write_text("defaults: [config, _self_]\nbatching: {max_tokens: 5}\n")
    assert compose(config_dir=[folder], config_name="mine").batching.max_tokens == 5


def test_sweeps_expand_to_combinations() -> None:
    assert sweep(["padding=longest,none", "tokenizer.max_length=range(8,17,8)", "device=cpu"]) == [
        ["padding=longest", "tokenizer.max_length=8", "device=cpu"],
        ["padding=longest", "tokenizer.max_length=16", "device=cpu"],
        ["padding=none", "tokenizer.max_length=8", "device=cpu"],
        ["padding=none", "tokenizer.max_length=16", "device=cpu"],
    ]
    assert ["padding=none"] in sweep(["padding=glob(*)"])
    with pytest.raises(ConfigError):
        sweep(["padding=interval(0,1)"])
    with pytest.raises(ConfigError):
        sweep(["hydra.sweeper=a,b"])


def test_completion_knows_groups_options_keys_and_choices() -> None:
    registry = load_registry()
    assert {f"{group}=" for group in GROUPS} <= set(complete("", registry))
    assert complete("padding=l", registry) == ["padding=longest"]
    assert complete("model=static tokenizer.overfl", registry) == ["tokenizer.overflow="]
    assert "tokenizer.overflow=window" in complete("tokenizer.overflow=", registry)
    assert "postprocessor.pooling=cls" in complete("task=sentence-embedding postprocessor.pooling=", registry)
    assert complete("nothing.like.this", registry) == []


def test_composing_in_threads_gives_each_its_own_config() -> None:
    def one(number: int) -> int | None:
        return compose([f"batching.max_tokens={number + 1}"]).batching.max_tokens

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(12))) == [number + 1 for number in range(12)]


def test_hydras_singletons_are_put_back() -> None:
    store = ConfigStore.instance()
    store.store(name="mine", group="model", node={"theirs": 1})
    before = dict(store.repo)
    compose(["model=static"])
    assert store.repo == before
    assert GlobalHydra.instance().hydra is None
    with pytest.raises(ConfigError):
        compose(["model=mine"])
    del store.repo["model"]


def test_a_part_of_the_config_of_a_users_own_hydra_app_is_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text(
        "length: 12\nmodel: {mine: 1}\npipeline:\n  padding: none\n  tokenizer: {max_length: '${length}'}\n"
        "  device: {name: cpu, threads: 1}\nhydra: {output_subdir: null}\n"
    )
    (tmp_path / "app.py").write_text(
        "import hydra\nimport pipeline_kit as pk\nfrom hydra.core.global_hydra import GlobalHydra\n"
        "from hydra.core.hydra_config import HydraConfig\n"
        "@hydra.main(config_path='conf', config_name='app', version_base='1.3')\n"
        "def main(cfg):\n"
        "    assert GlobalHydra.instance().is_initialized()\n"
        "    before = GlobalHydra.instance().hydra\n"
        "    pipe = pk.load(cfg.pipeline, 'postprocessor.top_k=2')\n"
        "    assert GlobalHydra.instance().hydra is before\n"
        "    found = pipe.description\n"
        "    shown = found['padding']['name'], found['tokenizer']['max_length'], found['device']['threads']\n"
        "    print(cfg.model.mine, *shown, len(pipe('I love this.')['labels']), HydraConfig.get().job.name)\n"
        "main()\n"
    )
    words = ["model.mine=7", "hydra.run.dir=.", "length=9", "pipeline.padding=longest"]
    done = subprocess.run([sys.executable, "app.py", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "7 longest 9 1 2 app", done.stderr


def test_composing_leaves_no_files_and_prints_nothing(tmp_path: Path) -> None:
    code = "from pipeline_kit.compose.compose import compose; compose(['padding=none'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: ner\n", "begin it with: defaults: [config, _self_]"),
        ("tokenizer: {max_length: 64}\n", "begin it with: defaults: [config, _self_]"),
        ("defaults: [config, _self_]\ntokenizer: tokenizers_json\n", "override tokenizer: tokenizers_json"),
        ("defaults: [config, _self_]\ndevice: cuda\n", "override device: cuda"),
        ("defaults: [config, _self_]\ntokenizer.max_length: 64\n", "write it nested: tokenizer: {max_length: ...}"),
    ],
)
def test_a_file_that_is_written_as_one_guesses_is_answered_with_what_to_write(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        compose(config_dir=[tmp_path], config_name="mine")
    [fault] = caught.value.faults
    assert said in str(fault)


def test_a_list_of_defaults_without_self_is_one_line_of_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [config]\ntokenizer: {max_length: 64}\n")
    done = warm.run("-m", "pipeline_kit", "validate", "--config", tmp_path / "mine.yaml")
    assert done.err == "warning: mine.yaml: end its list of defaults with _self_, so that its own values win\n"
