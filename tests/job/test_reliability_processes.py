"""R2 and R5: signals end a job in order, and one process at a time writes to its folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from echo_job import content_of, lines_of

from pipeline_kit.testing import tiny_checkpoint

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("processes") / "bert")


class SlowJob:
    """A job of ten rows that stops before the third of its four shards is done, until it is let go."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        (folder / "slow.py").write_text(SLOW)
        (folder / "hold").touch()
        (folder / "in.txt").write_text("".join(f"row {i}\n" for i in range(10)))
        self.folder, self.out = folder, folder / "out"
        self.argv = [sys.executable, "-m", "pipeline_kit", "run", "--input", str(folder / "in.txt")]
        self.argv += ["--output", str(self.out), "--plugin", str(folder / "slow.py"), "postprocessor=slow"]
        self.argv += [f"checkpoint.path={checkpoint}", "device=cpu", "model.linear=eager", "output.rows_per_shard=3"]

    @contextmanager
    def held(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Run until the stage waits."""
        with subprocess.Popen(
            [*self.argv, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
        ) as process:
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    if line == "here\n":
                        break
                yield process
            finally:
                process.kill()

    def let_go(self) -> subprocess.CompletedProcess[str]:
        (self.folder / "hold").unlink(missing_ok=True)
        return subprocess.run(self.argv, capture_output=True, text=True)


def interruptible() -> None:
    """Undo what a shell does to what it runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path) -> SlowJob:
    return SlowJob(tmp_path, checkpoint)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drops_the_shard_at_hand_and_says_how_to_go_on(
    job: SlowJob, number: signal.Signals, code: int
) -> None:
    with job.held() as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=5)
        assert process.returncode == code
    assert f"{job.out}: stopped; what is done is kept, run the same command again to continue" in err
    assert "Traceback" not in err
    assert sorted(content_of(job.out)) == ["part-00000.jsonl", "part-00001.jsonl"]
    assert not list(job.out.rglob("*.tmp"))
    assert not (job.out / "_SUCCESS").exists()
    before = content_of(job.out)
    done = job.let_go()
    assert done.returncode == 0
    assert "6 of them done before" in done.stderr
    assert [row["id"] for row in lines_of(job.out)] == [f"in.txt:{i + 1}" for i in range(10)]
    assert {name: content_of(job.out)[name] for name in before} == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once_a_stage_that_does_not_stop(
    job: SlowJob, number: signal.Signals, code: int
) -> None:
    with job.held("postprocessor.stubborn=true") as process:
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.readline() == "here\n", "the first one is heard and not obeyed"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=5) == code
    job.argv.append("postprocessor.stubborn=true")
    assert job.let_go().returncode == 0
    assert len(lines_of(job.out)) == 10


def test_a_second_process_is_told_who_writes_and_a_dead_ones_folder_is_free(job: SlowJob) -> None:
    with job.held() as process:
        second = subprocess.run(job.argv, capture_output=True, text=True)
        assert second.returncode == 1
        host = re.escape(socket.gethostname())
        assert re.search(rf"another process writes to this folder: process {process.pid} on {host}", second.stderr)
        assert "Traceback" not in second.stderr
        restart = subprocess.run([*job.argv, "--restart"], capture_output=True, text=True, timeout=60)
        assert restart.returncode == 1, "not even the folder is moved from under it"
        assert process.poll() is None
        process.kill()
        process.wait()
    assert job.let_go().returncode == 0
    assert [row["id"] for row in lines_of(job.out)] == [f"in.txt:{i + 1}" for i in range(10)]
    assert not list(job.out.rglob("*.tmp"))
