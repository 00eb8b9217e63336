"""What a search found: a report of plain data, and the winner as a preset, a YAML file below a comment."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_kit.bench.machine import BUSY, counted, counted_texts, speeds
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.hydra import to_yaml, written
from pipeline_kit.compose.overrides import options
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import POLICIES, PipelineConfig
from pipeline_kit.contract.registry import KINDS
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import HIDDEN, OutputError, UsageError, for_message, redacted, without_secrets
from pipeline_kit.files.atomic import atomic_writer
from pipeline_kit.tune.search import Search
from pipeline_kit.tune.space import changes
from pipeline_kit.tune.trial import MARGIN, Trial, best_of

FEW_TEXTS = 20
_SHORT_SECONDS = 0.05


def report_of(
    search: Search, machine: Mapping[str, Any], source: str, given: int, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Put together what is known, JSON values only.

    :param machine: see :func:`~pipeline_kit.bench.machine.machine_facts`.
    :param source: where the texts come from: a sample's name or ``given``.
    :param given: how many texts there were.
    :param notes: what is known beforehand.
    """
    winner = best_of(search.trials, search.own)
    return {
        "machine": dict(machine),
        "texts": {
            "source": source,
            "rows": len(search.examples),
            "different": _different(search.examples),
            "left_out": given - len(search.examples) if search.examples else 0,
        },
        "reference": search.reference,
        "floors": {"tolerance": search.limits.limit, "min_agreement": search.limits.min_agreement, "margin": MARGIN},
        "trials": [_trial(trial, search.own, trial is winner) for trial in search.trials],
        "winner": None if winner is None else search.trials.index(winner),
        "interrupted": search.interrupted,
        "notes": [*notes, *search.notes, *_notes(search, machine, source, given)],
    }


def preset_comment(report: Mapping[str, Any], config: PipelineConfig, run: str) -> list[str]:
    """Write the comment of a preset: what it is, and when, where and on what it was measured.

    :param config: the winner's.
    :param run: the command that uses the file.
    """
    winner, machine, texts = report["trials"][report["winner"]], report["machine"], report["texts"]
    ratio, difference = winner["ratio"], winner["largest_difference"]
    lines = [
        f"What: {config.task.name}, tuned: {' '.join(winner['overrides'])}",
        f"Run: {run}",
        "Override: batching.max_tokens=1024 device.threads=1",
        f"Speed: {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}) of the config it was tuned from",
        f"Answers: the same in {winner['agreement']:.1%} of {counted_texts(texts)} as with {report['reference']}"
        + ("" if difference is None else f"; numbers differ by {difference:.2g} at the most"),
        f"Measured: {machine['date']}, {machine['gpu'] or machine['processor']}, {machine['system']}, "
        f"{counted(machine['processors'], 'processor')}",
        f"Versions: pipeline-kit {machine['pipeline_kit']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, Python {machine['python']}"
        + ("" if config.model.spec.source.startswith("pipeline-kit") else f", {config.model.spec.source}"),
        "It holds for that machine, these versions and texts of that kind; elsewhere run pipeline-kit tune again.",
    ]
    return [*lines, *(f"Note: {note}" for note in report["notes"])]


def _trial(trial: Trial, own: Trial, chosen: bool) -> dict[str, Any]:
    config, start, quality = trial.candidate.config, own.candidate.config, trial.quality
    timed = bool(trial.seconds)
    return {
        "engine": trial.candidate.engine,
        "overrides": [] if config is None or start is None else without_secrets(changes(start, config)),
        "dtype": trial.dtype,
        "max_tokens": trial.max_tokens if trial.rows else None if config is None else config.batching.max_tokens,
        "max_rows": trial.max_rows,
        "threads": trial.threads,
        "texts_per_second": speeds(trial.rows, trial.seconds) if timed else None,
        "tokens_per_second": speeds(trial.tokens, trial.seconds) if timed else None,
        "seconds": list(trial.seconds),
        "ratio": trial.rounds,
        "agreement": None if quality is None else quality.agreement,
        "largest_difference": None if quality is None else quality.largest,
        "differences": {} if quality is None else dict(quality.differences),
        "smallest_cosine": None if quality is None else quality.smallest_cosine,
        "problem": trial.problem,
        "excluded": trial.rejected_because,
        "final": trial.final,
        "chosen": chosen,
    }


def _notes(search: Search, machine: Mapping[str, Any], source: str, given: int) -> list[str]:
    """Name what makes figures or agreement doubtful."""
    notes = []
    examples = search.examples
    different = _different(examples)
    load = machine["load_per_processor"]
    if load is not None and load > BUSY:
        notes.append(
            f"the machine is busy (load {load:.2f} for each processor before the start): do not trust the ratios"
        )
    if examples and len(examples) < given:
        notes.append(f"{given - len(examples):,} texts failed and were left out; see why with: pipeline-kit run")
    if examples and different < FEW_TEXTS:
        notes.append(
            f"only {counted(different, 'different text')}: even where all agree, {1 - 0.05 ** (1 / different):.0%} of "
            "others may not (at 95 % confidence); pass 300 or more"
        )
    if source != "given":
        notes.append("agreement was measured on built-in sentences, not on your texts; pass them with --input")
    if examples and not search.limits.varied:
        notes.append(
            "the reference gives every text the same labels, so agreement means nothing here; "
            f"numbers may differ by {search.limits.limit:g} at the most (--tolerance)"
        )
    if search.own.seconds and search.own.second < _SHORT_SECONDS:
        notes.append("a round took less than 0.05 s, mostly overhead: pass more texts, or a larger --rows")
    if search.late:
        notes.append("the time was up before all was tried; more with a larger --minutes")
    if search.interrupted:
        notes.append("interrupted: this is what was known by then")
    return notes


def _different(examples: Sequence[Example]) -> int:
    return len({json.dumps(example, sort_keys=True, default=repr) for example in examples})


_PROBE = {"defaults": ["config", "_self_"]}
# A task chooses stages, so it comes first.
_GROUPS = ("task", *KINDS, *(group for group in POLICIES if group not in ("task", "checkpoint")))


def preset_text(config: PipelineConfig, comment: Sequence[str], plugins: Sequence[str] = ()) -> str:
    """Write `config` so that ``run --config FILE`` composes just that, but for its secrets, see `secrets_of`.

    :param comment: lines for its top, without the #.
    :param plugins: those of ``--plugin``, which a run of the file needs too.
    :raises OutputError: if the config holds something that YAML cannot say; names it.
    """
    wanted: dict[str, Any] = {group: node for group, node in config.data.items() if isinstance(node, Mapping)}
    known = options(load_registry(plugins, everything=True))
    usual = _composed(_PROBE, plugins)
    others = [group for group in _GROUPS if group in wanted and wanted[group].get("name") != usual[group].get("name")]
    chosen = [{f"override {group}": wanted[group]["name"]} for group in others if wanted[group]["name"] in known[group]]
    defaults = ["config", *chosen, "_self_"]
    start = _composed({"defaults": defaults}, plugins) if chosen else usual
    data = {"defaults": defaults, **_split(_difference(start, wanted))[0]}
    again = _composed(data, plugins, overrides=secrets_of(config))
    for group, node in wanted.items():
        if again.get(group) != node:
            raise OutputError(f"this config cannot be written as a preset: '{group}' comes out as another one")
    lines = "".join(f"# {for_message(line, 400)}\n" for line in comment)
    return lines + to_yaml(data)


def secrets_of(config: PipelineConfig) -> list[str]:
    """Return the overrides of `config` that no preset holds since they are secret."""
    return [f"{path}={written(value)}" for path, value in _split(config.data)[1]]


def check_target(path: Path, force: bool, plugins: Sequence[str] = ()) -> None:
    """Find out before anything is measured whether a preset can be written to `path` and used from there.

    :raises UsageError: if no config can have this name, or the file is there and `force` is not given.
    :raises OutputError: if the folder is not there.
    :raises ConfigError: for a plugin that cannot be loaded.
    """
    if path.suffix != ".yaml" or path.stem == "config":
        why = "config.yaml is the packaged config's name" if path.stem == "config" else "a config is a .yaml file"
        raise UsageError(f"--save {for_message(str(path))}: {why}; name it tuned.yaml, say")
    if not path.parent.is_dir():
        raise OutputError(f"--save {for_message(str(path))}: there is no folder '{for_message(str(path.parent))}'")
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(
            f"--save {for_message(str(path))}: is there already; pass --force to overwrite it, or another name"
        )
    _composed(_PROBE, plugins, path.stem)


def write_preset(path: Path, text: str, force: bool) -> None:
    """Write the file, whole or not at all.

    :raises UsageError: if it is there by now and `force` is not given.
    :raises OutputError: if it cannot be written.
    """
    with atomic_writer(path) as file:
        file.write(text)
        if path.exists() and not force:
            raise UsageError(f"--save {for_message(str(path))}: is there by now; pass --force to overwrite it")


def _composed(
    data: Mapping[str, Any], plugins: Sequence[str], name: str = "tuned", overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Compose a file with `data` as ``run --config`` would, in a registry of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.yaml").write_text(to_yaml(dict(data)), encoding="utf-8")
        config = compose(overrides, registry=load_registry(plugins), config_dir=[folder], config_name=name)
    return dict(config.data)


def _split(node: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Return `node` without its secrets, and these with their keys."""
    kept: dict[str, Any] = {}
    secrets: list[tuple[str, Any]] = []
    for key, value in node.items():
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, Mapping) and redacted(value, where) != HIDDEN:
            kept[key], inner = _split(value, where)
            secrets += inner
        elif redacted(value, where) == value:
            kept[key] = value
        else:
            secrets.append((where, value))
    return kept, secrets


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `after` has otherwise than `before`, mappings inside one another."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = _difference(old, value)
            if inner:
                found[key] = inner
        elif key not in before or old != value:
            found[key] = value
    return found
