"""Jobs from Python: the twin of ``pipeline-kit run --output DIR``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline_kit.compose.build import build
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.errors import UsageError
from pipeline_kit.files.atomic import refuse_overlap
from pipeline_kit.files.read.paths import expand_patterns
from pipeline_kit.files.read.source import Source
from pipeline_kit.job.run import JobSummary, run_to_end
from pipeline_kit.job.runner import Job
from pipeline_kit.job.watcher import JobWatcher


def run_job(
    *overrides: str,
    output: str | Path,
    files: str | Path | Sequence[str | Path] | None = None,
    rows: Iterable[Any] | None = None,
    restart: bool = False,
    retry: bool = False,
    config_dir: str | Path | Sequence[str | Path] = (),
    config_name: str = "config",
    plugins: Sequence[str] = (),
    watcher: JobWatcher | None = None,
) -> JobSummary:
    """Run a job into the folder `output`, or take it up where it stands.

    With ``runner.workers`` over 1 a script must guard its own code with ``if __name__ == "__main__":``, since each
    worker is a new Python that imports it.

    :param overrides: as on the command line: ``"input.id=review_id"``, ``"job.max_failed_rows=1%"``.
    :param files: files, patterns or saved datasets; or give `rows`.
    :param rows: texts, mappings, or a ``datasets.Dataset``; a job over rows that can be gone through only once cannot
        be resumed.
    :param restart: begin anew; the folder that is there is renamed.
    :param retry: run the rows again that failed before; options may differ then, task, input and output may not.
    :param watcher: receives the progress of the job.
    :raises PipelineKitError: as the command line does; what is done is kept.
    """
    if restart and retry:
        raise UsageError("restart=True begins anew, retry=True runs rows again that failed; pass one of the two")
    if (files is None) == (rows is None):
        raise UsageError("give files=... or rows=..., one of the two")
    folders = [config_dir] if isinstance(config_dir, str | Path) else list(config_dir)
    config = compose(overrides, registry=load_registry(plugins), config_dir=folders, config_name=config_name)
    names = [str(name) for name in ([files] if isinstance(files, str | Path) else files or ())]
    refuse_overlap([("output", Path(output))], expand_patterns(names))
    takes = config.task.takes
    with Source.open(names, config.input, takes) if rows is None else Source.of(rows, config.input, takes) as source:
        job = Job(config, source, Path(output), build, restart, retry, plugins)
        return run_to_end(job, watcher or JobWatcher())
