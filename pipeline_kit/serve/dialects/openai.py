"""The routes of OpenAI's clients: embeddings, completions, chat, and the list of models."""

from __future__ import annotations

import asyncio
import struct
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import product
from typing import Any
from uuid import uuid4

import msgspec

from pipeline_kit.contract.types import Example
from pipeline_kit.errors import for_message
from pipeline_kit.serve.dialects.base import Call, Dialect, Loose, Reply, Route
from pipeline_kit.serve.refused import Refused

MOST_CHOICES = 16
"""How many texts a request may ask for with ``n``."""

WRITES = ("text", "tokens", "finish_reason")
IDLE: tuple[Any, ...] = (None, False, 0, "", [], {}, {"type": "text"})
"""Values that ask for nothing, of fields that cannot be followed."""


class EmbeddingsBody(Loose):
    """The body of ``/v1/embeddings``; token ids are decoded so that they can be refused with a hint."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


class Writing(Loose):
    """How a text is written. What is typed Any here cannot be followed, and is refused where it asks for something."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    logprobs: Any = None
    logit_bias: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None


class CompletionsBody(Writing, kw_only=True):
    """The body of ``/v1/completions``."""

    prompt: str | list[str | int | list[int]]
    echo: Any = None
    suffix: Any = None


class Part(Loose):
    """A part of a message."""

    type: str
    text: str = ""


class Message(Loose):
    """A message of a conversation."""

    role: str
    content: str | list[Part] | None = None


class ChatBody(Writing, kw_only=True):
    """The body of ``/v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: Any = None
    functions: Any = None
    response_format: Any = None


class OpenAI(Dialect):
    """What the client ``openai`` sends, and all that can be pointed at an OpenAI URL."""

    def __init__(self) -> None:
        self.created = int(time.time())

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        return (
            Route("/v1/embeddings", embeddings, EmbeddingsBody, fits=("embedding",), takes=("text",), summary="Embed"),
            Route("/v1/completions", completions, CompletionsBody, fits=WRITES, takes=("text",), summary="Write on"),
            Route(
                "/v1/chat/completions",
                chat_completions,
                ChatBody,
                fits=WRITES,
                takes=("messages",),
                summary="Answer a chat",
            ),
            Route("/v1/models", self.models, method="GET", summary="List the pipelines"),
            Route("/v1/models/{model}", self.model, method="GET", summary="Whether a pipeline is there"),
        )

    def error(self, refused: Refused) -> Any:
        """Leave out the place where it is one of the native body, not of OpenAI's."""
        body = super().error(refused)
        if (refused.param or "").startswith(("$.inputs", "$.parameters")):
            body["error"]["param"] = None
        return body

    def pipeline_name(self, body: Any, path: Mapping[str, str]) -> str | None:
        """Return the model that is asked for, by the body or the path."""
        return path.get("model") or super().pipeline_name(body, path)

    async def models(self, call: Call) -> Any:
        """Answer with the names of all pipelines."""
        return {"object": "list", "data": [self._model(name) for name in call.server.served]}

    async def model(self, call: Call) -> Any:
        """Answer with one of them."""
        return self._model(call.pipeline.name)

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "pipeline-kit"}


def texts_of_input(value: str | Sequence[Any], name: str) -> list[str]:
    """Return the texts of a field that may hold one or several.

    :raises Refused: 422 if it holds token ids.
    """
    texts = [value] if isinstance(value, str) else list(value)
    if all(isinstance(text, str) for text in texts):
        return texts
    raise Refused(
        422,
        f"'{name}' has token ids, which belong to the vocabulary of another model; send texts. In LangChain: "
        "OpenAIEmbeddings(check_embedding_ctx_length=False)",
        param=name,
    )


async def embeddings(call: Call) -> Any:
    """Answer with a vector for each text, as floats or as base64 of little-endian float32."""
    body, form = call.body, call.body.encoding_format or "float"
    if form not in ("float", "base64"):
        raise Refused(422, f"'{for_message(form, 40)}' is not an encoding: float or base64", param="encoding_format")
    options = {} if body.dimensions is None else {"dimensions": body.dimensions}
    found = [result["embedding"] for result in await call.results(texts_of_input(body.input, "input"), options)]
    vectors = found if form == "float" else map(base64_of, found)
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": call.pipeline.name, "usage": usage(call)}


def base64_of(vector: Sequence[float]) -> str:
    """Return base64 of little-endian float32, the form that OpenAI's client asks for."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def completions(call: Call) -> Any:
    """Answer with what is written behind each prompt."""
    return await answered(call, texts_of_input(call.body.prompt, "prompt"), call.body.max_tokens, chat=False)


async def chat_completions(call: Call) -> Any:
    """Answer with the next message of a conversation."""
    body = call.body
    messages = [message_of(message, f"messages[{place}]") for place, message in enumerate(body.messages)]
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return await answered(call, [{"messages": messages}], most, chat=True)


def message_of(message: Message, where: str) -> dict[str, Any]:
    """Return a message with its texts joined, a line each.

    :raises Refused: 422 for a part that is not text.
    """
    content = message.content
    if not isinstance(content, list):
        return {"role": message.role} if content is None else {"role": message.role, "content": content}
    for place, part in enumerate(content):
        if part.type != "text":
            kind = for_message(part.type, 40)
            raise Refused(422, f"{where}.content[{place}] is of type '{kind}'; only text can be read", param=where)
    return {"role": message.role, "content": "\n".join(part.text for part in content)}


def options_of(body: Any, most: int | None) -> list[dict[str, Any]]:
    """Return the options of each of the ``n`` texts; what a request leaves open is as the pipeline's config has it.

    :raises Refused: 422 for what cannot be followed.
    """
    for field in msgspec.structs.fields(body):
        if field.type is Any and getattr(body, field.name) not in IDLE:
            raise Refused(422, f"'{field.name}' cannot be followed here; leave it out", param=field.name)
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MOST_CHOICES:
        raise Refused(422, f"'n' is {count}; it is 1 to {MOST_CHOICES}", param="n")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or None
    given: dict[str, Any] = {"max_new_tokens": most, "seed": body.seed, "stop_strings": stops}
    greedy = body.temperature == 0 or body.top_p == 0
    if not greedy and (body.temperature is not None or body.top_p not in (None, 1)):
        given |= {"do_sample": True, "temperature": body.temperature, "top_p": body.top_p}
    options = {name: value for name, value in given.items() if value is not None}
    if greedy:  # what the pipeline's config has of drawing would be refused without it
        options |= {"do_sample": False, **dict.fromkeys(("temperature", "top_k", "top_p", "min_p"))}
    # Equal seeds draw equal texts.
    return [options] if count == 1 else [{**options, "seed": (body.seed or 0) + i} for i in range(count)]


async def answered(call: Call, examples: Sequence[Example], most: int | None, *, chat: bool) -> Any:
    """Answer with ``n`` texts for each example, whole or as they are written."""
    asked = options_of(call.body, most)
    name = "chat.completion" if chat else "text_completion"
    head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}", "created": int(time.time())}
    head |= {"object": f"{name}.chunk" if chat and call.body.stream else name, "model": call.pipeline.name}
    if call.body.stream:
        call.pipeline.check_limit(len(examples))
        return Reply(events(call, head, examples, asked, chat=chat), "text/event-stream")
    tasks = [asyncio.create_task(call.results(examples, {**options, "details": True})) for options in asked]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # where one was refused, nobody waits for the others
            task.cancel()
    choices: list[Any] = []
    for result in (several[place] for place in range(len(examples)) for several in found):
        message = {"role": "assistant", "content": result["text"], "refusal": None}
        content = {"message": message} if chat else {"text": result["text"]}
        choices.append(choice(len(choices), result["finish_reason"], content))
    written = sum(result["tokens"] for several in found for result in several)
    return {**head, "choices": choices, "usage": usage(call, len(asked), written)}


def choice(index: int, reason: str | None, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a text, or a piece of one, as one of the ``choices``."""
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def usage(call: Call, times: int = 1, written: int = 0) -> dict[str, int]:
    """Count tokens; a prompt counts once, however many `times` it was read."""
    prompt = call.account.tokens // times
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


async def events(
    call: Call, head: Mapping[str, Any], examples: Sequence[Example], asked: Sequence[Mapping[str, Any]], *, chat: bool
) -> AsyncIterator[bytes]:
    """Yield the texts one after another, each in pieces; the first event comes with the first piece."""

    def event(choices: Sequence[Any], **more: Any) -> bytes:
        return b"data: " + msgspec.json.encode({**head, "choices": choices, **more}) + b"\n\n"

    for index, (example, options) in enumerate(product(examples, asked)):
        role = {"role": "assistant"}
        async for piece in call.pieces(example, options):
            yield event([choice(index, None, {"delta": {**role, "content": piece}} if chat else {"text": piece})])
            role = {}
        reason = "length" if call.account.unfinished else "stop"
        yield event([choice(index, reason, {"delta": role} if chat else {"text": ""})])
    if (call.body.stream_options or {}).get("include_usage"):
        yield event([], usage=usage(call, len(asked), call.account.written))
    yield b"data: [DONE]\n\n"
