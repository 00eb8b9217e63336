"""The process: one line when it can answer, limits to what a client may hold, and an end in which nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import warm
from generate_helpers import writer
from harness import checkpoint
from serving import get, post, running, until

import pipeline_kit as pk
from pipeline_kit.errors import UsageError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and signals as POSIX has them")

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
def process(*words: str) -> Iterator[tuple[warm.Process, str]]:
    """Start ``pipeline-kit serve``; return it and its URL."""
    threads = () if "--pipeline" in words else ("device.threads=1",)
    server = warm.start("-m", "pipeline_kit", "serve", "serve.port=0", *threads, *words)
    try:
        until(lambda: "\n" in server.out or server.poll() is not None)
        assert server.out, server.err
        yield server, json.loads(server.out)["url"]
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGKILL)


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
        assert server.wait(30).returncode == 0
        assert len(server.out.splitlines()) == 1, "stdout has the URL and nothing else"


def _waiting(url: str) -> float:
    lines = get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("pipeline_kit_waiting_tokens{"))


def test_a_stream_that_is_cut_off_ends_with_the_error() -> None:
    """Its status has been sent, so a second answer would break the connection."""
    body = json.dumps({"prompt": "a"}).encode().replace(b"}", b', "stream": true}')
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    requests, sent = [{"type": "http.request", "body": body}], list[Any]()

    async def receive() -> Any:
        return requests.pop() if requests else await asyncio.Event().wait()

    async def work() -> None:
        written = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message)
            if message.get("body") and not written.is_set():
                written.set()
                await asyncio.Event().wait()  # a client that reads slowly

        app = pk.serve_app(writer(checkpoint("gpt2", head="causal-lm")), log="none")
        request = asyncio.create_task(app(scope, receive, send))
        await written.wait()
        request.cancel()
        await request

    asyncio.run(asyncio.wait_for(work(), 60))
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 3]
    assert (sent[0]["status"], b"the server ended before" in sent[2]["body"]) == (200, True)
    assert not sent[3].get("more_body", False)


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
        assert server.wait(30).returncode == 1
        assert answer.result().status_code == 503
        assert ("a second signal" if second else "cut off") in server.err
        assert "Traceback" not in server.err


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
            done = warm.run("-m", "pipeline_kit", "serve", word)
            assert done.returncode == 2, done.err
            assert message in done.err
            assert "Traceback" not in done.err
            assert done.out == ""


def test_headers_and_bodies_that_drip_or_do_not_end_are_cut_off(tmp_path: Path) -> None:
    with process("serve.read_timeout=0.5", "serve.max_connections=5") as (server, url):
        host, port = url.removeprefix("http://").split(":")
        head = b"POST /run HTTP/1.1\r\nHost: localhost\r\n"
        trailer = b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "
        for start, much, answer in (
            (head, b"", b""),
            (head + b"Content-Length: 100\r\n\r\n{", b"", b"HTTP/1.1 408"),
            (head + b"X: ", b"a" * 2**16, b"HTTP/1.1 431"),
            (head + trailer, b"a" * (2**16 + 1), b""),
        ):
            with socket.create_connection((host, int(port))) as slow:
                slow.settimeout(30)
                slow.sendall(start)
                time.sleep(0.1)  # what comes with the end of a header is not counted
                slow.sendall(much)
                received = b"".join(iter(lambda: slow.recv(4096), b""))
                assert received.startswith(answer)
                assert bool(received) == bool(answer)
        assert post(f"{url}/run", {"inputs": "a" * 2**18}).status_code == 200, "the limit is for headers alone"
        idle = [socket.create_connection((host, int(port))) for _ in range(5)]
        with socket.create_connection((host, int(port))) as more:
            assert more.recv(4096).startswith(b"HTTP/1.1 503")
        for one in idle:
            one.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30).returncode == 0


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
    done = warm.run("-m", "pipeline_kit", "serve", *words, "task=ner")
    assert done.returncode == 2
    assert "only serve.* is set" in done.err


def test_a_key_an_origin_and_a_host(capfd: pytest.CaptureFixture[str]) -> None:
    pipe = pk.load()
    with pytest.raises(UsageError, match="white space alone"):
        pk.serve_app(pipe, api_key=" \n")
    # A file with the key ends with a line break, and a key need not be ASCII.
    with running(pipe, api_key="k3y-sécret\n", cors_origins=["https://good.example"], log="text") as url:
        body = {"inputs": "a"}
        for wrong in ("", "Bearer", "Bearer wrong", "Basic !"):
            assert post(f"{url}/run", body, Authorization=wrong).status_code == 401
        assert httpx.post(f"{url}/run", json=body, auth=("", "k3y-sécret")).status_code == 200
        assert get(f"{url}/health").status_code == 200
        key: dict[str, Any] = {"Authorization": "Bearer k3y-sécret".encode()}
        assert post(f"{url}/run", body, **key, Origin="https://evil.example").status_code == 403
        assert post(f"{url}/run", body, **key, Origin="null").status_code == 403
        assert post(f"{url}/run", body, **key, Origin=url).status_code == 200
        found = post(f"{url}/run", body, **key, Origin="https://good.example")
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "https://good.example"
    assert "k3y-" not in "".join(capfd.readouterr())


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
