"""What ``huggingface_hub.InferenceClient(model=URL)`` sends: every task at one address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline_kit.contract.types import Example, Result
from pipeline_kit.errors import for_message
from pipeline_kit.serve.dialects.base import Call, Dialect, Loose, Reply, Route
from pipeline_kit.serve.dialects.tei import ComparedSentences, cosines, labels_of, options_of
from pipeline_kit.serve.refused import Refused
from pipeline_kit.serve.served import ServedPipeline

OUR_NAMES = {
    "aggregation_strategy": "aggregation",
    "function_to_apply": "function",
    "return_full_text": "full_text",
    "stop": "stop_strings",
}
"""Options of ours by the names that clients have for them, where those differ."""

DRAWN = {"temperature", "top_k", "top_p", "min_p"}
"""Options that have an effect on drawing alone."""

TEXT_KEYS = {"summarization": "summary_text", "translation": "translation_text"}


class InferenceBody(Loose):
    """A text, an object with the task's fields, or several; options in `parameters`, for vectors beside them."""

    inputs: str | dict[str, Any] | list[str | dict[str, Any]]
    parameters: dict[str, Any] | None = None
    stream: bool | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    prompt_name: str | None = None


class InferenceRoute(Route):
    """A route that fits every task whose results have one of the forms below."""

    def misfit(self, pipeline: ServedPipeline) -> str | None:
        """See :class:`Route`."""
        if any(key in pipeline.gives for key in FORMS):
            return None
        have = ", ".join(pipeline.gives) or "nothing that is known"
        return f"POST / needs results with one of {', '.join(FORMS)}, those of task={pipeline.task} have {have}"


class HuggingFace(Dialect):
    """``POST /`` for every task; a client's URL may be ``/pipelines/NAME`` too."""

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        summary = "Run the pipeline as Hugging Face's inference endpoints do"
        return (InferenceRoute("/", answer, InferenceBody, summary=summary),)

    def error(self, refused: Refused) -> dict[str, str]:
        """See :class:`Dialect`; the types are those that the client makes exceptions of."""
        kind = "overloaded" if refused.status in (429, 503) else "validation" if refused.status < 500 else "generation"
        return {"error": refused.message, "error_type": kind}


def _entities(result: Result, task: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    key = "entity" if options.get("aggregation") == "none" else "entity_group"
    return [
        {key: one["label"], "score": one["score"], "word": one["text"], "start": one["start"], "end": one["end"]}
        for one in result["entities"]
    ]


def _masks(result: Result, task: str, options: Mapping[str, Any]) -> list[Any]:
    masks = [
        [
            {"score": one["score"], "token": one["id"], "token_str": one["token"], "sequence": one["text"]}
            for one in mask
        ]
        for mask in result["masks"]
    ]
    return masks[0] if len(masks) == 1 else masks


def _answers(result: Result, task: str, options: Mapping[str, Any]) -> Any:
    keys = ("answer", "score", "start", "end")
    if (options.get("top_k") or 1) > 1:
        return [{key: one[key] for key in keys} for one in result.get("answers", [result])]
    return {key: result[key] for key in keys}


def _text(result: Result, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    found = {TEXT_KEYS.get(task, "generated_text"): result["text"]}
    if "finish_reason" not in result:
        return found
    reason = _reason(result["finish_reason"], options)
    counted = {"finish_reason": reason, "generated_tokens": result["tokens"], "prefill": (), "tokens": ()}
    return {**found, "details": counted}


def _reason(found: str, options: Mapping[str, Any]) -> str:
    """Return how a text ended in the words of text-generation-inference; with stop strings, by one of them."""
    return found if found == "length" else "stop_sequence" if options.get("stop_strings") else "eos_token"


Shape = Callable[[Result, str, Mapping[str, Any]], Any]
FORMS: Mapping[str, tuple[Shape, bool]] = {
    "entities": (_entities, False),
    "masks": (_masks, False),
    "answer": (_answers, False),
    "embedding": (lambda result, task, options: result["embedding"], True),
    "vectors": (lambda result, task, options: result["vectors"], True),
    "label": (lambda result, task, options: labels_of(result), True),
    "text": (_text, True),
}
"""By a key of the results: how one is answered, and whether that is in a list where one input was sent."""


async def answer(call: Call) -> Any:
    """Answer in the form of the pipeline's results."""
    body, served = call.body, call.pipeline
    key = next(key for key in FORMS if key in served.gives)
    sent = _sent(body, key)
    several, zero_shot = isinstance(body.inputs, list), "labels?" in served.takes
    inputs = body.inputs if several else [body.inputs]
    if key == "embedding" and isinstance(body.inputs, dict) and "source_sentence" in body.inputs:
        return await cosines(call, _compared(body.inputs), options_of(call, sent))
    if key == "text":
        _check_languages(call, sent)
    if zero_shot and (labels := sent.get("candidate_labels")) is not None:
        inputs = [{**({"text": one} if isinstance(one, str) else one), "labels": labels} for one in inputs]
    greedy = key == "text" and sent.get("do_sample") is False  # the config's options of drawing would be refused then
    options = options_of(call, sent, **dict.fromkeys(DRAWN if greedy else ("top_k",) if key == "label" else ()))
    shown = {**served.pipeline.config.get("postprocessor", {}), **options}
    if body.stream:
        if several or not served.writes:
            what = "one text at a time is streamed" if several else f"task={served.task} writes no text piece by piece"
            raise Refused(422, f"{what}; leave 'stream' out", param="$.stream")
        return Reply(_events(call, inputs[0], options, shown), "text/event-stream")
    shape, listed = FORMS[key]
    found = [shape(result, served.task, shown) for result in await call.results(inputs, options)]
    return found if several or (listed and not zero_shot) else found[0]


def _sent(body: InferenceBody, key: str) -> dict[str, Any]:
    """Return what the client set, by our names."""
    given: dict[str, Any] = {name: getattr(body, name) for name in ("normalize", "dimensions", "prompt_name")}
    given |= body.parameters or {}
    more: Any = given.pop("generate_parameters", None) or {}
    if not isinstance(more, dict):
        raise Refused(422, "generate_parameters is an object with options", param="$.parameters.generate_parameters")
    # LangChain sends [] where there is nothing to stop at.
    found = {
        OUR_NAMES.get(n, n): value
        for n, value in (given | more).items()
        if value is not None and (n, value) != ("stop", [])
    }
    drawn = DRAWN & found.keys() if key == "text" else ()
    if drawn and found.setdefault("do_sample", True) is False:
        return {name: value for name, value in found.items() if name not in drawn}
    return found


def _compared(inputs: dict[str, Any]) -> ComparedSentences:
    try:
        return msgspec.convert(inputs, ComparedSentences)
    except msgspec.ValidationError as error:
        raise Refused(422, for_message(str(error), 300), param="$.inputs") from None


def _check_languages(call: Call, sent: Mapping[str, Any]) -> None:
    """Raise Refused for other languages than the pipeline's, since the text would be in the wrong one."""
    own = call.pipeline.pipeline.config.get("task", {})
    for name in ("src_lang", "tgt_lang"):
        asked = sent.get(name)
        if asked is not None and asked != own.get(name):
            have = f"task.{name}={own.get(name) or 'null'}"
            hint = "serve a pipeline for each pair of languages, and name it in the URL: /pipelines/NAME"
            raise Refused(
                422, f"'{for_message(str(asked), 60)}' is not {have} of this pipeline; {hint}", param="$.parameters"
            )


async def _events(
    call: Call, example: Example, options: Mapping[str, Any], shown: Mapping[str, Any]
) -> AsyncIterator[bytes]:
    """Yield an event for each piece of text, and a last one with the whole."""
    text, index = "", 0
    async for piece in call.pieces(example, options):
        text, index = text + piece, index + 1
        yield _event(index, piece)
    details = None
    if shown.get("details"):
        reason, account = _reason("length" if call.account.unfinished else "stop", shown), call.account
        details = {"finish_reason": reason, "generated_tokens": account.written, "input_length": account.tokens}
    yield _event(index + 1, "", special=True, generated_text=text, details=details)


def _event(index: int, text: str, special: bool = False, **last: Any) -> bytes:
    # A piece may be several tokens, or a part of one, so it has no id.
    token = {"id": None, "logprob": None, "special": special, "text": text}
    event = {"index": index, "token": token, "generated_text": None, "details": None, **last}
    return b"data:" + msgspec.json.encode(event) + b"\n\n"
