"""What the doctor says about plugins, config options and the shipped checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pipeline_kit.cli.doctor_finding import Finding
from pipeline_kit.cli.presets import presets
from pipeline_kit.discovery import installed
from pipeline_kit.errors import ConfigError, PipelineKitError
from pipeline_kit.registry import Registry

__all__ = ["SENTENCE", "answers", "doubled", "plugins"]

SENTENCE = "I love this."


def plugins(registry: Registry) -> Iterator[Finding]:
    """Name the plugins that were loaded and what they brought, and those that failed."""
    brought: dict[str, list[str]] = defaultdict(list)
    for spec in registry.specs():
        brought[spec.source].append(f"{spec.kind}/{spec.name}")
    for source, names in brought.items():
        if source != "pipeline-kit":
            yield Finding("ok", "plugin", f"{source}: {', '.join(names)}")
    for name, error in registry.failed.items():
        yield Finding("fail", "plugin", f"{name} failed to load: {type(error).__name__}: {error}")
    if len(brought) == 1 and not registry.failed:
        yield Finding("ok", "plugin", f"none of {len(installed())} installed brings a stage" if installed() else "none")


def doubled(registry: Registry, config_dirs: list[str]) -> Iterator[Finding]:
    """Name the config options that more than one source has: the first one silently wins."""
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for spec in registry.specs():
        owners[spec.kind, spec.name].append(f"{spec.source} (a stage)")
    for preset in presets(registry, config_dirs):
        owners[preset.group, preset.name].append(preset.source)
    clashes = {key: who for key, who in owners.items() if len(who) > 1}
    for (group, name), who in clashes.items():
        yield Finding(
            "fail", "config", f"{group}={name} is there {len(who)} times: {', '.join(who)}; rename all but one"
        )
    if not clashes:
        yield Finding("ok", "config", f"{len(owners)} options, each from one source")


def answers(registry: Registry) -> Iterator[Finding]:
    """Run the default pipeline on one sentence."""
    try:
        from pipeline_kit.build import build
        from pipeline_kit.compose import compose

        pipeline = build(compose(registry=registry), registry)
        result = pipeline(SENTENCE)
    except ConfigError as error:
        yield Finding("fail", "answer", f"the default config has faults: {'; '.join(str(f) for f in error.faults)}")
    except PipelineKitError as error:
        yield Finding("fail", "answer", str(error))
    except Exception as error:
        yield Finding("fail", "answer", f"{type(error).__name__}: {error}")
    else:
        shown = ", ".join(f"{key} {value}" for key, value in result.items())
        yield Finding("ok", "answer", f"'{SENTENCE}' gives {shown} on {pipeline.device.name}")
