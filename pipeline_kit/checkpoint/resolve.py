"""From ``checkpoint.path`` to a model folder that was found, checked and parsed; loads no model library."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline_kit.checkpoint import weights
from pipeline_kit.checkpoint.json import nodes, open_file, read_object, read_optional
from pipeline_kit.checkpoint.scan import CONVERT, DATA_SUFFIXES, UnsafeFiles, files_of, scan_folder
from pipeline_kit.contract.options import REQUIRED, option
from pipeline_kit.contract.stages import CheckpointFormat
from pipeline_kit.contract.types import Checkpoint, Trust
from pipeline_kit.errors import CheckpointError, closest_match, for_message
from pipeline_kit.files.storage.base import refuse_secrets, scheme_of

_TOKENIZER = "tokenizer_config.json"
_MAX_LABELS = 1_000_000
_FEW = 256
# What counts parts that are built or run one after the other: num_hidden_layers, n_layer, block_sizes …
_LAYERS = re.compile(
    r"(^|_)layers?($|_)|^block_(sizes|repeats)$|^num_(hidden_groups|feedforward_networks)$|^inner_group"
)


@dataclass
class CheckpointConfig:
    """Options of the group ``checkpoint``."""

    path: str = option(
        REQUIRED, "a model folder, a hub id such as org/name, pkg://package/folder, or a URL such as s3://bucket/model"
    )
    revision: str | None = option(None, "commit, tag or branch of a hub checkpoint; null: its main branch")
    offline: bool = option(False, "true: never touch the network, use only what was downloaded before")
    cache_dir: str | None = option(None, "where downloads are kept; null: the Hugging Face cache")
    unsafe_files: UnsafeFiles = option(
        "refuse", "pickles and code in the folder: refuse the folder, or ignore them (they are never opened)"
    )
    trust: Trust = option(
        "data",
        "pickle: a model stage with a format of its own may open files that can run code; on the command line and in "
        "Python alone, no config can set it",
    )
    prompts: dict[str, str] = option(
        {}, "name: text put before an embedding model's texts, beside the ones that its folder names"
    )


def resolve_checkpoint(
    config: CheckpointConfig, own_format: Callable[[], CheckpointFormat | None] = lambda: None
) -> Checkpoint:
    """Find the folder that `config` names, downloading it if it is a hub id or in a store, and check all of it.

    A folder that exists wins over a hub id of the same name.

    :param own_format: returns the model stage's own format, None: the Hugging Face format. Called once the folder is
        found, since that may load the stage.
    :raises CheckpointError: if it is not found, unsafe, broken, or lacks what the format needs.
    """
    folder, revision, unsafe_files = find_folder(config.path), None, config.unsafe_files
    read = own_format()
    if is_url(config.path):
        return _open_copy(config, read)
    if read is not None:
        if folder is None:
            raise CheckpointError(
                f"checkpoint.path={for_message(config.path)}: no such folder, and this model stage reads folders alone."
                f"{near_miss(config.path)} Is it a hub id, download it first: hf download {for_message(config.path)} "
                "--local-dir my-model"
            )
        scan_folder(folder, config.unsafe_files, config.trust)
        bare = Checkpoint(folder, config.path, tokenizer_config=read_optional(folder / _TOKENIZER), own_format=True)
        bare = replace(bare, prompts=dict(config.prompts), trust=config.trust)
        settings = read(bare)
        if not isinstance(settings, Mapping):
            raise CheckpointError(
                f"{folder}: checkpoint_format of the model stage returned {type(settings).__name__}; it returns a "
                "mapping, {} if there is nothing to say"
            )
        _check_labels(folder, settings, None)
        return replace(bare, config=dict(settings))
    if config.trust != "data":
        raise CheckpointError(
            f"checkpoint.trust={config.trust}: this model stage reads safetensors alone, never a pickle; leave it out"
        )
    if folder is None:
        repository = hub_id(config.path)
        from pipeline_kit.checkpoint.hub import download

        hint = near_miss(config.path)
        folder = download(repository, config.revision, config.offline, config.cache_dir, hint)
        # Other programs share the hub's cache and may have left pickles in it; they are never opened.
        revision, unsafe_files = folder.name, "ignore"
    elif config.revision is not None:
        raise CheckpointError(
            f"checkpoint.revision={config.revision}: '{config.path}' is a folder on this machine, which has no "
            "revisions; leave checkpoint.revision out, or pass a hub id as checkpoint.path"
        )
    found = open_folder(folder, config.path, unsafe_files, revision)
    return replace(found, prompts=dict(config.prompts)) if config.prompts else found


def is_url(path: str) -> bool:
    """Return whether a checkpoint's path is a URL of a store.

    :raises UsageError: if there may be a secret in it.
    """
    if scheme_of(path) in (None, "pkg", "http", "https"):
        return False
    refuse_secrets(path)
    return True


def _open_copy(config: CheckpointConfig, read: CheckpointFormat | None) -> Checkpoint:
    """Copy the model folder out of its store and open it; messages name the URL."""
    for option_, value, why in (
        ("revision", config.revision, "has no revisions"),
        ("offline", config.offline or None, "needs the network; copy it here, and name the copy"),
    ):
        if value is not None:
            raise CheckpointError(f"checkpoint.{option_}={value}: '{for_message(config.path)}' {why}")
    from pipeline_kit.checkpoint.stored import copied

    folder = copied(config.path, config.cache_dir, read is not None, config.unsafe_files, config.trust)
    local = replace(config, path=str(folder), revision=None)
    try:
        found = resolve_checkpoint(local, lambda: read)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), config.path.rstrip("/"))) from error
    return replace(found, name=config.path)


def open_folder(
    folder: Path, name: str, unsafe_files: UnsafeFiles = "refuse", revision: str | None = None
) -> Checkpoint:
    """Check and parse `folder`, which the user called `name`; raise CheckpointError if it is unsafe or broken."""
    root, folder = folder, weights.network_folder(folder)
    if not (folder / "config.json").is_symlink() and not (folder / "config.json").exists():
        raise CheckpointError(_no_config(folder))
    scan_folder(root, unsafe_files)
    if folder != root:
        scan_folder(folder, unsafe_files)  # what may not stand beside config.json may not stand here either
    config = read_object(folder / "config.json")
    files = weights.weight_files(folder)
    if not files:
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        if not others:
            raise CheckpointError(f"{folder} holds no safetensors. {_other_format(folder) or CONVERT}")
        raise CheckpointError(
            f"{folder} has no {weights.WEIGHTS_NAME} but {', '.join(others[:3])}; "
            f"rename the file that holds the whole model to {weights.WEIGHTS_NAME}"
        )
    tokenizer = read_optional(folder / _TOKENIZER)
    found = Checkpoint(folder, name, config, tokenizer, revision, None if folder == root else root)
    shapes = weight_shapes(found)
    _check_labels(folder / "config.json", config, shapes)
    _check_layers(folder / "config.json", config, shapes)
    return found


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights by name, over all shards; raise CheckpointError if a file is broken."""
    headers = (weights.read_header(path) for path in weights.weight_files(checkpoint.path))
    return {name: tuple(entry["shape"]) for header in headers for name, entry in header.items()}


def fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of every file that a stage may read, by its path inside the folder.

    In a format of the stage's own that is every file whose name does not begin with a dot.
    """
    root = checkpoint.root or checkpoint.path
    if checkpoint.own_format:
        used = {path for path in files_of(root) if not path.name.startswith(".")}
    else:
        used = {*weights.weight_files(checkpoint.path), *root.glob(weights.MODULE_WEIGHTS)}
        used.update(path for path in files_of(root) if path.suffix.lower() in DATA_SUFFIXES)
    found = {}
    for path in sorted(used):
        with open_file(path) as file:
            found[path.relative_to(root).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _check_labels(path: Path, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse label tables that could not be indexed, and more labels than any weight has rows or columns."""
    names = config.get("id2label")
    if names is not None and not isinstance(names, Mapping):
        raise CheckpointError(f"{path}: 'id2label' must map indices to names, not '{for_message(names, 80)}'")
    for key in map(str, names or ()):
        if not (key.isascii() and key.isdigit() and len(key) < 8 and int(key) < _MAX_LABELS):
            raise CheckpointError(
                f"{path}: 'id2label' has the index '{for_message(key, 80)}'; "
                f"indices are whole numbers under {_MAX_LABELS}"
            )
    count = config.get("num_labels")
    if isinstance(count, int) and not 0 <= count < _MAX_LABELS:
        raise CheckpointError(f"{path}: 'num_labels' is {for_message(count, 40)}; it must be 0 to {_MAX_LABELS - 1}")
    if shapes is None:
        return
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
                f"{path}: '{for_message(full)}' is {for_message(value, 40)}, but the weights of the checkpoint have "
                f"{numbered} numbered layers. Correct it, or download the checkpoint again"
            )


def _no_config(folder: Path) -> str:
    message = f"{folder} has no config.json, so it is not a model folder"
    if (folder / "adapter_config.json").exists():
        return f"{message} but a PEFT adapter; merge it into its base model and save that with save_pretrained"
    other = _other_format(folder)
    if other:
        return f"{message}; {other}"
    modules = weights.read_modules(folder) or ()
    if modules and modules[0].kind != "Transformer":
        return (
            f"{message}; its {weights.MODULES_NAME} makes it a sentence-transformers model of the module "
            f"'{for_message(modules[0].kind, 80)}', and only those of a Transformer are supported"
        )
    inner = [found for pattern in ("*", "*/*") for found in sorted(folder.glob(f"{pattern}/config.json"))[:3]]
    if inner:
        return f"{message}; did you mean checkpoint.path={inner[0].parent}?"
    held = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(for_message(name, 40) for name in held[:5]) + (" …" if held[5:] else "")
    return f"{message}; it holds {shown or 'nothing'}. A folder written by save_pretrained has all that is needed"


def _other_format(folder: Path) -> str | None:
    made_from = "use the checkpoint they were made from, in safetensors, or a model stage that reads them"
    for suffix, kind, way in (
        (".gguf", "GGUF weights", made_from),
        (".onnx", "ONNX weights", made_from),
        (".skops", "a model of scikit-learn", "pipeline-kit-sklearn has stages for it"),
    ):
        found = [*folder.glob(f"*{suffix}"), *folder.glob(f"onnx/*{suffix}")]
        if found:
            return f"it holds {kind} ({found[0].name}); {way} (pipeline-kit ls model lists those installed)"
    return None


_PACKAGE = "pkg://"
_HUB_NAME = re.compile(r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", re.ASCII)


def find_folder(path: str) -> Path | None:
    """Return the folder that `path` names, None if it may be a hub id or is a URL; raise CheckpointError otherwise."""
    if not path.strip() or "\0" in path:
        what = "holds a NUL character" if path.strip() else "is empty"
        raise CheckpointError(f"checkpoint.path {what}; name a model folder or a hub id such as org/name")
    if path.startswith(_PACKAGE):
        return _inside_package(path)
    if is_url(path):
        return None
    if "://" in path:
        raise CheckpointError(
            f"checkpoint.path={for_message(path)} is a URL; pass a folder, or the hub id alone: org/name"
        )
    try:
        folder = Path(path).expanduser()
        found, is_folder = _look_up(folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint.path={for_message(path)} cannot be looked up: {for_message(str(error))}"
        ) from error
    if is_folder:
        return folder.absolute()
    if found:
        raise CheckpointError(
            f"checkpoint.path={for_message(path)} is a file; name the folder that holds it, config.json and the "
            "tokenizer"
        )
    if path.startswith((".", "/", "~")) or path.endswith("/") or "\\" in path or path.count("/") > 1:
        raise CheckpointError(
            f"checkpoint.path={for_message(path)}: no such folder "
            f"({for_message(str(folder.absolute()))}).{near_miss(path)}"
        )
    return None


def _look_up(path: Path) -> tuple[bool, bool]:
    """Return whether `path` is there, and is a folder; raise OSError if that cannot be told.

    Since Python 3.14 `exists()` and `is_dir()` are False also for what may not be looked up.
    """
    try:
        return True, stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return False, False


def hub_id(path: str) -> str:
    """Return `path` if it can be the id of a hub repository, ``name`` or ``org/name``; else raise CheckpointError."""
    parts = path.split("/")
    plausible = all(_HUB_NAME.fullmatch(part) for part in parts) and ".." not in path and "--" not in path
    if not plausible or len(parts) > 2 or len(path) > 96 or path.endswith(".git"):
        raise CheckpointError(
            f"checkpoint.path={for_message(path)}: no such folder, and no hub id either (those look like org/name)."
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
    match = closest_match(folder.name, siblings)
    if match is None:
        return ""
    there = folder.parent / match
    return f" Did you mean the folder '{there if there.is_absolute() else f'./{there}'}'?"


def _inside_package(path: str) -> Path:
    """Find ``pkg://package.sub/folder`` without importing anything: only the files' place is looked up."""
    package, _, rest = path.removeprefix(_PACKAGE).partition("/")
    names = package.split(".")
    parts = PurePosixPath(rest).parts
    if not all(name.isidentifier() for name in names) or not parts or {"..", "/"} & {*parts} or "\\" in rest:
        raise CheckpointError(
            f"checkpoint.path={for_message(path)}: write {_PACKAGE}package/folder, with a dotted package name and no "
            "'..'"
        )
    try:
        # Looking up a top-level name runs no code of the package; looking up a dotted one would.
        spec = importlib.util.find_spec(names[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise CheckpointError(f"checkpoint.path={for_message(path)}: no package '{names[0]}' is installed")
    shelves = [Path(place).joinpath(*names[1:]) for place in spec.submodule_search_locations]
    for shelf in shelves:
        if shelf.joinpath(*parts).is_dir():
            return shelf.joinpath(*parts)
    there = sorted(item.name for shelf in shelves if shelf.is_dir() for item in shelf.iterdir() if item.is_dir())
    there = [name for name in there if not name.startswith(("_", "."))]
    match = closest_match(rest, there)
    raise CheckpointError(
        f"checkpoint.path={for_message(path)}: the package '{package}' has no folder '{for_message(rest)}'"
        + (f"; did you mean {_PACKAGE}{package}/{match}?" if match else f"; it has: {', '.join(there) or 'none'}")
    )
