"""``--plugin``: stages from a file or a module that is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_kit
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.errors import RegistryError

ROOT = Path(pipeline_kit.__file__).parents[1]
PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from pipeline_kit import Postprocessor, option

@dataclass
class Config:
    words: list[str] = option([], "words")

class Stage(Postprocessor):
    def __init__(self, config, context): self.words = config.words
    def __call__(self, examples, encodings, outputs): return [{"words": self.words} for _ in examples]

def register(registry):
    registry.postprocessor("mine", f"{__name__}:Stage", Config, summary="mine")
"""


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-stage.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    for given in ("my-stage.py", "./my-stage.py", str(tmp_path / "my-stage.py")):
        registry = load_registry([given])
        config = compose(["postprocessor=mine", "postprocessor.words=[a,b]"], registry=registry)
        stage = config.postprocessor.spec.load()(config.postprocessor.options, None)
        assert stage(["x"], [[]], [[]]) == [{"words": ["a", "b"]}]
        assert config.postprocessor.spec.source == given
    assert str(tmp_path) not in sys.path


def test_the_same_file_twice(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    (tmp_path / "link.py").symlink_to(path)
    registry = load_registry([str(path), str(path), str(tmp_path / "link.py")])
    assert registry.get("postprocessor", "mine").source == str(path)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """Each is a module of its own."""
    for folder, stage in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "stage.py").write_text(PLUGIN.replace('"mine"', f'"{stage}"'))
    registry = load_registry([str(tmp_path / "a" / "stage.py"), str(tmp_path / "b" / "stage.py")])
    assert registry.get("postprocessor", "one").target != registry.get("postprocessor", "two").target


def test_two_files_with_one_stage(tmp_path: Path) -> None:
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text(PLUGIN)
    with pytest.raises(RegistryError, match="registered twice") as caught:
        load_registry(list(map(str, paths)))
    assert all(str(path) in str(caught.value) for path in paths)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "has no function register(registry)"),
        ("register = 1\n", "not a function register(registry)"),
        ("def register(registry:\n", "failed to load: SyntaxError"),
        ("import a_module_that_nobody_has\n", "failed to load: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "failed to load: SystemExit: 3"),
        ("def register(registry):\n    1 / 0\n", "its register() failed: ZeroDivisionError"),
        ("def register():\n    pass\n", "its register() failed: TypeError"),
        ("def register(registry):\n    registry.model('hf', 'a:B', Exception)\n", "its config is not a dataclass"),
        ("\x00", "failed to load"),
    ],
)
def test_a_broken_file(source: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    for _ in range(2):  # nothing half-loaded is left that a second try would take for loaded
        with pytest.raises(RegistryError) as caught:
            load_registry([str(path)])
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("my_stge.py", "there is no such file. Did you mean 'my_stage.py'?"),
        ("a_module_that_nobody_has", "pass a .py file, or a module that can be imported"),
        ("", "pass a .py file, or a module that can be imported"),
        ("a\0b", "failed to load"),
        ("folder.py", "failed to load"),
        ("../../x/y.py", "there is no such file"),
        ("json", "has no function register(registry)"),
    ],
)
def test_what_is_no_plugin(given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "my_stage.py").write_text(PLUGIN)
    with pytest.raises(RegistryError) as caught:
        load_registry([given])
    assert message in str(caught.value)


FOREIGN = "from pathlib import Path\nPath({marker!r}).touch()\n"


def test_composing_imports_no_plugin_of_hydra(tmp_path: Path) -> None:
    """Hydra by itself imports every package called ``hydra_plugins.*``."""
    marker = tmp_path / "imported"
    package = tmp_path / "site" / "hydra_plugins" / "foreign"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FOREIGN.format(marker=str(marker)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    code = "from pipeline_kit.compose.compose import *; compose(['padding=none']); sweep(['padding=none,longest'])"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert not marker.exists()
    code = "from hydra.core.plugins import Plugins; Plugins.instance()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert marker.exists(), "the test would not notice an import"
