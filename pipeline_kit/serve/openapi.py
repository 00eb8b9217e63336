"""The OpenAPI 3.1 document of a server, from its routes and its pipelines' tasks, and a page that shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import msgspec
from jinja2 import Environment, FileSystemLoader, Template

from pipeline_kit.contract.column_types import ColumnType
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.version import __version__
from pipeline_kit.serve.dialects.base import Call, Dialect, Reply, Route, load_dialects
from pipeline_kit.serve.refused import ERROR_TYPES, Refused
from pipeline_kit.serve.served import ServedPipeline

JsonSchema = dict[str, Any]

AT = "#/components/schemas/"
ALWAYS = (403, 404, 500, 503)
OF_BODIES = (400, 408, 413, 415, 422, 429, 504)
"""The statuses of errors that any route, and one that reads a body, may answer with."""

_SCALARS = {"string": "string", "int64": "integer", "float64": "number", "float32": "number", "bool": "boolean"}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null", list: "array"}


@cache
def _page() -> Template:
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("docs.html")


async def openapi(call: Call) -> JsonSchema:
    """Answer with the document: of all pipelines, or of the one in the path."""
    server, name = call.server, call.path.get("pipeline")
    pipelines = [call.pipeline] if name else list(server.served.values())
    dialects = load_dialects(server.registry)
    routes = [
        (dialect, route)
        for dialect, own in dialects.items()
        for route in own.routes()
        if any(route.misfit(pipeline) is None for pipeline in pipelines)
    ]
    sent = [route.shown or route.body for _, route in routes if route.body is not None]
    found, schemas = msgspec.json.schema_components(sent, ref_template=f"{AT}{{name}}")
    for schema in schemas.values():
        schema["description"] = schema.get("description", "").replace("``", "`")
    bodies, names = iter(found), list(server.served)
    paths: dict[str, JsonSchema] = {}
    for dialect, route in routes:
        body = next(bodies) if route.body is not None else None
        operation = _operation(dialect, route, body, names, locked=server.key is not None and not route.open)
        paths.setdefault(re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path), {}).setdefault(route.method.lower(), operation)
    example = {"$ref": f"{AT}TaskExample"}
    tasks: dict[str, JsonSchema] = {
        "TaskExample": {"anyOf": [one for pipeline in pipelines for one in _examples(pipeline)]},
        "TaskExamples": {"anyOf": [example, {"type": "array", "items": example}]},
        "TaskParameters": {"anyOf": [_parameters(one, server.registry) for one in pipelines]},
        "TaskResult": {"anyOf": [_result(one) for one in pipelines]},
    }
    listed = "; ".join(f"{one.name}: task={one.task}" for one in pipelines)
    below = "" if name else " Each route is below /pipelines/NAME/ too, for one of them."
    return {
        "openapi": "3.1.0",
        "info": {"title": "pipeline-kit", "version": __version__, "description": f"Pipelines: {listed}.{below}"},
        "servers": [{"url": f"/pipelines/{name}" if name else "/"}],
        "tags": [{"name": spec.name, "description": spec.summary} for spec in server.registry.specs("dialect")],
        "paths": paths,
        "components": {
            "schemas": {**schemas, **tasks, **_errors({name: dialects[name] for name, _ in routes})},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


async def docs(call: Call) -> Any:
    """Answer with the document as a page, which loads nothing."""
    policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Reply(_page().render(document=await openapi(call)).encode(), "text/html; charset=utf-8", policy)


def _operation(
    dialect: str, route: Route, body: JsonSchema | None, pipelines: Sequence[str], *, locked: bool
) -> JsonSchema:
    statuses = sorted({*ALWAYS, *(OF_BODIES if body is not None else ()), *((401,) if locked else ())})
    kind = route.answer.get("contentMediaType", "application/json")
    answer = {"content": {kind: {"schema": route.answer}}}
    refused = {"content": {"application/json": {"schema": {"$ref": f"{AT}{dialect}_error"}}}}
    operation: JsonSchema = {
        "tags": [dialect],
        "operationId": f"{dialect}_{route.method.lower()}{re.sub(r'[^a-z0-9]+', '_', route.path)}",
        "summary": route.summary,
        "security": [{"key": []}] if locked else [],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": pipelines}}
            for name in re.findall(r"\{(\w+)", route.path)
        ],
        "responses": {"200": {"description": "the answer", **answer}},
    }
    for status in statuses:
        # An open route answers what it is asked, whatever its status.
        content = answer if route.open and status == 503 else refused
        operation["responses"][str(status)] = {"description": ERROR_TYPES[status], **content}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _examples(pipeline: ServedPipeline) -> list[JsonSchema]:
    """Return what a task takes: an object with its fields, and the text alone where that is enough."""
    whole = _object(f"example of {pipeline.task}", {name: _field(name.removesuffix("?")) for name in pipeline.takes})
    return [{"type": "string"}, whole] if len(whole["required"]) < 2 else [whole]


def _field(name: str) -> JsonSchema:
    if name == "messages":
        return {"type": "array", "items": {"type": "object"}}
    return {"type": "array", "items": {"type": "string"}} if name.endswith("s") else {"type": "string"}


def _result(pipeline: ServedPipeline) -> JsonSchema:
    gives = pipeline.pipeline.recipe.gives
    return _object(f"result of {pipeline.task}", {name: _column(kind) for name, kind in gives.items()}, more=True)


def _object(title: str, properties: Mapping[str, JsonSchema], *, more: bool = False) -> JsonSchema:
    """Return an object's schema; a ``?`` stands behind the name of a property that may be left out."""
    return {
        "title": title,
        "type": "object",
        "properties": {name.removesuffix("?"): schema for name, schema in properties.items()},
        "required": [name for name in properties if not name.endswith("?")],
        "additionalProperties": more,
    }


def _column(kind: ColumnType | None) -> JsonSchema:
    """Return the schema of a column's values, of which any may be null."""
    if kind is None:
        return {}
    if isinstance(kind, str):
        return {"type": [_SCALARS[kind], "null"]}
    if "list" in kind:
        return {"type": ["array", "null"], "items": _column(kind["list"])}
    properties = {name: _column(inner) for name, inner in kind["struct"].items()}
    return {"type": ["object", "null"], "properties": properties}


def _parameters(pipeline: ServedPipeline, registry: Registry) -> JsonSchema:
    """Return the options that a request may set, with their types and limits."""
    found: dict[str, JsonSchema] = {}
    for name, path in pipeline.parameters.items():
        kind, *parents, last = path.split(".")
        if kind not in pipeline.pipeline.recipe.data:  # put together by hand: no option can be set
            continue
        schema: Any = registry.get(kind, pipeline.pipeline.recipe.data[kind]["name"]).config
        for parent in parents:
            schema = get_type_hints(schema)[parent]
        about = next(item for item in fields(schema) if item.name == last).metadata
        limits = {key: about[key] for key in ("minimum", "maximum") if about.get(key) is not None}
        described = {"description": about.get("help", "")}
        found[f"{name}?"] = {**msgspec.json.schema(get_type_hints(schema)[last]), **limits, **described}
    return _object(f"parameters of {pipeline.task}", found)


def _errors(dialects: Mapping[str, Dialect]) -> dict[str, JsonSchema]:
    """Return the form of each dialect's errors, read off what it makes of every status."""
    made = [Refused(status, "text", param=param) for status in ERROR_TYPES for param in (None, "$.inputs", "$.model")]
    return {
        f"{name}_error": _form([msgspec.to_builtins(own.error(one)) for one in made]) for name, own in dialects.items()
    }


def _form(values: Sequence[Any]) -> JsonSchema:
    if all(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {
            "type": "object",
            "properties": {name: _form([value[name] for value in values if name in value]) for name in names},
            "required": [name for name in names if all(name in value for value in values)],
        }
    return {"type": sorted({_TYPES[type(value)] for value in values})}
