"""One thing that may be tried: a config, and what differs in it from the user's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_kit.config import defaults
from pipeline_kit.errors import ConfigError, shorten
from pipeline_kit.pipeline_config import PipelineConfig, parse_config
from pipeline_kit.registry import KINDS, Registry

__all__ = ["Candidate", "candidate_of", "changes", "reason_of", "written"]

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")


@dataclass(frozen=True)
class Candidate:
    """A config under a name.

    :param engine: what the model runs on, for people: ``model=hf model.quantization=int8``.
    :param config: None if there is none, see `problem`.
    :param problem: why it cannot be tried.
    """

    engine: str
    config: PipelineConfig | None = None
    problem: str | None = None

    @property
    def key(self) -> str:
        """The same for two candidates whose configs are equal."""
        return json.dumps(None if self.config is None else self.config.data, sort_keys=True, default=repr)


def candidate_of(
    engine: str, base: PipelineConfig, nodes: Mapping[str, Mapping[str, Any]], registry: Registry
) -> Candidate:
    """Put `nodes`, whole groups such as ``model``, in the place of those of `base`, and check the result."""
    try:
        return Candidate(engine, parse_config({**base.data, **nodes}, registry, []))
    except ConfigError as error:
        return Candidate(engine, problem=reason_of(error))


def reason_of(error: BaseException) -> str:
    """Say in one line why something cannot be tried."""
    faults = getattr(error, "faults", None)
    if faults:
        text = "; ".join(f"{fault.key}: {fault.problem}" if fault.key else fault.problem for fault in faults)
    elif type(error).__module__.startswith("pipeline_kit"):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return shorten(" ".join(text.split()), 300)


def changes(own: PipelineConfig, other: PipelineConfig) -> list[str]:
    """Write what `other` has and `own` has not as overrides; of another stage, what is not its default."""
    found = []
    for group, node in other.data.items():
        before = own.data.get(group, {})
        if group in KINDS and node["name"] != before.get("name"):
            found.append(f"{group}={node['name']}")
            before = {"name": node["name"], **defaults(getattr(other, group).spec.config)}
        found += _leaves(group, before, node)
    return found


def _leaves(path: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [item for key in after for item in _leaves(f"{path}.{key}", before.get(key), after[key])]
    return [] if before == after else [f"{path.removesuffix('.name')}={written(after)}"]


def written(value: Any) -> str:
    """Write a value in Hydra's grammar."""
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return value if _PLAIN.fullmatch(value) else f"'{quoted}'"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    return json.dumps(value)
