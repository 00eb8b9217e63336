from __future__ import annotations

import os.path

import pytest

from pipeline_kit.contract.registry import RULES, NoOptions, Registry
from pipeline_kit.errors import RegistryError


@pytest.mark.parametrize("kind", RULES)
def test_any_kind_is_registered_listed_and_loaded_in_one_way(kind: str) -> None:
    registry = Registry()
    spec = registry.add(kind, "mine", "pathlib:Path", summary="what it is", detail={"takes": ["text"]})
    assert registry.get(kind, "mine") is spec
    assert list(registry.specs(kind)) == [spec]
    assert (spec.load().__name__, spec.config, spec.detail) == ("Path", NoOptions, {"takes": ["text"]})


def test_names_targets_and_kinds_are_checked() -> None:
    registry = Registry()
    cases = {
        ("modle", "mine", "a:B"): "modle=mine: is of an unknown kind. Did you mean 'model'?",
        ("padding", "my-own", "a:B"): "allowed: a-z, 0-9 and _, at most 64 characters",
        ("input_format", ".xyz", "a:B"): "allowed: the ending of its files without the dot",
        ("runner", "mine", "os.system"): "'os.system' is not 'package.module:Name'",
        ("model", "mine", ""): "'' is not 'package.module:Name'",
    }
    for given, message in cases.items():
        with pytest.raises(RegistryError) as caught:
            registry.add(*given)
        assert message in str(caught.value)
    assert list(registry.specs()) == []


def test_a_kind_of_data_alone_has_no_target_and_two_owners_contest_a_name() -> None:
    registry = Registry()
    registry.source = "one 1.0"
    registry.add("task", "spam-filter", detail={"head": "base"})
    registry.add("task", "spam-filter", detail={"head": "base"})  # the same again
    registry.source = "other 2.0"
    with pytest.raises(RegistryError, match=r"registered twice: by one 1\.0 and by other 2\.0"):
        registry.add("task", "spam-filter", detail={"head": "masked-lm"})
    with pytest.raises(RegistryError, match="registered twice"):
        registry.get("task", "spam-filter")


def test_a_target_of_any_kind_must_be_callable_and_that_of_a_stage_a_class() -> None:
    registry = Registry()
    assert registry.add("runner", "mine", "os.path:join").load() is os.path.join
    with pytest.raises(RegistryError, match="'os:sep' is not a class or function"):
        registry.add("runner", "other", "os:sep").load()
    with pytest.raises(RegistryError, match=r"'os\.path:join' is not a class"):
        registry.add("model", "mine", "os.path:join").load()
    with pytest.raises(RegistryError, match=r"Tokenizer' is not whole: it lacks decode, encode, max_length, pad_token"):
        registry.add("tokenizer", "mine", "pipeline_kit.contract.stages:Tokenizer").load()
