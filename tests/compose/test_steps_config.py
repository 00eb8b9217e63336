"""A config with steps: each composed as any config, wired by paths that are checked before anything is loaded."""

from __future__ import annotations

import functools
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import checkpoint, cli

import pipeline_kit as pk
from pipeline_kit.compose import hydra
from pipeline_kit.compose.build import build
from pipeline_kit.compose.compose import compose, sweep
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import WHOLE, PipelineConfig, parse_config
from pipeline_kit.errors import ConfigError, redacted
from pipeline_kit.runtime.steps import StepPipeline

THREE: dict[str, Any] = {
    "sentiment": {"postprocessor": {"top_k": None}},
    "sentences": {"split": "text"},
    "each": {"take": {"text": "sentences.*.text"}, "when": {"sentiment.label": ["NEGATIVE", "POSITIVE"]}},
}


def steps_config(folder: Path, steps: Any, *overrides: str, **beside: Any) -> PipelineConfig:
    """Compose a config file with `steps`, and what stands `beside` them."""
    content = {"defaults": ["config", "_self_"], "steps": steps, **beside}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return compose(overrides, registry=load_registry(), config_dir=[folder], config_name="mine")


def faults(folder: Path, steps: Any, *overrides: str, **beside: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        steps_config(folder, steps, *overrides, **beside)
    return {fault.key: str(fault) for fault in caught.value.faults}


def test_each_step_is_a_config_of_its_own_over_what_stands_beside(tmp_path: Path) -> None:
    steps = {
        "one": {"tokenizer": "tokenizers_json", "tokenizer.max_length": 16},
        "two": {"task": "ner", "checkpoint": {"path": "./x"}, "padding": {"name": "multiple_of", "multiple_of": 4}},
        "three": {"tokenizer": {"name": "hf", "max_length": 8}, "device": "cpu"},
    }
    found = steps_config(
        tmp_path, steps, "tokenizer.max_length=32", "padding=none", "runner.retries=3",
        device={"threads": 1}, input={"id": "key"},
    )  # fmt: skip
    one, two, three = (part for part in found.parts.values())
    assert [part.tokenizer.options.max_length for part in (one, two, three)] == [16, 32, 8]
    assert [part.tokenizer.name for part in (one, two, three)] == ["tokenizers_json", "hf", "hf"]
    assert [part.padding.name for part in (one, two, three)] == ["none", "multiple_of", "none"]
    assert [part.device.name for part in (one, two, three)] == ["auto", "auto", "cpu"]
    assert {part.device.threads for part in (one, two, three)} == {1}
    assert {part.runner.retries for part in (found, one, two, three)} == {3}
    assert (two.task.name, two.postprocessor.name, two.checkpoint.path) == ("token-classification", "entities", "./x")
    assert (found.input.id, found.tokenizer, found.task.name) == ("key", three.tokenizer, "text-classification")
    assert found.task.takes == ("text",)
    assert list(found.gives or ()) == ["one", "two", "three"]
    # All fields of a ner step may be left out; it takes the first.
    assert {name: str(path) for name, path in found.steps["two"].wiring.take.items()} == {"text": "text"}


def test_overrides_reach_inside_and_come_last(tmp_path: Path) -> None:
    steps = {"one": {"tokenizer": "tokenizers_json", "tokenizer.max_length": 16}, "two": {"when": {"one.label": "x"}}}
    found = steps_config(
        tmp_path, steps, "steps.one.tokenizer.max_length=4", "steps.two.tokenizer=tokenizers_json",
        "tokenizer=hf", "steps.two.checkpoint.path=./y", "steps.two.take.text=body", "steps.two.when.one.label=[a,b]",
    )  # fmt: skip
    one, two = found.parts.values()
    assert (one.tokenizer.name, one.tokenizer.options.max_length) == ("tokenizers_json", 4)
    assert (two.tokenizer.name, two.checkpoint.path) == ("tokenizers_json", "./y")
    wiring = found.steps["two"].wiring
    assert {str(path): values for path, values in wiring.when.items()} == {"one.label": ("a", "b")}
    assert {name: str(path) for name, path in wiring.take.items()} == {"text": "body"}
    assert found.task.takes == ("text", "body")


def test_a_sweep_reaches_inside() -> None:
    combinations = sweep(["steps.one.tokenizer.max_length=4,8", "steps=language_sentiment,sentences_with_entities"])
    assert len(combinations) == 4
    assert combinations[-1] == ["steps.one.tokenizer.max_length=8", "steps=sentences_with_entities"]


def test_the_data_of_a_config_makes_the_same_config(tmp_path: Path) -> None:
    found = steps_config(tmp_path, THREE, "runner.retries=1")
    assert parse_config(found.data, load_registry(), []) == found


@pytest.mark.parametrize("preset", ["language_sentiment", "sentences_with_entities"])
def test_the_presets_compose(preset: str) -> None:
    found = compose([f"steps={preset}"])
    assert list(found.steps) == list(found.gives or ())
    assert found.task.takes == ("text",)


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [(["steps=language_sentiment"], 3), (["steps=language_sentiment", "steps.language.padding=none"], 4)],
)
def test_steps_with_the_same_choices_are_composed_once(
    overrides: list[str], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = hydra.compose_container, list[Any]()

    def counted(*given: Any) -> Any:
        calls.append(given)
        return whole(*given)

    monkeypatch.setattr(hydra, "compose_container", counted)
    language, english, _ = compose(overrides).parts.values()
    assert len(calls) == passes
    assert "papluca" in language.checkpoint.path
    assert "sst" in english.checkpoint.path


def test_all_faults_come_at_once_by_their_steps(tmp_path: Path) -> None:
    steps = {
        "one": {"tokenizer": {"max_length": -1, "max_lenght": 3}, "when": 3},
        "two": {"steps": {"b": {}}, "output": {"format": "csv"}},
        "three": {"tsk": "ner", "padding": "longst", "take": {"txt": "tree", "text": "a b"}},
        "four": "ner",
    }
    found = faults(
        tmp_path, steps, "steps.one.padding=longst", "steps.on.padding=none", "steps.two.model.hed=a",
        "steps.two.device.threads=1,2", "device.index=-1",
    )  # fmt: skip
    for key, said in {
        "steps.one.tokenizer.max_length": "-1 is out of range",
        "steps.one.tokenizer.max_lenght": "Did you mean 'max_length'?",
        "steps.one.padding=longst": "Did you mean 'longest'?",
        "steps.one.when": "is a path, or a mapping of paths to values",
        "steps.on.padding=none": "there is no step 'on'. Did you mean 'one'?",
        "steps.two.steps": "a step has no steps of its own",
        "steps.two.output": "write output beside 'steps'",
        "steps.two.model.hed": "Did you mean 'head'?",
        "steps.two.device.threads=1,2": "has several values",
        "steps.three.tsk": "Did you mean 'task'?",
        "steps.three.padding=longst": "Did you mean 'longest'?",
        "steps.three.take": "'a b' is not a path",
        "steps.four": "'ner' is not a mapping, such as 'task: ner'",
        "steps.one.device.index": "-1 is out of range",
        "steps.two.device.index": "-1 is out of range",
        "steps.three.device.index": "-1 is out of range",
    }.items():
        assert said in found.pop(key)
    assert found == {}


def test_steps_that_are_not_there_and_what_is_not_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the config has no steps"):
        compose(["steps.a.padding=none"])
    step = {"model": {"_target_": "os.system"}}
    assert "not allowed" in next(iter(faults(tmp_path, {"a": step}).values()))


@functools.cache
def step_data() -> dict[str, Any]:
    """What a step of a text classifier is composed to."""
    return {group: value for group, value in compose([]).data.items() if group not in WHOLE}


WRONG: list[tuple[Any, str, str]] = [
    ("text", "steps", "are a mapping of at most 20 names"),
    ({f"s{n}": {} for n in range(21)}, "steps", "are a mapping of at most 20 names"),
    ({"a": {"take": "text"}}, "steps.a.take", "is not a mapping"),
    ({"a": {"take": {"text": "b", "txt": "c"}}}, "steps.a.take.txt", "Did you mean 'text'?"),
    ({"a": {"take": {"text_pair": "b"}}}, "steps.a.take", "the field 'text' of task=text-classification is missing"),
    ({"a": {"take": {"text": "x.*.y.*"}}}, "steps.a.take", "has several *"),
    ({"a": {"take": {"text": "b.label"}}, "b": {}}, "steps.a.take", "does not come before this one"),
    ({"text": {}}, "steps.text.take", "does not come before this one"),
    ({"a": {"when": {"a.label": 1}}}, "steps.a.when", "does not come before this one"),
    ({"a": {"when": {"text": [[1]]}}}, "steps.a.when.text", "are texts, numbers, true, false or null"),
    ({"a": {"when": "x.*.y"}}, "steps.a.when", "both go through the items of a list, or neither"),
    ({"a": {"split": "text"}}, "steps.a", "the last step is a pipeline"),
    ({"a": {"split": 3}, "b": {}}, "steps.a.split", "is not a path"),
    ({"a": {"split": "text", "task": "ner"}, "b": {}}, "steps.a.task", "no effect in a step that splits"),
    ({"id": {}}, "steps.id", "other than id and error"),
    ({"a b": {}}, "steps.a b", "is a word of letters"),
]


@pytest.mark.parametrize(("steps", "key", "said"), WRONG, ids=[f"{key}: {said}" for _, key, said in WRONG])
def test_every_wrong_wire_has_a_message(steps: Any, key: str, said: str) -> None:
    if isinstance(steps, dict):
        steps = {name: node if "split" in node else {**step_data(), **node} for name, node in steps.items()}
    with pytest.raises(ConfigError) as caught:
        parse_config({"steps": steps}, load_registry(), [])
    [fault] = caught.value.faults
    assert fault.key == key
    assert said in fault.problem or said in str(fault)


def test_a_secret_of_a_step_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text(
        "from dataclasses import dataclass\nfrom pipeline_kit import option\n"
        "from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig\n"
        "@dataclass\nclass C(HfTokenizerConfig):\n    pass_phrase_of_it: str = option('', 'x', secret=True)\n"
        "def register(registry):\n"
        "    registry.tokenizer('locked', 'pipeline_kit.builtin.tokenizers.hf:HfTokenizer', C, summary='x')\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "defaults: [config, _self_]\nsteps:\n  token_of_mine:\n"
        "    tokenizer: {name: locked, pass_phrase_of_it: hunter2hunter}\n"
    )
    done = cli("cfg", "--config", tmp_path / "mine.yaml", "--plugin", tmp_path / "secret.py")
    assert done.code == 0, done.err
    assert "hunter2" not in done.out
    assert "/tiny_sentiment\n" in done.out
    assert redacted({"steps": {"key": {"take": {"text": "a"}}}}) == {"steps": {"key": {"take": {"text": "a"}}}}


def test_steps_with_the_same_checkpoint_and_options_share_a_model(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint(), other)
    steps = {
        "one": {"checkpoint": {"path": str(checkpoint())}},
        "two": {"checkpoint": {"path": str(checkpoint())}, "postprocessor": {"top_k": None}},
        "longer": {"checkpoint": {"path": str(checkpoint())}, "tokenizer": {"max_length": 9}},
        "embedded": {"checkpoint": {"path": str(checkpoint())}, "task": "sentence-embedding"},
        "other": {"checkpoint": {"path": str(other)}},
    }
    pipe = build(steps_config(tmp_path, steps, "device=cpu"))
    assert isinstance(pipe, StepPipeline)
    models = {name: step.pipeline.model for name, step in pipe.steps.items() if step.pipeline is not None}
    assert models["one"] is models["two"]
    assert len(set(map(id, models.values()))) == 4
    assert len({id(step.pipeline.tokenizer) for step in pipe.steps.values() if step.pipeline}) == 5


def test_results_are_those_of_the_steps_configs_by_hand(tmp_path: Path) -> None:
    """Real stages: the same floats, digit by digit."""
    config = steps_config(tmp_path, THREE, "device=cpu")
    texts = [f"I {verb} this {n} times. It is {verb}ly!" for n in range(30) for verb in ("love", "hate")]
    found = pk.load("device=cpu", config_dir=tmp_path, config_name="mine")(texts)
    sentiment, each = (build(part) for part in config.parts.values())
    assert [row["sentiment"] for row in found] == sentiment(texts)
    parts = [part["text"] for row in found for part in row["sentences"]]
    assert len(parts) == 120
    assert [result for row in found for result in row["each"]] == each(parts)


def test_only_the_command_line_trusts_a_checkpoint(tmp_path: Path) -> None:
    pickle = {"checkpoint": {"trust": "pickle"}}
    for steps in ({"a": pickle}, {"a": {"checkpoint.trust": "pickle"}}, {"a": {"checkpoint": "tiny_static", **pickle}}):
        assert "no config can set it to 'pickle'" in faults(tmp_path, steps)["steps.a.checkpoint.trust"]
    empty: dict[str, Any] = {"a": {}, "b": {}}
    found = steps_config(tmp_path, empty, "steps.b.checkpoint.trust=pickle")
    assert [part.checkpoint.trust for part in found.parts.values()] == ["data", "pickle"]
    found = steps_config(tmp_path, empty, "checkpoint.trust=pickle")
    assert {part.checkpoint.trust for part in found.parts.values()} == {"pickle"}


def test_keywords_of_python_reach_all_steps_and_inside_one(tmp_path: Path) -> None:
    steps = {"one": {"tokenizer": {"max_length": 16}}, "two": {}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"defaults": ["config", "_self_"], "steps": steps}))
    start: dict[str, Any] = {"registry": load_registry(), "config_dir": [tmp_path], "config_name": "mine"}
    given = {"tokenizer": {"max_length": 32}, "batch_size": 4, "steps.two.padding": "none", "steps.one.batch_size": 2}
    found = compose(["device=cpu", given, "steps.two.checkpoint=./folder"], **start)
    one, two = found.parts.values()
    assert [part.tokenizer.options.max_length for part in (one, two)] == [16, 32]
    assert [part.batching.max_rows for part in (one, two)] == [2, 4]
    assert [part.padding.name for part in (one, two)] == ["longest", "none"]
    assert two.checkpoint.path == "./folder"
    found = compose([{"steps": {"only": {"task": "ner", "checkpoint": "org/name"}}}], registry=load_registry())
    assert found.parts["only"].task.name == "token-classification"
    assert found.parts["only"].checkpoint.path == "org/name"
    pipe = pk.load({"steps": {"only": {"device": "cpu"}}})
    with pytest.raises(pk.PipelineKitError, match="top_k"):
        pipe("text", top_k=None)


def test_it_is_copied_as_its_config(tmp_path: Path) -> None:
    steps_config(tmp_path, THREE)
    pipe = pk.load(config=tmp_path / "mine.yaml", device="cpu")
    again = pickle.loads(pickle.dumps(pipe))
    assert isinstance(again, StepPipeline)
    assert again("I love this. It is bad.") == pipe("I love this. It is bad.")
    assert again.config == pipe.config
