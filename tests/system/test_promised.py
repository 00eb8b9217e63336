"""Four modules are promised to stage authors, and one to users of scikit-learn: others import from these alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_kit
from pipeline_kit import graphs, kit, sklearn, testing

ROOT = Path(__file__).parents[2]
PROMISED = {module.__name__: module for module in (pipeline_kit, kit, testing, graphs, sklearn)}
OTHERS = "README.md", "docs/**/*.md", "plugins/**/*.py", "plugins/**/*.md", "pipeline_kit/cli/commands/templates/**/*"
_IMPORT = re.compile(r"^\s*(?:from (pipeline_kit[\w.]*) import (\([^)]*\)|[^\n#]+)|import (pipeline_kit[\w.]*))", re.M)


def test_what_others_write_imports_from_the_promised_modules_alone() -> None:
    faults = []
    files = [path for pattern in OTHERS for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    assert len(files) > 40
    for path in files:
        if path.suffix not in (".md", ".py", ".tmpl") or "build" in path.parts:
            continue
        for module, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
            if (module or plain) == "pipeline_kit.sklearn" and "plugins" not in path.parts:
                continue  # for users of scikit-learn, not for what extends this package
            known = PROMISED.get(module or plain)
            wanted = [
                name.split(" as ")[0].strip() for name in re.sub(r"#.*|[()]", "", names).split(",") if name.strip()
            ]
            if known is None or not {name for name in wanted if name} <= {*known.__all__, "kit", "testing", "graphs"}:
                faults.append(f"{path.relative_to(ROOT)}: from {module or plain} import {names.strip()}")
    assert faults == []


@pytest.mark.parametrize("name", PROMISED)
def test_each_promised_name_is_there_once(name: str) -> None:
    module = PROMISED[name]
    assert all(getattr(module, each) is not None for each in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    others = [set(other.__all__) for other in PROMISED.values() if other is not module]
    assert not any(set(module.__all__) & names for names in others), "one name has one home"


def test_the_table_of_each_lazy_module_is_its_list() -> None:
    for module in (kit, testing):
        assert sorted(" ".join(module._HOMES.values()).split()) == sorted(module.__all__)
        with pytest.raises(AttributeError, match=f"'{module.__name__}' has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def test_registering_with_the_kit_stays_light() -> None:
    code = (
        "from pipeline_kit.kit import REQUIRED, Fault, Head; import sys; print(*{'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
