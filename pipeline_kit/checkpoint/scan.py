"""The search of a model folder for anything that could run code, before any library sees the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

from pipeline_kit.checkpoint.json import MAX_JSON_BYTES, NotJsonError, nodes, read_json, reason
from pipeline_kit.checkpoint.weights import INDEX_NAME, WEIGHTS_NAME
from pipeline_kit.contract.spelling import either, spelled
from pipeline_kit.contract.types import Trust
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

DATA_SUFFIXES = frozenset({".jinja", ".json", ".model", ".spm", ".txt"})
"""How the names of files end that a stage may read, beside the weights."""

MAX_FOLDER_DEPTH = 6
MAX_FILES = 20_000
# Their keys are tokens or tensor names, which may be any text; no library looks for options in them.
_WORD_LISTS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", INDEX_NAME})


def files_of(folder: Path) -> Iterator[Path]:
    """Yield every file under `folder`, sorted, hidden folders such as ``.git`` left out.

    :raises CheckpointError: if there are too many, or one that a stage may read is not a regular file.
    """
    count = 0
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        here = Path(place)
        deep = len(here.relative_to(folder).parts) >= MAX_FOLDER_DEPTH
        for name in sorted(names + folders):
            if not name.startswith("."):
                _check_kind(here / name)
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                raise CheckpointError(f"{folder} holds over {MAX_FILES} files; name the model's own folder")
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


def scan_folder(folder: Path, unsafe_files: UnsafeFiles = "refuse", trust: Trust | None = None) -> None:
    """Refuse a folder that holds pickles, code, or configuration that asks for code.

    :param unsafe_files: ``ignore`` leaves pickles and code where they are, unopened; keys in
        configuration files are refused either way.
    :param trust: of a checkpoint in a format of the model stage's own: ``pickle`` lets pickles through, never code.
    :raises CheckpointError: naming the file, the key, and what to do.
    """
    unsafe: list[Path] = []
    for path in files_of(folder):
        if is_unsafe(path, trust):
            unsafe.append(path)
        elif path.name == "adapter_config.json" and path.parent == folder:
            raise CheckpointError(
                f"{path} makes this a PEFT adapter, which would load another model that is not checked. "
                "Merge it first: model.merge_and_unload().save_pretrained(FOLDER), then use that folder"
            )
        elif path.suffix.lower() == ".json" and path.name not in _WORD_LISTS:
            _scan_json(path)
    if unsafe and unsafe_files == "refuse":
        weights = any((folder / name).exists() for name in (WEIGHTS_NAME, INDEX_NAME))
        names = [path.relative_to(folder).as_posix() for path in unsafe]
        raise CheckpointError(unsafe_message(folder, names, trust, weights))


def is_unsafe(path: PurePath, trust: Trust | None) -> bool:
    """Return whether a file of this name is code, or a pickle that `trust` does not let through."""
    suffix = path.suffix.lower()
    return suffix in CODE_SUFFIXES or (suffix in PICKLE_SUFFIXES and trust != "pickle")


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


def unsafe_message(folder: object, names: Sequence[str], trust: Trust | None, weights: bool = False) -> str:
    """Return why a folder with these unsafe files is refused; `weights` says whether it has safetensors too."""
    shown = ", ".join(for_message(name, 60) for name in names[:5]) + (
        f" and {len(names) - 5} more" if names[5:] else ""
    )
    code = all(PurePath(name).suffix.lower() in CODE_SUFFIXES for name in names)
    danger = "is code" if code else "can run code when it is opened"
    head = f"{folder} holds {shown}: such a file {danger}."
    if weights:
        return (
            f"{head} The folder also holds safetensors, which are all that is needed: remove the file(s), "
            "or set checkpoint.unsafe_files=ignore to leave them unopened"
        )
    if trust is None:
        return f"{head} {CONVERT}"
    way = either("add checkpoint.trust=pickle on the command line", "pass the text 'checkpoint.trust=pickle'")
    pickles = "" if code else f" If you trust where the folder is from, {way}."
    ignore = spelled("checkpoint.unsafe_files=ignore")
    return f"{head} Remove it, or set {ignore} to leave it unopened.{pickles}"


CONVERT = (
    "Weights are read from safetensors only. If you trust the folder, convert it once, where you trust it:\n"
    '  python -c "from transformers import AutoModelForSequenceClassification as M; '
    "M.from_pretrained('OLD').save_pretrained('NEW')\"\n"
    "(with the Auto class of the model's head), copy its tokenizer files too, then use checkpoint.path=./NEW"
)
