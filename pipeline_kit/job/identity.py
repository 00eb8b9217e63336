"""What a job is: all that its results depend on, as plain data that a later run is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline_kit import __version__
from pipeline_kit.checkpoint import fingerprint, resolve_checkpoint
from pipeline_kit.errors import shorten
from pipeline_kit.job.stored import sha256
from pipeline_kit.pipeline_config import PipelineConfig
from pipeline_kit.redaction import redacted
from pipeline_kit.registry import KINDS

__all__ = ["differences", "identity_of"]

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
WITHOUT_EFFECT = ("job", "runner")
"""Groups of options that change no result."""


def identity_of(config: PipelineConfig, source: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe a job as JSON values: config, versions, checkpoint, plugins, input.

    :param source: what :meth:`pipeline_kit.records.Source.identity` gives.
    :raises CheckpointError: if the checkpoint cannot be read.
    """
    checkpoint = resolve_checkpoint(config.checkpoint)
    return {
        "config": redacted({key: value for key, value in config.data.items() if key not in WITHOUT_EFFECT}),
        "versions": {"pipeline-kit": __version__, **{name: _version(name) for name in LIBRARIES}},
        "checkpoint": {"revision": checkpoint.revision, "files": fingerprint(checkpoint)},
        "plugins": dict(sorted(_plugins(config))),
        "input": list(source),
    }


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Name each place where two descriptions differ, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{path}[{place}]")
    elif before != now:
        yield f"{path}: {_shown(before)} before, {_shown(now)} now"


def _plugins(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        source = getattr(config, kind).spec.source
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
    return "nothing" if value is None else shorten(value if isinstance(value, str) else repr(value), 80)
