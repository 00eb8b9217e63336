"""From ``checkpoint.path`` to a model folder that was found, checked and parsed; loads no model library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline_kit.checkpoint_json import nodes, open_file, read_json
from pipeline_kit.checkpoint_locate import find_folder, hub_id, near_miss
from pipeline_kit.checkpoint_modules import MODULE_WEIGHTS, MODULES_NAME, network_folder, read_modules
from pipeline_kit.checkpoint_scan import CONVERT, DATA_SUFFIXES, UnsafeFiles, files_of, scan_folder
from pipeline_kit.checkpoint_weights import WEIGHTS_NAME, read_header, weight_files
from pipeline_kit.config import REQUIRED, option
from pipeline_kit.errors import CheckpointError, shorten
from pipeline_kit.types import Checkpoint

__all__ = ["CheckpointConfig", "fingerprint", "resolve_checkpoint", "weight_shapes"]

_MAX_LABELS = 1_000_000
_FEW = 256
# What counts parts that are built or run one after the other: num_hidden_layers, n_layer, block_sizes …
_LAYERS = re.compile(
    r"(^|_)layers?($|_)|^block_(sizes|repeats)$|^num_(hidden_groups|feedforward_networks)$|^inner_group"
)


@dataclass
class CheckpointConfig:
    """Options of the group ``checkpoint``."""

    path: str = option(REQUIRED, "a model folder, a hub id such as org/name, or pkg://package/folder")
    revision: str | None = option(None, "commit, tag or branch of a hub checkpoint; null: its main branch")
    offline: bool = option(False, "true: never touch the network, use only what was downloaded before")
    cache_dir: str | None = option(None, "where downloads are kept; null: the Hugging Face cache")
    unsafe_files: UnsafeFiles = option(
        "refuse", "pickles and code in the folder: refuse the folder, or ignore them (they are never opened)"
    )
    prompts: dict[str, str] = option(
        {}, "name: text put before an embedding model's texts, beside the ones that its folder names"
    )


def resolve_checkpoint(config: CheckpointConfig) -> Checkpoint:
    """Find the folder that `config` names, downloading it if it is a hub id, and check all of it.

    A folder that exists wins over a hub id of the same name.

    :raises CheckpointError: if it is not found, unsafe, broken, or has no safetensors.
    """
    folder, revision, unsafe_files = find_folder(config.path), None, config.unsafe_files
    if folder is None:
        repository = hub_id(config.path)
        from pipeline_kit.hub import download

        hint = near_miss(config.path)
        snapshot = download(repository, config.revision, config.offline, config.cache_dir, hint)
        # Other programs share the hub's cache and may have left pickles in it; they are never opened.
        folder, revision, unsafe_files = snapshot.folder, snapshot.commit, "ignore"
    elif config.revision is not None:
        raise CheckpointError(
            f"checkpoint.revision={config.revision}: '{config.path}' is a folder on this machine, which has no "
            "revisions; leave checkpoint.revision out, or give a hub id as checkpoint.path"
        )
    found = open_folder(folder, config.path, unsafe_files, revision)
    return replace(found, prompts=dict(config.prompts)) if config.prompts else found


def open_folder(
    folder: Path, name: str, unsafe_files: UnsafeFiles = "refuse", revision: str | None = None
) -> Checkpoint:
    """Check and parse the model folder `folder`, which the user called `name`.

    :raises CheckpointError: if it is unsafe, broken, or has no safetensors.
    """
    root, folder = folder, network_folder(folder)
    if not (folder / "config.json").is_symlink() and not (folder / "config.json").exists():
        raise CheckpointError(_no_config(folder))
    scan_folder(root, unsafe_files)
    if folder != root:
        scan_folder(folder, unsafe_files)  # what may not stand beside config.json may not stand here either
    config = _object(folder / "config.json")
    tokenizer_path = folder / "tokenizer_config.json"
    tokenizer_config = _object(tokenizer_path) if tokenizer_path.exists() else {}
    files = weight_files(folder)
    if not files:
        raise CheckpointError(_no_weights(folder))
    found = Checkpoint(folder, name, config, tokenizer_config, revision, None if folder == root else root)
    shapes = weight_shapes(found)
    _check_labels(folder / "config.json", config, shapes)
    _check_layers(folder / "config.json", config, shapes)
    return found


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in the checkpoint's weights by name, over all shards.

    :raises CheckpointError: if a weights file is broken.
    """
    headers = (read_header(path) for path in weight_files(checkpoint.path))
    return {name: tuple(entry["shape"]) for header in headers for name, entry in header.items()}


def fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """Give the SHA-256 of every file that a stage may read, by its path inside the folder.

    :raises CheckpointError: if a file cannot be read.
    """
    root = checkpoint.root or checkpoint.path
    used = {*weight_files(checkpoint.path), *root.glob(MODULE_WEIGHTS)}
    used.update(path for path in files_of(root) if path.suffix.lower() in DATA_SUFFIXES)
    return {path.relative_to(root).as_posix(): _sha256(path) for path in sorted(used)}


def _sha256(path: Path) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object; this is no model's file")
    return value


def _check_labels(path: Path, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse label tables that could not be indexed, and more labels than any weight has rows or columns."""
    names = config.get("id2label")
    if names is not None and not isinstance(names, Mapping):
        raise CheckpointError(f"{path}: 'id2label' must map indices to names, not '{shorten(names, 80)}'")
    for key in names or ():
        if not (key.isascii() and key.isdigit() and len(key) < 8 and int(key) < _MAX_LABELS):
            raise CheckpointError(
                f"{path}: 'id2label' has the index '{shorten(key, 80)}'; indices are whole numbers under {_MAX_LABELS}"
            )
    count = config.get("num_labels")
    if isinstance(count, int) and not 0 <= count < _MAX_LABELS:
        raise CheckpointError(f"{path}: 'num_labels' is {count}; it must be 0 to {_MAX_LABELS - 1}")
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, labels in (("num_labels", count if isinstance(count, int) else 0), ("id2label", len(names or ()))):
        if labels > max(widest, _FEW):
            raise CheckpointError(
                f"{path}: '{key}' has {labels} labels, but no weight of the checkpoint has more than {widest} rows or "
                "columns. Correct it, or download the checkpoint again"
            )


def _check_layers(path: Path, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse far more layers than the names of the weights count, before a library makes a list of them.

    A few are let through, since layers may share their weights; whether each has its own is seen when they are loaded.
    """
    numbered = max((int(part) + 1 for name in shapes for part in name.split(".") if part.isdecimal()), default=0)
    for full, key, value in nodes(config, path):
        most = max((n for n in (value if isinstance(value, list) else [value]) if type(n) is int), default=0)
        if _LAYERS.search(key) and most > max(2 * numbered, _FEW):
            raise CheckpointError(
                f"{path}: '{shorten(full)}' is {shorten(value, 40)}, but the weights of the checkpoint have "
                f"{numbered} numbered layers. Correct it, or download the checkpoint again"
            )


def _no_config(folder: Path) -> str:
    message = f"{folder} has no config.json, so it is no model folder"
    if (folder / "adapter_config.json").exists():
        return f"{message} but a PEFT adapter; merge it into its base model and save that with save_pretrained"
    other = _other_format(folder)
    if other:
        return f"{message}; {other}"
    modules = read_modules(folder) or ()
    if modules and modules[0].kind != "Transformer":
        return (
            f"{message}; its {MODULES_NAME} makes it a sentence-transformers model of the module "
            f"'{shorten(modules[0].kind, 80)}', and only those of a Transformer are supported"
        )
    inner = [found for pattern in ("*", "*/*") for found in sorted(folder.glob(f"{pattern}/config.json"))[:3]]
    if inner:
        return f"{message}; did you mean checkpoint.path={inner[0].parent}?"
    held = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(shorten(name, 40) for name in held[:5]) + (" …" if held[5:] else "")
    return f"{message}; it holds {shown or 'nothing'}. A folder written by save_pretrained has all that is needed"


def _no_weights(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return (
            f"{folder} has no {WEIGHTS_NAME} but {', '.join(others[:3])}; "
            f"rename the file that holds the whole model to {WEIGHTS_NAME}"
        )
    return f"{folder} holds no safetensors. {_other_format(folder) or CONVERT}"


def _other_format(folder: Path) -> str | None:
    for suffix, kind in ((".gguf", "GGUF"), (".onnx", "ONNX")):
        found = [*folder.glob(f"*{suffix}"), *folder.glob(f"onnx/*{suffix}")]
        if found:
            return f"it holds {kind} weights ({found[0].name}); use the checkpoint they were made from, in safetensors"
    return None
