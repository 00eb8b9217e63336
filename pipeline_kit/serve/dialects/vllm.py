"""The routes that vLLM has beside OpenAI's: the classes of texts, and the scores of pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from pipeline_kit.serve.dialects.base import Call, Dialect, Loose, Route
from pipeline_kit.serve.dialects.openai import texts_of_input, usage
from pipeline_kit.serve.refused import Refused


class VllmClassifyBody(Loose):
    """The body of ``/classify``."""

    input: str | list[str | int | list[int]]
    model: str | None = None


class VllmScoreBody(Loose):
    """The body of ``/score``: one text with each of several, or as many as there are, pair by pair."""

    text_1: str | list[str]
    text_2: str | list[str]
    model: str | None = None


class Vllm(Dialect):
    """What is written for the server of vLLM."""

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        classes: Any = {"fits": ("label", "score", "labels"), "takes": ("text",), "summary": "Classify texts"}
        return (
            Route("/classify", classify, VllmClassifyBody, **classes),
            Route(
                "/score", score, VllmScoreBody, fits=("ranking",), takes=("query", "documents"), summary="Score pairs"
            ),
        )


async def classify(call: Call) -> Any:
    """Answer with the probability of each label, in the order of the checkpoint's ids."""
    order = {label: place for place, label in enumerate(call.pipeline.pipeline.labels)}
    data: list[Any] = []
    for result in await call.results(texts_of_input(call.body.input, "input"), {"top_k": None}):
        scores = {item["label"]: item["score"] for item in result["labels"]}
        if scores.keys() != order.keys():
            problem = f"/classify lists the checkpoint's own labels, task={call.pipeline.task} has others; use /run"
            raise Refused(404, problem)
        probs = [scores[label] for label in order]
        data.append({"index": len(data), "label": result["label"], "probs": probs, "num_classes": len(probs)})
    return listed(call, "classify", data)


async def score(call: Call) -> Any:
    """Answer with the score of each pair."""
    one, other = ([text] if isinstance(text, str) else text for text in (call.body.text_1, call.body.text_2))
    if len(one) not in (1, len(other)):
        raise Refused(
            422, f"'text_1' has {len(one)} texts, 'text_2' {len(other)}; send one, or as many as there", param="text_1"
        )
    groups = [(one[0], other)] if len(one) == 1 else [(text, [second]) for text, second in zip(one, other, strict=True)]
    examples = [{"query": query, "documents": documents} for query, documents in groups]
    found = await call.results(examples, {"top_k": None})
    scores = [item["score"] for result in found for item in sorted(result["ranking"], key=lambda item: item["index"])]
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    return listed(call, "score", data)


def listed(call: Call, name: str, data: Sequence[Any]) -> dict[str, Any]:
    """Return an answer in the form of vLLM."""
    head = {"id": f"{name}-{uuid4().hex}", "object": "list", "created": int(time.time()), "model": call.pipeline.name}
    return {**head, "data": data, "usage": usage(call)}
