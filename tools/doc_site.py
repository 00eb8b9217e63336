"""The pages of the documentation site that are made when it is built, never committed: a hook of mkdocs.

The reference is made of the code: the options of every config group, the flags of every command, the public names, the
layers. README.md and the other pages of the repository keep their places, those of docs/ stand at the top.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import runpy
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doc_tables import filled, markdown

from pipeline_kit import builtin, load
from pipeline_kit.cli.app import COMMANDS, command_and_parser
from pipeline_kit.cli.presets import presets
from pipeline_kit.compose.schema import GROUPS, POLICIES
from pipeline_kit.contract.options import list_options
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Encoding, ModelOutput, TokenBatch

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("*.md", "Containerfile", "benchmarks/*.md", "benchmarks/*.png", "plugins/*/README.md")
OUTSIDE += ("pipeline_kit/builtin/assets/*/README.md",)
"""What the site shows besides docs/, under the same path."""
EXPLAINED = ("I've been waiting for a HuggingFace course my whole life.", "I hate this so much!")
PUBLIC = ("pipeline_kit", "pipeline_kit.kit", "pipeline_kit.testing", "pipeline_kit.graphs")

_STACKED = r'<div class="stacked">\1</div>'
"""A table that a narrow screen shows row by row."""


def pages() -> dict[str, str]:
    """Return the Markdown of the pages that are made of the code, by their paths in the site."""
    registry = Registry()
    builtin.register(registry)
    made = {f"reference/config/{group}.md": _group(group, registry) for group in GROUPS}
    made |= {f"reference/{module}.md": _module(module) for module in PUBLIC}
    made |= {f"notebooks/{path.stem}.md": _notebook(path) for path in ROOT.glob("docs/notebooks/*.ipynb")}
    made |= {"reference/cli.md": _commands(), "reference/layers.md": _layers()}
    return made | {"reference/data.md": _data()}


def _group(group: str, registry: Registry) -> str:
    """Return the page of a config group: its options, its stages with theirs, its presets."""
    parts = [f"# {group}"]
    if group in POLICIES:
        parts += [f"Set one with `{group}.OPTION=VALUE`.", f"<!-- options {group} -->\n<!-- end -->"]
    else:
        parts.append("See [several pipelines in one](../../steps.md)." if group == "steps" else "")
    specs = list(registry.specs(group))
    if group == "task":
        parts += ["## Tasks", f"<!-- tasks {' '.join(spec.name for spec in specs)} -->\n<!-- end -->"]
    for spec in specs if group != "task" else ():
        parts += [f"## {group}={spec.name}", f"{spec.summary[:1].upper()}{spec.summary[1:]}."]
        if spec.config is not POLICIES.get(group) and list_options(spec.config):
            parts.append(f"<!-- options {group}/{spec.name} -->\n<!-- end -->")
    found = [(f"`{group}={one.name}`", one.summary) for one in presets(registry, (), (group,))]
    if found:
        parts += ["## Presets", markdown(("preset", "what it is"), found)]
    return filled("\n\n".join(parts))


def _commands() -> str:
    """Return the page of the commands, from their parsers."""
    parts = [
        "# Command line",
        markdown(("command", "what it does"), [(f"[`{n}`](#{n})", t) for n, t in COMMANDS.items()]),
    ]
    for name in COMMANDS:
        command, parser = command_and_parser(name)
        usage = parser.format_usage().removeprefix("usage: ").rstrip()
        parts += [f"## {name}", (command.__doc__ or "").strip(), f"```text\n{usage}\n```"]
        for group in parser._action_groups:
            rows = [_flag(action, parser) for action in group._group_actions if action.help != argparse.SUPPRESS]
            if rows:
                about = f": {group.description}" if group.description else ""
                parts += [f"**{group.title}**{about}", markdown(("flag", "meaning"), rows)]
        if parser.epilog:
            parts.append(f"```text\n{parser.epilog.strip()}\n```")
    return "\n\n".join(parts)


def _flag(action: argparse.Action, parser: argparse.ArgumentParser) -> tuple[str, str]:
    names = ", ".join(f"`{flag}`" for flag in action.option_strings)
    value = "" if action.nargs == 0 else f"`{action.metavar or action.dest.upper()}`"
    help_text = parser._get_formatter()._expand_help(action) if action.help else ""
    return f"{names} {value}".strip(), help_text.replace("<", "&lt;").replace("[", "\\[")


def _module(module: str) -> str:
    """Return the page of a module's public names, which mkdocstrings fills from their docstrings."""
    found = import_module(module)
    about = (found.__doc__ or "").partition("\n\n")[0]
    names = [name for name in found.__all__ if name != "__version__"]
    return "\n\n".join([f"# {module}", about, *(f"::: {module}.{name}" for name in names)])


def _notebook(path: Path) -> str:
    """Return the cells of a notebook below each other; they are stored without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    parts = [f"```python\n{text}\n```" if kind == "code" else text for text, kind in texts]
    return "\n\n".join([*parts, f"[Download the notebook]({path.name}) to run it."])


def _layers() -> str:
    """Return the page of the layers: a drawing and a table of who imports whom, by the test that holds them."""
    found = runpy.run_path(str(ROOT / "tests" / "system" / "test_layers.py"))
    rows: tuple[tuple[str, ...], ...] = found["ROWS"]
    uses: dict[str, set[str]] = {package: set() for row in rows for package in row}
    for name, tree in found["MODULES"].items():
        head = name.partition(".")[0]
        uses[head] |= {other.partition(".")[0] for other in found["own"](tree)} - {head}
    about = {package: (found["MODULES"][package].body[0].value.value).partition("\n")[0] for package in uses}
    table = [
        (f"`{package}`", about[package], ", ".join(f"`{other}`" for other in sorted(uses[package])))
        for row in reversed(rows)
        for package in row
    ]
    return "\n\n".join(
        [
            "# Layers",
            "A package imports itself and those below it, never one beside or above it. This page is made of the "
            "imports, by the code of the test that refuses any other. `__init__` is `import pipeline_kit`.",
            f'<div class="layers">{_drawing(rows, uses)}</div>',
            "A line leads to a package that is imported; it is left out where another way leads there too. "
            "The table has all of them.",
            markdown(("package", "what it is", "imports"), table),
        ]
    )


def _drawing(rows: tuple[tuple[str, ...], ...], uses: dict[str, set[str]]) -> str:
    """Draw the packages as boxes, the top row last, with a line for each import that no longer way replaces."""
    reach: dict[str, set[str]] = {}
    for package in (package for row in rows for package in row):
        reach[package] = uses[package].union(*(reach[other] for other in uses[package]))
    wide, high, step = 112, 30, 64
    across = max(len(row) for row in rows)
    width, height = across * (wide + 12), len(rows) * step
    place = {
        package: ((width - len(row) * (wide + 12)) / 2 + (i + 0.5) * (wide + 12), height - number * step - step / 2)
        for number, row in enumerate(rows)
        for i, package in enumerate(row)
    }
    lines = "".join(
        f'<path d="M{x:g} {y + 15:g}C{x:g} {y + 40:g} {u:g} {v - 40:g} {u:g} {v - 15:g}"/>'
        for package, (x, y) in place.items()
        for other in sorted(uses[package])
        if not any(other in reach[third] for third in uses[package])
        for u, v in [place[other]]
    )
    boxes = "".join(
        f'<rect x="{x - wide / 2:g}" y="{y - high / 2:g}" width="{wide}" height="{high}" rx="6"/>'
        f'<text x="{x:g}" y="{y + 5:g}">{package}</text>'
        for package, (x, y) in place.items()
    )
    title = "The packages in rows; lines lead from each to those below that it imports."
    return f'<svg viewBox="0 0 {width} {height}" role="img"><title>{title}</title>{lines}{boxes}</svg>'


STEPS = {
    "tokenizer": "Tokenizer.encode",
    "padding": "the padding policy",
    "model": "Model.forward",
    "reduce": "Postprocessor.reduce",
    "postprocessor": "Postprocessor",
}


def _data() -> str:
    """Return the page of the data's way: what passed between the stages when the shipped pipeline ran two texts."""
    pipeline = load("device=cpu", "padding=longest")
    seen: list[tuple[str, Any, Any]] = []
    pipeline.observer = lambda stage, given, returned: seen.append((stage, given, returned))
    pipeline(list(EXPLAINED))
    rows = [(f"`{STEPS[stage]}`", _shown(given), _shown(returned)) for stage, given, returned in seen]
    values = [_named(seen[0][1]), *(_named(returned) for _, _, returned in seen)]
    middle, wide, step = 216, 190, 78
    boxes = "".join(
        f'<text x="{middle}" y="{y - 40}">{value}</text><path d="M{middle} {y - 34}V{y - 15}"/>'
        f'<rect x="{middle - wide / 2:g}" y="{y - 15}" width="{wide}" height="30" rx="6"/>'
        f'<text x="{middle}" y="{y + 5}">{STEPS[stage]}</text><path d="M{middle} {y + 15}V{y + 24}"/>'
        for number, ((stage, _, _), value) in enumerate(zip(seen, values, strict=False))
        for y in [step * number + 54]
    )
    end = step * len(seen) + 54 - 40
    boxes += f'<text x="{middle}" y="{end}">{values[-1]}</text>'
    return "\n\n".join(
        [
            "# The data's way",
            "What passes between the stages. This page is made by running two texts through the shipped pipeline "
            "with `pipeline.observer` set, so the types and shapes are those of a run.",
            f'<div class="layers"><svg viewBox="0 0 {2 * middle} {end + 10}" role="img">'
            f"<title>The stages below each other, with what passes between them.</title>{boxes}</svg></div>",
            markdown(("step", "takes", "returns"), rows),
            "[Inside the pipeline](../inside-the-pipeline.md) shows the numbers themselves.",
        ]
    )


def _named(value: Any) -> str:
    """Name the type of what passes between stages; of a list that of what is in it."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, dict):
        return "RowOutput" if all(hasattr(item, "shape") for item in value.values()) else "Result"
    return "text" if isinstance(value, str) else type(value).__name__


def _shown(value: Any) -> str:
    """Name a value's type with its fields: shapes of tensors, keys of results."""
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    name = f"`{_named(value)}`" if not isinstance(value, list) else f"{len(value)} times `{_named(value)}`"
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, ModelOutput):
        parts = {key: tuple(tensor.shape) for key, tensor in value.tensors.items()}
    elif isinstance(value, TokenBatch):
        parts = {key: tuple(getattr(value, key).shape) for key in ("input_ids", "attention_mask")}
    elif isinstance(value, Encoding):
        parts = {"input_ids": (len(value.input_ids),)}
    else:
        parts = dict.fromkeys(value) if isinstance(value, dict) else {}
    fields = [f"`{key}`" + (f" {list(shape)}" if shape else "") for key, shape in parts.items()]
    return f"{name}: {', '.join(fields)}" if fields else name


def _explain_page() -> str:
    """Return the page that ``pipeline-kit explain --html`` writes of two sentences."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        texts = [word for text in EXPLAINED for word in ("--text", text)]
        command = [sys.executable, "-m", "pipeline_kit", "explain", *texts, "--attentions", "--html", str(page)]
        subprocess.run([*command, "device=cpu"], check=True, capture_output=True)
        return page.read_text(encoding="utf-8")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not have."""
    from mkdocs.structure.files import File

    for path in (path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "site.css", abs_src_path=str(Path(__file__).with_suffix(".css"))))
    files.append(File.generated(config, "explain.html", content=_explain_page()))
    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def _plain_bars(row: re.Match[str]) -> str:
    return re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write what GitHub reads in another way as Python-Markdown does: links out of a folder, blocks, tables."""
    text = re.sub(r"^```(\w+) title=(\S+)$", r'```\1 title="\2"', markdown, flags=re.M)
    text = re.sub(r"^```(\w+) no-run$", r"```\1", text, flags=re.M)
    # In code in a table GitHub reads \\| as |, Python-Markdown as both.
    text = re.sub(r"^\|.*", _plain_bars, text, flags=re.M)
    text = text.replace("<!-- the explain page -->", '<iframe src="../explain.html" title="an explain page"></iframe>')
    here = page.file.src_uri
    inside = (ROOT / "docs" / here).exists()

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs" * inside, posixpath.dirname(here), found[1]))
        if found[1].startswith(("http:", "https:", "mailto:")) or not (ROOT / path).exists():
            return found[0]
        if (ROOT / path).is_dir():
            path = f"{path}/README.md" if (ROOT / path / "README.md").exists() else f"{path}.md"
        path = path.replace(".ipynb", ".md")
        return f"]({posixpath.relpath(path.removeprefix('docs/'), posixpath.dirname(here) or '.')}{found[2] or ''})"

    return re.sub(r"\]\(([^)#\s]+)(#[^)]*)?\)", link, text)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out what only Sphinx reads in a docstring: a word before a name, a path that begins with ~, two colons."""
    html = re.sub(r":(?:attr|class|data|func|meth|mod):<code>(?:~[\w.]*\.)?", "<code>", html)
    html = re.sub(r"(<table>\s*<thead>\s*<tr>\s*<th>(option|flag)</th>.*?</table>)", _STACKED, html, flags=re.S)
    return html.replace("::</p>", ":</p>")
