"""The routes of Cohere's client: rerank, and embed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from pipeline_kit.errors import for_message
from pipeline_kit.serve.dialects.base import Call, Dialect, Loose, Route
from pipeline_kit.serve.dialects.openai import base64_of
from pipeline_kit.serve.refused import Refused


class CohereDocument(Loose):
    """A document that is more than its text."""

    text: str


class CohereRerankBody(Loose):
    """The body of ``/v1/rerank`` and ``/v2/rerank``."""

    query: str
    documents: list[str | CohereDocument]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None


class CohereEmbedBody(Loose):
    """The body of ``/v2/embed``; ``input_type`` and ``truncate`` have no effect."""

    texts: list[str]
    model: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: int | None = None


class Cohere(Dialect):
    """What ``cohere.Client`` and ``cohere.ClientV2`` send."""

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        needs: Any = {"body": CohereRerankBody, "fits": ("ranking",), "takes": ("query", "documents")}
        return (
            Route("/v1/rerank", rerank, **needs, summary="Sort documents by a query"),
            Route("/v2/rerank", rerank, **needs, summary="Sort documents by a query"),
            Route("/v2/embed", embed, CohereEmbedBody, fits=("embedding",), takes=("text",), summary="Embed texts"),
        )

    def error(self, refused: Refused) -> Any:
        """Return the message alone."""
        return {"message": refused.message}


async def rerank(call: Call) -> Any:
    """Answer with the documents' places and scores, best first."""
    body = call.body
    if body.top_n is not None and body.top_n < 1:
        raise Refused(422, f"'top_n' is {body.top_n}; it is 1 or more, or left out for all documents")
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    # All are ranked and cut here, so that requests with any top_n share batches.
    [found] = await call.results([{"query": body.query, "documents": texts}], {"top_k": None})
    results = [{"index": item["index"], "relevance_score": item["score"]} for item in found["ranking"][: body.top_n]]
    if body.return_documents:
        results = [{**item, "document": {"text": texts[item["index"]]}} for item in results]
    return {"id": str(uuid4()), "results": results, "meta": {"api_version": {"version": "2"}}}


async def embed(call: Call) -> Any:
    """Answer with a vector for each text, in each of the forms that are asked for."""
    body = call.body
    forms: dict[str, Callable[[list[float]], Any]] = {"float": list, "base64": base64_of}
    wanted = dict.fromkeys(body.embedding_types or ["float"])
    for name in wanted:
        if name not in forms:
            raise Refused(422, f"'{for_message(name, 40)}' is not an embedding type here: {', '.join(forms)}")
    options = {} if body.output_dimension is None else {"dimensions": body.output_dimension}
    vectors = [result["embedding"] for result in await call.results(body.texts, options)]
    return {
        "id": str(uuid4()),
        "embeddings": {name: [forms[name](vector) for vector in vectors] for name in wanted},
        "texts": body.texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": call.account.tokens}},
        "response_type": "embeddings_by_type",
    }
