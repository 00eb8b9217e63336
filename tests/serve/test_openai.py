"""OpenAI's client against the server, on a real socket; answers are those of the pipelines offline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import openai
import pytest
from generate_helpers import TEMPLATE, TEXTS, writer
from harness import checkpoint, pipeline_of, with_files
from serving import post, running

import pipeline_kit as pk
from pipeline_kit.testing import tiny_checkpoint

TALK: list[Any] = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "Is the food good? 🙂"}]
DRAWS = {"do_sample": True, "temperature": 1.5, "top_k": 0, "min_p": 0.01, "seed": 7}
LANGCHAIN = Path(__file__).parent / "langchain_openai.jsonl"
"""What langchain-openai 1.7 sent to this server, a request a line."""


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, pk.Pipeline]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("chat") / "checkpoint", "llama", head="causal-lm")
    return {
        "chat": writer(with_files(folder, tokenizer_config={"chat_template": TEMPLATE})),
        "plain": writer(checkpoint("gpt2", head="causal-lm")),
        "draws": writer(checkpoint("gpt2", head="causal-lm"), generation=DRAWS),
        "short": writer(checkpoint("bart", head="seq2seq-lm"), "summarization"),
        "vectors": pipeline_of("sentence-embedding", checkpoint("bert", head="base")),
    }


@pytest.fixture(scope="module")
def url(pipes: Mapping[str, pk.Pipeline]) -> Iterator[str]:
    with running(pipes) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def writes(pipe: pk.Pipeline, **options: Any) -> pk.Pipeline:
    """With options of writing, and details of what was written."""
    chosen = {f"model.generation.{name}": value for name, value in options.items()}
    return pipe.with_options({**chosen, "postprocessor.details": True})


def test_embeddings(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline]) -> None:
    """The client asks for base64 unless it is told otherwise."""
    texts = ["I love this.", "😀 שלום", "a " * 700, ""]
    expected = [result["embedding"] for result in pipes["vectors"](texts)]
    for form in ("float", openai.omit):
        found = client.embeddings.create(model="vectors", input=texts, encoding_format=form)
        assert [item.index for item in found.data] == [0, 1, 2, 3]
        for item, vector in zip(found.data, expected, strict=True):
            assert item.embedding == pytest.approx(vector, abs=1e-5)
        assert found.model == "vectors"
        tokens = sum(len(encoding.input_ids) for encoding in pipes["vectors"].tokenizer.encode(texts))
        assert found.usage.prompt_tokens == found.usage.total_tokens == tokens


def test_dimensions(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline]) -> None:
    [expected] = pipes["vectors"](["hi"], **{"postprocessor.dimensions": 4})
    found = client.embeddings.create(model="vectors", input="hi", dimensions=4)
    assert found.data[0].embedding == pytest.approx(expected["embedding"], abs=1e-5)
    with pytest.raises(openai.UnprocessableEntityError, match="more than the 32 numbers"):
        client.embeddings.create(model="vectors", input="hi", dimensions=99)


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]]])
def test_token_ids_are_refused(client: openai.OpenAI, ids: Any) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False") as error:
        client.embeddings.create(model="vectors", input=ids)
    assert error.value.param == "input"
    with pytest.raises(openai.UnprocessableEntityError, match="token ids"):
        client.completions.create(model="plain", prompt=ids)


@pytest.mark.parametrize("name", ["plain", "short"])
def test_completions(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline], name: str) -> None:
    found = client.completions.create(model=name, prompt=list(TEXTS), max_tokens=5)
    pipe = writes(pipes[name], max_new_tokens=5)
    expected = pipe(TEXTS)
    assert [choice.index for choice in found.choices] == list(range(len(TEXTS)))
    assert [choice.text for choice in found.choices] == [result["text"] for result in expected]
    assert [choice.finish_reason for choice in found.choices] == [result["finish_reason"] for result in expected]
    assert found.usage is not None
    assert found.usage.completion_tokens == sum(result["tokens"] for result in expected)
    assert found.usage.prompt_tokens == sum(len(item.input_ids) for item in pipe.tokenizer.encode(list(TEXTS)))


def test_a_completion_in_pieces_is_the_whole_one(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline]) -> None:
    for text in TEXTS:
        whole = client.completions.create(model="plain", prompt=text)
        events = list(
            client.completions.create(model="plain", prompt=text, stream=True, stream_options={"include_usage": True})
        )
        assert "".join(choice.text for event in events for choice in event.choices) == whole.choices[0].text
        assert whole.choices[0].text == pipes["plain"](text)["text"]
        assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert events[-1].choices == []
        assert events[-1].usage == whole.usage
        assert len({event.id for event in events}) == 1


def test_chat(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline]) -> None:
    expected = pipes["chat"]({"messages": TALK})["text"]
    whole = client.chat.completions.create(model="chat", messages=TALK)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].message.role == "assistant"
    parts = [{"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in TALK]
    asked: Any = {"model": "chat", "messages": parts, "stream": True, "stream_options": {"include_usage": True}}
    *events, last, usage = list(client.chat.completions.create(**asked))
    assert "".join(event.choices[0].delta.content for event in events) == expected
    assert [event.choices[0].delta.role for event in events] == ["assistant", *[None] * (len(events) - 1)]
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.usage == whole.usage


def test_chat_of_hugging_face(url: str, pipes: Mapping[str, pk.Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client asks the same route for chats; of several pipelines the URL chooses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = huggingface_hub.InferenceClient(model=f"{url}/pipelines/chat")
    expected = pipes["chat"]({"messages": TALK})["text"]
    assert client.chat_completion(TALK).choices[0].message.content == expected
    pieces = [event.choices[0].delta.content for event in client.chat_completion(TALK, stream=True)]
    assert "".join(piece or "" for piece in pieces) == expected


def test_how_a_text_ends(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline]) -> None:
    """By its length, or by a stop string, also where that is in the last token that may be written."""
    whole = writes(pipes["plain"])("a")
    assert whole["finish_reason"] == "length"
    assert whole["tokens"] == 8
    text = whole["text"]
    place = next(i for i in reversed(range(len(text))) if text.index(text[i:]) == i)
    for stream in (False, True):
        for stop, expected, reason in ((None, text, "length"), (text[place:], text[:place], "stop")):
            found: Any = client.completions.create(model="plain", prompt="a", stop=stop, stream=stream)
            choices = [choice for event in found for choice in event.choices] if stream else found.choices
            assert "".join(choice.text for choice in choices) == expected
            assert choices[-1].finish_reason == reason


def test_an_end_token_is_a_stop(tmp_path: Path, pipes: Mapping[str, pk.Pipeline]) -> None:
    """The end token is not a part of the text; where there is room for one more it is known that it came."""
    pipe = pipes["plain"]
    [encoding] = pipe.tokenizer.encode(["a"])
    output: Any = pipe.forward([encoding])[0]
    written = output["sequences"].tolist()
    end, count = next((token, place) for place, token in enumerate(written) if place and token not in written[:place])
    folder = tiny_checkpoint(tmp_path / "checkpoint", "gpt2", head="causal-lm")
    ending = writer(with_files(folder, generation_config={"eos_token_id": end}))
    with running(ending) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for most, reason in ((count, "length"), (count + 1, "stop"), (8, "stop")):
            found = client.completions.create(model="any", prompt="a", max_tokens=most)
            assert found.choices[0].finish_reason == reason
            assert found.usage is not None
            assert found.usage.completion_tokens == count
            events = list(client.completions.create(model="any", prompt="a", max_tokens=most, stream=True))
            assert events[-1].choices[0].finish_reason == reason


def test_temperature_seed_and_n(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline]) -> None:
    greedy = pipes["plain"]("a")["text"]
    assert client.completions.create(model="plain", prompt="a").choices[0].text == greedy
    ask: dict[str, Any] = {"model": "plain", "prompt": "a", "top_p": 0.9}
    assert client.completions.create(**ask, temperature=0).choices[0].text == greedy
    drawn = client.completions.create(**ask, temperature=1.5, seed=3, n=3)
    options = {"do_sample": True, "temperature": 1.5, "top_p": 0.9}
    expected = [writes(pipes["plain"], **options, seed=seed)("a")["text"] for seed in (3, 4, 5)]
    assert [choice.text for choice in drawn.choices] == expected
    assert len(set(expected)) > 1
    assert drawn.usage is not None
    assert drawn.usage.prompt_tokens == len(pipes["plain"].tokenizer.encode(["a"])[0].input_ids)
    events = list(client.completions.create(**ask, temperature=1.5, seed=3, n=3, stream=True))
    for index, text in enumerate(expected):
        own = [choice for event in events for choice in event.choices if choice.index == index]
        assert "".join(choice.text for choice in own) == text


def test_a_pipeline_that_draws(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline]) -> None:
    """What a request leaves open is as the config has it; the temperature 0 ends all drawing."""
    assert client.completions.create(model="draws", prompt="a").choices[0].text == pipes["draws"]("a")["text"]
    greedy = pipes["plain"]("a")["text"]
    assert client.completions.create(model="draws", prompt="a", temperature=0).choices[0].text == greedy
    assert pipes["draws"]("a")["text"] != greedy


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("plain", {}, "has no chat template"),
        ("chat", {"messages": []}, "is empty"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "of type 'image_url'"),
        ("chat", {"messages": [{"role": "user", "content": None}]}, "lacks 'content'"),
        ("chat", {"max_tokens": 100_000}, "leaves no room"),
        ("chat", {"max_completion_tokens": 0}, "max_new_tokens"),
        ("chat", {"temperature": -1.0}, "temperature"),
        ("chat", {"stop": [""]}, "empty string"),
        ("chat", {"n": 17}, "1 to 16"),
        ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "'tools' cannot be followed"),
        ("chat", {"response_format": {"type": "json_object"}}, "'response_format' cannot be followed"),
        ("chat", {"logprobs": True}, "'logprobs' cannot be followed"),
    ],
)
def test_what_a_client_does_wrong(
    client: openai.OpenAI, model: str, more: dict[str, Any], message: str, stream: bool
) -> None:
    """Also of a streamed answer it is known before the first event."""
    with pytest.raises(openai.UnprocessableEntityError, match=message):
        client.chat.completions.create(**{"model": model, "messages": TALK, "stream": stream, **more})


def test_models(client: openai.OpenAI, pipes: Mapping[str, pk.Pipeline], url: str) -> None:
    assert [model.id for model in client.models.list()] == list(pipes)
    assert client.models.retrieve("vectors").id == "vectors"
    with pytest.raises(openai.NotFoundError, match="Did you mean 'vectors'"):
        client.models.retrieve("vector")
    with pytest.raises(openai.NotFoundError, match="There are: chat, plain, draws, short, vectors"):
        client.embeddings.create(model="gpt-9", input="a")
    with openai.OpenAI(base_url=f"{url}/pipelines/vectors/v1", api_key="none") as other:
        assert other.embeddings.create(model="whatever", input="a").model == "vectors"


def test_a_task_that_does_not_fit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"task=text-generation have text.*/v1/completions"):
        client.embeddings.create(model="plain", input="a")
    with pytest.raises(openai.NotFoundError, match="takes 'messages', task=summarization takes text"):
        client.chat.completions.create(model="short", messages=TALK)
    with pytest.raises(openai.NotFoundError, match="needs results with 'text'"):
        client.completions.create(model="vectors", prompt="a")


def test_what_asks_for_nothing_is_left_aside(url: str) -> None:
    idle = {"logprobs": False, "tools": [], "response_format": {"type": "text"}, "frequency_penalty": 0, "stop": []}
    body = {"model": "chat", "messages": TALK, "user": "me", "store": True, "top_p": 1, "n": None, **idle}
    assert post(f"{url}/v1/chat/completions", body).status_code == 200
    assert post(f"{url}/v1/embeddings", {"model": "vectors", "input": []}).json()["data"] == []
    wrong = post(f"{url}/v1/embeddings", {"model": "vectors", "input": "a", "encoding_format": "int8"})
    assert wrong.status_code == 422
    assert "float or base64" in wrong.json()["error"]["message"]


@pytest.mark.parametrize("body", [[], {}, {"prompt": None}, {"prompt": {"a": 1}}, {"prompt": "a", "stop": 3}])
def test_wrong_types(url: str, body: Any) -> None:
    assert post(f"{url}/v1/completions", body).status_code == 422


@pytest.mark.parametrize("line", LANGCHAIN.read_text(encoding="utf-8").splitlines())
def test_requests_of_langchain(url: str, line: str) -> None:
    """Sent once by hand, since the package and its requirements are many."""
    request = json.loads(line)
    found = post(url + request["path"], request["body"])
    assert found.status_code == 200, found.text
    assert found.text.endswith("data: [DONE]\n\n") == request["body"].get("stream", False)
