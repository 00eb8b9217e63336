"""What must be equal on all machines of a job, without a cluster."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from harness import checkpoint

from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.job.kind import difference, environment, machine_kind


def test_a_changed_plugin_or_checkpoint_is_named_with_both_hashes(tmp_path: Path) -> None:
    plugin, model = tmp_path / "mine.py", tmp_path / "model"
    shutil.copy(Path(__file__).parents[1] / "faulty_stages.py", plugin)
    shutil.copytree(checkpoint(), model)
    words = [f"checkpoint.path={model}", "tokenizer=faulty", "postprocessor=faulty"]
    config = compose(words, registry=load_registry([str(plugin)]))
    here = environment(config)
    assert difference(here, environment(config)) is None
    with plugin.open("a") as file:
        file.write("# changed\n")
    found = difference(here, environment(config))
    assert found is not None
    assert re.fullmatch(r"code\.postprocessor=faulty: [0-9a-f]{64} here, [0-9a-f]{64} there", found)
    (model / "tokenizer_config.json").write_text("{}")
    found = difference(here, environment(config))
    assert found is not None
    assert found.startswith("checkpoint.files.tokenizer_config.json: ")


def test_the_kind_of_a_machine_is_plain_text() -> None:
    kind = machine_kind(gpus=False)
    assert kind["architecture"]
    assert kind["kernels"]
    assert kind["gpu"] is None
    assert kind == machine_kind(gpus=False)
