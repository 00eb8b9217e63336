"""Write the generated tables of docs/ between their markers: ``python tools/doc_tables.py``.

``<!-- options postprocessor/answers tokenizer/hf.overlap input -->`` begins a table of the options of a stage or group,
or of those that a prefix names; ``<!-- tasks translation -->`` one of what tasks take and give and of their stages.
``<!-- aliases all -->`` one of other names of options. ``<!-- end -->`` ends each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_kit import builtin
from pipeline_kit.compose.aliases import ALIASES, NOTHING, Instruction
from pipeline_kit.compose.schema import POLICIES
from pipeline_kit.contract.options import list_options
from pipeline_kit.contract.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
_TABLE = re.compile(r"(<!-- (options|tasks|aliases) ([^\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_OPTIONS, _TASKS = ("option", "values", "default", "meaning"), ("task", "takes", "gives", "stages")
_ALIASES = ("argument", "sets", "otherwise")


def _code(value: Any) -> str:
    return f"`{value if value and isinstance(value, str) else json.dumps(value)}`"


def _options(wanted: str) -> list[tuple[str, ...]]:
    """Return the rows of ``GROUP``, ``KIND/NAME``, and either with ``.OPTION``, a prefix of several."""
    registry = Registry()
    builtin.register(registry)
    place, _, prefix = wanted.partition(".")
    group, _, name = place.partition("/")
    found = list_options(registry.get(group, name).config if name else POLICIES[group])
    chosen = [option for option in found if option.name.startswith(prefix)]
    rows: list[tuple[str, ...]] = [
        (f"`{group}.{o.name}`", o.type.replace(" | ", ", "), _code(o.default), o.help) for o in chosen
    ]
    if not rows:
        raise KeyError(wanted)
    return rows


def _task(name: str) -> list[tuple[str, ...]]:
    registry = Registry()
    builtin.register(registry)
    task = registry.get("task", name).detail
    keys = (task.takes, registry.get("postprocessor", task.postprocessor).detail)
    takes, gives = (", ".join(map(_code, part)) for part in keys)
    stages = [f"`{kind}={stage}`" for kind in ("model", "postprocessor") if (stage := getattr(task, kind)) is not None]
    return [(_code(name), takes, gives, f"{', '.join(stages)}, head `{task.head}`")]


def _aliases(_: str) -> list[tuple[str, ...]]:
    """Return a row for each alias: the options it sets, what its values become, and the answer otherwise."""
    rows = []
    for name, alias in ALIASES.items():
        became = {
            key: value for key, value in alias.values.items() if isinstance(key, bool) and value not in (True, False)
        }
        shown = [
            f"{_code(key)}: {_code(value)}"
            for key, value in became.items()
            if not isinstance(value, Instruction) and value is not NOTHING
        ]
        sets = " or ".join(_code(option) for option in alias.options) + (f" ({', '.join(shown)})" if shown else "")
        rows.append((_code(name), sets, alias.words))
    return rows


TABLES: dict[str, tuple[tuple[str, ...], Callable[[str], list[tuple[str, ...]]]]] = {
    "options": (_OPTIONS, _options),
    "tasks": (_TASKS, _task),
    "aliases": (_ALIASES, _aliases),
}


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines)


def filled(page: str) -> str:
    """Return the page with its tables as the code has them today."""

    def table(found: re.Match[str]) -> str:
        before, kind, words, end = found.groups()
        head, rows_of = TABLES[kind]
        return before + markdown(head, [row for word in words.split() for row in rows_of(word)]) + end

    return _TABLE.sub(table, page)


if __name__ == "__main__":
    for path in sorted((ROOT / "docs").rglob("*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
