"""Every text method of huggingface_hub's InferenceClient, against a server on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from harness import checkpoint, pipeline_of
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError
from serving import post, running

import pipeline_kit as pk

TEXT = "Sarah 😀 lives in London. שלום"
WRITER = {"generation": {"max_new_tokens": 8}}


def _base(task: str, head: str = "base", **options: Any) -> pk.Pipeline:
    return pipeline_of(task, checkpoint(head=head, **options))


def _writer(task: str, architecture: str, head: str) -> pk.Pipeline:
    return pipeline_of(task, checkpoint(architecture, head=head), model=WRITER)


@pytest.fixture(scope="module")
def pipes() -> Mapping[str, pk.Pipeline]:
    nli = ("contradiction", "neutral", "entailment")
    return {
        "classes": _base("text-classification", "sequence-classification", labels=("a", "b", "c")),
        "entities": _base("token-classification", "token-classification", labels=("O", "B-PER", "I-PER", "B-LOC")),
        "answers": _base("question-answering", "question-answering"),
        "masks": _base("fill-mask", "masked-lm"),
        "zero-shot": _base("zero-shot-classification", "sequence-classification", labels=nli),
        "sentences": _base("sentence-embedding"),
        "tokens": _base("feature-extraction"),
        "summary": _writer("summarization", "t5", "seq2seq-lm"),
        "translation": _writer("translation", "t5", "seq2seq-lm"),
        "text": _writer("text-generation", "gpt2", "causal-lm"),
        "choice": _base("multiple-choice", "multiple-choice"),
    }


@pytest.fixture(scope="module")
def url(pipes: Mapping[str, pk.Pipeline]) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, running(pipes) as url:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield url


class Clients(dict[str, InferenceClient]):
    """A client for each pipeline; one that is dropped closes the stream that it began."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def __missing__(self, name: str) -> InferenceClient:
        self[name] = InferenceClient(model=f"{self.url}/pipelines/{name}", provider="hf-inference")
        return self[name]


@pytest.fixture(scope="module")
def clients(url: str) -> Clients:
    return Clients(url)


def results(pipe: pk.Pipeline, example: Any, **options: Any) -> Any:
    """Run the pipeline offline, with options of its postprocessor."""
    return pipe.with_options({f"postprocessor.{name}": value for name, value in options.items()})(example)


def same(found: Any, wanted: Any) -> None:
    """Compare JSON values, numbers to 1e-5; of an object of the client, the keys that are wanted."""
    if isinstance(wanted, list):
        assert len(found) == len(wanted) > 0
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    elif isinstance(wanted, dict):
        for key, value in wanted.items():
            same(getattr(found, key, None) if hasattr(found, key) else found[key], value)
    else:
        assert found == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


def test_text_classification(pipes: Mapping[str, pk.Pipeline], clients: Clients, url: str) -> None:
    pipe, client = pipes["classes"], clients["classes"]
    same(client.text_classification(TEXT), results(pipe, TEXT, top_k=None)["labels"])
    scored = client.text_classification(TEXT, top_k=2, function_to_apply="none")
    same(scored, results(pipe, TEXT, top_k=2, function="none")["labels"])
    first = client.text_classification(TEXT, top_k=1)
    same(first, [results(pipe, TEXT)])
    same(InferenceClient(model=url).text_classification(TEXT), results(pipe, TEXT, top_k=None)["labels"])
    several = post(url, {"inputs": [TEXT, {"text": "a", "text_pair": "b"}]}).json()
    same(several, [one["labels"] for one in results(pipe, [TEXT, {"text": "a", "text_pair": "b"}], top_k=None)])
    assert post(url, {"inputs": []}).json() == []


@pytest.mark.parametrize("how", [None, "none", "simple", "first", "average", "max"])
def test_token_classification(pipes: Mapping[str, pk.Pipeline], clients: Clients, how: Any) -> None:
    found = clients["entities"].token_classification(
        TEXT, aggregation_strategy=how, ignore_labels=["PER"] if how != "none" else None
    )
    options = {} if how is None else {"aggregation": how}
    wanted = results(pipes["entities"], TEXT, **options, **({} if how == "none" else {"ignore_labels": ["PER"]}))[
        "entities"
    ]
    key = "entity" if how == "none" else "entity_group"
    same(
        found,
        [
            {key: one["label"], "word": one["text"], **{name: one[name] for name in ("score", "start", "end")}}
            for one in wanted
        ],
    )
    assert all(one.word == TEXT[one.start : one.end] for one in found)


def test_question_answering(pipes: Mapping[str, pk.Pipeline], clients: Clients) -> None:
    example: dict[str, Any] = {"question": "Who lives?", "context": TEXT}
    same(clients["answers"].question_answering(**example), results(pipes["answers"], example))
    found = clients["answers"].question_answering(**example, top_k=3, max_answer_len=2, align_to_words=False)
    same(found, results(pipes["answers"], example, top_k=3, max_answer_len=2, align_to_words=False)["answers"])


def test_fill_mask(pipes: Mapping[str, pk.Pipeline], clients: Clients, url: str) -> None:
    def wanted(mask: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"token": one["id"], "token_str": one["token"], "sequence": one["text"], "score": one["score"]}
            for one in mask
        ]

    [mask] = results(pipes["masks"], "a [MASK] b")["masks"]
    same(clients["masks"].fill_mask("a [MASK] b"), wanted(mask))
    [mask] = results(pipes["masks"], "a [MASK] b", targets=["x", "y"])["masks"]
    same(clients["masks"].fill_mask("a [MASK] b", targets=["x", "y"]), wanted(mask))
    two = post(f"{url}/pipelines/masks", {"inputs": "[MASK] b [MASK]", "parameters": {"top_k": 2}}).json()
    same(two, [wanted(mask) for mask in results(pipes["masks"], "[MASK] b [MASK]", top_k=2)["masks"]])


def test_zero_shot_classification(pipes: Mapping[str, pk.Pipeline], clients: Clients) -> None:
    labels = ["film", "book", "עיר"]
    found = clients["zero-shot"].zero_shot_classification(TEXT, labels)
    same(found, results(pipes["zero-shot"], {"text": TEXT, "labels": labels})["labels"])
    how: dict[str, Any] = {"multi_label": True, "hypothesis_template": "It is {}."}
    found = clients["zero-shot"].zero_shot_classification(TEXT, labels, **how)
    same(found, results(pipes["zero-shot"], {"text": TEXT, "labels": labels}, **how)["labels"])


def test_feature_extraction(pipes: Mapping[str, pk.Pipeline], clients: Clients) -> None:
    pipe = pipes["sentences"]
    np.testing.assert_allclose(
        clients["sentences"].feature_extraction(TEXT), [results(pipe, TEXT)["embedding"]], atol=1e-5
    )
    several: Any = [TEXT, "a"]
    found = clients["sentences"].feature_extraction(several, normalize=False, truncate=True, dimensions=8)
    wanted = [one["embedding"] for one in results(pipe, several, normalize=False, dimensions=8)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(
        clients["tokens"].feature_extraction(TEXT), [results(pipes["tokens"], TEXT)["vectors"]], atol=1e-5
    )


def test_sentence_similarity(pipes: Mapping[str, pk.Pipeline], clients: Clients) -> None:
    source, *others = (np.array(one["embedding"]) for one in results(pipes["sentences"], [TEXT, "a", TEXT]))
    wanted = [source @ one / np.linalg.norm(source) / np.linalg.norm(one) for one in others]
    assert clients["sentences"].sentence_similarity(TEXT, ["a", TEXT]) == pytest.approx(wanted, abs=1e-5)
    assert clients["sentences"].sentence_similarity(TEXT, []) == []


def test_summarization_and_translation(pipes: Mapping[str, pk.Pipeline], clients: Clients) -> None:
    assert clients["summary"].summarization(TEXT).summary_text == pipes["summary"](TEXT)["text"]
    short = clients["summary"].summarization(TEXT, generate_parameters={"max_new_tokens": 2})
    assert short.summary_text == pipes["summary"](TEXT, max_new_tokens=2)["text"] != pipes["summary"](TEXT)["text"]
    assert clients["translation"].translation(TEXT).translation_text == pipes["translation"](TEXT)["text"]
    with pytest.raises(HfHubHTTPError, match="'en' is not task"):
        clients["translation"].translation(TEXT, src_lang="en", tgt_lang="fr")


def test_text_generation(pipes: Mapping[str, pk.Pipeline], clients: Clients) -> None:
    pipe, client = pipes["text"], clients["text"]
    written = pipe(TEXT)["text"]
    assert client.text_generation(TEXT) == written != ""
    assert client.text_generation(TEXT, return_full_text=True) == TEXT + written
    assert client.text_generation(TEXT, max_new_tokens=3) == pipe(TEXT, max_new_tokens=3)["text"]
    drawn: dict[str, Any] = {"do_sample": True, "seed": 3, "temperature": 2.0, "top_k": 50, "top_p": 0.9}
    assert client.text_generation(TEXT, **drawn) == pipe(TEXT, **drawn)["text"] != written
    stop = written[-1]
    assert client.text_generation(TEXT, stop=[stop]) == pipe(TEXT, stop_strings=[stop])["text"]
    for stops, reason in ((None, "length"), ([stop], "stop_sequence")):
        found = client.text_generation(TEXT, details=True, max_new_tokens=8, stop=stops)
        assert found.details is not None
        assert found.details.finish_reason == reason
        assert 0 < found.details.generated_tokens <= 8


def test_streamed_text_generation(pipes: Mapping[str, pk.Pipeline], clients: Clients, url: str) -> None:
    wanted, client = pipes["text"](TEXT)["text"], clients["text"]
    pieces = list(client.text_generation(TEXT, stream=True))
    assert "".join(pieces) == wanted
    events = list(client.text_generation(TEXT, stream=True, details=True))
    assert [one.token.text for one in events] == pieces
    assert [one.index for one in events] == list(range(1, len(pieces) + 1))
    assert [one.generated_text for one in events] == [None] * (len(pieces) - 1) + [wanted]
    wanted_details = client.text_generation(TEXT, details=True).details
    last = events[-1].details
    assert last is not None
    assert wanted_details is not None
    assert last.finish_reason == wanted_details.finish_reason == "length"
    assert last.generated_tokens == wanted_details.generated_tokens == 8
    assert last.input_length == len(pipes["text"].tokenizer.encode([TEXT])[0].input_ids)
    whole = client.text_generation(TEXT, stream=True, return_full_text=True)
    assert "".join(whole) == TEXT + wanted

    async def streamed() -> str:
        async with AsyncInferenceClient(model=f"{url}/pipelines/text", provider="hf-inference") as other:
            return "".join([piece async for piece in await other.text_generation(TEXT, stream=True)])

    assert asyncio.run(streamed()) == wanted


def test_what_langchain_sends(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    """Recorded from HuggingFaceEndpoint of langchain-huggingface 1.2.3: most has no effect, nothing is an error."""
    parameters = (
        b'{"do_sample":false,"max_new_tokens":5,"return_full_text":false,"stop":[],"temperature":0.8,"top_p":0.95,'
        b'"typical_p":0.95,"watermark":false}'
    )
    wanted = pipes["text"](TEXT, max_new_tokens=5)["text"]
    body = b'{"inputs":"%s","parameters":%s}' % (TEXT.encode(), parameters)
    assert post(f"{url}/pipelines/text", body).json() == [{"generated_text": wanted}]
    streamed = post(f"{url}/pipelines/text", body[:-1] + b',"stream":true}').text
    last = json.loads(streamed.split("data:")[-1])
    assert last["generated_text"] == wanted


def test_what_draws(pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    """A temperature alone asks for drawing; without drawing, options of it count for nothing."""
    drawn = pipes["text"](TEXT, do_sample=True, temperature=5.0)["text"]
    for parameters, wanted in (
        ({"temperature": 5.0}, drawn),
        ({"do_sample": False, "temperature": 5.0}, pipes["text"](TEXT)["text"]),
    ):
        found = post(f"{url}/pipelines/text", {"inputs": TEXT, "parameters": parameters}).json()
        assert found == [{"generated_text": wanted}]
    draws = checkpoint("gpt2", head="causal-lm")
    options = {"generation": {**WRITER["generation"], "do_sample": True, "temperature": 5.0}}
    with running(pipeline_of("text-generation", draws, model=options)) as other:
        found = post(other, {"inputs": TEXT, "parameters": {"do_sample": False}}).json()
    assert found == [{"generated_text": pipes["text"](TEXT)["text"]}] != [{"generated_text": drawn}]


def test_errors(clients: Clients, url: str) -> None:
    with pytest.raises(ValidationError, match="max_new_tokens: -5 is out of range"):
        clients["text"].text_generation(TEXT, max_new_tokens=-5)
    with pytest.raises(ValidationError, match="the field 'text' is empty"):
        list(clients["text"].text_generation("", stream=True))
    with pytest.raises(HfHubHTTPError, match="has no mask"):
        clients["masks"].fill_mask("no mask")


@pytest.mark.parametrize(
    ("name", "status", "body", "message"),
    [
        ("classes", 400, b"{", "not JSON"),
        ("classes", 422, {}, "missing required field `inputs`"),
        ("classes", 422, {"inputs": 3}, "Expected"),
        ("classes", 422, {"inputs": ["a", None]}, "Expected"),
        ("classes", 422, {"inputs": ["a", {"txt": "b"}]}, "input 1: tokenizer: the field 'text' is missing"),
        ("classes", 422, {"inputs": "a", "parameters": {"top_k": "x"}}, "top_k"),
        ("classes", 422, {"inputs": "a", "stream": True}, "task=text-classification writes no text piece by piece"),
        ("text", 422, {"inputs": ["a"], "stream": True}, "one text at a time is streamed"),
        ("text", 422, {"inputs": "a", "parameters": {"stop": "x", "seed": -1}}, "seed"),
        ("summary", 422, {"inputs": "a", "parameters": {"generate_parameters": 3}}, "generate_parameters is an object"),
        ("summary", 422, {"inputs": "a", "parameters": {"return_full_text": True}}, "full_text"),
        ("zero-shot", 422, {"inputs": "a", "parameters": {"candidate_labels": 3}}, "labels"),
        ("sentences", 422, {"inputs": {"source_sentence": "a", "sentences": "b"}}, "Expected `array`"),
        ("sentences", 422, {"inputs": {"source_sentence": "a"}}, "missing required field `sentences`"),
        (
            "choice",
            404,
            {"inputs": "a"},
            "those of task=multiple-choice have choice, score, scores; routes that fit: /run",
        ),
        ("none", 404, {"inputs": "a"}, "there is no pipeline 'none'"),
    ],
)
def test_bad_bodies(url: str, name: str, status: int, body: Any, message: str) -> None:
    found = post(f"{url}/pipelines/{name}", body)
    assert found.status_code == status
    assert found.json()["error_type"] == "validation"
    assert message in found.json()["error"]
