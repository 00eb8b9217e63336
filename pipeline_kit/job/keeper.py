"""Keeps a job's books: which shards are done, what they agree on, how many rows failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from time import perf_counter
from typing import Any, final

from pipeline_kit.atomic import atomic_writer
from pipeline_kit.errors import JobError, shorten
from pipeline_kit.job import dead_letters
from pipeline_kit.job.dead_letters import DeadLetter
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.manifest import Manifest, write_manifest
from pipeline_kit.job.receipt import Receipt, read_receipt, sha256, write_receipt
from pipeline_kit.job.shard import Finished, Work
from pipeline_kit.job.watcher import Watcher
from pipeline_kit.job_config import JobConfig
from pipeline_kit.records import Source, SourceRow
from pipeline_kit.redaction import redacted
from pipeline_kit.sinks import Schema
from pipeline_kit.stats import RunStats
from pipeline_kit.types import RowFailure

__all__ = ["Keeper"]


@final
class Keeper:
    """A job's books while its folder is locked; the ``Host`` of what makes its shards."""

    def __init__(self, folder: JobFolder, manifest: Manifest, budget: JobConfig, watcher: Watcher) -> None:
        """Open the books of `folder`, whose manifest was read or is new."""
        self._folder, self._manifest, self._budget, self._watcher = folder, manifest, budget, watcher
        receipts = (read_receipt(folder.receipt(number), folder.path) for number in folder.receipts())
        self.done = {receipt.shard: receipt for receipt in receipts if receipt is not None}
        folder.clean(self.done.values())
        self.reused = sum(receipt.rows for receipt in self.done.values())
        self.stats = RunStats()
        self._begun: float | None = None
        self._late: list[DeadLetter] = []

    @property
    def complete(self) -> bool:
        """Whether all shards are there, and that is said."""
        return self.whole and self._folder.success.exists()

    @property
    def whole(self) -> bool:
        """Whether all shards are there."""
        return self._manifest.done and len(self.done) == self._manifest.counts.get("shards")

    @property
    def seconds(self) -> float:
        """The time since the first pipeline was loaded; 0 if none was."""
        return 0.0 if self._begun is None else perf_counter() - self._begun

    @property
    def settled(self) -> Mapping[str, Any] | None:
        """What an earlier load settled."""
        return self._manifest.settled or None

    def loaded(self, settled: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Begin to count time, and write down what the first load found and settled."""
        if self._begun is None:
            self._begun = perf_counter()
            self._watcher.loaded(description.get("notes", ()))
        if not self._manifest.resolved and (description or settled):
            self._write_manifest(settled=dict(settled), resolved=redacted(_without_options(description)))

    @property
    def schema(self) -> Schema | None:
        """What all shards agree on."""
        return None if self._manifest.schema is None else dict(self._manifest.schema)

    def agree(self, schema: Schema) -> None:
        """Write down what all shards agree on, before any is written."""
        self._write_manifest(schema=schema)

    def advanced(self, stats: RunStats) -> None:
        """Pass on how far the job is."""
        self._watcher.advanced(RunStats.total((self.stats, stats)))

    def late(self, failure: RowFailure, work: Work) -> None:
        """Count a row that took too long while its shard is still to be made."""
        row = next(row for row in work.rows if row.index == failure.index)
        self._late.append(DeadLetter(row.id, row.index, failure))
        self._check_budget(self._late, len(work.rows))

    def missing(self, source: Source, size: int) -> Iterator[Work]:
        """Give the shards that are not done, with their rows.

        :param size: rows of a shard.
        """
        number = 0
        while number in self.done and self.done[number].rows == size:
            number += 1
        rows: Iterator[SourceRow] = source.rows(self.done[number - 1].last + 1 if number else 0)
        while batch := list(islice(rows, size)):
            if number not in self.done:
                yield Work(number, batch)
            number += 1

    def keep(self, shard: Finished) -> None:
        """Write a shard, then its receipt, which makes it a part of the job.

        :raises JobError: if more rows failed than may; nothing of the shard is written then.
        """
        self._late = [letter for letter in self._late if not shard.first <= letter.index <= shard.last]
        self._check_budget(shard.dead, shard.rows)
        files = self._write(shard)
        counts = (shard.rows, shard.rows - len(shard.dead), len(shard.dead))
        receipt = Receipt(shard.number, shard.first, shard.last, *counts, files, _numbers(shard.stats))
        write_receipt(self._folder.receipt(shard.number), receipt)
        self.done[shard.number] = receipt
        self.stats = RunStats.total((self.stats, shard.stats))
        self._watcher.shard(receipt)

    def keep_again(self, shard: Finished) -> None:
        """Take up rows of a shard that failed before and were run again: into files of their own, in one step."""
        before = self.done[shard.number]
        good = shard.rows - len(shard.dead)
        self.stats = RunStats.total((self.stats, shard.stats))
        if not good:
            return  # the old dead letters say it all
        files = self._write(shard, f".retry-{_tries(before) + 1}")
        old = [name for name in before.files if name.startswith("_dead/")]
        kept = {name: digest for name, digest in before.files.items() if name not in old}
        counts = {name: before.counts.get(name, 0) + value for name, value in _numbers(shard.stats).items()}
        receipt = replace(
            before, written=before.written + good, dead=len(shard.dead), files=kept | files, counts=counts
        )
        write_receipt(self._folder.receipt(shard.number), receipt)
        for name in old:
            (self._folder.path / name).unlink(missing_ok=True)
        self.done[shard.number] = receipt
        self._watcher.shard(receipt)

    def begin(self) -> None:
        """Say by its absence that the job is not complete."""
        self._folder.success.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the counts, and that the job is complete."""
        for number in [number for number in self._folder.receipts() if number not in self.done]:
            self._folder.receipt(number).unlink()  # broken, and beyond the last shard that the input has
        self._write_manifest(done=True, counts=self.counts(), totals=self._totals())
        with atomic_writer(self._folder.success):
            pass

    def counts(self) -> dict[str, int]:
        """Count rows and shards of the whole job."""
        receipts = self.done.values()
        return {
            "rows": sum(receipt.rows for receipt in receipts),
            "written": sum(receipt.written for receipt in receipts),
            "dead": sum(receipt.dead for receipt in receipts),
            "shards": len(receipts),
        }

    def _totals(self) -> dict[str, float]:
        found: Counter[str] = Counter()
        for receipt in self.done.values():
            found.update(receipt.counts)
        return dict(sorted(found.items()))

    def _write_manifest(self, **changed: Any) -> None:
        self._manifest = replace(self._manifest, **changed)
        write_manifest(self._folder.manifest, self._manifest)

    def _write(self, shard: Finished, again: str = "") -> dict[str, str]:
        folder, number = self._folder, shard.number
        contents = {folder.shard(number, again + suffix): content for suffix, content in shard.files.items()}
        if shard.dead:
            contents[folder.dead(number, again)] = dead_letters.lines(shard.dead)
        for path, content in contents.items():
            with atomic_writer(path) as file:
                file.write(content)
        return {path.relative_to(self._folder.path).as_posix(): sha256(path) for path in contents}

    def _check_budget(self, dead: Sequence[DeadLetter], rows: int) -> None:
        if not dead:
            return
        failed = sum(receipt.dead for receipt in self.done.values()) + len(dead)
        total = sum(receipt.rows for receipt in self.done.values()) + rows
        if not self._budget.allows(failed, total):
            first = dead[0]
            reason = f"{first.failure.stage}: {first.failure.error}: {shorten(first.failure.message)}"
            raise JobError(
                f"row {shorten(first.id, 80)} failed: {reason}\n"
                f"  {failed:,} of {total:,} rows failed, job.max_failed_rows={self._budget.max_failed_rows} allows no "
                "more; what is done is kept.\n"
                "  To go on, run the same command with job.max_failed_rows=N, '1%' or null: failed rows are kept aside"
            )


def _without_options(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key != "options"}  # the identity has them


def _tries(receipt: Receipt) -> int:
    """Count how often rows of the shard were run again."""
    found = (re.search(r"\.retry-(\d+)\.", name) for name in receipt.files)
    return max((int(match[1]) for match in found if match), default=0)


def _numbers(stats: RunStats) -> dict[str, float]:
    seconds = {f"seconds.{stage}": value for stage, value in sorted(stats.seconds.items())}
    names = ("truncated_rows", "windows", "batches", "tokens", "slots", "retries")
    return {**{name: getattr(stats, name) for name in names}, **seconds}
