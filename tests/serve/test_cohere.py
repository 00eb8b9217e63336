"""Cohere's client and vLLM's routes against the server, on a real socket."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import cohere
import httpx
import pytest
from harness import checkpoint, pipeline_of
from serving import post, running

import pipeline_kit as pk

QUERY = "a good film"
DOCUMENTS = ["I love this movie.", "", "😀 שלום", "It was dull. " * 60, "a film"]


@pytest.fixture(scope="module")
def pipes() -> Mapping[str, pk.Pipeline]:
    pair = checkpoint("bert", head="sequence-classification", labels=["relevance"])
    return {
        "ranks": pipeline_of("text-ranking", pair, top_k=2),
        "vectors": pipeline_of("sentence-embedding", checkpoint("bert", head="base")),
        "labels": pipeline_of("text-classification", checkpoint("bert", head="sequence-classification")),
    }


@pytest.fixture(scope="module")
def url(pipes: Mapping[str, pk.Pipeline]) -> Iterator[str]:
    with running(pipes) as url:
        yield url


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """The clients of cohere close none of their own."""
    with httpx.Client() as http:
        yield http


def ranked(pipe: pk.Pipeline, documents: list[str] = DOCUMENTS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pipe({"query": QUERY, "documents": documents}, top_k=None)["ranking"]
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_rerank(url: str, http: httpx.Client, pipes: Mapping[str, pk.Pipeline], version: int) -> None:
    """All documents come unless ``top_n`` says otherwise, whatever the pipeline's own ``top_k``."""
    client = (cohere.Client if version == 1 else cohere.ClientV2)(base_url=url, api_key="none", httpx_client=http)
    expected = ranked(pipes["ranks"])
    for top_n in (None, 1, 3, 99):
        found = client.rerank(model="ranks", query=QUERY, documents=DOCUMENTS, top_n=top_n)
        assert [item.index for item in found.results] == [item["index"] for item in expected[:top_n]]
        for item, other in zip(found.results, expected, strict=False):
            assert item.relevance_score == pytest.approx(other["score"], abs=1e-5)


def test_documents_that_are_objects(url: str, http: httpx.Client, pipes: Mapping[str, pk.Pipeline]) -> None:
    documents: list[Any] = [{"text": text} for text in DOCUMENTS]
    client = cohere.Client(base_url=url, api_key="none", httpx_client=http)
    found = client.rerank(model="ranks", query=QUERY, documents=documents, return_documents=True)
    for item, other in zip(found.results, ranked(pipes["ranks"]), strict=True):
        assert item.document is not None
        assert item.document.text == DOCUMENTS[other["index"]]


def test_null_is_absent(url: str) -> None:
    """As langchain-cohere sends it."""
    body = {"model": "ranks", "query": QUERY, "documents": ["a"], "top_n": None, "max_tokens_per_doc": None}
    assert post(f"{url}/v2/rerank", body).json()["results"][0]["index"] == 0


def test_embed(url: str, http: httpx.Client, pipes: Mapping[str, pk.Pipeline]) -> None:
    client = cohere.ClientV2(base_url=url, api_key="none", httpx_client=http)
    expected = [result["embedding"] for result in pipes["vectors"](DOCUMENTS)]
    found = client.embed(
        model="vectors", texts=DOCUMENTS, input_type="search_document", embedding_types=["float", "base64"]
    )
    assert found.embeddings.float_ is not None
    for vector, other in zip(found.embeddings.float_, expected, strict=True):
        assert vector == pytest.approx(other, abs=1e-5)
    assert found.embeddings.base64 is not None
    assert len(found.embeddings.base64) == len(DOCUMENTS)
    with pytest.raises(cohere.UnprocessableEntityError, match="'int8' is not an embedding type here: float, base64"):
        client.embed(model="vectors", texts=["a"], input_type="search_query", embedding_types=["int8"])


def test_a_form_that_is_named_twice_is_made_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body has room for a million names, and the event loop would make the form for each."""
    made: list[Any] = []
    monkeypatch.setattr("pipeline_kit.serve.dialects.cohere.base64_of", made.append)
    body = {"model": "vectors", "texts": ["a", "b"], "embedding_types": ["base64"] * 9}
    assert post(f"{url}/v2/embed", body).status_code == 200
    assert len(made) == 2


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        ({"top_n": 0}, 422, "'top_n' is 0"),
        ({"documents": []}, 422, "documents"),
        ({"query": ""}, 422, "query"),
        ({"documents": [{"body": "a"}]}, 422, "text"),
        ({"documents": None}, 422, "documents"),
        ({"model": "rank"}, 404, "Did you mean 'ranks'"),
        ({"model": "labels"}, 404, "needs results with 'ranking'.*/classify"),
        ({"documents": ["a"] * 1025}, 413, "max_inputs"),
    ],
)
def test_what_a_client_does_wrong(url: str, more: dict[str, Any], status: int, message: str) -> None:
    found = post(f"{url}/v2/rerank", {"model": "ranks", "query": QUERY, "documents": ["a"], **more})
    assert found.status_code == status
    assert re.search(message, found.json()["message"])


def test_classify(url: str, pipes: Mapping[str, pk.Pipeline]) -> None:
    """The probabilities come in the order of the checkpoint's labels."""
    pipe = pipes["labels"]
    found = post(f"{url}/classify", {"model": "labels", "input": DOCUMENTS}).json()
    for index, (item, result) in enumerate(zip(found["data"], pipe(DOCUMENTS, top_k=None), strict=True)):
        scores = {other["label"]: other["score"] for other in result["labels"]}
        assert item["probs"] == pytest.approx([scores[label] for label in pipe.labels], abs=1e-5)
        assert (item["index"], item["label"], item["num_classes"]) == (index, result["label"], len(pipe.labels))
    assert found["usage"]["prompt_tokens"] == sum(len(item.input_ids) for item in pipe.tokenizer.encode(DOCUMENTS))
    assert post(f"{url}/classify", {"model": "labels", "input": "a"}).json()["data"][0]["index"] == 0
    assert "token ids" in post(f"{url}/classify", {"model": "labels", "input": [1, 2]}).json()["error"]["message"]


def test_score(url: str, pipes: Mapping[str, pk.Pipeline]) -> None:
    expected = {item["index"]: item["score"] for item in ranked(pipes["ranks"])}
    one = post(f"{url}/score", {"model": "ranks", "text_1": QUERY, "text_2": DOCUMENTS}).json()["data"]
    assert [item["score"] for item in one] == pytest.approx([expected[i] for i in range(5)], abs=1e-5)
    pairs = {"model": "ranks", "text_1": [QUERY] * 5, "text_2": DOCUMENTS}
    each = post(f"{url}/score", pairs).json()["data"]
    assert [item["index"] for item in each] == [0, 1, 2, 3, 4]
    assert [item["score"] for item in each] == pytest.approx([item["score"] for item in one], abs=1e-5)
    wrong = post(f"{url}/score", {"model": "ranks", "text_1": ["a", "b"], "text_2": ["c"]})
    assert wrong.status_code == 422
    assert "'text_1' has 2 texts, 'text_2' 1" in wrong.json()["error"]["message"]
