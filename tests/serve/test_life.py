"""The process: one line when it can answer, limits to what a client may hold, and an end in which nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving import get, post, running, until

import pipeline_kit as pk

SLOW = '''
"""A model that takes its time, and says when it has begun."""
import time
from pathlib import Path
from pipeline_kit.kit import HfModel, HfModelConfig

class SlowModel(HfModel):
    def forward(self, batch):
        began, go = Path({began!r}), Path({go!r})
        began.touch()
        while not go.exists():
            time.sleep(0.005)
        return super().forward(batch)

def register(registry):
    registry.model("slow", __name__ + ":SlowModel", HfModelConfig)
'''


@contextmanager
def process(*words: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start ``pipeline-kit serve``; return it and its URL."""
    threads = () if "--pipeline" in words else ("device.threads=1",)
    command = [sys.executable, "-m", "pipeline_kit", "serve", "serve.port=0", *threads, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **variables}, **pipes) as server:  # type: ignore[call-overload]
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line, server.stderr.read() if server.stderr else ""
            yield server, json.loads(line)["url"]
        finally:
            server.kill()


@pytest.fixture
def slow(tmp_path: Path) -> tuple[str, ...]:
    """The words for a server whose model waits for the file ``go``."""
    (tmp_path / "slow_model.py").write_text(SLOW.format(began=f"{tmp_path}/began", go=f"{tmp_path}/go"))
    return ("--plugin", f"{tmp_path}/slow_model.py", "model=slow")


def test_accepted_work_is_finished_before_the_end(tmp_path: Path, slow: tuple[str, ...]) -> None:
    """Forty requests are in flight when SIGTERM comes: all get their own right answer; new ones get 503."""
    (tmp_path / "go").touch()  # for the warm-up
    texts = [f"I {'love' if number % 2 else 'hate'} film {number}" for number in range(40)]
    pipe = pk.load()
    expected = pipe(texts)
    waiting = sum(len(encoding.input_ids) for encoding in pipe.tokenizer.encode(texts[1:]))
    with process(*slow) as (server, url), ThreadPoolExecutor(40) as pool:
        (tmp_path / "go").unlink()
        (tmp_path / "began").unlink()
        answers = [pool.submit(post, f"{url}/run", {"inputs": texts[0]})]
        until(lambda: (tmp_path / "began").exists())
        answers += [pool.submit(post, f"{url}/run", {"inputs": text}) for text in texts[1:]]
        until(lambda: _waiting(url) == waiting)
        server.send_signal(signal.SIGTERM)
        until(lambda: get(f"{url}/ready").status_code == 503)
        assert get(f"{url}/health").status_code == 200
        refused = post(f"{url}/run", {"inputs": "too late"})
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        (tmp_path / "go").touch()
        found = [answer.result() for answer in answers]
        assert [answer.status_code for answer in found] == [200] * 40
        for answer, wanted in zip(found, expected, strict=True):
            [result] = answer.json()["results"]
            assert result["label"] == wanted["label"]
            assert result["score"] == pytest.approx(wanted["score"], abs=1e-5)
        assert server.wait(30) == 0
        assert server.stdout is not None
        assert server.stdout.read() == "", "stdout has the URL and nothing else"


def _waiting(url: str) -> float:
    lines = get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("pipeline_kit_waiting_tokens{"))


@pytest.mark.parametrize("second", [True, False])
def test_work_that_is_cut_off_is_exit_code_1(tmp_path: Path, slow: tuple[str, ...], second: bool) -> None:
    (tmp_path / "go").touch()
    with process(*slow, "serve.drain_timeout=0.3") as (server, url), ThreadPoolExecutor(1) as pool:
        (tmp_path / "go").unlink()
        (tmp_path / "began").unlink()
        answer = pool.submit(post, f"{url}/run", {"inputs": "never"})
        until(lambda: (tmp_path / "began").exists())
        server.send_signal(signal.SIGINT)
        if second:
            until(lambda: get(f"{url}/ready").status_code == 503)
            server.send_signal(signal.SIGINT)
        assert server.wait(30) == 1
        assert answer.result().status_code == 503
        assert server.stderr is not None
        log = server.stderr.read()
        assert ("a second signal" if second else "cut off") in log
        assert "Traceback" not in log


def test_a_port_in_use_and_a_wrong_config(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for word, message in (
            (f"serve.port={port}", "is in use"),
            ("serve.prt=1", "Did you mean 'port'?"),
            ("serve.host=nowhere.invalid", "no such address"),
        ):
            command = [sys.executable, "-m", "pipeline_kit", "serve", word]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            assert message in done.stderr
            assert "Traceback" not in done.stderr
            assert done.stdout == ""


def test_headers_and_bodies_that_drip_are_cut_off(tmp_path: Path) -> None:
    with process("serve.read_timeout=0.5", "serve.max_connections=5") as (server, url):
        host, port = url.removeprefix("http://").split(":")
        head = b"POST /run HTTP/1.1\r\nHost: localhost\r\n"
        for start, answer in ((head, b""), (head + b"Content-Length: 100\r\n\r\n{", b"HTTP/1.1 408")):
            with socket.create_connection((host, int(port))) as slow:
                slow.settimeout(30)
                slow.sendall(start)
                received = b"".join(iter(lambda: slow.recv(4096), b""))
                assert received.startswith(answer)
                assert bool(received) == bool(answer)
        idle = [socket.create_connection((host, int(port))) for _ in range(5)]
        with socket.create_connection((host, int(port))) as more:
            assert more.recv(4096).startswith(b"HTTP/1.1 503")
        for one in idle:
            one.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_without_the_extra_a_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['msgspec'] = None; from pipeline_kit.cli import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'pipeline-kit[serve]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_several_pipelines(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("defaults: [/config, _self_]\npostprocessor: {top_k: null}\n")
    (tmp_path / "one.yaml").write_text("defaults: [/config, _self_]\n")
    words = ("--pipeline", f"one={tmp_path}/one.yaml", "--pipeline", f"all={tmp_path}/all.yaml")
    with process(*words) as (_, url):
        body = {"inputs": "I love it"}
        plain = post(f"{url}/run", body).json()["results"][0]
        assert "labels" not in plain
        for found in (post(f"{url}/pipelines/all/run", body), post(f"{url}/run", {**body, "model": "all"})):
            assert len(found.json()["results"][0]["labels"]) == 2
        unknown = post(f"{url}/run", {**body, "model": "al"})
        assert unknown.status_code == 404
        assert "Did you mean 'all'? There are: one, all" in unknown.json()["error"]["message"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline_kit", "serve", *words, "task=ner"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "only serve.* is set" in done.stderr


def test_a_key_an_origin_and_a_host(capfd: pytest.CaptureFixture[str]) -> None:
    with running(pk.load(), api_key="k3y-s3cret", cors_origins=["https://good.example"], log="text") as url:
        body = {"inputs": "a"}
        assert post(f"{url}/run", body).status_code == 401
        assert post(f"{url}/run", body, Authorization="Bearer wrong").status_code == 401
        assert httpx.post(f"{url}/run", json=body, auth=("", "k3y-s3cret")).status_code == 200
        assert get(f"{url}/health").status_code == 200
        key = {"Authorization": "Bearer k3y-s3cret"}
        assert post(f"{url}/run", body, **key, Origin="https://evil.example").status_code == 403
        assert post(f"{url}/run", body, **key, Origin="null").status_code == 403
        assert post(f"{url}/run", body, **key, Origin=url).status_code == 200
        found = post(f"{url}/run", body, **key, Origin="https://good.example")
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "https://good.example"
    assert "k3y-s3cret" not in "".join(capfd.readouterr())


def test_a_foreign_host_on_loopback() -> None:
    with process() as (_, url):
        assert post(f"{url}/run", {"inputs": "a"}, Host="evil.example").status_code == 403
        assert post(f"{url}/run", {"inputs": "a"}, Host="localhost:1").status_code == 200


def test_the_log_has_a_line_a_request_and_no_texts(capfd: pytest.CaptureFixture[str]) -> None:
    pipe = pk.load()
    for texts, seen in ((False, False), (True, True)):
        with running(pipe, log="json", log_texts=texts) as url:
            found = post(f"{url}/run", {"inputs": ["my canary 7261", "b"]}, **{"X-Request-Id": "mine-1"})
            assert found.headers["x-request-id"] == "mine-1"
        [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        facts = json.loads(line)
        assert (facts["id"], facts["status"], facts["rows"]) == ("mine-1", 200, 2)
        assert facts["tokens"] > 2
        assert ("canary 7261" in line) is seen


def test_limits_of_a_body() -> None:
    with running(pk.load(), max_inputs=3, max_body_bytes=2000) as url:
        assert post(f"{url}/run", {"inputs": ["a"] * 3}).status_code == 200
        many = post(f"{url}/run", {"inputs": ["a"] * 4})
        assert many.status_code == 413
        assert "serve.max_inputs=3" in many.json()["error"]["message"]
        assert post(f"{url}/run", {"inputs": "a" * 3000}).status_code == 413
        pieces = iter([b'{"inputs": "', b"a" * 3000, b'"}'])
        assert httpx.post(f"{url}/run", content=pieces, timeout=30).status_code == 413
        assert post(f"{url}/run", b"\x1f\x8b", **{"Content-Encoding": "gzip"}).status_code == 415


def test_half_of_the_connections_may_wait() -> None:
    """The rest is for probes, and for clients that are told to come later."""
    from serving import gated

    pipe, model = gated(pk.load())
    model.open(2)  # the warm-up
    with running(pipe, max_connections=5) as url, ThreadPoolExecutor(2) as pool:
        batches = len(model.batches)
        waiting = [pool.submit(post, f"{url}/run", {"inputs": "first"})]
        until(lambda: len(model.batches) == batches + 1)
        waiting.append(pool.submit(post, f"{url}/run", {"inputs": "second"}))
        until(lambda: _waiting(url) > 0)
        refused = post(f"{url}/run", {"inputs": "third"})
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
        assert "half of serve.max_connections" in refused.json()["error"]["message"]
        assert get(f"{url}/health").status_code == 200
        model.open()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert post(f"{url}/run", {"inputs": "fourth"}).status_code == 200


def test_a_client_that_leaves_takes_its_rows_along() -> None:
    from serving import gated

    pipe, model = gated(pk.load())
    model.open(2)  # the warm-up
    with running(pipe, deadline=20) as url:
        batches = len(model.batches)
        thread = threading.Thread(target=post, args=(f"{url}/run", {"inputs": "first"}))
        thread.start()
        until(lambda: len(model.batches) == batches + 1)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{url}/run", json={"inputs": ["gone"] * 3}, timeout=0.3)
        until(lambda: _waiting(url) == 0)
        model.open()
        thread.join()
        assert post(f"{url}/run", {"inputs": "last"}).status_code == 200
    assert model.batches[batches:] == [1, 1]


def test_metrics_are_what_prometheus_reads() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with running(pk.load()) as url:
        post(f"{url}/run", {"inputs": ["a", "b c"]})
        post(f"{url}/run", b"nothing")
        families = {family.name: family for family in text_string_to_metric_families(get(f"{url}/metrics").text)}
    counts = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["pipeline_kit_requests"].samples
        if sample.name.endswith("_total")
    }
    assert counts == {("/run", "200"): 1, ("/run", "400"): 1}
    assert {sample.labels["stage"] for sample in families["pipeline_kit_stage_seconds"].samples} >= {
        "tokenizer",
        "model",
    }
    for name in ("request_seconds", "waiting_tokens", "batch_rows", "batch_tokens", "padding_share"):
        assert families[f"pipeline_kit_{name}"].samples
