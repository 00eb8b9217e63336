"""The server's own routes, on a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import get, post, running

import pipeline_kit as pk
from pipeline_kit.serve.batcher import Batcher


@pytest.fixture(scope="module")
def pipe() -> pk.Pipeline:
    return pk.load()


@pytest.fixture(scope="module")
def url(pipe: pk.Pipeline) -> Iterator[str]:
    with running(pipe) as url:
        yield url


def test_results_are_those_of_the_pipeline(pipe: pk.Pipeline, url: str) -> None:
    texts = ["I love this.", "", "😀 שלום", "a " * 700]
    found = post(f"{url}/run", {"inputs": texts}).json()["results"]
    for one, other in zip(found, pipe(texts), strict=True):
        assert one.keys() == other.keys()
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["label"] == other["label"]


def test_a_bad_row_stands_in_its_place(url: str) -> None:
    found = post(f"{url}/run", {"inputs": ["good", {"txt": "bad"}, "good"]})
    assert found.status_code == 200
    good, bad, again = found.json()["results"]
    assert good == again
    assert "the field 'text' is missing" in bad["error"]["message"]
    alone = post(f"{url}/run", {"inputs": {"txt": "bad"}})
    assert alone.status_code == 422
    assert alone.json()["error"]["type"] == "invalid_input"


def test_no_inputs_are_no_results(url: str) -> None:
    assert post(f"{url}/run", {"inputs": []}).json() == {"results": []}


def test_only_declared_options_are_taken(pipe: pk.Pipeline, url: str) -> None:
    body = {"inputs": "I love this.", "parameters": {"top_k": None}}
    assert post(f"{url}/run", body).json()["results"] == [pipe("I love this.", top_k=None)]
    for name in ("topk", "device", "checkpoint.path", "model.linear"):
        found = post(f"{url}/run", {"inputs": "a", "parameters": {name: 1}})
        assert found.status_code == 422
        assert "a request may set: top_k" in found.json()["error"]["message"]
    assert post(f"{url}/run", {"inputs": "a", "parameters": {"top_k": "x"}}).status_code == 422
    assert post(f"{url}/run", {"inputs": "a", "checkpoint": "/etc"}).status_code == 422


def test_health_and_readiness(url: str, pipe: pk.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may take as long as a request may wait: a server that is killed meanwhile would never answer."""
    assert get(f"{url}/ready").json() == {"status": "ready"}
    with running(pipe, deadline=200) as patient:
        for seconds, expected in ((1, (200, 200)), (100, (503, 200)), (300, (503, 503))):
            monkeypatch.setattr(Batcher, "stuck", seconds)
            assert tuple(get(f"{one}/health").status_code for one in (url, patient)) == expected
    assert get(f"{url}/health").json() == {"status": "stuck", "pipelines": ["default"]}


def test_a_trace(url: str) -> None:
    found = post(f"{url}/explain", {"inputs": "I love this."}).json()
    assert found["rows"][0]["result"]["label"] == "POSITIVE"
    assert post(f"{url}/explain", {"inputs": []}).status_code == 422
