"""Keeps a job's books: which shards are done, what they agree on, how many rows failed."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, final

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, RowFailure, for_message, redacted
from pipeline_kit.files.atomic import atomic_writer
from pipeline_kit.files.read.source import Source, SourceRow
from pipeline_kit.files.write.base import Schema
from pipeline_kit.job.folder import DeadLetter, JobFolder
from pipeline_kit.job.manifest import Manifest, write_manifest
from pipeline_kit.job.receipt import Receipt, read_receipt, shard_of, write_receipt
from pipeline_kit.job.sealed import changed, digest_of
from pipeline_kit.job.shard import ShardResult, ShardTask
from pipeline_kit.job.watcher import JobWatcher
from pipeline_kit.runtime.config import JobConfig


@final
class JobLedger:
    """A job's books while its folder is locked. It writes what the job's runner makes."""

    def __init__(self, folder: JobFolder, manifest: Manifest, budget: JobConfig, watcher: JobWatcher) -> None:
        """Open the books of `folder`, whose manifest was read or is new."""
        self._folder, self._manifest, self._budget, self._watcher = folder, manifest, budget, watcher
        self._shards: int | None = None  # how many the input has, once it was read to its end
        self._known = dict(self._receipts(folder.receipt))
        self._begun = dict(self._receipts(folder.begun))
        self.done = {number: found for number, found in self._known.items() if found.is_whole(folder.path)}
        self._check_order()
        if self.whole:
            self._check_files()
        folder.clean()
        while self._begun:
            self._remove_others(self._begun.popitem()[1])
        self._strange = {name for number, name in folder.files() if name not in self._names(number)}
        self.reused = sum(receipt.rows for receipt in self.done.values())
        self.stats = RunStats()
        self._start: float | None = None
        self._timed_out: list[DeadLetter] = []

    @property
    def complete(self) -> bool:
        """Whether all shards and the success marker are there."""
        return self.whole and self._folder.success.exists()

    @property
    def whole(self) -> bool:
        """Whether all shards are there."""
        return self._manifest.done and len(self.done) == self._manifest.counts.get("shards")

    @property
    def seconds(self) -> float:
        """The time since the first pipeline was loaded; 0 if none was."""
        return 0.0 if self._start is None else perf_counter() - self._start

    @property
    def pinned(self) -> Mapping[str, Any] | None:
        """The options that an earlier load pinned; None if there was none."""
        return self._manifest.settled or None

    def loaded(self, pinned: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Begin to count time, and write down what the first load found and pinned."""
        if self._start is None:
            self._start = perf_counter()
            self._watcher.loaded(description.get("notes", ()))
        if not self._manifest.resolved and (description or pinned):
            resolved = {key: value for key, value in description.items() if key != "options"}  # the identity has them
            self._write_manifest(settled=dict(pinned), resolved=redacted(resolved))

    @property
    def schema(self) -> Schema | None:
        """What all shards agree on, going by the first one; None before it, or if there is nothing."""
        return None if self._manifest.schema is None else dict(self._manifest.schema)

    def advanced(self, stats: RunStats) -> None:
        """Pass on how far the job is.

        :param stats: of all shards that are being made.
        """
        self._watcher.advanced(RunStats.total((self.stats, stats)))

    def timed_out(self, failure: RowFailure, task: ShardTask) -> None:
        """Count a row that took too long while its shard is still to be made.

        :raises JobError: if no row more may fail.
        """
        row = next(row for row in task.rows if row.index == failure.index)
        self._timed_out.append(DeadLetter(row.id, row.index, failure))
        self._check_budget(self._timed_out, len(task.rows))

    def missing(self, source: Source, size: int) -> Iterator[ShardTask]:
        """Yield the shards that are not done, with their rows.

        :param size: rows of a shard.
        """
        number = 0
        while number in self.done and self.done[number].rows == size:
            number += 1
        rows: Iterator[SourceRow] = source.rows(self.done[number - 1].last + 1 if number else 0)
        while batch := list(islice(rows, size)):
            done = self.done.get(number)
            if done is None:
                yield ShardTask(number, batch, self.schema)
            elif (batch[0].index, batch[-1].index, len(batch)) != (done.first, done.last, done.rows):
                raise changed(self._folder.receipt(number), "it names other rows than the input has there")
            number += 1
        self._shards = number

    def keep(self, shard: ShardResult) -> None:
        """Write a shard, then its receipt, which makes it a part of the job.

        Of a shard that is done, these are the rows that failed and were run again: they go into files of their own,
        which the receipt takes up in one step.

        :raises JobError: if more rows failed than may; nothing of the shard is written then.
        """
        before, dead, written = self.done.get(shard.number), len(shard.dead), shard.rows - len(shard.dead)
        if before is None:
            self._timed_out = [letter for letter in self._timed_out if not shard.first <= letter.index <= shard.last]
            self._check_budget(shard.dead, shard.rows)
        self.stats = RunStats.total((self.stats, shard.stats))
        if before is not None and not written:
            return  # the old dead letters say it all
        if self._manifest.schema is None and shard.schema is not None:
            self._write_manifest(schema=shard.schema)
        contents = self._contents(shard, "" if before is None else f".retry-{_tries(before) + 1}")
        files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        counts = _numbers(shard.stats)
        if before is None:
            place = (self._manifest.key, shard.number, shard.first, shard.last)
            receipt = Receipt(*place, shard.rows, written, dead, files, counts)
        else:
            files = {name: sha for name, sha in before.files.items() if not name.startswith("_dead/")} | files
            counts = {name: before.counts.get(name, 0) + value for name, value in counts.items()}
            receipt = replace(before, written=before.written + written, dead=dead, files=files, counts=counts)
        self._commit(receipt, contents)
        self._watcher.shard(receipt)

    def begin(self) -> None:
        """Delete the success marker: the job is not complete."""
        self._folder.success.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the counts, and that the job is complete."""
        self._check_files()
        totals: Counter[str] = Counter()
        for receipt in self.done.values():
            totals.update(receipt.counts)
        self._write_manifest(done=True, counts=self.counts(), totals=dict(sorted(totals.items())))
        with atomic_writer(self._folder.success):
            pass

    def counts(self) -> dict[str, Any]:
        """Count rows and shards of the whole job."""
        receipts = self.done.values()
        return {
            "rows": sum(receipt.rows for receipt in receipts),
            "written": sum(receipt.written for receipt in receipts),
            "dead": sum(receipt.dead for receipt in receipts),
            "shards": len(receipts),
        }

    def _write_manifest(self, **changed: Any) -> None:
        self._manifest = replace(self._manifest, **changed)
        write_manifest(self._folder.manifest, self._manifest)

    def _contents(self, shard: ShardResult, again: str) -> dict[str, bytes]:
        """Return what is to be written for a shard, by its path in the job's folder."""
        folder, number = self._folder, shard.number
        contents = {folder.shard(number, again + suffix): content for suffix, content in shard.files.items()}
        if shard.dead:
            contents[folder.dead(number, again)] = "".join(letter.line for letter in shard.dead).encode()
        return {path.relative_to(folder.path).as_posix(): content for path, content in contents.items()}

    def _commit(self, receipt: Receipt, contents: Mapping[str, bytes]) -> None:
        """Write files and then the receipt that takes them up; whatever ends this half-way is undone later.

        :raises OutputError: if another file is where one is to be written; nothing is touched then.
        """
        folder, number = self._folder, receipt.shard
        old = self._names(number)
        for name in {*old, *contents, *(name for name in self._strange if shard_of(name) == number)}:
            found = digest_of(folder.path / name) if os.path.lexists(folder.path / name) else old.get(name, "")
            if found not in (old.get(name, ""), receipt.files.get(name, "")) and not (name in old and name in contents):
                raise changed(folder.path / name, "the job did not write that file, or not with this content")
        begun = replace(receipt, files={**old, **receipt.files})
        write_receipt(folder.begun(number), begun)
        for name, content in contents.items():
            with atomic_writer(folder.path / name) as file:
                file.write(content)
        write_receipt(folder.receipt(number), receipt)
        self._known[number] = self.done[number] = receipt
        self._remove_others(begun)

    def _remove_others(self, begun: Receipt) -> None:
        """Remove the files that a change of a shard, whether it came to its end or not, has left over."""
        folder, done = self._folder, self.done.get(begun.shard)
        for name, digest in begun.files.items():
            if (done is None or name not in done.files) and digest_of(folder.path / name) == digest:
                (folder.path / name).unlink()
        folder.begun(begun.shard).unlink(missing_ok=True)

    def _receipts(self, path_of: Callable[[int], Path]) -> Iterator[tuple[int, Receipt]]:
        """Read receipts; those that were damaged are left out.

        :raises OutputError: if one is not of this job.
        """
        for number in self._folder.receipts(path_of):
            receipt = read_receipt(path_of(number))
            if receipt is not None:
                if (receipt.job, receipt.shard) != (self._manifest.key, number):
                    raise changed(path_of(number), "it is the receipt of another shard or job")
                yield number, receipt

    def _check_order(self) -> None:
        """See that the shards follow each other.

        :raises OutputError: if they do not.
        """
        receipts = [receipt for _, receipt in sorted(self._known.items())]
        for before, after in pairwise(receipts):
            if before.last >= after.first:
                raise changed(self._folder.receipt(after.shard), "it names rows of another shard")

    def _check_files(self) -> None:
        """See that all that lies where shards and receipts do is the job's.

        :raises OutputError: if something else does.
        """
        folder, shards = self._folder, self._shards
        named = {name for receipt in (*self.done.values(), *self._begun.values()) for name in receipt.files}
        strange = [folder.path / name for _, name in folder.files() if name not in named]
        strange += [folder.receipt(number) for number in folder.receipts() if number not in self.done]
        strange += [folder.receipt(number) for number in self.done if shards is not None and number >= shards]
        if strange:
            raise changed(strange[0], "this job did not write that file")

    def _names(self, number: int) -> Mapping[str, str]:
        """Return the files that the receipt of a shard names, with the SHA-256 of each."""
        return self._known[number].files if number in self._known else {}

    def _check_budget(self, dead: Sequence[DeadLetter], rows: int) -> None:
        if not dead:
            return
        failed = sum(receipt.dead for receipt in self.done.values()) + len(dead)
        total = sum(receipt.rows for receipt in self.done.values()) + rows
        if not self._budget.allows(failed, total):
            first = dead[0]
            reason = f"{first.failure.stage}: {first.failure.error}: {for_message(first.failure.message)}"
            raise JobError(
                f"row {for_message(first.id, 80)} failed: {reason}\n"
                f"  {failed:,} of {total:,} rows failed, job.max_failed_rows={self._budget.max_failed_rows} allows no "
                "more; what is done is kept.\n"
                "  To go on, run the same command with job.max_failed_rows=N, '1%' or null: failed rows are kept aside"
            )


def _tries(receipt: Receipt) -> int:
    """Count how often rows of the shard were run again."""
    found = (re.search(r"\.retry-(\d+)\.", name) for name in receipt.files)
    return max((int(match[1]) for match in found if match), default=0)


def _numbers(stats: RunStats) -> dict[str, float]:
    seconds = {f"seconds.{stage}": value for stage, value in sorted(stats.seconds.items())}
    names = ("truncated_rows", "windows", "batches", "tokens", "retries")
    return {**{name: getattr(stats, name) for name in names}, "slots": stats.padded_tokens, **seconds}
