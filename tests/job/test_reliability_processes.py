"""R2 and R5: signals end a job in order, and one process at a time writes to its folder."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest
import warm
from echo_job import content_of, ids_of, lines_of
from harness import checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks as POSIX has them")

# At "row 7" it says so and waits, for as long as a file called hold is there; a stubborn one does not hear a request.
SLOW = """
import signal, sys
from dataclasses import dataclass
from pathlib import Path

from pipeline_kit import Postprocessor, option

HOLD = Path(__file__).parent / "hold"


@dataclass
class Config:
    stubborn: bool = option(False, "do not stop when asked")


class Slow(Postprocessor):
    def __init__(self, config, context):
        self.stubborn = config.stubborn

    def __call__(self, examples, encodings, outputs):
        while HOLD.exists() and any("row 7" in str(example) for example in examples):
            try:
                print("here", file=sys.stderr, flush=True)
                signal.pause()
            except (KeyboardInterrupt, SystemExit):
                if not self.stubborn:
                    raise
        return [{"label": "A", "score": 0.5} for example in examples]


def register(registry):
    registry.postprocessor("slow", __name__ + ":Slow", Config)
"""


class SlowJob:
    """A job of ten rows that stops before the third of its four shards is done, until it is let go."""

    def __init__(self, folder: Path) -> None:
        (folder / "slow.py").write_text(SLOW)
        (folder / "hold").touch()
        (folder / "in.txt").write_text("".join(f"row {i}\n" for i in range(10)))
        self.folder, self.out = folder, folder / "out"
        self.argv = ["-m", "pipeline_kit", "run", "--input", str(folder / "in.txt"), "--output", str(self.out)]
        self.argv += ["--plugin", str(folder / "slow.py"), "postprocessor=slow", f"checkpoint.path={checkpoint()}"]
        self.argv += ["device=cpu", "model.linear=eager", "output.rows_per_shard=3"]

    def held(self, *options: str) -> warm.Process:
        """Run until the stage waits."""
        process = warm.start(*self.argv, *options)
        process.until_printed("here\n")
        return process

    def let_go(self, *options: str) -> warm.Process:
        (self.folder / "hold").unlink()
        return warm.run(*self.argv, *options)


@pytest.fixture
def job(tmp_path: Path) -> SlowJob:
    return SlowJob(tmp_path)


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_drops_the_shard_at_hand_and_says_how_to_go_on(
    job: SlowJob, number: signal.Signals, code: int
) -> None:
    process = job.held()
    process.send_signal(number)
    assert process.wait(timeout=5).returncode == code
    assert f"{job.out}: stopped; what is done is kept, run the same command again to continue" in process.err
    assert "Traceback" not in process.err
    before = content_of(job.out)
    assert sorted(before) == ["part-00000.jsonl", "part-00001.jsonl"]
    assert not list(job.out.rglob("*.tmp"))
    assert not (job.out / "_SUCCESS").exists()
    done = job.let_go()
    assert done.returncode == 0
    assert "6 of them done before" in done.err
    assert ids_of(lines_of(job.out)) == [f"in.txt:{i + 1}" for i in range(10)]
    assert {name: content_of(job.out)[name] for name in before} == before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_second_signal_ends_at_once_a_stage_that_does_not_stop(
    job: SlowJob, number: signal.Signals, code: int
) -> None:
    process = job.held("postprocessor.stubborn=true")
    process.send_signal(number)
    process.until_printed("here\n", times=2)  # the first one is heard and not obeyed
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=5).returncode == code
    assert job.let_go("postprocessor.stubborn=true").returncode == 0
    assert len(lines_of(job.out)) == 10


def test_a_second_process_is_told_who_writes_and_a_dead_ones_folder_is_free(job: SlowJob) -> None:
    process = job.held()
    for options in ((), ("--restart",)):  # not even the folder is moved from under it
        second = warm.run(*job.argv, *options)
        assert second.returncode == 1
        host = re.escape(socket.gethostname())
        assert re.search(rf"another process writes to this folder: process {process.pid} on {host}", second.err)
        assert "Traceback" not in second.err
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert job.let_go().returncode == 0
    assert ids_of(lines_of(job.out)) == [f"in.txt:{i + 1}" for i in range(10)]
    assert not list(job.out.rglob("*.tmp"))
