"""Checking plain data against dataclasses, the registry's rules, devices."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline_kit.builtin import register
from pipeline_kit.contract.options import REQUIRED, defaults, list_options, option, parse_options
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import (
    ConfigError,
    DeviceError,
    Fault,
    MissingValueError,
    RegistryError,
    RowError,
    RowFailure,
    Stopped,
    closest_match,
    did_you_mean,
    for_message,
)
from pipeline_kit.runtime.config import DeviceConfig
from pipeline_kit.runtime.device import resolve_device


@dataclass
class Inner:
    size: int = option(1, "how big", minimum=1)


@dataclass
class Schema:
    words: list[str] = option(REQUIRED, "the words", least=1)
    ratio: float = option(0.5, "a share", minimum=0, maximum=1)
    mode: Literal["a", "b"] | None = option(None, "how")
    scores: dict[str, float] = option({}, "by name")
    either: int | str = option(0, "a number or a name")
    inner: Inner = option(Inner(), "more options")

    def __post_init__(self) -> None:
        if self.mode == "a" and self.ratio == 0:
            raise ValueError("mode a needs a ratio over 0")


def found(data: dict[str, Any]) -> tuple[Schema | None, dict[str, str]]:
    faults: list[Fault] = []
    return parse_options(Schema, data, "x", faults), {fault.key: str(fault) for fault in faults}


def test_options_of_options_are_described_by_their_full_key() -> None:
    found = {o.name: (o.type, o.default, o.help) for o in list_options(Schema)}
    assert found["inner.size"] == ("int", 1, "how big")
    assert "inner" not in found


def test_good_data_becomes_the_dataclass() -> None:
    made, faults = found({"words": ["a"], "ratio": 1, "either": "name", "inner": {"size": 2}, "scores": {"a": 1}})
    assert not faults
    assert made == Schema(words=["a"], ratio=1.0, scores={"a": 1.0}, either="name", inner=Inner(2))


@pytest.mark.parametrize(
    ("data", "key", "said"),
    [
        ({}, "x.words", "is required: the words"),
        ({"words": "???"}, "x.words", "is required"),
        ({"words": []}, "x.words", "at least 1"),
        ({"words": "a"}, "x.words", "x.words=[a]"),
        ({"words": [1.5]}, "x.words[0]", "is not a string"),
        ({"words": ["a"], "ratio": 2}, "x.ratio", "0 to 1"),
        ({"words": ["a"], "ratio": float("nan")}, "x.ratio", "finite"),
        ({"words": ["a"], "ratio": 10**400}, "x.ratio", "finite"),
        ({"words": ["a"], "either": 10**5000}, "x.either", "is not a string"),
        ({"words": ["a"], "ratio": True}, "x.ratio", "is not a number"),
        ({"words": ["a"], "mode": "c"}, "x.mode", "a, b"),
        ({"words": ["a"], "scores": [1]}, "x.scores", "is not a mapping"),
        ({"words": ["a"], "scores": {"a": "b"}}, "x.scores.a", "is not a number"),
        ({"words": ["a"], "either": 1.5}, "x.either", "is not"),
        ({"words": ["a"], "inner": {"size": 0}}, "x.inner.size", "1 or more"),
        ({"words": ["a"], "inner": 3}, "x.inner", "is not a mapping"),
        ({"words": ["a"], "wrods": 1}, "x.wrods", "Did you mean 'words'?"),
        ({"words": ["a"], "mode": "a", "ratio": 0}, "x", "needs a ratio"),
        ({"words": ["a\0"]}, "x.words[0]", "NUL"),
    ],
)
def test_each_fault_names_its_key(data: dict[str, Any], key: str, said: str) -> None:
    made, faults = found(data)
    assert made is None
    assert said in faults[key]


def test_options_describe_themselves() -> None:
    assert defaults(Schema)["words"] == "???"
    assert defaults(Schema)["inner"] == {"size": 1}
    by_name = {info.name: info for info in list_options(Schema)}
    assert by_name["mode"].type == "a | b | null"
    assert by_name["words"].help == "the words"


def test_a_name_taken_twice_names_both_owners() -> None:
    registry = Registry()
    register(registry)
    register(registry)
    registry.source = "pk-other 1.0"
    with pytest.raises(RegistryError) as caught:
        registry.model("hf", "other.stage:Model", Schema)
    message = str(caught.value)
    assert "pk-other 1.0" in message
    assert "pipeline-kit" in message
    assert "other.stage:Model" in message


@pytest.mark.parametrize(
    ("name", "target", "config"),
    [("Bad Name", "a:B", Schema), ("ok", "os.system", Schema), ("ok", "a:B", dict), ("a/b", "a:B", Schema)],
)
def test_a_malformed_registration_is_refused(name: str, target: str, config: type[Any]) -> None:
    with pytest.raises(RegistryError):
        Registry().model(name, target, config)


def test_an_unknown_name_lists_the_known_the_closest_and_broken_plugins() -> None:
    registry = Registry()
    register(registry)
    registry.failed["keyword (pk-keyword 0.1)"] = ImportError("No module named 'bar'")
    with pytest.raises(RegistryError) as caught:
        registry.get("tokenizer", "tokenizer_json")
    message = str(caught.value)
    assert "Did you mean 'tokenizers_json'?" in message
    assert "hf" in message
    assert "No module named 'bar'" in message


def test_a_target_that_fails_to_load_names_who_registered_it() -> None:
    registry = Registry()
    registry.source = "pk-other 1.0"
    registry.model("gone", "no_such_module_here:Model", Schema)
    with pytest.raises(RegistryError, match=r"pk-other 1\.0"):
        registry.get("model", "gone").load()


def test_specs_can_be_pickled() -> None:
    registry = Registry()
    register(registry)
    for spec in registry.specs():
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_devices_resolve_or_say_what_there_is() -> None:
    import torch

    checkpoint = Checkpoint(Path("x"), "x", {"dtype": "float16"})
    device = resolve_device(DeviceConfig("cpu", threads=1), checkpoint)
    assert (device.name, device.dtype, device.threads) == ("cpu", "float32", 1)
    assert resolve_device(DeviceConfig("cpu", dtype="bfloat16"), checkpoint).dtype == "bfloat16"
    with pytest.raises(DeviceError, match="index"):
        resolve_device(DeviceConfig("cpu", index=1), checkpoint)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="it has: cpu"):
            resolve_device(DeviceConfig("cuda"), checkpoint)
        assert resolve_device(DeviceConfig(), checkpoint).kind in ("cpu", "mps")


@pytest.mark.parametrize("part", ["a=", "{a:", "'a: ", "x-a:", "{key:", "[key:[", "key=(hidden)", "{key:1 {", "a"])
def test_a_message_takes_no_square_of_what_a_client_sent(part: str) -> None:
    begun = time.process_time()
    for_message(part * (10_000 // len(part)))
    assert time.process_time() - begun < 2


FAULTS = [Fault("a", "is wrong.", ("b",))]
ERRORS = [RowError(RowFailure(3, "model", "ValueError", "no")), ConfigError(FAULTS), RegistryError(FAULTS)]


@pytest.mark.parametrize("error", [*ERRORS, MissingValueError(), Stopped(143)], ids=lambda error: type(error).__name__)
def test_errors_pass_from_process_to_process(error: BaseException) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_messages_escape_and_shorten() -> None:
    assert for_message("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert len(for_message("x" * 10_000_000)) == 200
    assert for_message(10**5000) == "<int>"
    assert closest_match("lables", ["labels", "scores"]) == "labels"
    assert closest_match("zzz", ["labels"]) is None
    for name, known in (("--model", "--help"), ("ner", "runner"), ("runner", "ner"), ("hf", "h"), ("data", "task")):
        assert closest_match(name, [known]) is None
    for name, known in (("--modle", "--model"), ("max_len", "max_length"), ("classification", "text-classification")):
        assert closest_match(name, ["other", known]) == known
    assert closest_match("shrt", ["shore", "short"]) == "short"
    assert did_you_mean("lables", {"labels": 1}) == " Did you mean 'labels'?"
    assert did_you_mean("zzz", ["labels"]) == ""
