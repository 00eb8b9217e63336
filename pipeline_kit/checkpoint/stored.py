"""Checkpoints in a store such as ``s3://``: their files are copied once to a folder of this machine, data alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath

from huggingface_hub import constants

from pipeline_kit.checkpoint.hub import DOWNLOADED, SKIPPED
from pipeline_kit.checkpoint.scan import MAX_FILES, MAX_FOLDER_DEPTH, UnsafeFiles, is_unsafe, unsafe_message
from pipeline_kit.checkpoint.weights import MODULES_NAME
from pipeline_kit.contract.types import Trust
from pipeline_kit.errors import CheckpointError, InputError, for_message
from pipeline_kit.files.lock import lock_file
from pipeline_kit.files.storage.base import FileStatus, Version, join_key
from pipeline_kit.files.storage.local import storage_of

_BLOCK = 1 << 20

_log = logging.getLogger(__name__)


def copied(
    url: str, cache_dir: str | None, own_format: bool, unsafe_files: UnsafeFiles = "refuse", trust: Trust = "data"
) -> Path:
    """Return a folder of this machine with the data files of the model folder `url`, copying what is not there yet.

    Its name depends on the version of every file, so a changed checkpoint is copied anew. It appears when all of it is
    there; of several processes one copies while the others wait.

    :param cache_dir: where copies are kept; None: below ``HF_HOME``.
    :param own_format: copy all files but unsafe ones; else those that would be downloaded from the hub.
    :raises CheckpointError: if it is not there, no model folder, unsafe, changes meanwhile, or cannot be copied.
    """
    url = url.rstrip("/")
    listed = dict(islice(_listed(url), MAX_FILES + 1))
    if len(listed) > MAX_FILES:
        raise CheckpointError(f"{for_message(url)} holds over {MAX_FILES:,} files; name the model's own folder")
    if not listed:
        raise CheckpointError(_nothing(url))
    names = _own_files(url, listed, unsafe_files, trust) if own_format else _data_files(url, listed)
    files = {name: listed[name] for name in sorted(names)}
    content = json.dumps([url, [(name, found.size, found.version) for name, found in files.items()]])
    stem = re.sub(r"[^\w.-]", "-", url.rpartition("/")[2], flags=re.ASCII)[:60]
    root = Path(cache_dir).expanduser() if cache_dir else Path(constants.HF_HOME) / "pipeline-kit"
    target = root / f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:32]}"
    if _is_whole(target, files):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock_file(root / f"{target.name}.lock", wait=True) as alone:
            if not _is_whole(target, files):
                _log.info("copying %s to %s, once", url, target)
                _copy(url, files, target, alone)
    except OSError as error:
        raise CheckpointError(
            f"{for_message(url)} cannot be copied to {root}: {error.strerror or error}; set checkpoint.cache_dir to a "
            "folder with room"
        ) from error
    return target


def _listed(url: str, inner: str = "", depth: int = 0) -> Iterator[tuple[str, FileStatus]]:
    """Yield the files below `url`, by their path in it; those whose names begin with a dot are left out.

    :raises CheckpointError: if one's name is not that of a file, or the store cannot be listed.
    """
    folder = join_key(url, inner) if inner else url
    try:
        found = storage_of(folder).files(folder)
    except OSError as error:
        raise CheckpointError(f"{for_message(folder)} cannot be listed: {error.strerror or error}") from error
    for name, status in found.items():
        path = f"{inner}/{name}".lstrip("/")
        if not name or name.startswith("."):
            continue
        if {"/", "\\", "\0"} & {*name}:
            raise CheckpointError(f"{for_message(join_key(url, path))} is not a name that a file here can have")
        if status.kind == "folder" and depth < MAX_FOLDER_DEPTH:
            yield from _listed(url, path, depth + 1)
        elif status.kind == "file":
            yield path, status


def _data_files(url: str, names: Collection[str]) -> Collection[str]:
    """Choose what would be downloaded from the hub; refuse what is not a model folder before anything is copied."""
    if not {"config.json", MODULES_NAME} & {*names}:
        inner = sorted(name.removesuffix("/config.json") for name in names if name.endswith("/config.json"))
        hint = f"; did you mean checkpoint.path={for_message(join_key(url, inner[0]))}?" if inner else ""
        raise CheckpointError(f"{for_message(url)} has no config.json, so it is not a model folder{hint}")
    return [name for name in names if _matches(name, DOWNLOADED) and not _matches(name, SKIPPED)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _own_files(url: str, names: Collection[str], unsafe_files: UnsafeFiles, trust: Trust) -> Collection[str]:
    """Choose all files that are not unsafe; refuse the folder for those as one of this machine."""
    unsafe = sorted(name for name in names if is_unsafe(PurePosixPath(name), trust))
    if unsafe and unsafe_files == "refuse":
        raise CheckpointError(unsafe_message(for_message(url), unsafe, trust))
    return {*names} - {*unsafe}


def _nothing(url: str) -> str:
    if storage_of(url).kind(url) == "file":
        return f"checkpoint.path={for_message(url)} is a file; name the folder that holds it and config.json"
    return f"checkpoint.path={for_message(url)}: no such folder, or it is empty"


def _is_whole(folder: Path, files: Mapping[str, FileStatus]) -> bool:
    try:
        return all((folder / name).stat().st_size == found.size for name, found in files.items())
    except OSError:
        return False


def _copy(url: str, files: Mapping[str, FileStatus], target: Path, alone: bool) -> None:
    """Copy to a folder beside `target`, which is then renamed.

    :param alone: whether the lock is held, so that what a killed process left can be removed.
    """
    mark = f".{target.name}-"
    for left in target.parent.glob(f"{mark}*") if alone else ():
        shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=mark, dir=target.parent))
    try:
        for name, found in files.items():
            path = aside / "new" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for piece in _pieces(join_key(url, name), found.version):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if path.stat().st_size != found.size:
                raise CheckpointError(f"{for_message(join_key(url, name))} has another size than its store lists")
        if target.exists():  # it lacks a file, or one is not as it was copied
            os.rename(target, aside / "old")
        os.rename(aside / "new", target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _pieces(key: str, version: Version) -> Iterator[bytes]:
    try:
        with storage_of(key).open(key, version) as stream:
            while piece := stream.read(_BLOCK):
                yield piece
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{for_message(key)} cannot be read: {reason}") from error
