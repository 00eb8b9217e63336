"""What a search found, as plain data, and the comment of the preset made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_kit.bench.machine import BUSY, counted, counted_texts, speeds
from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import without_secrets
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
    ratio = winner["ratio"]
    lines = [
        f"What: {config.task.name}, tuned: {' '.join(winner['overrides'])}",
        f"Run: {run}",
        "Override: batching.max_tokens=1024 device.threads=1",
        f"Speed: {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}) of the config it was tuned from",
        f"Answers: the same in {winner['agreement']:.1%} of {counted_texts(texts)} as with {report['reference']}"
        + ("" if winner["largest_difference"] is None else f"; numbers differ by {winner['largest_difference']:.2g}")
        + (" at the most" if winner["largest_difference"] is not None else ""),
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
            "the reference gives every text the same labels, so agreement says nothing here; "
            f"numbers may differ by {search.limits.limit:g} at the most (--tolerance)"
        )
    if search.own.seconds and search.own.second < _SHORT_SECONDS:
        notes.append("a round took less than 0.05 s, mostly overhead: pass more texts, or a larger --rows")
    if search.late:
        notes.append("the time was up before all was tried; --minutes gives more")
    if search.interrupted:
        notes.append("interrupted: this is what was known by then")
    return notes


def _different(examples: Sequence[Example]) -> int:
    return len({json.dumps(example, sort_keys=True, default=repr) for example in examples})
