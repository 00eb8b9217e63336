"""The search of a model folder for anything that could run code, before any library sees the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline_kit.checkpoint.json import MAX_JSON_BYTES, NotJsonError, nodes, read_json, reason
from pipeline_kit.checkpoint.weights import INDEX_NAME
from pipeline_kit.errors import CheckpointError, for_message

UnsafeFiles = Literal["refuse", "ignore"]

PICKLE_SUFFIXES = frozenset({
    ".bin", ".ckpt", ".dill", ".h5", ".joblib", ".msgpack", ".ot", ".pickle", ".pkl", ".pt", ".pt2", ".pth",
})  # fmt: skip
CODE_SUFFIXES = frozenset({".dll", ".dylib", ".py", ".pyc", ".pyd", ".so"})

FORBIDDEN_KEYS = {
    "auto_map": "names Python code that would be imported from the checkpoint",
    "trust_remote_code": "asks to run code that comes with a checkpoint",
    "_attn_implementation_internal": "can name an attention kernel that is downloaded and run",
    "custom_pipelines": "names Python code that would be imported from the checkpoint",
    "_target_": "names a Python object that would be called",
    "configuration_files": "sends transformers to another configuration file than the one that was checked",
    "transformers_weights": "sends transformers to other weights than the ones that were checked",
}

DATA_SUFFIXES = frozenset({".json", ".model", ".spm", ".txt"})
"""How the names of files end that a stage may read, beside the weights."""

_MAX_FOLDER_DEPTH = 6
_MAX_FILES = 20_000
# Their keys are tokens or tensor names, which may be any text; no library looks for options in them.
_WORD_LISTS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", INDEX_NAME})


def files_of(folder: Path) -> Iterator[Path]:
    """Yield every file under `folder`, sorted; hidden folders such as ``.git`` are not entered.

    :raises CheckpointError: if there are too many, if the folder cannot be listed, or if something that a stage may
        read is not a regular file.
    """
    count = 0
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        here = Path(place)
        deep = len(here.relative_to(folder).parts) >= _MAX_FOLDER_DEPTH
        for name in sorted(names + folders):
            if not name.startswith("."):
                _check_kind(here / name)
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            count += 1
            if count > _MAX_FILES:
                raise CheckpointError(f"{folder} holds over {_MAX_FILES} files; name the model's own folder")
            yield here / name


def _check_kind(path: Path) -> None:
    """Refuse a FIFO, a device or a socket, and a folder or a broken link that has the name of a file.

    Libraries open files by their names later; a FIFO would make them wait for ever.
    """
    named = path.suffix.lower() in DATA_SUFFIXES | {".safetensors"}
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if named:
            raise CheckpointError(f"{path} cannot be read: {reason(path, error)}") from error
        return
    if not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and not named)):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise CheckpointError(
            f"{path} is a {kind}, not a regular file; a model folder holds files only. Remove it, or put the file "
            "of the checkpoint there"
        )


def _unreadable(error: OSError) -> None:
    raise CheckpointError(f"{error.filename} cannot be listed: {error.strerror or error}") from error


def scan_folder(folder: Path, unsafe_files: UnsafeFiles = "refuse") -> None:
    """Refuse a folder that holds pickles, code, or configuration that asks for code.

    :param unsafe_files: ``ignore`` leaves pickles and code where they are, unopened; keys in
        configuration files are refused either way.
    :raises CheckpointError: naming the file, the key, and what to do.
    """
    unsafe: list[Path] = []
    for path in files_of(folder):
        suffix = path.suffix.lower()
        if suffix in PICKLE_SUFFIXES | CODE_SUFFIXES:
            unsafe.append(path)
        elif path.name == "adapter_config.json" and path.parent == folder:
            raise CheckpointError(
                f"{path} makes this a PEFT adapter, which would load another model that is not checked. "
                "Merge it first: model.merge_and_unload().save_pretrained(FOLDER), then use that folder"
            )
        elif suffix == ".json" and path.name not in _WORD_LISTS:
            _scan_json(path)
    if unsafe and unsafe_files == "refuse":
        raise CheckpointError(_unsafe_message(folder, unsafe))


def _scan_json(path: Path) -> None:
    """Refuse forbidden keys; large files and files of JSON lines are passed over unless named as configuration."""
    data_only = "config" not in path.name
    if data_only and path.stat().st_size > MAX_JSON_BYTES:
        return
    try:
        content = read_json(path)
    except NotJsonError:
        if data_only:
            return
        raise
    for full, key, value in nodes(content, path):
        if key in FORBIDDEN_KEYS and value not in (None, False, [], {}):
            raise CheckpointError(
                f"{path}: the key '{for_message(full)}' {FORBIDDEN_KEYS[key]}; a checkpoint is data and never runs "
                "code. If the installed transformers knows this model by itself, remove the key in a local copy "
                "and use checkpoint.path=./copy"
            )
        if key.endswith(("attn_implementation", "experts_implementation")):
            kernel = next((text for text in _strings(value) if "/" in text), None)
            if kernel is not None:
                raise CheckpointError(
                    f"{path}: the key '{for_message(full)}' names the kernel '{for_message(kernel)}', code that "
                    "would be downloaded and run; remove the key in a local copy and use checkpoint.path=./copy"
                )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _unsafe_message(folder: Path, unsafe: list[Path]) -> str:
    names = [path.relative_to(folder).as_posix() for path in unsafe]
    shown = ", ".join(for_message(name, 60) for name in names[:5]) + (
        f" and {len(names) - 5} more" if names[5:] else ""
    )
    code = all(path.suffix.lower() in CODE_SUFFIXES for path in unsafe)
    danger = "is code" if code else "can run code when it is opened"
    head = f"{folder} holds {shown}: such a file {danger}."
    if (folder / "model.safetensors").exists() or (folder / INDEX_NAME).exists():
        return (
            f"{head} The folder also holds safetensors, which are all that is needed: remove the file(s), "
            "or set checkpoint.unsafe_files=ignore to leave them unopened"
        )
    return f"{head} {CONVERT}"


CONVERT = (
    "Weights are read from safetensors only. If you trust the folder, convert it once, where you trust it:\n"
    '  python -c "from transformers import AutoModelForSequenceClassification as M; '
    "M.from_pretrained('OLD').save_pretrained('NEW')\"\n"
    "(with the Auto class of the model's head), copy its tokenizer files too, then use checkpoint.path=./NEW"
)
