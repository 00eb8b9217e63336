"""Write a plugin to start from: a distribution with one small working stage, whose tests pass at once."""

from __future__ import annotations

import argparse
import keyword
import os
import re
import shlex
from importlib import resources
from pathlib import Path
from string import Template

import pipeline_kit
from pipeline_kit.cli.stdio import print_out
from pipeline_kit.contract.registry import KINDS, Kind
from pipeline_kit.errors import OutputError, UsageError, for_message

EPILOG = """\
examples:
  pipeline-kit new-plugin postprocessor keyword
  pipeline-kit new-plugin tokenizer bytes --output plugins
"""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 32  # so that no line of the files gets too long


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help=f"which stage: {', '.join(KINDS)}")
    parser.add_argument("name", metavar="NAME", help="what it is called in a config: a-z, 0-9 and _")
    parser.add_argument("--output", metavar="DIR", default=".", help="the folder to write pipeline-kit-NAME into")


def execute(args: argparse.Namespace) -> int:
    """Write the plugin and say what to do next.

    :raises UsageError: for a kind or name that cannot be, or a folder that holds something.
    :raises OutputError: if a file cannot be written.
    """
    kind, name = args.kind, _name(args.name, args.kind)
    folder = Path(os.path.expanduser(args.output)) / distribution(name)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; choose another NAME or --output, or remove it")
    contents = files(kind, name)
    write(folder, contents)
    shown = str(folder) if folder.is_absolute() else f"./{folder}"
    print_out(
        f"wrote {folder}: {len(contents)} files; the stage is in src/pk_{name}/stage.py\n"
        "next:\n"
        f"  pip install -e {shlex.quote(shown)}'[test]'\n"
        f"  pytest {shlex.quote(shown)}\n"
        f'  pipeline-kit run --text "I love this." {kind}={name}'
    )
    return 0


def _name(text: str, kind: Kind) -> str:
    from pipeline_kit.compose.overrides import options
    from pipeline_kit.compose.plugins import load_registry

    if not _NAME.fullmatch(text) or len(text) > _LONGEST:
        made = re.sub(r"[^a-z0-9]+", "_", text[:_LONGEST].lower()).strip("_0123456789")
        hint = f" Try '{made}'." if _NAME.fullmatch(made) else ""
        raise UsageError(
            f"'{for_message(text, 80)}' cannot be a stage's name: a-z, 0-9 and single _ between them, a letter first, "
            f"at most {_LONGEST} characters.{hint}"
        )
    if keyword.iskeyword(text):
        raise UsageError(f"'{text}' is a keyword of Python, which a stage's name cannot be. Try '{text}_{kind}'.")
    if text in options(load_registry())[kind]:
        raise UsageError(f"{kind}={text} is built in already. Try 'my_{text}'.")
    return text


_EXAMPLES: dict[Kind, tuple[str, str, str]] = {
    "tokenizer": ("max_length", "128", "short"),
    "model": ("buckets", "256", "small"),
    "postprocessor": ("threshold", "0.8", "strict"),
}
"""An option of each kind's template, a value for the README, and the ending of the preset's name."""


def distribution(name: str) -> str:
    """Return the distribution that holds the stage `name`."""
    return f"pipeline-kit-{name.replace('_', '-')}"


def files(kind: Kind, name: str) -> dict[str, str]:
    """Return a plugin's files by their paths inside its folder."""
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
    templates = resources.files("pipeline_kit.cli.commands") / "templates"
    texts = {path: (templates / f"{template}.tmpl").read_text(encoding="utf-8") for path, template in made.items()}
    return {f"{source}/py.typed": "", **{path: Template(text).substitute(words) for path, text in texts.items()}}


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
            raise OutputError(f"{for_message(str(target))}: cannot be written: {why}") from error


def _versions(version: str) -> str:
    """Return the range of versions that keep what `version` promises: to the next minor one, before 1.0."""
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    return f">={major}.{minor},<{major}.{minor + 1}" if major == 0 else f">={major}.{minor},<{major + 1}"
