"""The YAML of the config groups, as files to read, for ``ls`` and ``show``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from pipeline_kit.compose.schema import GROUPS
from pipeline_kit.compose.yaml_scan import MAX_BYTES, conf_trees, yaml_files
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import HIDDEN, ConfigError, Fault, for_message, hidden, is_secret, redacted


@dataclass(frozen=True)
class Preset:
    """One YAML file of a group.

    :param source: the distribution, plugin or folder it comes from.
    """

    group: str
    name: str
    source: str
    text: str

    @property
    def comment(self) -> list[str]:
        """The lines of the comment it opens with."""
        lines: list[str] = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                lines.append(line.lstrip("# ").rstrip())
        return lines

    @property
    def summary(self) -> str:
        """The first line of that comment."""
        return re.sub(r"^what: +", "", self.comment[0], flags=re.IGNORECASE) if self.comment else ""

    @property
    def run_line(self) -> str | None:
        """The command that the comment names to try it with, None if there is none."""
        found = (re.match(r"run: +(.*)", line, flags=re.IGNORECASE) for line in self.comment)
        return next((match[1] for match in found if match), None)


def presets(registry: Registry, config_dirs: Sequence[str], groups: Sequence[str] = GROUPS) -> Iterator[Preset]:
    """Go through the presets of `groups`; one that a source before it has too is given again."""
    for folder in config_dirs:
        if not os.path.isdir(os.path.expanduser(folder)):
            raise ConfigError([Fault(f"--config-dir {for_message(folder)}", "this folder does not exist.")])
    trees = conf_trees(registry, config_dirs)
    for group in groups:
        for tree, owner in trees:
            for item in (item for item in yaml_files(tree, group) if item.is_file()):
                with item.open("rb") as file:
                    text = file.read(MAX_BYTES).decode("utf-8-sig", errors="replace")
                if tree is not trees[0][0]:  # the package's own hold none, and parsing YAML is slow
                    text = _without_secrets(text, group)
                yield Preset(group, item.name.removesuffix(".yaml"), owner, text)


def _without_secrets(text: str, group: str) -> str:
    """Hide what is secret in the YAML of a preset; the rest stays as it is written."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        found = list(_secrets(root, "" if "@package _global_" in text else group))
    except (yaml.YAMLError, RecursionError):
        return "\n".join(hidden(line, whole=True) for line in text.split("\n"))
    for node in sorted(found, key=lambda node: -node.start_mark.index):
        start, end = node.start_mark.index, node.end_mark.index
        # A block ends where the next key begins.
        text = text[:start] + HIDDEN + text[start + len(text[start:end].rstrip()) :]
    return "\n".join(hidden(line, whole=line.startswith("#")) for line in text.split("\n"))


def _secrets(node: yaml.Node | None, path: str) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode) and not (is_secret(path) and node.value):
        for key, value in node.value:
            yield from _secrets(value, f"{path}.{key.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode) and not (is_secret(path) and node.value):
        for item in node.value:
            yield from _secrets(item, path)
    elif node is not None and redacted(node.value, path) != node.value:
        yield node
