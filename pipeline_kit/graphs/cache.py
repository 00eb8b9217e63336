"""Folders that are complete or not there at all, each under the hash of all that its content depends on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.errors import ConfigError, Fault
from pipeline_kit.files.lock import lock_file

_SEAL = "entry.json"
_LEFTOVER = re.compile(r"\.([0-9a-f]{64})-[a-z0-9_]{8}", re.ASCII)


def default_folder(name: str) -> Path:
    """Return the folder `name` in pipeline-kit's part of the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    # A relative path there is to be ignored: https://specifications.freedesktop.org/basedir-spec/latest/
    root = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    return root / "pipeline-kit" / name


def name_of(key: Mapping[str, Any]) -> str:
    """Return the name of the folder for `key`, whose values are JSON values."""
    return hashlib.sha256(_canonical(key)).hexdigest()


def cached(root: Path, key: Mapping[str, Any], build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Find the folder for `key` below `root`, or make it.

    Of several processes that want the same folder one makes it while the others wait. A folder that lacks a file,
    or holds one that is not as it was written, is made anew.

    :param build: writes files into an empty folder and returns facts about them, JSON values.
    :returns: the folder, in which every file is as it was written, and the facts.
    :raises ConfigError: if `root` cannot be written or the disk takes no more.
    """
    name = name_of(key)
    target = root / name
    facts = _read(target, name)
    if facts is None:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with lock_file(root / f"{name}.lock", wait=True) as alone:
                facts = _read(target, name)
                if facts is None:
                    _make(root, target, key, build, alone)
        except OSError as error:
            problem = f"{root} cannot be used: {error.strerror or error}."
            raise ConfigError([Fault("model.cache_dir", problem, hint="set it to a folder with room")]) from error
        facts = facts or _read(target, name)
    if facts is None:
        problem = f"{target} changed while it was made."
        raise ConfigError([Fault("model.cache_dir", problem, hint="set it to a folder that nobody else writes to")])
    return target, facts


def _make(
    root: Path, target: Path, key: Mapping[str, Any], build: Callable[[Path], dict[str, Any]], alone: bool
) -> None:
    mark = f".{target.name}-"
    _remove_leftovers(root, target.name if alone else None)
    folder = Path(tempfile.mkdtemp(prefix=mark, dir=root))
    aside = [folder]
    try:
        _seal(folder, key, build(folder))
        if _read(target, target.name) is not None:
            return  # without locks another process may have been faster; its folder is as good
        if target.exists():
            aside.append(Path(tempfile.mkdtemp(prefix=mark, dir=root)))
            os.rename(target, aside[-1] / "broken")
        for path in (*folder.iterdir(), folder):
            _sync(path)
        try:
            os.rename(folder, target)
        except OSError:
            if not target.exists():  # else it is the same, made in this very moment
                raise
        _sync(root)
    finally:
        for left in aside:
            shutil.rmtree(left, ignore_errors=True)


def _remove_leftovers(root: Path, mine: str | None) -> None:
    """Remove what processes that were killed left, for any key; `mine` is a name whose lock is held here."""
    for left in root.iterdir():
        match = _LEFTOVER.fullmatch(left.name)
        if match is None or left.is_symlink():
            continue
        if match[1] == mine:
            shutil.rmtree(left, ignore_errors=True)
            continue
        with suppress(OSError), lock_file(root / f"{match[1]}.lock", wait=False) as alone:
            if alone:
                shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(folder: Path, key: Mapping[str, Any], facts: dict[str, Any]) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    content: dict[str, Any] = {"key": dict(key), "facts": facts, "files": files}
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    (folder / _SEAL).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the facts of a folder, None if it is not there or not as it was made."""
    try:
        content = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        seal = content.pop("sha256")
        if seal != hashlib.sha256(_canonical(content)).hexdigest() or name_of(content["key"]) != name:
            return None
        for file, written in content["files"].items():
            path = folder / file
            if path.parent != folder or path.is_symlink() or path.stat().st_size != written["bytes"]:
                return None
            if _sha256(path) != written["sha256"]:
                return None
        facts: dict[str, Any] = content["facts"]
        return facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def required_versions(
    stage: str, packages: Sequence[str], instead: Mapping[str, Sequence[str]] | None = None
) -> Mapping[str, str]:
    """Return the versions of `packages`, or of what does as well `instead`, by the one that it stands for.

    :raises ConfigError: of `stage`, naming what is missing and how to install it.
    """
    found, missing = {}, []
    for package in packages:
        for name in (package, *(instead or {}).get(package, ())):
            try:
                found[package] = f"{name} {version(name)}"
                break
            except PackageNotFoundError:
                continue
        else:
            missing.append(package)
    if missing:
        problem = f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed."
        raise ConfigError([Fault(stage, problem, hint=f"run: pip install {' '.join(missing)}")])
    return found


@contextmanager
def silence() -> Iterator[None]:
    """Hide what is printed, logged or warned of in the body; put all back after it."""
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers = root.handlers[:]
    logging.disable(logging.CRITICAL)
    try:
        with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers  # logging.warning() adds one of its own where there is none
