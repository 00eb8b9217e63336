"""The house: rows of packages whose imports go down only, small files, unique names. Each test lists all faults."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pipeline_kit

PACKAGE = Path(pipeline_kit.__file__).parent
ROWS = (
    ("errors",),
    ("contract",),
    ("files", "runtime"),
    ("checkpoint",),
    ("evaluate", "explain"),
    ("builtin",),
    ("compose", "graphs"),
    ("job", "bench", "serve"),
    ("testing", "tune", "kit", "__init__"),
    ("cli", "sklearn"),
    ("__main__",),
)
"""What may import whom: a package imports itself and the rows above its own in this list."""

ENTRANCES = {"__init__", "__main__"}

HEAVY_AT_TOP = {
    "torch": ("builtin.models.", "builtin.tasks.", "builtin.tokenizers.", "graphs.", "testing."),
    "transformers": ("builtin.models.", "builtin.tokenizers.", "testing."),
}
HYDRA = ("compose.compose", "compose.faults", "compose.hydra")
MOST_LINES, MOST_FUNCTION_LINES, MOST_ROOMS = 450, 60, 23


def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its name below ``pipeline_kit``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if ".templates." not in name:
            found[name if name == "__init__" else name.removesuffix(".__init__")] = ast.parse(
                path.read_text(encoding="utf-8")
            )
    return found


MODULES = modules()


def imports(tree: ast.AST, *, top_only: bool = False) -> set[str]:
    """The modules that `tree` imports, those for type checkers too; `top_only` leaves out imports inside functions."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if top_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        found |= imports(node, top_only=top_only)
    return found


@cache
def own(tree: ast.AST) -> set[str]:
    """The modules of this package that `tree` imports, without the prefix."""
    names = {name.removeprefix("pipeline_kit.") for name in imports(tree) if name.startswith("pipeline_kit.")}
    if any(name in pipeline_kit.__all__ for name in names):
        names.add("__init__")
    return names & set(MODULES)


def row(name: str) -> int | None:
    head = name.partition(".")[0]
    return next((number for number, packages in enumerate(ROWS) if head in packages), None)


def test_imports_go_down_only() -> None:
    faults = []
    for name, tree in MODULES.items():
        mine = row(name)
        if mine is None:
            faults.append(f"{name} stands in no row; add it to ROWS")
            continue
        for other in own(tree):
            theirs = row(other)
            same = other.partition(".")[0] == name.partition(".")[0]
            if theirs is None or (theirs >= mine and not same):
                faults.append(f"{name} (row {mine}) imports {other} (row {theirs})")
    assert faults == []


def test_no_cycles() -> None:
    graph = {name: own(tree) - {name} for name, tree in MODULES.items()}
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


def test_heavy_libraries_only_where_they_belong() -> None:
    faults = []
    for name, tree in MODULES.items():
        top = {module.partition(".")[0] for module in imports(tree, top_only=True)}
        for library, places in HEAVY_AT_TOP.items():
            if library in top and (not name.startswith(places) or name.endswith(".options")):
                faults.append(f"{name} imports {library} at its top")
        if name not in HYDRA and {module.partition(".")[0] for module in imports(tree)} & {"hydra", "omegaconf"}:
            faults.append(f"{name} imports Hydra")
    assert faults == []


def test_importing_the_package_is_light() -> None:
    code = (
        "import pipeline_kit, pipeline_kit.compose.plugins as d, sys; d.load_registry();"
        "print([m for m in ('torch', 'transformers', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_complete_and_sorted() -> None:
    assert pipeline_kit.__all__ == sorted(pipeline_kit.__all__)
    for name in pipeline_kit.__all__:
        assert getattr(pipeline_kit, name) is not None
    assert {*sum(pipeline_kit._HOMES.values(), ()), "__version__"} == set(pipeline_kit.__all__)


def test_few_rooms_seen_from_the_door() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(names | {"plugins", "benchmarks", "tools"}) <= MOST_ROOMS
    assert len({path.stem for path in PACKAGE.glob("*.py")}) <= 5


def test_no_class_name_twice() -> None:
    homes = defaultdict(list)
    for name, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_files_and_functions_stay_small() -> None:
    faults = []
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    faults.append(f"{name}.{node.name} has {lines} lines")
        last = max((getattr(node, "end_lineno", 0) for node in tree.body), default=0)
        if last > MOST_LINES:
            faults.append(f"{name} has {last} lines")
    assert faults == []


def test_every_line_that_the_mutations_break_is_there() -> None:
    from tools.mutations import MUTATIONS, ROOT, stale  # here: the site's hook reads this file where no tools are found

    assert [(mutation.file, mutation.old, why) for mutation in MUTATIONS if (why := stale(mutation))] == []
    tests = [test.split("::") for mutation in MUTATIONS for test in mutation.tests.split()]
    gone = [names for file, *names in tests if not all(n in (ROOT / "tests" / file).read_text("utf-8") for n in names)]
    assert gone == []


def test_the_guide_shows_these_rows() -> None:
    """So that its table cannot lie."""
    guide = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = [tuple(re.findall(r"`(\w+)`", cell)) for cell in re.findall(r"^\| \d+ \| (.*?) \|", guide, re.M)]
    rows = [tuple(name for name in packages if name not in ENTRANCES) for packages in ROWS]
    assert shown == [packages for packages in rows if packages]
