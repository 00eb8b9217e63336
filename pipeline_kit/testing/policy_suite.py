"""The conformance suites for policies of padding and batching, formats that are written, and runners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from pipeline_kit.builtin.tasks.classification.stage import Classification
from pipeline_kit.builtin.tasks.options import ClassificationConfig
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device, Result
from pipeline_kit.job.run import run_job
from pipeline_kit.job.runner import Runner
from pipeline_kit.runtime.batching import BatchingPolicy, plan_batches
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.testing.stages import tiny_pipeline, tiny_stage_context
from pipeline_kit.testing.suite import StageConformance
from pipeline_kit.testing.tokenizer_suite import assert_same

ROWS = tuple({"text": "a word " * (7 * number % 19), "n": number} for number in range(11))


def answers(context: StageContext | None = None, **policies: Any) -> list[Result]:
    """Run a tiny classifier on texts of many lengths."""
    context = context or tiny_stage_context()
    stage = Classification(ClassificationConfig(), context)
    return tiny_pipeline(stage, context=context, **policies)([str(row["text"]) for row in ROWS])


class PaddingConformance(StageConformance):
    """Checks a policy of padding, which derives from :class:`pipeline_kit.kit.PaddingPolicy`."""

    kind: ClassVar[str] = "padding"
    interface: ClassVar[type[Any]] = PaddingPolicy

    def build(self, context: Any = None, limit: int | None = None) -> PaddingPolicy:
        """Make the policy definite, for a checkpoint that takes `limit` tokens."""
        config = self.config()
        policy: PaddingPolicy = self.spec().load(PaddingPolicy)(self.stage, max_length=limit, config=config)
        return policy

    def use(self, stage: PaddingPolicy) -> None:
        """Pad."""
        stage.padded(7)

    def test_every_row_fits(self) -> None:
        """A batch is at least as long as its longest row, and the answer for a length is always the same."""
        stage = self.build()
        widths = [stage.padded(length) for length in range(1, 700)]
        short = next((n for n, width in enumerate(widths, 1) if width < n), None)
        assert short is None, f"a row of {short} tokens does not fit into {stage.padded(short or 0)}"
        assert widths == [stage.padded(length) for length in range(1, 700)], "a length is padded in two ways"

    def test_the_limit_holds(self) -> None:
        """Rows that a checkpoint can take are not padded to more than it takes."""
        stage = self.build(limit=50)
        long = next((n for n in range(1, 51) if stage.padded(n) > 50), None)
        assert long is None, f"a row of {long} tokens is padded to {stage.padded(long or 0)}, the checkpoint takes 50"

    def test_answers_are_the_same(self) -> None:
        """Padding changes no answer."""
        assert_same(answers(padding=self.build()), answers(), self.tolerance, "answers with this padding and without")


class BatchingConformance(StageConformance):
    """Checks a policy of batching, which derives from :class:`pipeline_kit.kit.BatchingPolicy`."""

    kind: ClassVar[str] = "batching"
    interface: ClassVar[type[Any]] = BatchingPolicy

    def build(self, context: Any = None) -> BatchingPolicy:
        """Make the policy definite, for a CPU."""
        policy: BatchingPolicy = self.spec().load(BatchingPolicy).of(self.config(), Device())
        return policy

    def use(self, stage: BatchingPolicy) -> None:
        """Plan."""
        stage.plan([3, 1, 2], PaddingPolicy("longest"))

    def test_each_row_is_in_one_batch(self) -> None:
        """Every row exactly once; rows of several lengths share no batch where padding would change answers."""
        random, stage = np.random.default_rng(0), self.build()
        for count in (0, 1, 2, 7, 60, 300):
            for name in ("longest", "none"):
                lengths: Sequence[int] = random.integers(1, 90, size=count).tolist()
                batches = stage.plan(lengths, PaddingPolicy(name))
                assert sorted(i for batch in batches for i in batch) == list(range(count)), f"{count} rows: {batches}"
                assert all(batches), f"a batch is empty: {batches}"
                mixed = [batch for batch in batches if len({lengths[i] for i in batch}) > 1]
                assert name != "none" or not mixed, f"rows that must not be padded share batches: {mixed}"
                assert plan_batches(lengths, stage, PaddingPolicy(name)) == batches, "the same rows, another plan"

    def test_answers_are_the_same(self) -> None:
        """Results come in the order of the rows, and are those of any other plan."""
        assert_same(answers(batching=self.build()), answers(), self.tolerance, "answers in these batches and in others")


class RunnerConformance(StageConformance):
    """Checks a runner, which derives from :class:`pipeline_kit.kit.Runner`: a job has the bytes of the local one.

    :cvar plugins: files or modules that bring it; not needed once it is installed.
    """

    kind: ClassVar[str] = "runner"
    interface: ClassVar[type[Any]] = Runner
    plugins: ClassVar[Sequence[str]] = ()

    def build(self, context: Any = None) -> Runner:
        """Load the runner; a job builds it."""
        raise NotImplementedError

    test_builds_from_its_options = test_prints_nothing = None  # type: ignore[assignment]

    def test_writes_the_bytes_of_the_local_runner(self) -> None:
        """Several shards, a row that fails, a schema that the first shard settles, and a second call after the end."""
        rows = [*ROWS[:6], {"n": "no text"}, *ROWS[6:]]
        options = [f"runner.{key}={value}" for key, value in self.options.items()]
        # Two jobs may measure that other layers are faster, which changes the last digits: that is not the runner's.
        words = ["model.linear=eager", "output.rows_per_shard=3", "output.format=csv", "input.carry=[n]"]
        words.append("job.max_failed_rows=null")
        with TemporaryDirectory() as folder:
            for name, more in (("local", []), (self.stage, options), (self.stage, options)):
                done = run_job(
                    f"runner={name}", *more, *words, rows=rows, output=Path(folder) / name, plugins=self.plugins
                )
                assert (done.rows, done.dead, done.complete) == (12, 1, True), f"runner={name}: {done}"
            mine, local = (
                {
                    path.name: path.read_bytes()
                    for path in sorted((Path(folder) / name).rglob("part-*.[cj]s*"))
                    if "_receipts" not in path.parts
                }
                for name in (self.stage, "local")
            )
        assert mine.keys() == local.keys(), f"its files are {sorted(mine)}, those of local {sorted(local)}"
        assert mine == local, f"{[name for name in mine if mine[name] != local[name]]} differ from those of local"
