"""The routes of text-embeddings-inference: vectors, similarities, labels, rankings, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline_kit.contract.types import Encoding, Example, Result
from pipeline_kit.contract.version import __version__
from pipeline_kit.errors import PipelineKitError
from pipeline_kit.explain.describe import FullEncoder
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.serve.dialects.base import Call, Dialect, Loose, Route
from pipeline_kit.serve.refused import Refused


class TextsBody(Loose):
    """A text or several. Options that are left out are as the pipeline has them."""

    inputs: str | list[str]
    normalize: bool | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    add_special_tokens: bool | None = None


class ComparedSentences(Loose):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityBody(Loose):
    """The body of ``/similarity``; of its parameters ``prompt_name`` has an effect."""

    inputs: ComparedSentences
    parameters: dict[str, Any] | None = None


class PredictBody(Loose):
    """A text, a pair ``[text, text]``, or a list whose items are ``[text]`` or ``[text, text]``."""

    inputs: str | list[str | list[str]]
    raw_scores: bool | None = None


class TextsRerankBody(Loose):
    """A query, and the texts that may answer it."""

    query: str
    texts: list[str]
    raw_scores: bool | None = None
    return_text: bool | None = None


class Tei(Dialect):
    """What clients of text-embeddings-inference ask for; ``/health`` is a native route."""

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        return (
            Route("/embed", embed, TextsBody, fits=("embedding",), summary="One vector for each text"),
            Route("/embed_all", embed_all, TextsBody, fits=("vectors",), summary="One vector for each token"),
            Route("/similarity", similarity, SimilarityBody, fits=("embedding",), summary="Cosines with a sentence"),
            Route("/predict", predict, PredictBody, fits=("label", "score"), summary="All labels, best first"),
            Route("/rerank", rerank, TextsRerankBody, fits=("ranking",), summary="Texts, those that answer best first"),
            Route("/tokenize", tokenize, TextsBody, summary="The tokens that the model sees of each text"),
            Route("/info", info, method="GET", summary="The checkpoint and the limits"),
        )

    def error(self, refused: Refused) -> dict[str, str]:
        """See :class:`Dialect`."""
        kind = "Overloaded" if refused.status in (429, 503) else "Validation" if refused.status < 500 else "Backend"
        return {"error": refused.message, "error_type": kind}


def options_of(call: Call, sent: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return the options of a call: what the client sent, without null, as far as a request may set it."""
    found = defaults | {name: value for name, value in sent.items() if value is not None}
    return {name: value for name, value in found.items() if name in call.pipeline.parameters}


def labels_of(result: Result) -> list[dict[str, Any]]:
    """Return the labels of a result, best first; none where none reached its threshold."""
    listed: list[dict[str, Any]] = result.get("labels") or [result]
    return [{"label": found["label"], "score": found["score"]} for found in listed if found["label"] is not None]


async def cosines(call: Call, compared: ComparedSentences, options: Mapping[str, Any]) -> list[float]:
    """Return the cosine of the first sentence's vector and that of each other one, -1 to 1; 0 for a vector of zeros."""
    if not compared.sentences:
        return []
    results = await call.results([compared.source_sentence, *compared.sentences], options)
    vectors = np.asarray([found["embedding"] for found in results], dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths, lengths, 1)
    return [float(value) for value in vectors[1:] @ vectors[0]]


async def embed(call: Call) -> list[list[float]]:
    """Answer with a vector for each text; a single text too has a list of one."""
    return [found["embedding"] for found in await _vectors(call)]


async def embed_all(call: Call) -> list[list[list[float]]]:
    """Answer with the vectors of each text's tokens."""
    return [found["vectors"] for found in await _vectors(call)]


async def _vectors(call: Call) -> list[Result]:
    sent = {name: getattr(call.body, name) for name in ("normalize", "dimensions", "prompt_name")}
    return await call.results(_texts(call.body), options_of(call, sent))


def _texts(body: TextsBody) -> list[str]:
    return [body.inputs] if isinstance(body.inputs, str) else body.inputs


async def similarity(call: Call) -> list[float]:
    """Answer with the cosine of each sentence."""
    prompt = (call.body.parameters or {}).get("prompt_name")
    return await cosines(call, call.body.inputs, options_of(call, {"prompt_name": prompt}))


async def predict(call: Call) -> list[Any]:
    """Answer with the labels of a text or pair, or with a list of those of each."""
    inputs = call.body.inputs
    several = isinstance(inputs, list) and not any(isinstance(one, str) for one in inputs)
    rows = inputs if several else [inputs]
    examples = [_sequence(row, f"$.inputs[{place}]" if several else "$.inputs") for place, row in enumerate(rows)]
    labels = [labels_of(found) for found in await call.results(examples, _scored(call))]
    return labels if several else labels[0]


def _sequence(row: Any, place: str) -> Example:
    match row:
        case str(text) | [str(text)]:
            return text
        case [str(text), str(pair)]:
            return {"text": text, "text_pair": pair}
    message = "inputs are a text, a pair [text, text], or a list whose items are [text] or [text, text]"
    raise Refused(422, f"{message}; for several texts send [[text], [text]]", param=place)


def _scored(call: Call) -> dict[str, Any]:
    return options_of(call, {"function": "none" if call.body.raw_scores else None}, top_k=None)


async def rerank(call: Call) -> list[dict[str, Any]]:
    """Answer with all texts, best first."""
    texts, shown = call.body.texts, call.body.return_text
    [found] = await call.results([{"query": call.body.query, "documents": texts}], _scored(call))
    return [{**one, "text": texts[one["index"]]} if shown else one for one in found["ranking"]]


async def tokenize(call: Call) -> list[list[dict[str, Any]]]:
    """Answer with the tokens of each text as the pipeline cuts it; windows of a long text follow each other."""
    texts, special = _texts(call.body), call.body.add_special_tokens is not False
    call.pipeline.check_count(call.account, texts)
    try:
        encodings = await call.pipeline.alone(call.account, partial(_encoded, texts))
    except PipelineKitError as error:
        raise Refused(422, str(error), param="$.inputs") from None
    found: list[list[dict[str, Any]]] = [[] for _ in texts]
    for place, tokens in encodings:
        found[place] += [token for token in tokens if special or not token["special"]]
        call.account.tokens += len(tokens)
    return found


def _encoded(texts: Sequence[str], pipeline: Pipeline) -> list[tuple[int, list[dict[str, Any]]]]:
    """Return for each encoding the place of its text and its tokens."""
    tokenizer = pipeline.tokenizer
    with pipeline.locks.tokenizer:
        found = (tokenizer.encode_fully if isinstance(tokenizer, FullEncoder) else tokenizer.encode)(texts)

    def token(encoding: Encoding, place: int) -> dict[str, Any]:
        number, special = int(encoding.input_ids[place]), bool((encoding.special_tokens_mask or {place: 0})[place])
        if encoding.offsets is None or special:
            name = encoding.tokens[place] if encoding.tokens else tokenizer.decode([number])
            return {"id": number, "text": name, "special": special, "start": None, "stop": None}
        start, stop = map(int, encoding.offsets[place])
        text = texts[encoding.example][start:stop]
        return {"id": number, "text": text, "special": special, "start": start, "stop": stop}

    return [(one.example, [token(one, place) for place in range(len(one.input_ids))]) for one in found]


async def info(call: Call) -> dict[str, Any]:
    """Answer with what text-embeddings-inference reports of itself, as far as there is such a thing here."""
    pipe, config = call.pipeline.pipeline, call.pipeline.config
    checkpoint, options = pipe.description["checkpoint"], pipe.description.get("options", {})
    names = {"id2label": dict(enumerate(pipe.labels)), "label2id": {name: i for i, name in enumerate(pipe.labels)}}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "embedding": ("embedding", {"pooling": options.get("postprocessor", {}).get("pooling", "auto")}),
        "ranking": ("reranker", names),
        "label": ("classifier", names),
    }
    kind, facts = next((kinds[key] for key in kinds if key in call.pipeline.gives), (call.pipeline.task, {}))
    name = checkpoint["name"]
    return {
        # Where a folder stands on the server is nobody's business.
        "model_id": name if name != checkpoint["path"] else name.rstrip("/").rpartition("/")[2],
        "model_sha": checkpoint["revision"],
        "model_dtype": pipe.device.dtype,
        "model_type": {kind: facts},
        "max_concurrent_requests": config.max_connections,
        "max_input_length": pipe.description.get("tokenizer", {}).get("max_length"),
        "max_batch_tokens": pipe.batching.max_tokens,
        "max_client_batch_size": config.max_inputs,
        "auto_truncate": options.get("tokenizer", {}).get("overflow") != "error",
        "version": __version__,
    }
