"""A page on which people try the pipelines; it asks ``/explain`` and shows what ``explain --html`` writes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup

from pipeline_kit.contract.options import choices_of, list_options
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import RegistryError
from pipeline_kit.explain.html import assets, environment, inline
from pipeline_kit.serve.dialects.base import Call, Dialect, Reply, Route
from pipeline_kit.serve.served import ServedPipeline

_TEMPLATES = Path(__file__).parent.parent / "templates"


class Playground(Dialect):
    """``/playground``; like any route it needs the API key, which a browser asks for and sends with each request."""

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        return (Route("/playground", playground, method="GET", summary="A page to try the pipelines on"),)


async def playground(call: Call) -> Reply:
    """Answer with the page. It holds what the server knows of its pipelines, and asks no other host for anything."""
    registry = call.server.registry
    facts = {
        "pipelines": {name: _facts(served, registry) for name, served in call.server.served.items()},
        "first": call.pipeline.name,
        "key": call.server.key is not None,
    }
    # Nothing in it may end the script that it stands in.
    data = msgspec.json.encode(facts).decode().replace("<", "\\u003c")
    explained = assets()
    style, style_hash = inline(_TEMPLATES / "playground.css")
    script, script_hash = inline(_TEMPLATES / "playground.js")
    views = [(spec.name, spec.summary) for spec in registry.specs("view")]
    page = environment(_TEMPLATES).get_template("playground.html")
    text = page.render(facts=Markup(data), views=views, explained=explained, style=style, script=script)  # noqa: S704
    policy = (
        f"default-src 'none'; style-src '{explained['style_hash']}' '{style_hash}'; "
        f"script-src '{explained['script_hash']}' '{script_hash}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-store"}
    return Reply(text.encode(), "text/html; charset=utf-8", headers)


def _facts(served: ServedPipeline, registry: Registry) -> dict[str, Any]:
    """Return what the page has to know of a pipeline; its config is without secrets."""
    recipe, words = served.pipeline.recipe, []
    with suppress(RegistryError):  # a pipeline that was put together by hand
        words = shlex.split(registry.get("task", served.task).detail.run)
    example = words[-1] if words[-2:-1] in (["--text"], ["--json"]) else ""
    return {
        "task": served.task,
        "takes": served.takes,
        "example": msgspec.json.decode(example) if "--json" in words else example or "I love this.",
        "parameters": list(_parameters(served, registry)),
        "config": served.pipeline.config,
        "plugins": recipe.plugins,
    }


def _parameters(served: ServedPipeline, registry: Registry) -> Iterator[dict[str, Any]]:
    """Yield what a request may set: its option, the type and the value that the pipeline has."""
    for name, path in served.parameters.items():
        kind, _, option = path.partition(".")
        node: Any = served.pipeline.config.get(kind, {})
        schema = registry.get(kind, node["name"]).config if "name" in node else None
        known = {info.name: info for info in list_options(schema)} if schema else {}
        for key in option.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        info = known.get(option)
        yield {
            "name": name,
            "path": path,
            "value": node,
            "type": info.type if info else "",
            "help": info.help if info else "",
            "choices": choices_of(schema, option) if schema else [],
        }
