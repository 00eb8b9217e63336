"""Look over YAML and composed data before anything trusts them: size, depth, aliases, forbidden keys."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from pipeline_kit.contract.registry import BUILTIN, Registry
from pipeline_kit.errors import Fault, for_message

CONF_MODULE = "pipeline_kit.conf"

CONTROL_KEYS = frozenset({"_target_", "_args_", "_partial_", "_recursive_", "_convert_", "()"})
"""Keys by which Hydra or logging configs name Python to run; a stage is named, never pointed at."""

MAX_BYTES, MAX_DEPTH = 64 * 1024, 20
_REFERENCE = re.compile(r"\$\{\s*[A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*\s*\}")
_PART = r"[^\s./\\@:][^/\\@:]*"
_PATH = rf"(?!hydra(?:/|$)){_PART}(?:/{_PART})*"
_PACKAGE = r"(?!(?:_global_\.)?hydra\b)\w[\w.-]*"
_GROUP = re.compile(rf"(?:(?:override|optional) +)*/?(?!hydra[/@]|hydra$)[\w-]+(?:/[\w-]+)*(?:@{_PACKAGE})?")
_CONFIG = re.compile(rf"/?{_PATH}(?:@{_PACKAGE})?")
_WHOLE = re.compile(r"0|-?[1-9]\d{0,17}")
_FLOAT = re.compile(r"[-+]?\.?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")  # a text to YAML 1.1, a number to OmegaConf
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def scan_yaml(path: Path) -> list[Fault]:
    """Find what is unsafe in a YAML file without building anything from it."""
    try:
        return scan_bytes(read_regular_file(path, MAX_BYTES + 1), str(path))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return [Fault(for_message(str(path)), f"cannot be read: {for_message(why)}.")]


def read_regular_file(path: Path, limit: int = -1) -> bytes:
    """Read at most `limit` bytes of a file; a pipe, device or socket is neither waited for nor read.

    :raises OSError: if it is not a regular file, or cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, device or socket, not a regular file")
        return file.read(limit)


def scan_bytes(data: bytes, where: str) -> list[Fault]:
    """Find what is unsafe in the bytes of a YAML file called `where`.

    Aliases are refused because a few of them expand to gigabytes, and with them anchors.
    """
    if len(data) > MAX_BYTES:
        return [Fault(where, f"has more than {MAX_BYTES} bytes.", hint="long lists belong in a file of rows")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return [Fault(f"{where}:{line}", f"cannot be read: {for_message(str(error))}.", hint="save it as UTF-8")]
    faults: list[Fault] = []
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            line_of = f"{where}:{event.start_mark.line + 1}" if event.start_mark is not None else where
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                return [Fault(line_of, "holds a YAML anchor or alias, which is not allowed; write the value out.")]
            tag = getattr(event, "tag", None)
            if tag not in (None, "!"):
                return [Fault(line_of, f"holds the YAML tag '{for_message(tag)}', which is not allowed.")]
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                return [Fault(line_of, f"is nested more than {MAX_DEPTH} deep.")]
            if isinstance(event, yaml.ScalarEvent):
                faults += [Fault(line_of, problem) for problem in scan_text(event.value)]
                if event.value == "hydra" or re.match(r"((override|optional) +)*/?hydra/", event.value):
                    faults.append(Fault(line_of, "sets Hydra's own options, which pipeline-kit keeps to itself."))
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        return [Fault(where, f"is not valid YAML: {for_message(' '.join(str(error).split()), 300)}.")]
    if not isinstance(root, yaml.MappingNode):
        found = "is empty" if root is None else f"holds a {'list' if isinstance(root.value, list) else 'value'}"
        return [*faults, Fault(where, f"{found}; a config is a mapping of options, such as 'max_length: 64'.")]
    structure = (*_header(text), *_keys(root), *_defaults(root))
    return faults or [Fault(f"{where}:{number}", problem) for number, problem in structure]


def _header(text: str) -> Iterator[tuple[int, str]]:
    """Check the comments that Hydra reads, of which there is one: ``# @package``."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not re.match(r"\s*#\s*@", line):
            return
        if line.strip() and not re.fullmatch(rf"\s*#+\s*@package +{_PACKAGE}\s*", line):
            shown = for_message(line.strip(), 80)
            yield number, f"'{shown}' names no package that can be: write '# @package _global_'."


def _keys(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """Check that every key is a text, there once: YAML 1.1 reads on, no, 1_000 and 1:30 as something else."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name, line = key.value, key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield line, "a list or mapping cannot be a key."
            elif key.tag.endswith(":merge"):
                yield line, "the merge key '<<' is not allowed; write the options out."
            elif not (key.style or _WHOLE.fullmatch(name)) and (not key.tag.endswith(":str") or _FLOAT.match(name)):
                kind = key.tag.rpartition(":")[2].replace("str", "float")
                yield line, f"YAML reads the key '{for_message(name, 80)}' as {kind}, not as a text; quote it."
            elif name in seen:
                yield line, f"has the duplicate key '{for_message(name, 80)}'."
            else:
                seen.add(name)
                yield from _keys(value)


def _defaults(root: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    """Check that the defaults list names nothing but configs inside the folders of configs."""
    for key, node in root.value:
        if key.value != "defaults":
            continue
        if not isinstance(node, yaml.SequenceNode):
            yield key.start_mark.line + 1, "'defaults' must be a list, such as: defaults: [config, _self_]"
            return
        for item in node.value:
            pairs = item.value if isinstance(item, yaml.MappingNode) else [(None, item)]
            group, name = pairs[0] if len(pairs) == 1 else (None, root)
            names = name.value if group is not None and isinstance(name, yaml.SequenceNode) else [name]
            if not (
                (group is None or _GROUP.fullmatch(group.value))
                and all(_names_config(option, alone=group is None) for option in names)
            ):
                shown = ": ".join(_shown(part) for part in (group, item if name is root else name) if part is not None)
                allowed = "NAME, GROUP: NAME or override GROUP: NAME, quoted if a number"
                yield item.start_mark.line + 1, f"'defaults' has '{shown}', not a name in a config folder: {allowed}."


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return for_message(node.value, 80)
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a sequence"


def _names_config(node: yaml.Node, *, alone: bool) -> bool:
    if not isinstance(node, yaml.ScalarNode):
        return False
    if not alone and node.tag.endswith(":null"):
        return True  # a group of which nothing is chosen
    pattern = _CONFIG.pattern if alone else _PATH
    return node.tag.endswith(":str") and re.fullmatch(pattern, _REFERENCE.sub("x", node.value)) is not None


def is_config_name(path: str) -> bool:
    """Return whether `path`, the name of a config, stays inside its folder."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") or len(part) > 200 for part in parts) and not set(path) & {"\0", "\\"}


def scan_text(text: str) -> Iterator[str]:
    """Return what is not allowed in a key, value or override."""
    for key in CONTROL_KEYS:
        if key == text or (key.startswith("_") and re.search(rf"(?<![A-Za-z0-9]){key}(?![A-Za-z0-9])", text)):
            yield f"names Python to run with '{key}', which is not allowed; stages are chosen by name."
    if "${" in _REFERENCE.sub("", text):
        yield f"'{for_message(text)}' calls a resolver; only plain references such as ${{task.name}} are allowed."


def scan_data(data: Any, path: str = "", depth: int = 0) -> Iterator[Fault]:
    """Go through composed data for forbidden keys, resolvers and depth."""
    if depth > MAX_DEPTH:
        yield Fault(path, f"is nested more than {MAX_DEPTH} deep.")
    elif isinstance(data, Mapping):
        for key, value in data.items():
            where = f"{path}.{for_message(str(key), 80)}" if path else for_message(str(key), 80)
            yield from (Fault(where, problem) for problem in scan_text(str(key)))
            yield from scan_data(value, where, depth + 1)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from scan_data(value, f"{path}[{i}]", depth + 1)
    elif isinstance(data, str):
        yield from (Fault(path, problem) for problem in scan_text(data))


def resolved_size(data: Any) -> int:
    """Return about how many characters `data` has when its references are resolved: a few of them can be gigabytes."""
    seen: dict[str, int] = {}

    def size(value: Any) -> int:
        if isinstance(value, Mapping):
            return sum(len(str(key)) + size(inner) for key, inner in value.items())
        if isinstance(value, list):
            return sum(map(size, value), 1)
        if not isinstance(value, str):
            return 1
        return len(_REFERENCE.sub("", value)) + sum(map(referred, _REFERENCE.findall(value)))

    def target(reference: str) -> Any:
        found = data
        for part in re.findall(r"[\w-]+", reference):
            if isinstance(found, str) and _REFERENCE.fullmatch(found):
                found = target(found)
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def referred(reference: str) -> int:
        if reference not in seen:
            seen[reference] = 0  # one that leads to itself is an error when it is resolved
            seen[reference] = size(target(reference))
        return seen[reference]

    return size(data)


def scalars_in(data: bytes) -> set[str]:
    """Return every scalar of a scanned YAML file: the names it may ask plugins for."""
    events = yaml.parse(data.decode("utf-8-sig"), Loader=_LOADER)
    return {event.value for event in events if isinstance(event, yaml.ScalarEvent)}


def conf_trees(registry: Registry, config_dir: Sequence[str | Path]) -> list[tuple[Traversable, str]]:
    """List the folders of configs and who brings each: the package, its plugins, the user."""
    packages = {CONF_MODULE: BUILTIN, **registry.conf_packages}
    shipped = [(resources.files(package.removeprefix("pkg://")), who) for package, who in packages.items()]
    return [*shipped, *((Path(os.path.expanduser(folder)), str(folder)) for folder in config_dir)]


def yaml_files(tree: Traversable, group: str) -> list[Traversable]:
    """List the options of a group in a folder of configs, by name."""
    folder = tree / group
    found = [item for item in folder.iterdir() if item.name.endswith(".yaml")] if folder.is_dir() else []
    return sorted(found, key=lambda item: item.name)
