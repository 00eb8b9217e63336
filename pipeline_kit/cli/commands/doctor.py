"""Check this installation: versions, processor, devices, plugins, config, cache, and one sentence end to end.

With ``--storage`` it checks a store instead: access, what jobs build on, clocks, and the libraries for it. With
``--ray`` it checks the nodes of a cluster. With ``--report`` it prints what an issue needs, in a form to paste.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pipeline_kit
from pipeline_kit.cli.app import installed_version, requirements
from pipeline_kit.cli.presets import presets
from pipeline_kit.cli.selection import add_source_flags
from pipeline_kit.cli.stdio import prepare_stdout, print_out
from pipeline_kit.compose.plugins import installed, load_registry
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.version import __version__
from pipeline_kit.errors import ConfigError, PipelineKitError, UsageError, for_message, hidden
from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.storage.fsspec import FsspecStorage
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.storage.probe import probe_create, probe_swap
from pipeline_kit.files.storage.retries import StorageConfig, use_storage
from pipeline_kit.runtime.device import available_cpus


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``doctor``."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--report", action="store_true", help="more facts, as Markdown to paste into an issue")
    parser.add_argument("--storage", metavar="URL", help="check a folder in a store instead, such as s3://bucket/out/")
    parser.add_argument("--ray", metavar="HOST:PORT", help="check the nodes of a Ray cluster instead")
    add_source_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them is a fault."""
    registry = load_registry(args.plugin, everything=True)
    findings: list[Finding] = [
        *(storage(args.storage) if args.storage is not None else ()),
        *(ray_cluster(args.ray) if args.ray is not None else ()),
    ] or [
        *versions(),
        *processor(),
        *devices(),
        *plugins(registry),
        *doubled(registry, args.config_dir),
        *hub_cache(),
        *answers(registry),
    ]
    if args.report:
        findings += surroundings(args.config_dir)
    prepare_stdout()
    lines = [for_message(f"{finding.level:<4}  {finding.topic:<14}  {finding.text}", 1000) for finding in findings]
    if args.json:
        lines = [json_line(vars(finding) | {"text": hidden(finding.text)}) for finding in findings]
    elif args.report:
        lines = ["```text", *map(_without_home, lines), "```"]
    for line in lines:
        print_out(line)
    return 1 if any(finding.level == "fail" for finding in findings) else 0


_VARIABLES = re.compile(
    r"(CUDA|DNNL|HF|HYDRA|KMP|MKL|NVIDIA|OMP|ONEDNN|PIPELINE_KIT|PYTORCH|RAY|TOKENIZERS|TORCH|TRANSFORMERS)_\w+"
    r"|LANG|LC_ALL|LD_PRELOAD|PYTHON(PATH|UTF8|IOENCODING)|(HTTPS?|ALL|NO)_PROXY",
    re.IGNORECASE,
)
"""The environment's variables that change what the libraries do."""


def surroundings(config_dirs: list[str]) -> Iterator[Finding]:
    """Name what else a report of a bug needs: processor, libraries of the extras, folders, variables without values."""
    from packaging.requirements import Requirement

    from pipeline_kit.bench.machine import processor_model

    yield Finding("ok", "processor", processor_model())
    lines = [line for line in requirements(extras=True) if not re.search(r"extra == .(dev|test)\b", line)]
    names = sorted({Requirement(line).name for line in lines})
    found = [f"{name} {version}" for name in names if (version := installed_version(name))]
    yield Finding("ok", "libraries", ", ".join(found) or "none of an extra")
    yield Finding("ok", "package", str(Path(pipeline_kit.__file__).parent))
    yield Finding(
        "ok", "folders", ", ".join([f"working in {Path.cwd()}", *(f"--config-dir {at}" for at in config_dirs)])
    )
    yield Finding("ok", "variables", ", ".join(sorted(filter(_VARIABLES.fullmatch, os.environ))) or "none")


def _without_home(line: str) -> str:
    """Write ``~`` for the user's folder, which is often called like a person."""
    home = os.path.expanduser("~").rstrip(os.sep)
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", line) if home not in ("", "~") else line


def ray_cluster(address: str) -> Iterator[Finding]:
    """Name the nodes of a Ray cluster, and what of their versions differs from this process."""
    from pipeline_kit.job.kind import difference, installed
    from pipeline_kit.job.ray_cluster import nodes_of

    try:
        version, nodes = nodes_of(address)
    except UsageError as error:
        yield Finding("fail", "ray", str(error))
        return
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    yield Finding("ok", "ray", f"{address}: ray {version}, {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs")
    here, first = installed(), None
    for node in nodes:
        what = f"{node.name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs"
        if isinstance(node.found, str):
            yield Finding("fail", "ray node", f"{what}; cannot run pipeline-kit: {node.found}")
            continue
        versions, kind = node.found
        wrong, first = difference(here, versions), first or kind
        other = difference(first, kind)
        machine = f"{kind['processor']} {kind['architecture']}, {kind['kernels']}, {kind['gpu'] or 'no GPU'}"
        if wrong is not None:
            yield Finding("fail", "ray node", f"{what}; {machine}; not as here: {wrong}")
        elif other is not None:
            yield Finding("note", "ray node", f"{what}; {machine}; another kind than the first node: {other}")
        else:
            yield Finding("ok", "ray node", f"{what}; {machine}; versions as here")


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

        pipeline = build(compose(registry=registry))
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
    yield Finding(
        "ok", "device cpu", f"{torch.get_num_threads()} threads, kernels for {torch.backends.cpu.get_cpu_capability()}"
    )
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


def storage(url: str) -> Iterator[Finding]:
    """Check that jobs can read from a folder in a store and write to it."""
    for library in ("obstore", "fsspec"):
        found = installed_version(library)
        hint = "missing: pip install 'pipeline-kit[storage]'"
        yield Finding("ok" if found else "note", library, found or hint)
    use_storage(StorageConfig(retries=2))
    try:
        store = storage_of(url)
        yield Finding("ok", "access", f"{url} can be listed: {len(store.files(url))} files and folders")
    except PipelineKitError as error:
        yield Finding("fail", "access", str(error))
        return
    except OSError as error:
        yield Finding("fail", "access", f"{url}: {error.strerror or error}")
        return
    if isinstance(store, FsspecStorage):
        yield Finding("note", "writing", "not here: such a URL is an input, not an output")
        return
    try:
        ahead = probe_create(store, url)
        yield Finding("ok", "put-if-absent", "what is there is not written over")
        probe_swap(store, url)
        yield Finding("ok", "swap", "one version alone is replaced")
    except PipelineKitError as error:
        yield Finding("fail", "writing", str(error))
        return
    clocks = f"that of the store is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    yield Finding("note" if abs(ahead) > MOST_SKEW else "ok", "clock", clocks)


MOST_SKEW = 10
"""Seconds between two clocks that do not matter; S3 refuses requests that are 15 minutes old."""

Level = Literal["ok", "note", "fail"]


@dataclass
class Finding:
    """One line of the doctor's report; a ``fail`` makes the exit code 1."""

    level: Level
    topic: str
    text: str
