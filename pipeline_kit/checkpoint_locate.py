"""What ``checkpoint.path`` means: a folder here, a folder inside an installed package, or a hub id."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path, PurePosixPath

from pipeline_kit.errors import CheckpointError, closest, shorten

__all__ = ["find_folder", "hub_id", "near_miss"]

_PACKAGE = "pkg://"
_HUB_NAME = re.compile(r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", re.ASCII)


def find_folder(path: str) -> Path | None:
    """Give the folder that `path` names; None if nothing here has that name and it may be a hub id.

    :raises CheckpointError: if `path` can only be a folder and is not there, or names a file.
    """
    if not path.strip() or "\0" in path:
        what = "holds a NUL character" if path.strip() else "is empty"
        raise CheckpointError(f"checkpoint.path {what}; name a model folder or a hub id such as org/name")
    if path.startswith(_PACKAGE):
        return _inside_package(path)
    if "://" in path:
        raise CheckpointError(f"checkpoint.path={shorten(path)} is a URL; give a folder, or the hub id alone: org/name")
    try:
        folder = Path(path).expanduser()
        found, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"checkpoint.path={shorten(path)} cannot be looked up: {shorten(str(error))}") from error
    if is_folder:
        return folder.absolute()
    if found:
        raise CheckpointError(
            f"checkpoint.path={shorten(path)} is a file; name the folder that holds it, config.json and the tokenizer"
        )
    if _is_path(path):
        raise CheckpointError(
            f"checkpoint.path={shorten(path)}: no such folder ({shorten(str(folder.absolute()))}).{near_miss(path)}"
        )
    return None


def hub_id(path: str) -> str:
    """Give `path` if it can be the id of a hub repository, ``name`` or ``org/name``.

    :raises CheckpointError: if it cannot.
    """
    parts = path.split("/")
    plausible = all(_HUB_NAME.fullmatch(part) for part in parts) and ".." not in path and "--" not in path
    if not plausible or len(parts) > 2 or len(path) > 96 or path.endswith(".git"):
        raise CheckpointError(
            f"checkpoint.path={shorten(path)}: no such folder, and no hub id either (those look like org/name)."
            + near_miss(path)
        )
    return path


def near_miss(path: str) -> str:
    """Ask whether `path` was meant to be an existing folder beside it; empty if none is close."""
    try:
        folder = Path(path).expanduser()
        siblings = [item.name for item in folder.parent.iterdir() if item.is_dir()]
    except (OSError, RuntimeError, ValueError):
        return ""
    match = closest(folder.name, siblings)
    if match is None:
        return ""
    there = folder.parent / match
    return f" Did you mean the folder '{there if there.is_absolute() else f'./{there}'}'?"


def _is_path(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.endswith("/") or "\\" in path or path.count("/") > 1


def _inside_package(path: str) -> Path:
    """Find ``pkg://package.sub/folder`` without importing anything: only the files' place is looked up."""
    package, _, rest = path.removeprefix(_PACKAGE).partition("/")
    names = package.split(".")
    parts = PurePosixPath(rest).parts
    if not all(name.isidentifier() for name in names) or not parts or {"..", "/"} & {*parts} or "\\" in rest:
        raise CheckpointError(
            f"checkpoint.path={shorten(path)}: write {_PACKAGE}package/folder, with a dotted package name and no '..'"
        )
    try:
        # Looking up a top-level name runs no code of the package; looking up a dotted one would.
        spec = importlib.util.find_spec(names[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise CheckpointError(f"checkpoint.path={shorten(path)}: no package '{names[0]}' is installed")
    shelves = [Path(place).joinpath(*names[1:]) for place in spec.submodule_search_locations]
    for shelf in shelves:
        if shelf.joinpath(*parts).is_dir():
            return shelf.joinpath(*parts)
    there = sorted(item.name for shelf in shelves if shelf.is_dir() for item in shelf.iterdir() if item.is_dir())
    there = [name for name in there if not name.startswith(("_", "."))]
    match = closest(rest, there)
    raise CheckpointError(
        f"checkpoint.path={shorten(path)}: the package '{package}' has no folder '{shorten(rest)}'"
        + (f"; did you mean {_PACKAGE}{package}/{match}?" if match else f"; it has: {', '.join(there) or 'none'}")
    )
