"""Python processes at the price of a fork: a process that has imported everything starts one for each command.

What runs is a process as any other, with memory, signals, limits and an exit code of its own. Only the imports are
done, and the workers of a job are forks too. As a script this is the process that forks.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALONE = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "TOKENIZERS_PARALLELISM": "false"}
PRELOADED = ("torch", "pyarrow.parquet", "transformers.models.bert.modeling_bert", "echo_job", "job_killer")

IMPORTED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""What pytest is told in such a process, where packages are imported before it could rewrite them."""


class Process:
    """A started process; `out` and `err` are what it has printed so far."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder
        self.returncode: int | None = None

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    def poll(self) -> int | None:
        """Return the exit code, as subprocess does; None while it runs."""
        if self.returncode is None:
            self.returncode = ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 250) -> Process:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, f"did not end: {self.err[-2000:]}"
            time.sleep(0.01)
        return self

    def until_printed(self, text: str, times: int = 1) -> None:
        """Wait until stderr holds `text` so often."""
        while self.err.count(text) < times:
            assert self.poll() is None, self.err[-2000:]
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def start(*args: object, **env: str) -> Process:
    """Start ``python ARGS``: ``-m MODULE ...``, ``-c CODE ...`` or a script and its words."""
    folder = Path(tempfile.mkdtemp(dir=_server()[1]))
    for name in ("out", "err"):
        (folder / name).touch()
    words, variables = [str(arg) for arg in args], {**os.environ, **ALONE, **env}
    return Process(ask({"args": words, "env": variables, "cwd": os.getcwd(), "folder": str(folder)}), folder)


def run(*args: object, **env: str) -> Process:
    return start(*args, **env).wait()


def ask(request: dict[str, Any]) -> Any:
    process, _ = _server()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@functools.cache
def _server() -> tuple[subprocess.Popen[str], Path]:
    """Start the process that forks; it ends, and all that it started, when its stdin is closed, so with this one."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    argv, pipe = [sys.executable, str(HERE / "warm.py")], subprocess.PIPE
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=os.environ | ALONE | {"PYTHONPATH": path})
    atexit.register(process.communicate)
    return process, Path(tempfile.mkdtemp(prefix="pipeline-kit-warm-"))


def serve() -> None:
    """Fork a process for each request with words; answer others with the exit code of a process."""
    import pipeline_kit

    found = [module.name for module in pkgutil.walk_packages(pipeline_kit.__path__, "pipeline_kit.")]
    for name in (*PRELOADED, *(name for name in found if "__main__" not in name and ".templates" not in name)):
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "args" in request:
            pid = os.fork() or _become(request)
            running.add(pid)
            answer: int | None = pid
        else:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running -= {ended}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _become(request: dict[str, Any]) -> int:
    """Be the process that was asked for."""
    for number, path in enumerate([os.devnull, f"{request['folder']}/out", f"{request['folder']}/err"]):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(request["cwd"])
    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]
    code: Any = 1
    sys.argv = request["args"]
    try:
        if sys.argv[0] == "-m":
            sys.argv = sys.argv[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        elif sys.argv[0] == "-c":
            sys.argv = sys.argv[1:]
            exec(sys.argv[0], {"__name__": "__main__"})
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code or 0
        if isinstance(code, str):  # as the interpreter does
            code = bool(sys.stderr.write(f"{code}\n"))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
