"""The server's own routes: every task, explained, and what keeps a server running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipeline_kit.contract.types import Example
from pipeline_kit.errors import PipelineKitError, RowFailure, UsageError
from pipeline_kit.explain.html import to_html
from pipeline_kit.explain.trace import Trace
from pipeline_kit.files.json_text import json_line
from pipeline_kit.serve.dialects.base import Call, Dialect, Reply, Route, Strict
from pipeline_kit.serve.metrics import CONTENT_TYPE_LATEST
from pipeline_kit.serve.openapi import AT, docs, openapi
from pipeline_kit.serve.refused import Refused
from pipeline_kit.serve.served import ServedPipeline

MOST_EXPLAINED = 64
MOST_NUMBERS = 20_000
"""How many examples are explained at a time, and how many numbers of an array are sent."""

STUCK = 60.0
"""Seconds without progress after which ``/health`` fails, while something waits; ``serve.deadline`` if that is more."""

_Inputs = str | dict[str, Any] | list[str | dict[str, Any]]
Inputs = Annotated[_Inputs, Meta(extra_json_schema={"$ref": f"{AT}TaskExamples"})]
Parameters = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": f"{AT}TaskParameters"})]
RESULTS = {
    "type": "object",
    "properties": {
        "results": {
            "type": "array",
            "items": {"anyOf": [{"$ref": f"{AT}TaskResult"}, {"type": "object", "required": ["error"]}]},
        }
    },
    "required": ["results"],
}
STATUS = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}


class RunBody(Strict):
    """The body of ``/run``: one example or several, and options of the task for all of them."""

    inputs: Inputs
    parameters: Parameters | None = None
    model: str | None = None


class OtherPipeline(Strict):
    """The pipeline that a trace is compared with; left out, it is the same one, with other options."""

    model: str | None = None
    parameters: dict[str, Any] | None = None


class ExplainBody(RunBody):
    """The body of ``/explain``: besides that of ``/run``, what is computed for it alone, and its form."""

    attentions: bool = False
    views: list[str] = msgspec.field(default_factory=list)
    compare: OtherPipeline | None = None
    format: Literal["json", "html"] = "json"


class Native(Dialect):
    """``/run`` and ``/explain`` for any task, and the server's health, metrics and documents."""

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        document = {"type": "object", "required": ["openapi"]}
        text, page = ({"type": "string", "contentMediaType": kind} for kind in ("text/plain", "text/html"))
        return (
            Route("/run", run, RunBody, summary="Run the pipeline on one example or several", answer=RESULTS),
            Route("/explain", explain, ExplainBody, summary="Show what happens inside the pipeline, stage by stage"),
            Route("/health", health, method="GET", summary="Whether it makes progress", answer=STATUS, open=True),
            Route("/ready", ready, method="GET", summary="Whether requests are taken", answer=STATUS, open=True),
            Route("/metrics", metrics, method="GET", summary="Counters in Prometheus' text format", answer=text),
            Route("/openapi.json", openapi, method="GET", summary="This document", answer=document),
            Route("/docs", docs, method="GET", summary="This document as a page", answer=page),
        )


async def run(call: Call) -> Any:
    """Answer with a result for each example, in order; a row that failed is an error in its place."""
    inputs = call.body.inputs
    several = isinstance(inputs, list)
    outcomes = await call.outcomes(inputs if several else [inputs], call.body.parameters)
    if not several:
        return {"results": [call.pipeline.result_of(0, outcomes[0], 1)]}
    return {"results": [_failure(found) if isinstance(found, RowFailure) else found for found in outcomes]}


def _failure(failure: RowFailure) -> dict[str, Any]:
    return {"error": {"message": failure.message, "type": failure.error, "stage": failure.stage}}


async def explain(call: Call) -> Any:
    """Answer with the trace of the examples, or with two, as ``pipeline-kit explain`` writes it: JSON or a page."""
    body = call.body
    examples: list[Example] = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    if not 0 < len(examples) <= MOST_EXPLAINED:
        raise Refused(422, f"{len(examples)} examples: explain takes 1 to {MOST_EXPLAINED}", param="$.inputs")
    sides = [(call.pipeline, body.parameters)]
    if (other := body.compare) is not None:
        sides.append((call.server.named(other.model) if other.model else call.pipeline, other.parameters))
    for served, given in sides:
        served.check_count(call.account, examples, given or {})
    try:
        traces = [await _trace(call, served, examples, given or {}) for served, given in sides]
        # Drawn where the model runs: it would hold up the event loop.
        names = [", ".join([own.name, *(f"{k}={v}" for k, v in (given or {}).items())])[:80] for own, given in sides]
        return Reply(*await call.pipeline.alone(call.account, lambda _: _drawn(traces, names, body.format)))
    except PipelineKitError as error:
        raise Refused(422, str(error)) from None


async def _trace(call: Call, served: ServedPipeline, examples: list[Example], parameters: Mapping[str, Any]) -> Any:
    _, pipeline = await served.variant(parameters)
    options = {"attentions": call.body.attentions, "views": _views(call, call.body.views)}
    return await served.alone(call.account, lambda _: pipeline.explain(examples, **options))


def _drawn(traces: Sequence[Any], names: Sequence[str], form: str) -> tuple[bytes, str]:
    """Return traces as a body with its type."""
    if form == "json":
        found = [trace.to_dict(most=MOST_NUMBERS) for trace in traces]
        pair = found[0] if len(found) == 1 else {"first": found[0], "other": found[1]}
        return json_line(pair).encode(), "application/json"
    if not all(isinstance(trace, Trace) for trace in traces):
        raise UsageError("a pipeline with steps is not drawn as a page; ask for the format json")
    return to_html(*traces, names=names).encode(), "text/html; charset=utf-8"


def _views(call: Call, names: Sequence[str]) -> dict[str, Any]:
    """Build the views of plugins that a request names, with their defaults."""
    known = {spec.name: spec for spec in call.server.registry.specs("view")}
    for name in names:
        if name not in known:
            raise Refused(
                422, f"there is no view '{name[:60]}'; there are: {', '.join(known) or 'none'}", param="$.views"
            )
    return {name: known[name].load()(known[name].config()) for name in names}


async def health(call: Call) -> Any:
    """Answer 200 while the threads of all pipelines live and make progress."""
    limit = max(STUCK, call.server.config.deadline)
    stuck = [name for name, served in call.server.served.items() if served.batcher.stuck > limit]
    body = {"status": "stuck" if stuck else "ok", **({"pipelines": stuck} if stuck else {})}
    return Reply(msgspec.json.encode(body), status=503 if stuck else 200)


async def ready(call: Call) -> Any:
    """Answer 200 once each pipeline has run a batch, until the server is about to end."""
    state = "draining" if call.server.draining else "ready" if call.server.ready else "starting"
    return Reply(msgspec.json.encode({"status": state}), status=200 if call.server.ready else 503)


async def metrics(call: Call) -> Any:
    """Answer with all counters."""
    return Reply(call.server.exposition(), CONTENT_TYPE_LATEST)
