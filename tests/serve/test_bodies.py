"""Whatever is sent to whichever route: a documented status, and never the server's fault.

The routes are those of every dialect that there is; their bodies are made from the OpenAPI document.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from harness import checkpoint, pipeline_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_kit.runtime.config import ServeConfig
from pipeline_kit.serve.app import ServeApp
from pipeline_kit.serve.state import ServerState

HEADS: dict[str, dict[str, Any]] = {
    "text-classification": {},
    "zero-shot-classification": {"labels": ("contradiction", "neutral", "entailment")},
    "token-classification": {"head": "token-classification", "labels": ("O", "B-PER", "I-PER")},
    "question-answering": {"head": "question-answering"},
    "fill-mask": {"head": "masked-lm"},
    "multiple-choice": {"head": "multiple-choice"},
    "text-ranking": {"labels": ("0",)},
    "sentence-embedding": {"head": "base"},
    "feature-extraction": {"head": "base"},
    "text-generation": {"architecture": "gpt2", "head": "causal-lm"},
    "summarization": {"architecture": "t5", "head": "seq2seq-lm"},
}
OPTIONS: dict[str, dict[str, Any]] = {"zero-shot-classification": {"labels": ["sport", "politics"]}}
MOST_BYTES, MOST_INPUTS = 20_000, 8


@dataclass
class Operation:
    """A route of a pipeline as the document has it, and bodies that it takes: the least, and one with all there is."""

    pipeline: str
    route: str
    method: str
    statuses: set[int]
    least: Any = None
    body: Any = None

    @property
    def path(self) -> str:
        """Where it is asked."""
        return f"/pipelines/{self.pipeline}{self.route.replace('{model}', self.pipeline)}"


@dataclass
class Server:
    """A server in this process."""

    runner: asyncio.Runner
    client: httpx.AsyncClient
    operations: list[Operation]

    def send(self, operation: Operation, content: Any = b"", **headers: str) -> httpx.Response:
        """Send a body, and check what no answer may be."""
        url = operation.path
        request = self.client.request(operation.method, url, content=content, headers=headers, timeout=120)
        found = self.runner.run(request)
        shown = content[:300] if isinstance(content, bytes) else "a stream"
        assert found.status_code in operation.statuses, (url, shown, found.status_code, found.text[:300])
        assert found.status_code < 500, (url, shown, found.status_code, found.text[:300])
        return found


def sample(schema: dict[str, Any], schemas: dict[str, Any], *, whole: bool) -> Any:
    """Return a value that a schema allows.

    :param whole: with all that may be there, not only what has to be.
    """
    if "$ref" in schema:
        return sample(schemas[schema["$ref"].rpartition("/")[2]], schemas, whole=whole)
    for one in schema.get("anyOf", ()):
        return sample(one, schemas, whole=whole)
    for one in (*schema.get("examples", ()), *schema.get("enum", ())):
        return one
    kind = schema.get("type", "string")
    if kind == "object":
        chosen = schema.get("properties", {}) if whole else schema.get("required", ())
        return {name: sample(schema["properties"][name], schemas, whole=whole) for name in chosen}
    if kind == "array":
        count = 2 if schema.get("items") == {"type": "string"} else 1
        return [sample(schema["items"], schemas, whole=whole)] * count if "items" in schema else []
    return {"string": "I love [MASK].", "integer": 1, "number": 0.5, "boolean": False, "null": None}[kind]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pipes = {task: pipeline_of(task, checkpoint(**options), **OPTIONS.get(task, {})) for task, options in HEADS.items()}
    config = ServeConfig(log="none", max_body_bytes=MOST_BYTES, max_inputs=MOST_INPUTS)
    app = ServeApp(ServerState(pipes, config), check_host=False)
    asgi = app.asgi()
    transport, life = httpx.ASGITransport(asgi), asgi.router.lifespan_context(asgi)
    with asyncio.Runner() as runner:
        runner.run(life.__aenter__())
        client = httpx.AsyncClient(transport=transport, base_url="http://server")
        operations = []
        for name in pipes:
            document = runner.run(client.get(f"/pipelines/{name}/openapi.json")).json()
            schemas = document["components"]["schemas"]
            for path, methods in document["paths"].items():
                for method, one in methods.items():
                    operation = Operation(name, path, method, set(map(int, one["responses"])))
                    if "requestBody" in one:
                        schema = one["requestBody"]["content"]["application/json"]["schema"]
                        operation.least, operation.body = (
                            sample(schema, schemas, whole=whole) for whole in (False, True)
                        )
                    operations.append(operation)
        yield Server(runner, client, operations)
        runner.run(client.aclose())
        runner.run(life.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def taking(server: Server) -> list[Operation]:
    """The routes that read a body."""
    found = [one for one in server.operations if one.body is not None]
    assert {one.route for one in found} >= {"/run", "/explain", "/v2/models/{model}/infer"}
    return found


JUNK: dict[str, tuple[bytes, int]] = {
    "not JSON": (b"{", 400),
    "a word": (b"nothing", 400),
    "not UTF-8": (b'{"inputs": "\xff\xfe"}', 400),
    "nothing": (b"", 400),
    "lone surrogate": (rb'{"inputs": "\ud800"}', 400),
    "more than JSON": (b'{"inputs": "a"} x', 400),
    "a number too large": (b'{"inputs": ' + b"9" * 5000 + b"}", 400),
    "null": (b"null", 422),
    "a list": (b"[]", 422),
    "a text": (b'"a"', 422),
    "a number": (b"1e999", 422),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_refused(name: str, server: Server, taking: list[Operation]) -> None:
    content, wanted = JUNK[name]
    for operation in taking:
        assert server.send(operation, content).status_code in {wanted, 400, 422}


@pytest.mark.parametrize("opening", [b"[", b'{"inputs":', b'{"inputs":['])
def test_deep_nesting_is_refused(opening: bytes, server: Server, taking: list[Operation]) -> None:
    for operation in taking:
        assert server.send(operation, opening * (MOST_BYTES // len(opening))).status_code in (400, 422)


def test_too_large_is_413(server: Server, taking: list[Operation]) -> None:
    async def dripped() -> AsyncIterator[bytes]:
        for _ in range(MOST_BYTES // 1000 + 2):
            yield b" " * 1000

    for operation in taking:
        assert server.send(operation, b" " * (MOST_BYTES + 1)).status_code == 413
        assert server.send(operation, dripped()).status_code == 413


ONE = {"query": "q", "documents": ["d"] * (MOST_INPUTS + 1)}
NAMES = [f"label {number}" for number in range(MOST_INPUTS + 1)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("zero-shot-classification/run", {"inputs": {"text": "a", "labels": ", ".join(NAMES)}}),
        ("zero-shot-classification/run", {"inputs": "a", "parameters": {"labels": NAMES}}),
        ("zero-shot-classification/explain", {"inputs": "a", "compare": {"parameters": {"labels": NAMES}}}),
        ("text-ranking/explain", {"inputs": ONE}),
        ("text-generation/v1/completions", {"prompt": NAMES, "stream": True}),
    ],
)
def test_more_inputs_than_allowed_are_413(server: Server, path: str, body: Any) -> None:
    """However they are sent: what a request asks of the model is bounded."""
    found = server.runner.run(server.client.post(f"/pipelines/{path}", json=body))
    assert (found.status_code, "serve.max_inputs=8" in found.text) == (413, True), found.text


@pytest.mark.parametrize("below", ["", "/pipelines/text-ranking"])
def test_unknown_routes_and_methods_are_errors_as_any(server: Server, below: str) -> None:
    for method, path, status, said in (
        ("POST", "/rerunk", 404, "Did you mean /rerank?"),
        ("GET", "/run", 405, "/run does not take GET"),
    ):
        found = server.runner.run(server.client.request(method, below + path))
        assert found.status_code == status
        assert said in found.json()["error"]["message"]
        assert found.headers["x-request-id"]


def test_compressed_bodies_are_415(server: Server, taking: list[Operation]) -> None:
    for operation in taking:
        body = gzip.compress(json.dumps(operation.body).encode())
        assert server.send(operation, body, **{"Content-Encoding": "gzip"}).status_code == 415


WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1e308, "", "\0", "😀" * 40, "x" * 5000, [], {}, [None], [{}]),
    *([""], ["a"] * (MOST_INPUTS + 1), [["a", "b"]], [[["a"]]], [1, 2, 3], {"text": 1}),
)


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (key,)
        yield from ((key, *rest) for rest in places(inner))


def changed(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a body with something else in a place."""
    body = deepcopy(body)
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return body


def test_every_field_with_every_wrong_value(server: Server, taking: list[Operation]) -> None:
    sent = set()
    for operation in taking:
        for place in places(operation.body):
            for value in WRONG:
                content = json.dumps(changed(operation.body, place, value)).encode()
                # The same body to the same route of another pipeline is sent in the fuzz.
                if (operation.route, content) not in sent and len(content) <= MOST_BYTES:
                    sent.add((operation.route, content))
                    server.send(operation, content)
    assert len(sent) > 500


def test_the_least_body_of_the_document_is_answered(server: Server, taking: list[Operation]) -> None:
    """So what is changed in it below reaches the stages, and more than the decoding is tested."""
    failed = {}
    for operation in taking:
        found = server.send(operation, json.dumps(operation.least).encode())
        if operation.route in ("/run", "/explain") and found.status_code != 200:
            failed[operation.path] = found.text
    assert failed == {}


def test_routes_without_a_body_answer(server: Server) -> None:
    for operation in server.operations:
        if operation.body is None:
            server.send(operation)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(WRONG)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def send_changed(server: Server, taking: list[Operation], data: st.DataObject) -> None:
    """Send four bodies with something in them changed."""
    for operation in data.draw(st.lists(st.sampled_from(taking), min_size=4, max_size=4)):
        body = data.draw(st.sampled_from([operation.least, operation.body]))
        for _ in range(data.draw(st.integers(1, 3))):
            if found := [*places(body)]:
                body = changed(body, data.draw(st.sampled_from(found)), data.draw(values))
        content = json.dumps(body).encode()
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(content)))
            content = content[:at] + data.draw(st.binary(max_size=4)) + content[at:]
        headers = data.draw(st.sampled_from([{}, {"Inference-Header-Content-Length": str(len(content) // 2)}]))
        server.send(operation, content, **headers)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_fuzz_of_600_bodies(server: Server, taking: list[Operation], data: st.DataObject) -> None:
    send_changed(server, taking, data)


@pytest.mark.storm
@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_fuzz_of_2000_bodies(server: Server, taking: list[Operation], data: st.DataObject) -> None:
    send_changed(server, taking, data)
