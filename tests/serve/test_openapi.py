"""The OpenAPI document and its page: what is in them, and that the server does what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fake_plugins import TASK
from harness import checkpoint, pipeline_of
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serving import get, post, running

import pipeline_kit as pk


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> pk.Pipeline:
    """A task of a plugin."""
    plugin = tmp_path_factory.mktemp("plugin") / "moods.py"
    plugin.write_text(TASK, encoding="utf-8")
    return pk.load("task=mood-detection", f"checkpoint.path={checkpoint()}", "device=cpu", plugins=[str(plugin)])


@pytest.fixture(scope="module")
def url(mood: pk.Pipeline) -> Iterator[str]:
    rank = pipeline_of("text-ranking", checkpoint(labels=("0",)))
    with running({"mood": mood, "rank": rank}, api_key="hunter22") as url:
        yield url


KEY = {"Authorization": "Bearer hunter22"}


def test_a_plugins_task_is_in_it(url: str) -> None:
    found = get(f"{url}/pipelines/mood/openapi.json", **KEY).json()
    schemas = found["components"]["schemas"]
    assert found["servers"] == [{"url": "/pipelines/mood"}]
    [text, example] = schemas["TaskExample"]["anyOf"]
    assert text == {"type": "string"}
    assert example["properties"] == {"text": {"type": "string"}, "tone": {"type": "string"}}
    assert example["required"] == ["text"]
    [result] = schemas["TaskResult"]["anyOf"]
    assert result["properties"]["mood"] == {"type": ["string", "null"]}
    assert result["properties"]["moods"]["items"]["properties"]["points"] == {"type": ["number", "null"]}
    [parameters] = schemas["TaskParameters"]["anyOf"]
    assert parameters["properties"] == {"loud": {"type": "boolean", "description": "in capitals"}}
    assert parameters["additionalProperties"] is False


def test_several_pipelines_are_alternatives(url: str) -> None:
    found = get(f"{url}/openapi.json", **KEY).json()
    assert "mood: task=mood-detection; rank: task=text-ranking" in found["info"]["description"]
    titles = [one.get("title") for one in found["components"]["schemas"]["TaskResult"]["anyOf"]]
    assert titles == ["result of mood-detection", "result of text-ranking"]


def test_the_key_is_in_it_and_needed(url: str) -> None:
    assert get(f"{url}/openapi.json").status_code == 401
    paths = get(f"{url}/openapi.json", **KEY).json()["paths"]
    assert paths["/run"]["post"]["security"] == [{"key": []}]
    assert "401" in paths["/run"]["post"]["responses"]
    assert paths["/health"]["get"]["security"] == []
    assert get(f"{url}/health").status_code == 200


def test_every_error_has_the_form_it_is_documented_with(url: str) -> None:
    schemas = get(f"{url}/openapi.json", **KEY).json()["components"]["schemas"]
    assert schemas["open_inference_error"]["properties"] == {"error": {"type": ["string"]}}
    properties = schemas["native_error"]["properties"]["error"]["properties"]
    assert properties["param"] == {"type": ["null", "string"]}
    assert post(f"{url}/run", b"{", **KEY).json()["error"].keys() == properties.keys()


def test_every_reference_leads_somewhere_and_names_are_unique(url: str) -> None:
    found = get(f"{url}/openapi.json", **KEY).json()
    names = set(re.findall(r'"\$ref": "#/components/schemas/(.*?)"', json.dumps(found)))
    assert names <= found["components"]["schemas"].keys()
    operations = [one["operationId"] for path in found["paths"].values() for one in path.values()]
    assert len(operations) == len(set(operations))


def test_the_page_has_every_route_and_loads_nothing(url: str) -> None:
    page = get(f"{url}/docs", **KEY)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    document = get(f"{url}/openapi.json", **KEY).json()
    for path, methods in document["paths"].items():
        assert f"<code>{path}</code>" in page.text
        assert all(f'id="{one["operationId"]}"' in page.text for one in methods.values())
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    assert re.findall(r"""(?:src|href)=["'](?!#|data:,|openapi\.json)""", page.text) == []
    assert not re.search(r"@import|url\(|https?://|<script", page.text)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("name", ["mood", "rank"])
def test_the_server_does_what_the_document_says(name: str, mode: GenerationMode, url: str) -> None:
    document = get(f"{url}/pipelines/{name}/openapi.json", **KEY).json()
    checks: list[Any] = [not_a_server_error, status_code_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue

        @settings(max_examples=6, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def test(case: Any) -> None:
            case.call_and_validate(base_url=f"{url}/pipelines/{name}", headers=KEY, checks=checks, timeout=60)

        test()
