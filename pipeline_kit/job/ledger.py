"""Keeps a job's books: which shards are done, what they agree on, how many rows failed."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, final

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, RowFailure, for_message, redacted
from pipeline_kit.files.read.plan import Stretch
from pipeline_kit.files.read.source import SourceRow
from pipeline_kit.files.write.base import Schema
from pipeline_kit.job.folder import MANIFEST, RECEIPTS, SUCCESS, JobFolder
from pipeline_kit.job.manifest import Manifest, manifest_content
from pipeline_kit.job.receipt import Receipt, shard_name
from pipeline_kit.job.sealed import changed
from pipeline_kit.job.shard import DeadLetter, ShardOffer, ShardResult, ShardTask
from pipeline_kit.runtime.config import JobConfig

LARGEST_GAP = 1_000_000
"""How many shards may be missing before one that is done: those that were being made when a job ended."""


class JobWatcher:
    """Receives the progress of a job. The methods of this class do nothing."""

    def resumed(self, rows: int) -> None:
        """Receive the number of rows that were done before."""

    def planned(self, rows: int) -> None:
        """Receive the number of rows of the whole job, where workers have found it before any shard is made."""

    def loaded(self, notes: Sequence[str]) -> None:
        """Note that the model is loaded, with what a user should know of it."""

    def advanced(self, stats: RunStats) -> None:
        """Receive the progress of the job."""

    def shard(self, receipt: Receipt) -> None:
        """Note that a shard is done."""

    def workers(self, counts: Mapping[str, int]) -> None:
        """Receive how many workers a job has, how many shards they are making, and how many were lost or run again."""

    def event(self, name: str, text: str, fields: Mapping[str, Any]) -> None:
        """Note what happened to a worker: a name and fields for programs, a text for a person."""


@final
class ShardTable:
    """What stands for each shard, in 34 bytes: a job may have a hundred thousand of them.

    :ivar rows: of all shards; `dead` and `written` likewise.
    :ivar totals: the counts of all receipts, added up.
    """

    def __init__(self) -> None:
        self._columns = {name: array("Q") for name in ("first", "last", "rows", "dead")}
        self._names = array("H")
        self._endings: list[frozenset[str]] = [frozenset()]  # of the files of a shard; few combinations occur
        self._retries: dict[int, int] = {}
        self.count = self.rows = self.dead = 0
        self.totals: Counter[str] = Counter()

    def __contains__(self, number: int) -> bool:
        """Return whether the shard is done."""
        return number < len(self._names) and self._names[number] != 0

    def add(self, receipt: Receipt, before: Receipt | None, *, keep: bool = False) -> None:
        """Take up a receipt in the place of the one `before`.

        :param keep: whether the files that it named before stay.
        """
        number, start = receipt.shard, shard_name(receipt.shard)
        for column in (self._names, *self._columns.values()):
            column.extend([0] * (number + 1 - len(column)))
        for name, column in self._columns.items():
            column[number] = getattr(receipt, name)
        endings = frozenset(name.replace(start, "", 1) for name in receipt.files)
        endings |= self._endings[self._names[number]] if keep else frozenset()
        if endings not in self._endings:
            self._endings.append(endings)
        self._names[number] = self._endings.index(endings)
        if receipt.retry:
            self._retries[number] = receipt.retry
        self.count += before is None
        self.rows += receipt.rows - (before.rows if before else 0)
        self.dead += receipt.dead - (before.dead if before else 0)
        self.totals.update(receipt.counts)
        self.totals.subtract(before.counts if before else {})

    def remove(self, receipt: Receipt) -> None:
        """Take a shard out of the books."""
        self._names[receipt.shard] = 0
        self._retries.pop(receipt.shard, None)
        self.count, self.rows, self.dead = self.count - 1, self.rows - receipt.rows, self.dead - receipt.dead
        self.totals.subtract(receipt.counts)

    def span(self, number: int) -> tuple[int, int, int]:
        """Return the numbers of the first and last row of a shard, and how many it has."""
        first, last, rows = (self._columns[name][number] for name in ("first", "last", "rows"))
        return first, last, rows

    def failed(self) -> Iterator[int]:
        """Go through the shards that have dead letters."""
        return (number for number, dead in enumerate(self._columns["dead"]) if dead and number in self)

    def receipt_name(self, number: int) -> str:
        """Return the name of the receipt that stands for a shard."""
        return f"{shard_name(number, self._retries.get(number, 0))}.json"

    def holds(self, number: int, name: str) -> bool:
        """Return whether the receipt of a shard names this file."""
        return number in self and name.replace(shard_name(number), "", 1) in self._endings[self._names[number]]

    def numbers(self) -> Iterator[int]:
        """Go through the shards that are done, in order."""
        return (number for number, names in enumerate(self._names) if names)


@final
class _Sizes:
    """The sizes of all files that receipts name, in 8 bytes each, until the files are found."""

    def __init__(self) -> None:
        self._columns: dict[str, array[int]] = {}  # by the ending of a name; a number more than the size, 0 for no file

    def expect(self, receipt: Receipt, before: Receipt | None) -> None:
        """Note the files of a receipt, in the place of those of the one `before`."""
        number, start = receipt.shard, shard_name(receipt.shard)
        for name, size in (*((name, -1) for name in (before.sizes if before else ())), *receipt.sizes.items()):
            column = self._columns.setdefault(name.replace(start, "", 1), array("Q"))
            column.frombytes(bytes(8 * max(0, number + 1 - len(column))))
            column[number] = size + 1

    def found(self, number: int, name: str, size: int) -> None:
        """Take out a file that is there, if it has the size that it should have."""
        column = self._columns.get(name.replace(shard_name(number), "", 1))
        if column is not None and number < len(column) and column[number] == size + 1:
            column[number] = 0

    def missed(self) -> set[int]:
        """Return the shards of which a file was not found."""
        return {number for column in self._columns.values() for number, size in enumerate(column) if size}


@final
class JobLedger:
    """A job's books while its folder is locked: what may be written, and what stands."""

    def __init__(
        self, folder: JobFolder, manifest: Manifest, budget: JobConfig, watcher: JobWatcher, *, verify: bool = False
    ) -> None:
        """Open the books of `folder`, whose manifest was read or is new.

        :param verify: hash every file, also where opening a job compares sizes alone.
        """
        self._folder, self._manifest, self._budget, self._watcher = folder, manifest, budget, watcher
        self._shards: int | None = None  # how many the input has, once it was read to its end
        self.done = ShardTable()
        self._broken: dict[int, Receipt] = {}
        self._strange: dict[int, list[str]] = {}
        self._open(verify or folder.local)
        self.reused = self.done.rows
        self.stats = RunStats()
        self._start: float | None = None
        self._promised: dict[int, ShardOffer] = {}
        self._timed_out: list[tuple[int, DeadLetter]] = []

    @property
    def key(self) -> str:
        """The job's key, which each of its receipts holds."""
        return self._manifest.key

    @property
    def complete(self) -> bool:
        """Whether all shards and the success marker are there."""
        return self.whole and self._folder.exists(SUCCESS)

    @property
    def whole(self) -> bool:
        """Whether all shards are there."""
        return self._manifest.done and self.done.count == self._manifest.counts.get("shards")

    @property
    def seconds(self) -> float:
        """The time since the first pipeline was loaded; 0 if none was."""
        return 0.0 if self._start is None else perf_counter() - self._start

    @property
    def pinned(self) -> Mapping[str, Any] | None:
        """The options that an earlier load pinned; None if there was none."""
        return self._manifest.settled or None

    def loaded(self, pinned: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Begin to count time; write down what the first load found and pinned, and any other kind of machine.

        With the first load the manifest of a new job is written.

        :param description: of the pipeline, and as ``machine`` the kind of its machine.
        """
        if self._start is None:
            self._start = perf_counter()
            self._watcher.loaded(description.get("notes", ()))
        if not self._manifest.resolved:
            resolved = {key: value for key, value in description.items() if key != "options"}  # the identity has them
            self._write_manifest(settled=dict(pinned), resolved=redacted(resolved))
        kind, others = description.get("machine"), self._manifest.resolved.get("other_machines", [])
        if self.machine is not None and kind not in (None, self.machine, *others):
            self._write_manifest(resolved={**self._manifest.resolved, "other_machines": [*others, kind]})

    @property
    def schema(self) -> Schema | None:
        """What all shards agree on, going by the first one; None before it, or if there is nothing."""
        return None if self._manifest.schema is None else dict(self._manifest.schema)

    def advanced(self, stats: RunStats) -> None:
        """Pass on how far the job is.

        :param stats: of all shards that are being made.
        """
        self._watcher.advanced(RunStats.total((self.stats, stats)))

    def planned(self, rows: int) -> None:
        """Pass on how many rows the job has."""
        self._watcher.planned(rows)

    def workers(self, counts: Mapping[str, int]) -> None:
        """Pass on how many workers there are, and what became of others."""
        self._watcher.workers(counts)

    def event(self, name: str, text: str, fields: Mapping[str, Any]) -> None:
        """Pass on what happened to a worker."""
        self._watcher.event(name, text, fields)

    @property
    def machine(self) -> Mapping[str, Any] | None:
        """The kind of machine that the job began on; None before that."""
        return self._manifest.resolved.get("machine")

    def timed_out(self, number: int, rows: Sequence[SourceRow], failure: RowFailure) -> None:
        """Count a row that took too long while its shard, whose rows these are, is still to be made.

        :raises JobError: if no row more may fail.
        """
        row = next(row for row in rows if row.index == failure.index)
        letter = DeadLetter(row.id, row.index, failure)
        self._check_budget(letter, 1, len(rows))
        self._timed_out.append((number, letter))

    def missing(self, batches: Iterable[Sequence[SourceRow] | Stretch]) -> Iterator[ShardTask]:
        """Yield the shards that are not done.

        :param batches: the rows of each shard, from :attr:`start` on.
        """
        number = self.start[0]
        for batch in batches:
            if isinstance(batch, Stretch):
                span = (batch.first, batch.last, batch.rows)
            else:
                span = (batch[0].index, batch[-1].index, len(batch))
            if number not in self.done:
                if number in self._broken:
                    self._folder.discard(self._broken.pop(number))
                yield ShardTask(number, batch, self.schema)
            elif span != self.done.span(number):
                raise changed(self._receipt_key(number), "it names other rows than the input has there")
            number += 1
        self._shards = number

    @property
    def start(self) -> tuple[int, int]:
        """The first shard that is not done, and the number of the first row that may be in it."""
        number = next((number for number in range(self.done.count + 1) if number not in self.done), 0)
        return number, self.done.span(number - 1)[1] + 1 if number else 0

    def receipt(self, number: int) -> Receipt:
        """Read the receipt that stands for a shard.

        :raises OutputError: if it has gone.
        """
        name = self.done.receipt_name(number)
        found = self._folder.receipt(name, self.key)
        if found is None:
            raise changed(self._folder.at(f"{RECEIPTS}/{name}"), "it was there before")
        return found

    def agree(self, offer: ShardOffer) -> Schema | None:
        """Count the failed rows of a shard before it is written, and settle the schema.

        :raises JobError: if more rows failed than may; nothing of the shard is written then.
        """
        if offer.first is not None:
            self._timed_out = [item for item in self._timed_out if item[0] != offer.number]
            self._promised.pop(offer.number, None)
            self._check_budget(offer.first, offer.dead, offer.rows)
            self._promised[offer.number] = offer
        if self._manifest.schema is None and offer.schema is not None:
            self._write_manifest(schema=offer.schema)
        return self.schema

    def keep(self, shard: ShardResult) -> None:
        """Take up a shard that is written.

        :raises OutputError: if files of its name are there that it did not write.
        """
        receipt = shard.receipt
        self._promised.pop(shard.number, None)
        self._timed_out = [item for item in self._timed_out if item[0] != shard.number]
        self.stats = RunStats.total((self.stats, shard.stats))
        if receipt is None:
            return
        self.done.add(receipt, shard.before, keep=not self._folder.local)
        strange = next((name for name in self._strange.get(shard.number, ()) if name not in receipt.files), None)
        if strange is not None:
            raise changed(self._folder.at(strange), "the job did not write that file, or not with this content")
        self._folder.stands(receipt)
        self._watcher.shard(receipt)

    def begin(self) -> None:
        """Delete the success marker: the job is not complete."""
        self._folder.delete(SUCCESS)

    def finish(self) -> None:
        """Write the counts, and that the job is complete."""
        self._check_files()
        self._write_manifest(done=True, counts=self.counts(), totals=dict(sorted(self.done.totals.items())))
        self._folder.put(SUCCESS, b"")

    def counts(self) -> dict[str, Any]:
        """Count rows and shards of the whole job."""
        done = self.done
        return {"rows": done.rows, "written": done.rows - done.dead, "dead": done.dead, "shards": done.count}

    def _write_manifest(self, **changes: Any) -> None:
        self._manifest = replace(self._manifest, **changes)
        self._folder.put(MANIFEST, manifest_content(self._manifest))

    def _open(self, verify: bool) -> None:
        """Read the receipts, and look whether their files are there.

        :raises OutputError: if something is not this job's, or a receipt is not as a job writes it.
        """
        folder, done, superseded, sizes = self._folder, self.done, [], _Sizes()
        for receipt in folder.receipts(self.key):
            if receipt.shard > done.count + LARGEST_GAP:  # whoever wrote that wants a table that fills the memory
                raise changed(folder.at(f"{RECEIPTS}/{receipt.name}"), "no job leaves out so many shards")
            before = self.receipt(receipt.shard) if receipt.shard in done else None  # they come in the order of retries
            superseded += [] if before is None else [before]
            done.add(receipt, before, keep=not folder.local)
            folder.stands(receipt)
            sizes.expect(receipt, before)
        strange = []
        for number, name, status in folder.files():
            sizes.found(number, name, status.size)
            strange += [] if done.holds(number, name) else [(number, name)]
        for number in () if verify else sizes.missed():
            self._broken[number] = self.receipt(number)
        for number in done.numbers() if verify else ():
            receipt = self.receipt(number)
            if any(folder.digest(name) != digest for name, digest in receipt.files.items()):
                self._broken[number] = receipt
        self._check_order()
        for receipt in self._broken.values():
            done.remove(receipt)
        folder.clean(self.key, lambda number: self.receipt(number) if number in done else None, superseded)
        if self.whole:
            self._check_files()
        for number, name in strange:
            if folder.exists(name):
                self._strange.setdefault(number, []).append(name)

    def _check_order(self) -> None:
        """See that the shards follow each other.

        :raises OutputError: if they do not.
        """
        end = -1
        for number in self.done.numbers():
            first, last, _ = self.done.span(number)
            if first <= end:
                raise changed(self._receipt_key(number), "it names rows of another shard")
            end = last

    def _check_files(self) -> None:
        """See that all that lies where shards and receipts do is the job's.

        A retry that was cut off leaves its files where none are removed; the next retry takes them up.

        :raises OutputError: if something else does.
        """
        folder, done = self._folder, self.done
        strange = [name for number, name, _ in folder.files() if not done.holds(number, name)]
        if not folder.local:
            strange = [name for name in strange if ".retry-" not in name]
        strange += [f"{RECEIPTS}/{name}" for name, number in folder.receipt_names() if number not in done]
        if self._shards is not None:
            strange += [
                f"{RECEIPTS}/{done.receipt_name(number)}" for number in done.numbers() if number >= self._shards
            ]
        if strange:
            raise changed(folder.at(strange[0]), "this job did not write that file")

    def _receipt_key(self, number: int) -> str:
        return self._folder.at(f"{RECEIPTS}/{self.done.receipt_name(number)}")

    def _check_budget(self, first: DeadLetter, dead: int, rows: int) -> None:
        promised = self._promised.values()
        failed = self.done.dead + sum(offer.dead for offer in promised) + len(self._timed_out) + dead
        total = self.done.rows + sum(offer.rows for offer in promised) + rows
        if not self._budget.allows(failed, total):
            reason = f"{first.failure.stage}: {first.failure.error}: {for_message(first.failure.message)}"
            raise JobError(
                f"row {for_message(first.id, 80)} failed: {reason}\n"
                f"  {failed:,} of {total:,} rows failed, job.max_failed_rows={self._budget.max_failed_rows} allows no "
                "more; what is done is kept.\n"
                "  To go on, run the same command with job.max_failed_rows=N, '1%' or null: failed rows are kept aside"
            )
