"""What a dialect is: routes with the bodies that its clients send, and the form of its errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import for_message
from pipeline_kit.serve.refused import Refused
from pipeline_kit.serve.served import Account, ServedPipeline
from pipeline_kit.serve.state import ServerState

if TYPE_CHECKING:
    from pipeline_kit.contract.types import Example, Result
    from pipeline_kit.runtime.stage_runner import Outcome


class Loose(msgspec.Struct, kw_only=True):
    """The body of a compatible route: keys that are not fields are ignored, as clients send many."""


class Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a native route: a key that is not a field is refused."""


@dataclass(frozen=True)
class Reply:
    """An answer that is not JSON, or has headers of its own.

    :param content: bytes, or a stream of them.
    """

    content: bytes | AsyncIterator[bytes]
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass
class Call:
    """A request on its way: the pipeline that answers it, its body, and what a handler may ask for.

    :param body: of the route's type; None for a route without one.
    :param headers: by name in small letters.
    :param path: what stands in the places of the route's path, such as ``{name}``.
    :param server: with all its pipelines.
    :param account: what the log and the metrics say of the request.
    """

    pipeline: ServedPipeline
    body: Any
    headers: Mapping[str, str]
    path: Mapping[str, str]
    server: ServerState
    account: Account

    async def outcomes(self, examples: Sequence[Example], options: Mapping[str, Any] | None = None) -> list[Outcome]:
        """Run on examples; a row that fails is a failure in its place.

        :param options: options of the call by name, each one that the task declares in `parameters`; a value None is
            one that the client left out.
        :raises Refused: if there are too many inputs or too much waits, or an option is not allowed or wrong.
        """
        return await self.pipeline.run(self.account, examples, options or {})

    async def results(self, examples: Sequence[Example], options: Mapping[str, Any] | None = None) -> list[Result]:
        """Run on examples and return their results.

        :raises Refused: as :meth:`outcomes`, and with 422 if a row fails.
        """
        found = await self.outcomes(examples, options)
        return [self.pipeline.result_of(place, outcome, len(found)) for place, outcome in enumerate(found)]

    def pieces(self, example: Example, options: Mapping[str, Any] | None = None) -> AsyncIterator[str]:
        """Yield the text that a generating pipeline writes for an example, as it is written.

        :raises Refused: before the first piece, if it cannot.
        """
        return self.pipeline.stream(self.account, example, options or {})


Handler = Callable[[Call], Awaitable[Any]]
"""Answers a call: with what JSON can hold, with a msgspec Struct, or with a :class:`Reply`."""


@dataclass(frozen=True)
class Route:
    """One route of a dialect.

    :param handler: answers it.
    :param body: the type that msgspec decodes the body to; None: the route reads none. ``bytes``: as it came.
    :param shown: the body's type in the OpenAPI document, where `body` is ``bytes``.
    :param fits: the keys that a result of the pipeline's task has, where the route needs some.
    :param head: the head that the task needs, where the route needs one.
    :param takes: the fields of an example that the task has to take.
    :param summary: one line for the OpenAPI document.
    :param answer: what it answers, as a JSON schema; ``contentMediaType`` in it if that is not JSON.
    :param open: whether it answers without an API key, and while the server ends or is not ready.
    """

    path: str
    handler: Handler
    body: Any = None
    shown: Any = None
    method: str = "POST"
    fits: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    head: str | None = None
    summary: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)
    open: bool = False

    def misfit(self, pipeline: ServedPipeline) -> str | None:
        """Return why this route does not fit a pipeline; None if it does."""
        lacks = [key for key in self.fits if key not in pipeline.gives]
        if lacks:
            have = ", ".join(pipeline.gives) or "nothing that is known"
            return f"{self.path} needs results with '{lacks[0]}', those of task={pipeline.task} have {have}"
        fields = [name.removesuffix("?") for name in pipeline.takes]
        missing = [name for name in self.takes if name not in fields]
        if missing:
            return f"{self.path} needs a task that takes '{missing[0]}', task={pipeline.task} takes {', '.join(fields)}"
        if self.head is not None and pipeline.head != self.head:
            return f"{self.path} needs a task with the head {self.head}, task={pipeline.task} has {pipeline.head}"
        return None


class Dialect(ABC):
    """Routes for one kind of client; one instance serves all pipelines.

    A dialect is registered as any stage is: ``registry.add("dialect", "mine", "my_module:MyDialect")``.
    """

    @abstractmethod
    def routes(self) -> Sequence[Route]:
        """Return its routes. Each exists below ``/`` and below ``/pipelines/NAME/``."""

    def error(self, refused: Refused) -> Any:
        """Return the body of an error, as its clients expect it; the default is OpenAI's form."""
        code, kind = refused.status, refused.type
        return {"error": {"message": refused.message, "type": kind, "code": code, "param": refused.param}}

    def pipeline_name(self, body: Any, path: Mapping[str, str]) -> str | None:
        """Return which pipeline a request asks for; None: the first. The default is the field ``model`` of its body."""
        return getattr(body, "model", None)


def load_dialects(registry: Registry) -> dict[str, Dialect]:
    """Build every dialect that is registered, by name."""
    return {spec.name: spec.load(Dialect)() for spec in registry.specs("dialect")}


def decoded(route: Route, data: bytes) -> Any:
    """Decode a body.

    :raises Refused: 400 if it is not JSON, 422 if it is not what the route takes; with the place.
    """
    if route.body is bytes:
        return data
    if not data:
        raise Refused(400, "the body is empty; send JSON")
    try:
        return msgspec.json.decode(data, type=route.body)
    except msgspec.ValidationError as error:
        place = str(error).partition(" - at ")[2]  # in the message too, since few forms of errors have it
        raise Refused(422, for_message(str(error), 300), param=place.strip("`") or None) from None
    except msgspec.DecodeError as error:
        raise Refused(400, f"the body is not JSON: {for_message(str(error), 300)}") from None
    except (RecursionError, UnicodeDecodeError, ValueError) as error:
        raise Refused(400, f"the body cannot be read: {for_message(str(error), 300)}") from None
