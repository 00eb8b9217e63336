"""Check this installation: versions, processor, devices, plugins, config, cache, and one sentence end to end."""

from __future__ import annotations

import argparse
import os
import platform
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline_kit.cli.app import installed_version, requirements
from pipeline_kit.cli.presets import presets
from pipeline_kit.cli.selection import add_source_flags
from pipeline_kit.cli.stdio import prepare_stdout, print_out
from pipeline_kit.compose.plugins import installed, load_registry
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import ConfigError, PipelineKitError, for_message, hidden
from pipeline_kit.files.json_text import json_line
from pipeline_kit.runtime.device import available_cpus
from pipeline_kit.version import __version__


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``doctor``."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_source_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them is a fault."""
    registry = load_registry(args.plugin, everything=True)
    findings: list[Finding] = [
        *versions(),
        *processor(),
        *devices(),
        *plugins(registry),
        *doubled(registry, args.config_dir),
        *hub_cache(),
        *answers(registry),
    ]
    prepare_stdout()
    for finding in findings:
        if args.json:
            print_out(json_line(vars(finding) | {"text": hidden(finding.text)}))
        else:
            print_out(for_message(f"{finding.level:<4}  {finding.topic:<14}  {finding.text}", 1000))
    return 1 if any(finding.level == "fail" for finding in findings) else 0


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
        from pipeline_kit.compose.build import build
        from pipeline_kit.compose.compose import compose

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


_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


def versions() -> Iterator[Finding]:
    """Compare what is installed with what the package's metadata asks for."""
    from packaging.requirements import Requirement

    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    needed = requirements()
    if needed:
        yield Finding("ok", "pipeline-kit", __version__)
    else:
        yield Finding("note", "pipeline-kit", f"{__version__}, not installed as a package: pip install -e . to mend it")
    for line in needed:
        requirement = Requirement(line)
        found = installed_version(requirement.name)
        if found is None:
            text = f"missing; needs {requirement.specifier}: pip install '{requirement}'"
            yield Finding("fail", requirement.name, text)
        elif not requirement.specifier.contains(found, prereleases=True):
            text = f"{found} is not {requirement.specifier}: pip install '{requirement}'"
            yield Finding("fail", requirement.name, text)
        else:
            yield Finding("ok", requirement.name, f"{found} ({requirement.specifier})")
    yield Finding("ok", "omegaconf", installed_version("omegaconf") or "missing")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    """Name the processor's features that make models fast, where the system reports them."""
    usable, there = available_cpus(), os.cpu_count() or 1
    cores = f"{usable} of {there} processors usable" if usable != there else f"{there} processors"
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        yield Finding("ok", "processor", cores)
        return
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    found = [name for name in _FEATURES if name in flags]
    yield Finding("ok", "processor", f"{cores}; {' '.join(found) or 'no vector features found'}")


def devices() -> Iterator[Finding]:
    """Name the devices torch can use."""
    try:
        import torch
    except Exception as error:
        yield Finding("fail", "torch", f"cannot be imported: {type(error).__name__}: {error}")
        return
    yield Finding("ok", "device cpu", f"{torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield Finding("ok", f"device cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("ok", "device mps", "available")


def hub_cache() -> Iterator[Finding]:
    """Describe where downloads go and whether the network may be used."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    count = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    yield Finding("ok", "hub cache", f"{folder}, {count} models" if folder.is_dir() else f"{folder}, not there yet")
    writable = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not os.access(writable, os.W_OK):
        yield Finding(
            "note", "hub cache", f"{writable} cannot be written; set HF_HOME or checkpoint.cache_dir to download"
        )
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    yield Finding("ok", "hub network", f"off: {', '.join(offline)} is set" if offline else "allowed")


Level = Literal["ok", "note", "fail"]


@dataclass
class Finding:
    """One line of the doctor's report; a ``fail`` makes the exit code 1."""

    level: Level
    topic: str
    text: str
