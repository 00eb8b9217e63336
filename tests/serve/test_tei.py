"""The routes of text-embeddings-inference, on a real socket, with the requests that its clients send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import transformers
from harness import checkpoint, pipeline_of
from huggingface_hub import InferenceClient
from serving import get, post, running

import pipeline_kit as pk

TEXT = "Sarah 😀 lives in London. שלום"
LONG = "It was a long day. " * 40

# Recorded from llama-index-embeddings-text-embeddings-inference 0.6.0 and llama-index-postprocessor-tei-rerank 0.6.0.
LLAMA_INDEX = {
    "get_text_embedding": ("/embed", b'{"inputs":["hi"],"truncate":true}'),
    "get_text_embedding_batch": ("/embed", b'{"inputs":["a","b"],"truncate":true}'),
    "postprocess_nodes": ("/rerank", b'{"query":"q","texts":["x","y","z"]}'),
}


@pytest.fixture(scope="module")
def pipes() -> Mapping[str, pk.Pipeline]:
    classifier = checkpoint(labels=("a", "b", "c"))
    nli = checkpoint(labels=("contradiction", "neutral", "entailment"))
    return {
        "sentences": pipeline_of("sentence-embedding", checkpoint(head="base")),
        "long": pipeline_of("sentence-embedding", checkpoint(head="base"), normalize=False),
        "tokens": pipeline_of("feature-extraction", checkpoint(head="base")),
        "classes": pipeline_of("text-classification", classifier),
        "zero-shot": pipeline_of("zero-shot-classification", nli, labels=["film", "book"]),
        "ranking": pipeline_of("text-ranking", checkpoint(labels=("LABEL_0",)), top_k=2),
        "windows": pipeline_of("text-classification", classifier, {"overflow": "window", "max_length": 16}),
        "text": pipeline_of("text-generation", checkpoint("gpt2", head="causal-lm")),
    }


@pytest.fixture(scope="module")
def url(pipes: Mapping[str, pk.Pipeline]) -> Iterator[str]:
    with running(pipes, max_inputs=64) as url:
        yield url


def ask(url: str, name: str, route: str, body: Any) -> Any:
    found = post(f"{url}/pipelines/{name}{route}", body)
    assert found.status_code == 200, found.text
    return found.json()


def results(pipe: pk.Pipeline, example: Any, **options: Any) -> Any:
    """Run the pipeline offline, with options of its postprocessor."""
    return pipe.with_options({f"postprocessor.{name}": value for name, value in options.items()})(example)


def near(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_embed(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    pipe = pipes["sentences"]
    near(post(f"{url}/embed", {"inputs": TEXT}).json(), [results(pipe, TEXT)["embedding"]])
    texts = [TEXT, "a", LONG]
    near(ask(url, "sentences", "/embed", {"inputs": texts}), [one["embedding"] for one in results(pipe, texts)])
    body = {"inputs": texts, "normalize": False, "dimensions": 8, "truncate": None, "prompt_name": None, "new": 1}
    wanted = [one["embedding"] for one in results(pipe, texts, normalize=False, dimensions=8)]
    near(ask(url, "sentences", "/embed", body), wanted)
    assert ask(url, "sentences", "/embed", {"inputs": []}) == []


def test_embed_all(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    found = ask(url, "tokens", "/embed_all", {"inputs": [TEXT, "a"]})
    for one, wanted in zip(found, results(pipes["tokens"], [TEXT, "a"]), strict=True):
        near(one, wanted["vectors"])


def test_similarity(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    inputs = {"source_sentence": TEXT, "sentences": ["a", TEXT]}
    found = ask(url, "sentences", "/similarity", {"inputs": inputs, "parameters": {"truncate": True}})
    source, *others = (np.array(one["embedding"]) for one in results(pipes["sentences"], [TEXT, "a", TEXT]))
    near(found, [source @ one for one in others])
    near(ask(url, "long", "/similarity", {"inputs": inputs}), found)


def test_predict(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    pair = {"text": TEXT, "text_pair": "b"}
    single, double = results(pipes["classes"], [TEXT, pair], top_k=None)
    for inputs, wanted in ((TEXT, single), ([TEXT], single), ([TEXT, "b"], double)):
        assert_labels(ask(url, "classes", "/predict", {"inputs": inputs}), wanted)
    for found, wanted in zip(
        ask(url, "classes", "/predict", {"inputs": [[TEXT], [TEXT, "b"]]}), (single, double), strict=True
    ):
        assert_labels(found, wanted)
    raw = ask(url, "classes", "/predict", {"inputs": TEXT, "raw_scores": True})
    assert_labels(raw, results(pipes["classes"], TEXT, top_k=None, function="none"))
    assert_labels(ask(url, "zero-shot", "/predict", {"inputs": TEXT}), results(pipes["zero-shot"], TEXT))
    assert ask(url, "classes", "/predict", {"inputs": []}) == []


def assert_labels(found: Any, wanted: Any) -> None:
    assert [one["label"] for one in found] == [one["label"] for one in wanted["labels"]]
    near([one["score"] for one in found], [one["score"] for one in wanted["labels"]])


def test_rerank_lists_all_texts(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    texts = ["x", TEXT, "", "y"]
    example = {"query": "Who?", "documents": texts}
    for raw, options in ((None, {}), (True, {"function": "none"})):
        found = ask(
            url, "ranking", "/rerank", {"query": "Who?", "texts": texts, "raw_scores": raw, "return_text": True}
        )
        wanted = results(pipes["ranking"], example, top_k=None, **options)["ranking"]
        assert [one["index"] for one in found] == [one["index"] for one in wanted]
        near([one["score"] for one in found], [one["score"] for one in wanted])
        assert all(one["text"] == texts[one["index"]] for one in found)


def test_tokens_are_those_of_transformers(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    for name in ("classes", "text"):
        reference = transformers.AutoTokenizer.from_pretrained(pipes[name].description["checkpoint"]["path"])
        wanted = reference(TEXT, return_offsets_mapping=True, return_special_tokens_mask=True)
        [found] = ask(url, name, "/tokenize", {"inputs": TEXT})
        assert [one["id"] for one in found] == wanted["input_ids"]
        assert [one["special"] for one in found] == [bool(one) for one in wanted["special_tokens_mask"]]
        places = [
            place
            for place, special in zip(wanted["offset_mapping"], wanted["special_tokens_mask"], strict=True)
            if not special
        ]
        texts = [one for one in found if not one["special"]]
        assert [(one["start"], one["stop"]) for one in texts] == places
        assert [one["text"] for one in texts] == [TEXT[start:stop] for start, stop in places]
        assert ask(url, name, "/tokenize", {"inputs": ["a", TEXT], "add_special_tokens": False})[1] == texts
    assert [one["text"] for one in ask(url, "classes", "/tokenize", {"inputs": ["a"]})[0]] == ["[CLS]", "a", "[SEP]"]


def test_tokens_are_cut_as_the_pipeline_cuts(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    [cut] = ask(url, "classes", "/tokenize", {"inputs": LONG})
    [windows] = ask(url, "windows", "/tokenize", {"inputs": LONG})
    assert len(cut) == pipes["classes"].description["tokenizer"]["max_length"]
    assert max(one["stop"] or 0 for one in windows) == len(LONG.rstrip())


def test_info(pipes: Mapping[str, pk.Pipeline], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"{url}/pipelines/classes", provider="hf-inference")
    assert client.health_check()
    found = client.get_endpoint_info()
    assert found["model_type"]["classifier"]["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert found["max_client_batch_size"] == 64
    assert found["max_input_length"] == pipes["classes"].description["tokenizer"]["max_length"]
    assert "/" not in found["model_id"]
    kinds = {name: get(f"{url}/pipelines/{name}/info").json()["model_type"] for name in pipes}
    assert [*kinds["sentences"], *kinds["ranking"], *kinds["text"]] == ["embedding", "reranker", "text-generation"]


def test_what_llama_index_sends(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    """One text goes as a list too, and a ranking has to list every text."""
    for name, texts in (("get_text_embedding", ["hi"]), ("get_text_embedding_batch", ["a", "b"])):
        route, body = LLAMA_INDEX[name]
        near(ask(url, "sentences", route, body), [one["embedding"] for one in pipes["sentences"](texts)])
    route, body = LLAMA_INDEX["postprocess_nodes"]
    found = ask(url, "ranking", route, body)
    assert sorted(one["index"] for one in found) == [0, 1, 2]
    assert found == sorted(found, key=lambda one: -one["score"])


@pytest.mark.parametrize(
    ("name", "route", "status", "body", "message"),
    [
        ("sentences", "/embed", 400, b"", "the body is empty"),
        ("sentences", "/embed", 422, {"inputs": [[1, 2]]}, "Expected `str`, got `array`"),
        ("sentences", "/embed", 422, {"inputs": "a", "prompt_name": "none"}, "prompt_name"),
        ("sentences", "/embed", 422, {"inputs": "a", "dimensions": 0}, "dimensions"),
        ("sentences", "/embed", 413, {"inputs": ["a"] * 65}, "65 inputs are more than serve.max_inputs=64"),
        ("sentences", "/tokenize", 413, {"inputs": ["a"] * 65}, "65 inputs"),
        ("sentences", "/similarity", 422, {"inputs": {"source_sentence": "a"}}, "missing required field `sentences`"),
        ("classes", "/predict", 422, {"inputs": ["a", "b", "c"]}, "for several texts send [[text], [text]]"),
        ("classes", "/predict", 422, {"inputs": [["a"], "b"]}, "for several texts send [[text], [text]]"),
        ("classes", "/predict", 422, {"inputs": [["a"], []]}, "a pair [text, text]"),
        ("classes", "/embed", 404, {"inputs": "a"}, "routes that fit: /"),
        ("tokens", "/embed", 404, {"inputs": "a"}, "/embed_all"),
        ("ranking", "/rerank", 422, {"query": "a", "texts": []}, "documents"),
        ("ranking", "/rerank", 422, {"query": "", "texts": ["a"]}, "query"),
        ("ranking", "/rerank", 413, {"query": "a", "texts": ["a"] * 65}, "65 inputs"),
    ],
)
def test_bad_bodies(url: str, name: str, route: str, status: int, body: Any, message: str) -> None:
    found = post(f"{url}/pipelines/{name}{route}", body)
    assert found.status_code == status
    assert found.json()["error_type"] == "Validation"
    assert message in found.json()["error"]
