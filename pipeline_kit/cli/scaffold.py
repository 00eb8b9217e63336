"""Writing a plugin's distribution from templates."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from string import Template

import pipeline_kit
from pipeline_kit.errors import OutputError, shorten
from pipeline_kit.registry import Kind

__all__ = ["distribution", "files", "write"]

_EXAMPLES: dict[Kind, tuple[str, str, str]] = {
    "tokenizer": ("max_length", "128", "short"),
    "model": ("buckets", "256", "small"),
    "postprocessor": ("threshold", "0.8", "strict"),
}
"""An option of each kind's template, a value for the README, and the ending of the preset's name."""


def distribution(name: str) -> str:
    """Give the distribution that holds the stage `name`."""
    return f"pipeline-kit-{name.replace('_', '-')}"


def files(kind: Kind, name: str) -> dict[str, str]:
    """Give a plugin's files by their paths inside its folder."""
    option, value, ending = _EXAMPLES[kind]
    words = {
        "class_name": "".join(word.capitalize() for word in name.split("_")),
        "distribution": distribution(name),
        "kind": kind,
        "name": name,
        "option": option,
        "other_value": value,
        "package": f"pk_{name}",
        "preset": f"{name}_{ending}",
        "versions": _versions(pipeline_kit.__version__),
    }
    source = f"src/{words['package']}"
    made = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        f"{source}/__init__.py": f"{kind}/init.py",
        f"{source}/stage.py": f"{kind}/stage.py",
        f"{source}/conf/__init__.py": "common/conf_init.py",
        f"{source}/conf/{kind}/{words['preset']}.yaml": f"{kind}/preset.yaml",
        f"tests/test_{name}.py": f"{kind}/test.py",
    }
    return {f"{source}/py.typed": "", **{path: Template(_text(made[path])).substitute(words) for path in made}}


def write(folder: Path, contents: dict[str, str]) -> None:
    """Write files into `folder`, making it.

    :raises OutputError: naming the file that cannot be written.
    """
    for path, text in contents.items():
        target = folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise OutputError(f"{shorten(str(target))}: cannot be written: {why}") from error


def _text(template: str) -> str:
    return (resources.files("pipeline_kit.cli") / "templates" / f"{template}.tmpl").read_text(encoding="utf-8")


def _versions(version: str) -> str:
    """Give the range of versions that keep what `version` promises: to the next minor one, before 1.0."""
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    return f">={major}.{minor},<{major}.{minor + 1}" if major == 0 else f">={major}.{minor},<{major + 1}"
