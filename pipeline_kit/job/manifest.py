"""The manifest: what a job is, written before its first shard, and what came of it, at the end."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline_kit.atomic import atomic_writer
from pipeline_kit.errors import OutputError, UsageError
from pipeline_kit.job.identity import differences

__all__ = ["Manifest", "read_manifest", "write_manifest"]

LAYOUT = 1
MOST_SHOWN = 8


@dataclass(frozen=True)
class Manifest:
    """What a job is.

    :param identity: see :func:`pipeline_kit.job.identity.identity_of`.
    :param settled: options that fix what the first load decided by measuring, see `Model.settled`.
    :param schema: what all shards agree on, from the first one; None before it, or if there is nothing.
    :param command: how a user asked for the job, for ``pipeline-kit retry``.
    :param resolved: what every 'auto' and null of the config became, at the first load.
    :param done: whether all rows are there.
    :param counts: of the whole job, once it is done.
    :param totals: tokens, truncated rows, seconds in each stage and the like, added up over all shards then.
    """

    identity: Mapping[str, Any]
    settled: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    command: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False
    counts: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    layout: int = LAYOUT

    def check_same(self, identity: Mapping[str, Any], folder: Path) -> None:
        """Refuse to go on with another job than the one in the folder.

        :raises UsageError: naming what differs.
        """
        if any(item.get("sha256", "") is None for item in identity["input"]):
            raise UsageError(
                f"{folder}: holds a job already, and this input can be gone through only once, so nothing tells "
                "whether it is the same; write it to a file, or begin anew with --restart"
            )
        found = list(differences(self.identity, json.loads(json.dumps(identity))))
        if found:
            shown = "\n  ".join(found[:MOST_SHOWN])
            more = f"\n  ... and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
            raise UsageError(
                f"{folder}: holds a job that is not this one:\n  {shown}{more}\n"
                "to go on with it, give the same input, options and versions; to begin anew, add --restart "
                "(the folder is renamed, nothing is deleted) or name another folder"
            )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest so that it is whole or not there.

    :raises OutputError: if the disk takes it not.
    """
    content = asdict(manifest) | {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with atomic_writer(path) as file:
        file.write(json.dumps(content | {"sha256": _seal(content)}, indent=1, ensure_ascii=False) + "\n")


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None if there is none.

    :raises OutputError: if it is not as it was written.
    """
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop("sha256")
        whole = seal == _seal(content)
        content.pop("written")
        manifest = Manifest(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path) from error
    if not whole or manifest.layout != LAYOUT:
        raise _broken(path)
    return manifest


def _broken(path: Path) -> OutputError:
    return OutputError(
        f"{path}: is not as this version of pipeline-kit wrote it, so it cannot be told what the job is; add --restart "
        "to begin anew (the folder is renamed, nothing is deleted)"
    )


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
