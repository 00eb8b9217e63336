"""Look over YAML and composed data before anything trusts them: size, depth, aliases, forbidden keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline_kit.errors import Fault, shorten

__all__ = ["FORBIDDEN_KEYS", "mentioned", "scan_data", "scan_text", "scan_yaml"]

FORBIDDEN_KEYS = frozenset({"_target_", "_args_", "_partial_", "_recursive_", "_convert_", "()"})
"""Keys by which Hydra or logging configs name Python to run; a stage is named, never pointed at."""

MAX_BYTES, MAX_DEPTH = 64 * 1024, 20
_REFERENCE = re.compile(r"\$\{\s*[A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*\s*\}")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def scan_yaml(path: Path) -> list[Fault]:
    """Find what is unsafe in a YAML file without building anything from it.

    Aliases are refused because a few of them expand to gigabytes, and with them anchors.
    """
    where = str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            return [Fault(where, f"has {size} bytes.", allowed=(f"{MAX_BYTES} bytes at the most",))]
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [Fault(where, f"cannot be read: {error}.")]
    faults: list[Fault] = []
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            line = f"{where}:{event.start_mark.line + 1}" if event.start_mark is not None else where
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                return [Fault(line, "holds a YAML anchor or alias, which is not allowed; write the value out.")]
            tag = getattr(event, "tag", None)
            if tag not in (None, "!"):
                return [Fault(line, f"holds the YAML tag '{shorten(tag)}', which is not allowed.")]
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                return [Fault(line, f"is nested more than {MAX_DEPTH} deep.")]
            if isinstance(event, yaml.ScalarEvent):
                faults += [Fault(line, problem) for problem in scan_text(event.value)]
                if event.value == "hydra" or re.match(r"(override +)?/?hydra/", event.value):
                    faults.append(Fault(line, "sets Hydra's own options, which pipeline-kit keeps to itself."))
    except yaml.YAMLError as error:
        return [Fault(where, f"is not valid YAML: {shorten(' '.join(str(error).split()), 300)}.")]
    return faults


def scan_text(text: str) -> Iterator[str]:
    """Tell what is not allowed in a key, value or override."""
    for key in FORBIDDEN_KEYS:
        if key == text or (key.startswith("_") and re.search(rf"(?<![A-Za-z0-9]){key}(?![A-Za-z0-9])", text)):
            yield f"names Python to run with '{key}', which is not allowed; stages are chosen by name."
    if "${" in _REFERENCE.sub("", text):
        yield f"'{shorten(text)}' calls a resolver; only plain references such as ${{task.name}} are allowed."


def scan_data(data: Any, path: str = "", depth: int = 0) -> Iterator[Fault]:
    """Go through composed data for forbidden keys, resolvers and depth."""
    if depth > MAX_DEPTH:
        yield Fault(path, f"is nested more than {MAX_DEPTH} deep.")
    elif isinstance(data, Mapping):
        for key, value in data.items():
            where = f"{path}.{shorten(str(key), 80)}" if path else shorten(str(key), 80)
            yield from (Fault(where, problem) for problem in scan_text(str(key)))
            yield from scan_data(value, where, depth + 1)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from scan_data(value, f"{path}[{i}]", depth + 1)
    elif isinstance(data, str):
        yield from (Fault(path, problem) for problem in scan_text(data))


def mentioned(path: Path) -> set[str]:
    """Give every scalar of a scanned YAML file: the names it may ask plugins for."""
    events = yaml.parse(path.read_text(encoding="utf-8"), Loader=_LOADER)
    return {event.value for event in events if isinstance(event, yaml.ScalarEvent)}
