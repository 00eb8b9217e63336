"""The Open Inference Protocol, by Triton's client and by bytes of our own, on a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from harness import checkpoint, pipeline_of
from serving import get, post, running
from tritonclient.utils import InferenceServerException

import pipeline_kit as pk

TEXTS = ["I love this.", "", "😀 שלום", "a " * 700]


@pytest.fixture(scope="module")
def pipes() -> dict[str, pk.Pipeline]:
    return {
        "sentiment": pk.load(),
        "embed": pipeline_of("sentence-embedding", checkpoint(head="base")),
        "rank": pipeline_of("text-ranking", checkpoint(labels=("0",))),
        "strict": pipeline_of(
            "text-classification",
            checkpoint(),
            function="sigmoid",
            thresholds=dict.fromkeys(("NEGATIVE", "POSITIVE"), 1.0),
        ),
    }


@pytest.fixture(scope="module")
def url(pipes: dict[str, pk.Pipeline]) -> Iterator[str]:
    with running(pipes) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


def tensor(values: Any, name: str = "text", *, binary: bool = True) -> triton.InferInput:
    array = np.array(values, dtype=np.object_)
    found = triton.InferInput(name, list(array.shape), "BYTES")
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def test_life_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("rank")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = client.get_model_metadata("embed")
    assert [one["name"] for one in found["inputs"]] == ["text", "prompt_name"]
    assert found["outputs"][1] == {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]}
    assert client.get_model_config("rank")["input"][1] == {
        "name": "documents",
        "data_type": "TYPE_STRING",
        "dims": [-1, -1],
    }


@pytest.mark.parametrize("binary", [True, False])
def test_results_are_those_of_the_pipeline(
    binary: bool, client: triton.InferenceServerClient, pipes: dict[str, pk.Pipeline]
) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("score", "label", "result")]
    found = client.infer("sentiment", [tensor(TEXTS, binary=binary)], outputs=wanted, request_id="7")
    offline = pipes["sentiment"](TEXTS)
    assert found.get_response()["id"] == "7"
    labels = [label.decode() if binary else label for label in found.as_numpy("label")]
    assert labels == [one["label"] for one in offline]
    np.testing.assert_allclose(found.as_numpy("score"), [one["score"] for one in offline], atol=1e-5)
    for text, one in zip(found.as_numpy("result"), offline, strict=True):
        assert json.loads(text).keys() == one.keys()


def test_vectors_come_as_one_matrix(client: triton.InferenceServerClient, pipes: dict[str, pk.Pipeline]) -> None:
    found = client.infer("embed", [tensor(TEXTS)]).as_numpy("embedding")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pipes["embed"].embed(TEXTS), atol=1e-5)
    column = client.infer("embed", [tensor([[text] for text in TEXTS])]).as_numpy("embedding")
    np.testing.assert_allclose(column, found, atol=1e-5)


def test_no_rows_are_no_results(client: triton.InferenceServerClient) -> None:
    found = client.infer("embed", [tensor(np.empty(0))])
    assert found.as_numpy("embedding").shape == (0, 0)
    assert found.as_numpy("result").shape == (0,)


@pytest.mark.parametrize("documents", [["one", "two", "three"], ["one"]])
def test_a_list_of_texts_is_a_second_dimension(
    documents: list[str], client: triton.InferenceServerClient, pipes: dict[str, pk.Pipeline]
) -> None:
    found = client.infer("rank", [tensor(["q"], "query"), tensor([documents], "documents")]).as_numpy("result")
    offline = pipes["rank"]({"query": "q", "documents": documents})
    assert [one["index"] for one in json.loads(found[0])["ranking"]] == [one["index"] for one in offline["ranking"]]


def test_options_of_the_task_and_no_others(client: triton.InferenceServerClient, pipes: dict[str, pk.Pipeline]) -> None:
    found = client.infer("sentiment", [tensor(["I love this."])], parameters={"top_k": 2, "of_no_effect": 1}, timeout=9)
    assert len(json.loads(found.as_numpy("result")[0])["labels"]) == 2
    with pytest.raises(InferenceServerException, match="top_k"):
        client.infer("sentiment", [tensor(["I love this."])], parameters={"top_k": "many"})


def test_a_result_without_a_value_has_no_tensor_of_it(client: triton.InferenceServerClient) -> None:
    found = client.infer("strict", [tensor(["I love this."] * 2)])
    assert found.as_numpy("label") is None
    assert found.as_numpy("result").shape == (2,)
    with pytest.raises(InferenceServerException, match="not every result has 'label'"):
        client.infer("strict", [tensor(["I love this."])], outputs=[triton.InferRequestedOutput("label")])


def test_errors_are_texts(client: triton.InferenceServerClient) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "there is no pipeline 'sentimant'. Did you mean 'sentiment'": lambda: client.infer(
            "sentimant", [tensor(["a"])]
        ),
        "there is no output 'lable'; there are: result, label, score": lambda: client.infer(
            "sentiment", [tensor(["a"])], outputs=[triton.InferRequestedOutput("lable")]
        ),
        "the field 'text' is missing": lambda: client.infer("sentiment", [tensor(["a"], "txt")]),
        "text has 1, text_pair has 2": lambda: client.infer(
            "sentiment", [tensor(["a"]), tensor(["a", "b"], "text_pair")]
        ),
        "is there twice": lambda: client.infer("sentiment", [tensor(["a"]), tensor(["a"])]),
    }
    for match, call in calls.items():
        with pytest.raises(InferenceServerException, match=match.replace("?", r"\?")) as caught:
            call()
        assert caught.value.status() in ("404", "422")


def _input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **changes}]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (_input(datatype="FP32", data=[1.0]), "datatype is FP32"),
        (_input(shape=[]), "shape is []"),
        (_input(shape=[-1]), "shape is [-1]"),
        (_input(shape=[10**12, 0], data=[]), "[N, K]"),
        (_input(shape=[2**62, 2**62]), "it has 1 texts"),
        (_input(shape=[2]), "it has 1 texts"),
        (_input(data=[1]), "not all texts"),
        (_input(data=[["a", ["b"]]]), "not all texts"),
        (_input(data=None), "it has 0 texts"),
        (_input(parameters={"binary_data_size": 5}), "0 bytes are left"),
        (_input(parameters={"binary_data_size": "x"}), "binary_data_size is x"),
        ({"inputs": []}, "there are none"),
        (_input() | {"outputs": [{"name": "score"}] * 2}, "asked for twice"),
    ],
)
def test_a_wrong_tensor(body: dict[str, Any], says: str, url: str) -> None:
    found = post(f"{url}/v2/models/sentiment/infer", body)
    assert found.status_code == 422
    assert says in found.json()["error"]


@pytest.mark.parametrize(
    ("tail", "length", "status"),
    [
        (b"\1\0\0\0a", None, 200),
        (b"\1\0\0\0a!", None, 422),
        (b"\2\0\0\0a", None, 422),
        (b"\xff\xff\xff\xffa", None, 422),
        (b"\1\0", None, 422),
        (b"\1\0\0\0\xff", None, 422),
        (b"\1\0\0\0a", "-1", 400),
        (b"\1\0\0\0a", "9" * 5000, 400),
        (b"\1\0\0\0a", "0" * 5000, 400),
        (b"\1\0\0\0a", "x", 400),
        (b"\1\0\0\0a", "3", 400),
    ],
)
def test_bytes_that_are_not_the_tensor(tail: bytes, length: str | None, status: int, url: str) -> None:
    sized = _input(data=None, parameters={"binary_data_size": len(tail)})
    head = json.dumps(sized).encode()
    header = {"Inference-Header-Content-Length": length or str(len(head))}
    found = post(f"{url}/v2/models/sentiment/infer", head + tail, **header)
    assert found.status_code == status
    assert status == 200 or isinstance(found.json()["error"], str)


def test_a_single_pipeline_answers_to_any_name() -> None:
    with running(pk.load()) as url:
        found = post(f"{url}/v2/models/anything/infer", _input()).json()
        assert found["model_name"] == "default"
        assert get(f"{url}/pipelines/default/v2/models/anything").json()["name"] == "default"
