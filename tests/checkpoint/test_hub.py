"""Downloads from a hub on the loopback interface, in processes of their own: settings are read at import."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import checkpoint_folders
import pytest
from hub_server import MAIN_COMMIT, HubServer, Repository
from huggingface_hub import constants

from pipeline_kit.checkpoint import hub as hub_module
from pipeline_kit.checkpoint.hub import download
from pipeline_kit.errors import CheckpointError

ID = "acme/tiny"
FORKER = """
import contextlib, io, json, os, sys, time

def no_waiting(seconds):
    raise AssertionError(f"waited {seconds} s")

time.sleep = no_waiting
from huggingface_hub import HfApi, constants, errors, snapshot_download
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint, weight_shapes
from pipeline_kit.errors import CheckpointError

for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]  # what it imports is kept, but it reads its settings anew

for line in sys.stdin:
    if pid := os.fork():
        os.waitpid(pid, 0)
        print("ended", flush=True)
        continue
    machine = json.loads(line)
    os.chdir(machine["folder"])
    os.dup2(os.open("child.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.clear()
    os.environ.update(machine["env"])
    print("started", flush=True)
    break

for line in sys.stdin:
    if line == "end\\n":
        os._exit(0)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            found = resolve_checkpoint(CheckpointConfig(**json.loads(line)))
            answer = {"path": str(found.path), "revision": found.revision, "name": found.name}
            answer["tensors"] = len(weight_shapes(found))
        except CheckpointError as error:
            answer = {"error": str(error)}
    assert not {"torch", "transformers"} & set(sys.modules)
    print(json.dumps({"answer": answer, "stdout": out.getvalue(), "stderr": err.getvalue()}), flush=True)
"""


@pytest.fixture(scope="module")
def forker() -> Iterator[subprocess.Popen[str]]:
    """A process that forks one for each line with its settings, and waits for it: so the imports are done once."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**_without_settings(), "PYTHONPATH": path.rstrip(os.pathsep), "PYTHONWARNINGS": "error"}
    argv, pipe = [sys.executable, "-c", FORKER], subprocess.PIPE
    with subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repositories[ID] = Repository(checkpoint_folders.files())
        yield server


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}


class Machine:
    """A user's machine: a cache folder, a working folder, and one process at a time that resolves checkpoints."""

    def __init__(self, folder: Path, url: str, forker: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.cache = folder / "home" / "hub"
        self.url = url
        self.stderr = ""
        self._forker = forker
        self._runs = False

    def environment(self) -> dict[str, str]:
        return {
            **_without_settings(),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(self.folder / "home"),
            "no_proxy": "127.0.0.1",
        }

    def start(self, **settings: str) -> None:
        """Start a new process, with more environment variables."""
        self.stop()
        assert self._say({"folder": str(self.folder), "env": {**self.environment(), **settings}}) == "started\n"
        self._runs = True

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._runs:
            assert self._say("end") == "ended\n"
            self._runs = False

    def _say(self, message: str | dict[str, Any]) -> str:
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write(f"{message if isinstance(message, str) else json.dumps(message)}\n")
        self._forker.stdin.flush()
        return self._forker.stdout.readline()

    def resolve(self, path: str = ID, **options: Any) -> dict[str, Any]:
        if not self._runs:
            self.start()
        line = self._say({"path": path, **options})
        self._runs = line != "ended\n"
        assert self._runs, (self.folder / "child.log").read_text()
        said = json.loads(line)
        assert said["stdout"] == ""
        self.stderr = said["stderr"]
        return dict(said["answer"])

    def error(self, path: str = ID, **options: Any) -> str:
        answer = self.resolve(path, **options)
        assert "error" in answer, answer
        return str(answer["error"])


@pytest.fixture
def machine(tmp_path: Path, hub: HubServer, forker: subprocess.Popen[str]) -> Iterator[Machine]:
    user = Machine(tmp_path, hub.url, forker)
    yield user
    user.stop()


def test_first_run_downloads_and_second_run_works_with_the_server_gone(hub: HubServer, machine: Machine) -> None:
    first = machine.resolve()
    assert first["revision"] == MAIN_COMMIT
    assert first["name"] == ID
    assert first["tensors"] == 2
    assert Path(first["path"]).is_relative_to(machine.cache)
    assert sorted(hub.downloads()) == sorted(checkpoint_folders.files())

    machine.start()
    hub.requests.clear()
    assert machine.resolve() == first
    assert hub.downloads() == []

    hub.stop()
    machine.start()
    assert machine.resolve() == first
    assert "cannot be reached" in machine.stderr
    assert "using the downloaded copy, commit aaaaaaaaaaaa" in machine.stderr
    assert machine.resolve(offline=True) == first
    assert machine.stderr == "", "a user who said offline needs no warning"


def test_a_new_commit_of_the_branch_is_fetched(hub: HubServer, machine: Machine) -> None:
    machine.resolve()
    hub.repositories[ID] = Repository(checkpoint_folders.files(), {"main": "b" * 40})
    assert machine.resolve()["revision"] == "b" * 40


def test_nothing_but_data_is_downloaded(hub: HubServer, machine: Machine) -> None:
    beside = {
        "pytorch_model.bin": b"\x80\x04.",
        "modeling.py": b"raise SystemExit",
        "onnx/model.onnx": b"x",
        "onnx/config.json": b"{}",
        "tf_model.h5": b"x",
        "consolidated.safetensors": b"x",
        "README.md": b"x",
        "1_Pooling/config.json": b"{}",
        "spm.model": b"x",
    }
    hub.repositories[ID] = Repository({**checkpoint_folders.files(), **beside})
    assert machine.resolve()["tensors"] == 2
    assert sorted(hub.downloads()) == sorted([*checkpoint_folders.files(), "1_Pooling/config.json", "spm.model"])
    touched = {path for _, path in hub.requests}
    assert not any(path.endswith((".bin", ".py", ".h5", ".onnx")) for path in touched)


def test_a_cached_commit_touches_no_network(hub: HubServer, machine: Machine) -> None:
    machine.resolve(revision=MAIN_COMMIT)
    machine.start()
    hub.requests.clear()
    assert machine.resolve(revision=MAIN_COMMIT)["revision"] == MAIN_COMMIT
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "b" * 40])
def test_other_revisions(hub: HubServer, machine: Machine, revision: str) -> None:
    files = checkpoint_folders.files()
    hub.repositories[ID] = Repository(files, {"main": MAIN_COMMIT, "v1.0": "b" * 40, "refs/pr/3": "b" * 40})
    assert machine.resolve(revision=revision)["revision"] == "b" * 40
    hub.stop()
    assert machine.resolve(revision=revision)["revision"] == "b" * 40


@pytest.mark.parametrize("revision", ["nope", "c" * 40])
def test_an_unknown_revision(hub: HubServer, machine: Machine, revision: str) -> None:
    message = machine.error(revision=revision)
    assert f"'{ID}' has no revision '{revision}'" in message
    machine.resolve()
    assert machine.error(revision=revision) == message, "a cached other revision is no substitute"


@pytest.mark.parametrize("revision", ["../../etc/passwd", "a b", "/x", ""])
def test_a_revision_that_is_none(revision: str) -> None:
    with pytest.raises(CheckpointError, match="is not a revision"):
        download(ID, revision, offline=False, cache_dir=None)


def test_no_network_and_no_cache_says_at_once_what_to_do(hub: HubServer, machine: Machine) -> None:
    hub.stop()
    (machine.folder / "tinny").mkdir()
    message = machine.error("tiny")
    assert message.startswith(f"the hub at {hub.url} cannot be reached")
    assert f"the cache ({machine.cache}) has no complete copy of 'tiny'" in message
    assert "Did you mean the folder './tinny'?" in message
    assert "hf download tiny --include '*.json'" in message
    assert "checkpoint.path=./my-model" in message


def test_the_command_that_the_offline_error_gives_works(hub: HubServer, machine: Machine) -> None:
    hub.repositories[ID] = Repository({**checkpoint_folders.files(), "pytorch_model.bin": b"\x80\x04."})
    message = machine.error(offline=True, revision="main")
    (line,) = [line for line in message.splitlines() if line.startswith("  hf download ")]
    command = shlex.split(line)
    command[0] = str(Path(sys.executable).with_name("hf"))
    settings = {**machine.environment(), "PYTHONWARNINGS": "default"}
    subprocess.run(command, env=settings, cwd=machine.folder, capture_output=True, check=True, timeout=60)
    assert machine.resolve("./my-model", offline=True)["tensors"] == 2


def test_a_server_that_never_answers_is_left_after_a_while(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        machine.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        machine.start(HF_HUB_ETAG_TIMEOUT="1")
        message = machine.error()
    assert "cannot be reached" in message
    assert "has no complete copy" in message


@pytest.mark.parametrize(
    ("options", "env", "reason"),
    [({"offline": True}, {}, "checkpoint.offline=true"), ({}, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_offline_never_touches_the_network(
    hub: HubServer, machine: Machine, options: dict[str, Any], env: dict[str, str], reason: str
) -> None:
    machine.start(**env)
    message = machine.error(**options)
    assert message.startswith(f"the network is off ({reason}), and the cache ({machine.cache}) has no complete copy")
    assert hub.requests == []


def test_another_cache_folder(hub: HubServer, machine: Machine) -> None:
    found = machine.resolve(cache_dir="mine")
    assert Path(found["path"]).resolve().is_relative_to(machine.folder / "mine")
    assert not machine.cache.exists()
    hub.stop()
    assert machine.resolve(cache_dir="mine", offline=True)["revision"] == MAIN_COMMIT


ANSWERS = [
    (404, {"X-Error-Code": "RepoNotFound"}, "has no repository 'acme/tiny', or it is private"),
    (401, {"X-Error-Code": "RepoNotFound"}, "has no repository 'acme/tiny', or it is private"),
    (403, {"X-Error-Code": "GatedRepo"}, "'acme/tiny' is gated: accept its terms at"),
    (401, {}, "answered 401 for 'acme/tiny': it takes no anonymous access, or the token is not valid"),
    (403, {}, "answered 403 for 'acme/tiny': the token lacks the right"),
    (429, {}, "answered 429 for 'acme/tiny': too many requests"),
    (500, {}, "answered 500 for 'acme/tiny': it has trouble of its own"),
    (503, {}, "answered 503 for 'acme/tiny': it has trouble of its own"),
    (200, {"Content-Type": "text/html"}, "cannot be reached"),
]


def test_each_refusal_has_its_message_and_costs_one_request(hub: HubServer, machine: Machine) -> None:
    for status, headers, expected in ANSWERS:
        hub.repositories[ID] = Repository({}, answer=(status, headers))
        hub.requests.clear()
        assert expected in machine.error()
        assert len(hub.requests) == 1, expected


def test_trouble_of_the_hub_is_no_trouble_for_a_cached_checkpoint(hub: HubServer, machine: Machine) -> None:
    first = machine.resolve()
    hub.repositories[ID] = Repository({}, answer=(503, {}))
    assert machine.resolve() == first
    assert "answered 503" in machine.stderr
    hub.repositories[ID] = Repository({}, answer=(404, {"X-Error-Code": "RepoNotFound"}))
    assert machine.resolve() == first
    assert "has no repository 'acme/tiny'" in machine.stderr


def test_the_token_is_sent(hub: HubServer, machine: Machine) -> None:
    machine.start(HF_TOKEN="hf_canary")
    machine.resolve()
    assert hub.authorizations == {"Bearer hf_canary"}
    hub.repositories[ID] = Repository({}, answer=(401, {}))
    assert "canary" not in machine.error(cache_dir="fresh")


def test_a_repository_of_pickles_alone_is_refused_before_any_download(hub: HubServer, machine: Machine) -> None:
    files = checkpoint_folders.files(pytorch_model__bin=b"\x80\x04.")
    del files["model.safetensors"]
    hub.repositories[ID] = Repository(files)
    message = machine.error()
    assert "holds no safetensors, only pytorch_model.bin" in message
    assert "checkpoint.revision=refs/pr/" in message
    assert [path for _, path in hub.requests if "resolve" in path] == []


def test_a_repository_that_is_no_checkpoint(hub: HubServer, machine: Machine) -> None:
    hub.repositories[ID] = Repository({"model.gguf": b"GGUF"})
    assert "has no config.json" in machine.error()
    hub.repositories[ID] = Repository({"config.json": b"{}"})
    assert "holds no model.safetensors" in machine.error()


def test_a_download_is_scanned_like_a_folder(hub: HubServer, machine: Machine) -> None:
    hub.repositories[ID] = Repository(checkpoint_folders.files({"model_type": "x", "auto_map": {"AutoModel": "m.M"}}))
    message = machine.error()
    assert "config.json: the key 'auto_map'" in message


def test_pickles_that_another_program_left_in_the_cache_are_not_in_the_way(hub: HubServer, machine: Machine) -> None:
    found = machine.resolve()
    (Path(found["path"]) / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert machine.resolve() == found
    hub.stop()
    assert machine.resolve() == found


def test_a_download_that_broke_off_is_not_taken_for_whole(hub: HubServer, machine: Machine) -> None:
    hub.repositories[ID] = Repository(checkpoint_folders.files(), failing=frozenset({"model.safetensors"}))
    assert f"the download of '{ID}' broke off: the hub answered 500" in machine.error()
    assert "has no complete copy" in machine.error(offline=True)
    shutil.rmtree(machine.cache / "models--acme--tiny" / "trees")
    machine.start()
    assert "has no complete copy" in machine.error(offline=True), "older versions of the library keep no file list"
    hub.repositories[ID] = Repository(checkpoint_folders.files())
    assert machine.resolve()["tensors"] == 2


def test_a_folder_wins_over_a_hub_id(hub: HubServer, machine: Machine) -> None:
    checkpoint_folders.make(machine.folder / "acme" / "tiny")
    assert machine.resolve()["path"] == str(machine.folder / "acme" / "tiny")
    assert "has no revisions" in machine.error(revision="main")
    assert hub.requests == []


def test_a_cache_that_cannot_be_written(hub: HubServer, machine: Machine) -> None:
    (machine.folder / "file").write_text("")
    message = machine.error(cache_dir="file")
    assert "cannot be written" in message
    assert "checkpoint.cache_dir" in message


def test_a_full_disk_is_not_taken_for_a_dead_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "_list_files", lambda wanted: set(checkpoint_folders.files()))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(hub_module, "snapshot_download", Mock(side_effect=full))
    with pytest.raises(CheckpointError, match=r"broke off: the cache .* cannot be written \(.*No space.*cache_dir"):
        download(ID, None, offline=False, cache_dir="mine")
