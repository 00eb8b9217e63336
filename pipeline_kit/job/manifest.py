"""The manifest: what a job is, written when the first pipeline is loaded, and what came of it, at the end."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline_kit.checkpoint.resolve import fingerprint
from pipeline_kit.compose.build import checkpoint_of, other_checkpoints_of
from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.registry import KINDS
from pipeline_kit.contract.version import __version__
from pipeline_kit.errors import OutputError, UsageError, for_message, redacted
from pipeline_kit.job.folder import MANIFEST, JobFolder
from pipeline_kit.job.sealed import ANEW, LAYOUT, are_numbers, changed, sealed, sha256, unsealed

MOST_SHOWN = 8


@dataclass(frozen=True)
class Manifest:
    """What a job is.

    :param identity: see :func:`pipeline_kit.job.manifest.identity_of`.
    :param settled: options that fix what the first load decided by measuring, see `Model.pinned_options`.
    :param schema: what all shards agree on, from the first one; None before it, or if there is nothing.
    :param resolved: what every 'auto' and null of the config became, at the first load.
    :param done: whether all rows are there.
    :param counts: of the whole job, once it is done.
    :param totals: tokens, truncated rows, seconds in each stage and the like, added up over all shards then.
    """

    identity: Mapping[str, Any]
    settled: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False
    counts: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    layout: int = LAYOUT

    @property
    def key(self) -> str:
        """The hash of the identity, which each receipt of the job holds too."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def changes(self, identity: Mapping[str, Any], folder: str) -> list[str]:
        """List what differs between the job in `folder` and one of `identity`.

        :raises UsageError: if the input can be read only once, so that nothing shows whether it is the same.
        """
        if any(item.get("sha256", "") is None for item in identity["input"]):
            raise UsageError(
                f"{folder}: holds a job already, and this input can be gone through only once, so nothing shows "
                f"whether it is the same; write it to a file, or begin anew with {ANEW}"
            )
        return list(differences(self.identity, json.loads(json.dumps(identity))))

    def check_same(self, identity: Mapping[str, Any], folder: str) -> None:
        """Refuse to continue another job than the one in the folder.

        :raises UsageError: naming what differs.
        """
        found = self.changes(identity, folder)
        if found:
            shown = "\n  ".join(found[:MOST_SHOWN])
            more = f"\n  ... and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
            raise UsageError(
                f"{folder}: holds a job that is not this one:\n  {shown}{more}\n"
                f"to continue it, pass the same input, options and versions; to begin anew, add {ANEW} "
                "(the folder is renamed, nothing is deleted) or name another folder"
            )


def manifest_content(manifest: Manifest) -> bytes:
    """Return what is written to the manifest's file."""
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return sealed(asdict(manifest) | {"written": written}, indent=1)


def read_manifest(folder: JobFolder) -> Manifest | None:
    """Read the manifest of a folder; None if there is none.

    :raises OutputError: if it is not as it was written, or holds what no job writes.
    """
    where = folder.at(MANIFEST)
    try:
        content = unsealed(folder.read(MANIFEST), where)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _broken(where) from error
    fields = {"written", *Manifest.__dataclass_fields__}
    if content is None or content.keys() != fields or content.pop("written") is None:
        raise _broken(where)
    groups = [content[name] for name in ("identity", "settled", "resolved", "schema")]
    counts = (content["counts"], content["totals"])
    if not all(isinstance(group, dict) for group in groups if group is not None) or not all(map(are_numbers, counts)):
        raise changed(where, "the manifest holds a value that no job writes there")
    return Manifest(**content)


def _broken(where: str) -> OutputError:
    return OutputError(
        f"{where}: is not as this version of pipeline-kit wrote it, so it cannot be told what the job is; add {ANEW} "
        "to begin anew (the folder is renamed, nothing is deleted)"
    )


LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
WITHOUT_EFFECT = ("job", "runner", "storage", "serve")
"""Groups of options that change no result."""


def identity_of(config: PipelineConfig, source: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe a job as JSON values: config, versions, checkpoint, plugins, input.

    :param source: what :meth:`pipeline_kit.files.read.source.Source.identity` returns.
    :raises CheckpointError: if the checkpoint cannot be read.
    """
    checkpoints = {name: _checkpoint(part) for name, part in config.parts.items()}
    return {
        "config": redacted({key: value for key, value in config.data.items() if key not in WITHOUT_EFFECT}),
        "versions": versions(),
        "checkpoint": checkpoints.get("", checkpoints),
        "plugins": dict(sorted(_plugins(config))),
        "input": list(source),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of this package and of the libraries that results depend on."""
    return {"pipeline-kit": __version__, **{name: _version(name) for name in LIBRARIES}}


def _checkpoint(config: PipelineConfig) -> dict[str, Any]:
    checkpoint = checkpoint_of(config)
    others = [fingerprint(other) for other in other_checkpoints_of(config)]
    return {"revision": checkpoint.revision, "files": fingerprint(checkpoint)} | ({"others": others} if others else {})


def differences(before: Any, now: Any, path: str = "", words: tuple[str, str] = ("before", "now")) -> Iterator[str]:
    """Name each place where two descriptions differ, with both values; `words` stand behind the one and the other."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."), words)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{path}[{place}]", words)
    elif before != now:
        yield f"{path}: {_shown(before)} {words[0]}, {_shown(now)} {words[1]}"


def _plugins(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    parts = config.parts.values()
    specs = [getattr(part, kind).spec for part in parts for kind in KINDS]
    specs += [spec for part in parts for kind, spec in part.policies.items() if kind not in WITHOUT_EFFECT]
    for source in {spec.source for spec in specs}:
        if source == "pipeline-kit":
            continue
        path = Path(source)
        if path.is_file():
            yield source, f"sha256 {sha256(path)}"
        else:
            yield source, _version(source.split()[0]) or source


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _shown(value: Any) -> str:
    return "nothing" if value is None else for_message(value if isinstance(value, str) else repr(value), 80)
