"""The import graph: layers, no cycles, heavy libraries only where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_kit

PACKAGE = Path(pipeline_kit.__file__).parent
LAYERS = (
    ("errors", "types", "redaction"),
    ("panels", "stages", "differentiable", "writing", "registry", "fields"),
    ("config", "job_config", "runner_config", "padding", "batching", "device", "atomic", "yaml_scan"),
    ("checkpoint", "hub", "records", "sinks", "builtin", "exported"),
    ("isolate", "retry", "stats", "calls", "outputs", "prepare", "text_stream", "explain", "pipeline"),
    ("build", "compose", "compose_hydra", "pipeline_config", "discovery"),
    ("job", "bench", "tune", "evaluate"),
    ("cli",),
)
HEAVY_AT_TOP = {
    "torch": ("builtin.models.", "builtin.postprocessors.", "builtin.tokenizers.", "exported.", "testing."),
    "transformers": ("builtin.models.", "builtin.tokenizers.", "testing."),
}
HYDRA = ("compose", "compose_hydra")


def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``pipeline_kit``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.startswith("cli.templates"):
            found[name.removesuffix(".__init__")] = path
    found.pop("__init__")
    return found


def imports(path: Path, *, top_only: bool) -> set[str]:
    """The modules a file imports; `top_only` leaves out imports inside functions and for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def own(names: set[str], known: dict[str, Path]) -> set[str]:
    """The ones of `names` that are modules of this package, without its prefix."""
    stripped = {name.removeprefix("pipeline_kit.") for name in names if name.startswith("pipeline_kit.")}
    return stripped & set(known)


def layer(name: str) -> int | None:
    head = name.partition(".")[0]
    for candidate in (head, head.partition("_")[0]):  # checkpoint_scan stands where checkpoint stands
        for number, row in enumerate(LAYERS):
            if candidate in row:
                return number
    return None


MODULES = modules()
OUTSIDE = ("testing", "checkpoints", "__main__")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_layers(name: str) -> None:
    if name.partition(".")[0] in OUTSIDE:
        return
    mine = layer(name)
    assert mine is not None, f"{name} stands in no layer; add it to LAYERS"
    for other in own(imports(MODULES[name], top_only=False), MODULES):
        theirs = layer(other)
        assert theirs is not None, f"{name} imports {other}, which is in no layer"
        assert theirs <= mine, f"{name} (layer {mine + 1}) imports {other} (layer {theirs + 1})"


def test_no_cycles() -> None:
    graph = {name: own(imports(path, top_only=False), MODULES) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for other in graph[name]:
            walk(other, (*trail, name))
        done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_heavy_libraries_only_where_they_belong(name: str) -> None:
    top = {module.partition(".")[0] for module in imports(MODULES[name], top_only=True)}
    anywhere = {module.partition(".")[0] for module in imports(MODULES[name], top_only=False)}
    for library, places in HEAVY_AT_TOP.items():
        allowed = name.startswith(places) and not name.endswith("configs")
        assert library not in top or allowed, f"{name} imports {library} at its top"
    if name not in HYDRA:
        assert not anywhere & {"hydra", "omegaconf"}, f"{name} imports Hydra"


def test_importing_the_package_is_light() -> None:
    code = (
        "import pipeline_kit, pipeline_kit.discovery as d, sys; d.load_registry();"
        "print([m for m in ('torch', 'transformers', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_complete_and_sorted() -> None:
    assert pipeline_kit.__all__ == sorted(pipeline_kit.__all__)
    for name in pipeline_kit.__all__:
        assert getattr(pipeline_kit, name) is not None
    assert set(pipeline_kit._HOMES) | {"__version__"} == set(pipeline_kit.__all__)


def test_files_stay_small() -> None:
    long = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}
