"""``model=generate``: its settings, draws, stop strings, what is refused, and the conformance suite."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from generate_helpers import NEW, TEXTS, shuffled_agree, texts, writer
from harness import checkpoint, with_files

from pipeline_kit.builtin.models.generate.choosing import Draw, drawn, draws, end_of, warpers
from pipeline_kit.builtin.models.generate.settings import settle
from pipeline_kit.builtin.models.generate.stage import GenerateModel
from pipeline_kit.builtin.models.options import GenerateModelConfig, GenerationOptions
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.options import parse_options
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device, Encoding, RunStats
from pipeline_kit.errors import CheckpointError, ConfigError, Fault, RowError, UsageError
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy, collate
from pipeline_kit.testing import ModelConformance


@pytest.fixture
def llama() -> Path:
    return checkpoint("llama", head="causal-lm")


@pytest.fixture
def t5() -> Path:
    return checkpoint("t5", head="seq2seq-lm")


class OnCheckpoint:
    """Mixed into the suite: the stage is built on a tiny checkpoint."""

    architecture: ClassVar[str]
    head: ClassVar[str]

    def context(self, device: Device | None = None) -> StageContext:
        found = resolve_checkpoint(CheckpointConfig(path=str(checkpoint(self.architecture, head=self.head))))
        return StageContext(found, device or Device(), self.head)


class TestCausal(OnCheckpoint, ModelConformance):
    stage = "generate"
    architecture, head = "llama", "causal-lm"
    options: ClassVar = {"generation": {"max_new_tokens": NEW}}


class TestCausalDraws(TestCausal):
    options: ClassVar = {"generation": {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.5}}


class TestEncoderDecoder(OnCheckpoint, ModelConformance):
    stage = "generate"
    architecture, head = "t5", "seq2seq-lm"
    options: ClassVar = {"generation": {"max_new_tokens": NEW, "num_beams": 3}}


def copied(folder: Path, target: Path, **files: Mapping[str, Any]) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return with_files(target, **files)


def faults_of(generation: Mapping[str, Any]) -> list[str]:
    found: list[Fault] = []
    parse_options(GenerateModelConfig, {"generation": generation}, "model", found)
    return [str(fault) for fault in found]


# Draws.


def test_draws_do_not_depend_on_the_batch(llama: Path) -> None:
    pipe = writer(llama, generation={"do_sample": True, "temperature": 1.3, "top_k": 0})
    alone = [pipe(text)["text"] for text in TEXTS]
    shuffled_agree(pipe, TEXTS, alone)
    assert "".join(pipe.stream_text(TEXTS[0])) == alone[0]
    assert texts(pipe([TEXTS[0]] * 3)) == [alone[0]] * 3


def test_another_seed_gives_another_text(llama: Path) -> None:
    found = {writer(llama, generation={"do_sample": True, "seed": seed})(TEXTS[0])["text"] for seed in range(6)}
    assert len(found) > 3


def test_draws_follow_the_probabilities(llama: Path) -> None:
    """Over many seeds the first token has transformers' own distribution after temperature, top_k and top_p."""
    options = {"do_sample": True, "temperature": 2.0, "top_k": 12, "top_p": 0.9}
    pipe = writer(llama, generation=options, most=1)
    batch = collate(pipe.tokenizer.encode([TEXTS[0]]), pipe.padding, "cpu")
    network = transformers.AutoModelForCausalLM.from_pretrained(llama)
    more = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        asked = network.generate(batch.input_ids, max_new_tokens=1, **options, **more)
    probabilities = torch.softmax(asked.scores[0][0], dim=-1)
    count, ids = 400, [batch.input_ids[0].tolist()]
    numbers = torch.cat([draws(ids, seed, 1, "cpu")[:, 0] for seed in range(count)])
    tokens = drawn(asked.logits[0].expand(count, -1), warpers(options, "cpu"), numbers).tolist()
    model = pipe.model
    assert isinstance(model, GenerateModel)
    for seed in range(8):
        model._settings = replace(model._settings, seed=seed)
        assert int(model.forward(batch)["sequences"][0, 0]) == tokens[seed]
    found = Counter(tokens)
    assert set(found) <= set(probabilities.nonzero()[:, 0].tolist())
    for token, probability in enumerate(probabilities.tolist()):
        spread = (count * probability * (1 - probability)) ** 0.5
        assert abs(found[token] - count * probability) <= 4 * spread + 1, token
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1


def test_numbers_depend_on_ids_and_seed_alone() -> None:
    first = draws([[1, 2], [3]], 7, 5, "cpu")
    assert torch.equal(first.flip(0), draws([[3], [1, 2]], 7, 5, "cpu"))
    assert not torch.equal(first, draws([[1, 2], [3]], 8, 5, "cpu"))
    assert not torch.equal(first[0], draws([[1, 2, 0]], 7, 5, "cpu")[0])


def test_a_token_without_probability_is_never_drawn() -> None:
    """At both ends of what a number can be, and where two cumulative sums are equal."""
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    numbers = torch.tensor([[0.0], [0.4999], [0.5], [1 - 1e-7]], dtype=torch.float64)
    assert Draw([], numbers)(torch.zeros(4, 1), scores).argmax(dim=1).tolist() == [1, 1, 3, 3]


# Stop strings.


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings(llama: Path, beams: int) -> None:
    """The text is the one without them, cut before the first, alone and in a batch, at once and in pieces."""
    options = {"num_beams": beams, "max_new_tokens": 20}
    some = list(TEXTS[:4])
    free = texts(writer(llama, generation=options)(some))
    stops = [free[0][4:7], free[2][9:12], "never there"]
    pipe = writer(llama, generation={**options, "stop_strings": stops})
    expected = [text[: min([text.find(stop) for stop in stops if stop in text], default=None)] for text in free]
    if beams == 1:
        assert texts(pipe(some)) == expected
        assert ["".join(pipe.stream_text(text)) for text in some] == expected
    shuffled_agree(pipe, some, [pipe(text)["text"] for text in some])
    assert expected[0] != free[0]
    assert all(stop not in text for text in texts(pipe(some)) for stop in stops)


def test_stop_strings_end_the_writing(llama: Path) -> None:
    pipe = writer(llama, most=20)
    free = pipe(TEXTS[0])["text"]
    stopping = writer(llama, generation={"stop_strings": [free[2:5]]}, most=20)
    batch = collate(stopping.tokenizer.encode([TEXTS[0]]), stopping.padding, "cpu")
    assert int(stopping.model.forward(batch).tensors["sequence_lengths"][0]) < 8


def test_end_of() -> None:
    letters = "".join
    ids = "abcabd"
    for stop, expected in (("b", 2), ("ca", 4), ("bd", 6), ("x", 6), ("abca", 4)):
        assert end_of(ids, [stop], lambda part: letters(part)) == expected  # type: ignore[arg-type]


# Where settings come from.


def settled(folder: Path, task: str = "text-generation", **options: Any) -> Any:
    checkpoint = resolve_checkpoint(CheckpointConfig(path=str(folder)))
    context = StageContext(checkpoint, task=task)
    return settle(GenerationOptions(**options), context, task == "text-generation")


def test_settings_come_from_the_file_the_task_and_the_user(t5: Path, tmp_path: Path) -> None:
    own = {"num_beams": 2, "length_penalty": 0.5, "max_length": 31, "unknown_key": 1, "transformers_version": "4"}
    params = {"task_specific_params": {"summarization": {"num_beams": 3, "prefix": "sum: ", "min_length": 4}}}
    folder = copied(t5, tmp_path / "x", generation_config=own, config=params)
    found = settled(folder, "summarization", length_penalty=2.0)
    assert found.new_tokens == 30
    assert found.num_beams == 3
    assert found.values["length_penalty"] == 2.0
    assert found.values["min_length"] == 4
    assert "unknown_key" not in found.values
    other = settled(folder, "text2text-generation", max_new_tokens=5)
    assert (other.num_beams, other.new_tokens) == (2, 5)


def test_settings_of_old_checkpoints_stand_in_config_json(t5: Path, tmp_path: Path) -> None:
    folder = copied(t5, tmp_path / "x", config={"num_beams": 4, "max_length": 21})
    (folder / "generation_config.json").unlink()
    found = settled(folder, "summarization")
    assert (found.num_beams, found.new_tokens) == (4, 20)


def test_default_number_of_tokens(llama: Path, t5: Path, tmp_path: Path) -> None:
    assert settled(llama).new_tokens == 32  # half of the positions
    assert settled(t5, "summarization").new_tokens == 256
    folder = copied(llama, tmp_path / "x", generation_config={"max_new_tokens": 9, "max_length": 60})
    assert settled(folder).new_tokens == 9
    assert settled(folder, min_new_tokens=12).new_tokens == 12
    eager = copied(llama, tmp_path / "y", generation_config={"min_new_tokens": 20})
    assert settled(eager, max_new_tokens=5).values["min_new_tokens"] == 5


def test_a_stop_string_of_the_checkpoint(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "x", generation_config={"stop_strings": "User:"})
    assert settled(folder).stop_strings == ("User:",)
    assert settled(copied(llama, tmp_path / "y", generation_config={"stop_strings": [1]})).stop_strings == ("1",)
    assert settled(folder, stop_strings=["a"]).stop_strings == ("a",)


def test_min_length_counts_no_padding(llama: Path, tmp_path: Path) -> None:
    """transformers counts the prompt and its padding; a causal model's is not followed."""
    folder = copied(llama, tmp_path / "x", generation_config={"min_length": 30})
    assert "min_length" not in settled(folder).values


def test_the_settings_are_told(llama: Path) -> None:
    shown = writer(llama, generation={"num_beams": 2}).description["model"]["generation"]
    assert (shown["max_new_tokens"], shown["num_beams"]) == (NEW, 2)
    json.dumps(shown)


# What is refused.


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"max_new_tokens": 0}, ["model.generation.max_new_tokens", "out of range", "1 to"]),
        ({"temperature": 0}, ["model.generation.temperature", "out of range"]),
        ({"top_p": 1.5}, ["model.generation.top_p", "1e-06 to 1"]),
        ({"num_beams": -1}, ["model.generation.num_beams"]),
        ({"temprature": 1.0}, ["model.generation.temprature", "Did you mean 'temperature'"]),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, ["model.generation", "min_new_tokens=5", "max_new_tokens=4"]),
        ({"do_sample": True, "num_beams": 2}, ["model.generation", "choose one"]),
        ({"stop_strings": [""]}, ["model.generation", "empty string"]),
        ({"stop_strings": "x"}, ["model.generation.stop_strings", "not a list"]),
        ({"early_stopping": "sometimes"}, ["model.generation.early_stopping", "never"]),
    ],
)
def test_bad_options(generation: Mapping[str, Any], words: list[str]) -> None:
    faults = faults_of(generation)
    assert len(faults) == 1
    for word in words:
        assert word in faults[0]


def test_good_options() -> None:
    for generation in ({"early_stopping": "never", "num_beams": 2}, {"early_stopping": True}, {"top_k": 0}):
        assert faults_of(generation) == []


def test_options_without_effect(llama: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        writer(llama, generation={"temperature": 0.5, "top_k": 3, "length_penalty": 1.0})
    keys = [fault.key.rpartition(".")[2] for fault in caught.value.faults]
    assert keys == ["temperature", "top_k", "length_penalty"]
    assert "do_sample=true" in str(caught.value)


def test_the_checkpoint_draws_and_the_user_wants_beams(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "x", generation_config={"do_sample": True, "temperature": 0.7})
    assert writer(folder).description["model"]["generation"]["do_sample"] is True
    with pytest.raises(ConfigError, match=r"do_sample: the checkpoint sets it to true.*\n.*do_sample=false"):
        writer(folder, generation={"num_beams": 3})
    writer(folder, generation={"num_beams": 3, "do_sample": False})
    both = copied(folder, tmp_path / "both", generation_config={"num_beams": 4, "temperature": "hot"})
    with pytest.raises(CheckpointError, match=r"generation_config.json.temperature: 'hot' is not a number"):
        writer(both)
    with pytest.raises(ConfigError, match=r"num_beams: the checkpoint sets it to 4.*\n.*num_beams=1"):
        writer(both, generation={"temperature": 0.5})
    writer(both, generation={"do_sample": False})


def test_more_tokens_than_positions(llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_new_tokens: '64' leaves no room.*64 positions.*\n.*1 to 63"):
        writer(llama, most=64)
    with pytest.raises(ConfigError, match=r"tokenizer.max_length: '60'.*56 tokens.*beside the 8 that the model writes"):
        writer(llama, tokenizer={"max_length": 60})
    bart = checkpoint("bart", head="seq2seq-lm")
    with pytest.raises(ConfigError, match=r"more than the checkpoint's decoder has positions for"):
        writer(bart, "summarization", most=64)


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"num_beam_groups": 2, "num_beams": 4}, "num_beam_groups"),
        ({"dola_layers": "high"}, "dola_layers"),
        ({"custom_generate": "someone/code"}, "custom_generate"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"watermarking_config": {"greenlist_ratio": 0.25}}, "watermarking_config"),
    ],
)
def test_ways_of_writing_that_are_not_built_in(llama: Path, tmp_path: Path, own: dict[str, Any], name: str) -> None:
    folder = copied(llama, tmp_path / "x", generation_config=own)
    with pytest.raises(CheckpointError, match=name):
        writer(folder)


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"temperature": "hot"}, "'hot' is not a number"),
        ({"repetition_penalty": "x"}, "'x' is not a number"),
        ({"typical_p": "x"}, "'x' is not a number"),
        ({"eos_token_id": "</s>"}, "'</s>' is not a token's id"),
        ({"pad_token_id": [0]}, r"'\[0\]' is not a token's id"),
        ({"suppress_tokens": 3}, "'3' is not a list"),
    ],
)
def test_a_broken_generation_config(llama: Path, tmp_path: Path, own: dict[str, Any], problem: str) -> None:
    folder = copied(llama, tmp_path / "x", generation_config={"do_sample": True, **own})
    with pytest.raises(CheckpointError, match=rf"generation settings .* not valid: .*\.{next(iter(own))}: {problem}"):
        writer(folder)


def test_code_in_the_folder_is_not_run(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "x")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match=r"generate.py"):
        writer(folder)


def test_the_wrong_head(llama: Path, t5: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no seq2seq-lm head"):
        writer(llama, "summarization")
    for head, task in (("sequence-classification", "text-classification"), ("token-classification", "token-class")):
        classifier = checkpoint("gpt2", head=head)
        with pytest.raises(CheckpointError, match=f"no causal-lm head.*task={task}"):
            writer(classifier)
    bert = checkpoint("bert", head="masked-lm")
    with pytest.raises(CheckpointError, match=r"no causal-lm head.*task=fill-mask"):
        writer(bert)
    bart = checkpoint("bart", head="seq2seq-lm")
    with pytest.raises(CheckpointError, match=r"no causal-lm head.*task=summarization"):
        writer(bart)
    writer(checkpoint("bart", head="base"), "summarization")
    with pytest.raises(CheckpointError, match=r"no causal-lm head"):
        writer(t5)


# Streaming.


def test_pieces_need_one_beam(llama: Path) -> None:
    with pytest.raises(UsageError, match=r"num_beams=1"):
        list(writer(llama, generation={"num_beams": 2}).stream_text("a"))


def test_pieces_of_a_bad_example(llama: Path) -> None:
    with pytest.raises(RowError, match=r"input: ExampleError: the field 'text' is empty"):
        list(writer(llama).stream_text(" "))


def test_closing_ends_the_writing(llama: Path) -> None:
    """The search stops soon after the reader leaves, and the next text is not disturbed."""
    pipe = writer(llama, most=40)
    model = pipe.model
    assert isinstance(model, GenerateModel)
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    hook = model._network.register_forward_pre_hook(count)
    pieces = pipe.stream_text("a")
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    hook.remove()
    assert steps < 40
    assert "".join(pipe.stream_text("a")) == pipe("a")["text"]


def test_an_error_in_the_thread_reaches_the_reader(llama: Path) -> None:
    pipe = writer(llama)
    model = pipe.model
    assert isinstance(model, GenerateModel)

    def fail(*_: object) -> None:
        raise RuntimeError("the network broke")

    model._network.register_forward_pre_hook(fail)
    with pytest.raises(RowError, match=r"model: RuntimeError: the network broke"):
        list(pipe.stream_text("a"))


def test_details_of_how_a_text_ended(llama: Path) -> None:
    """They are the same of a whole text and of one in pieces; a stop string may end it at its last token."""
    whole = writer(llama)("a")["text"]
    reasons = set()
    for stop in ([], [whole[2]], [next(whole[i:] for i in reversed(range(len(whole))) if whole.index(whole[i:]) == i)]):
        pipe = writer(llama, generation={"stop_strings": stop}, postprocessor={"details": True})
        for text, result in zip(TEXTS, pipe(TEXTS), strict=True):
            stats = RunStats()
            assert "".join(pipe.stream_text(text, stats)) == result["text"]
            assert stats.written_tokens == result["tokens"] <= NEW
            assert stats.unfinished_rows == (result["finish_reason"] == "length")
            assert result["finish_reason"] == "stop" or result["tokens"] == NEW
            assert stats.tokens == len(pipe.tokenizer.encode([text])[0].input_ids)
            reasons.add((result["finish_reason"], result["tokens"] == NEW))
    assert reasons == {("length", True), ("stop", False), ("stop", True)}


# Padding.


@pytest.mark.parametrize(
    "own", [{"no_repeat_ngram_size": 1}, {"encoder_no_repeat_ngram_size": 1}, {"encoder_repetition_penalty": 1.5}]
)
def test_what_reads_the_prompt_needs_rows_of_equal_length(t5: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    """transformers bans or favours what is in a prompt together with its padding, so none may be there."""
    folder = checkpoint("gpt2", head="causal-lm", pad_token="<|endoftext|>")
    pipe = writer(copied(folder, tmp_path / "x", generation_config=own))
    assert pipe.padding.name == "none"
    assert any("padding changes" in note for note in pipe.description["notes"])
    assert texts(pipe(list(TEXTS))) == [pipe(text)["text"] for text in TEXTS]
    assert writer(t5, "summarization", generation={"no_repeat_ngram_size": 1}).padding.name == "longest"


def test_a_checkpoint_without_a_padding_token() -> None:
    folder = checkpoint("gpt2", head="causal-lm", pad_token=False)
    pipe = writer(folder)
    assert pipe.padding.name == "none"
    assert texts(pipe(list(TEXTS))) == [pipe(text)["text"] for text in TEXTS]


def test_a_batch_may_not_fill_the_positions_twice(llama: Path) -> None:
    """The longest prompt and all that is written take every position there is, in a padded batch too."""
    pipe = writer(llama, most=40)
    policy = PaddingPolicy("max_length", "left", pipe.padding.pad_token_id, pipe.tokenizer.max_length)
    full = replace(pipe, padding=policy, batching=BatchingPolicy(False, None, 4, 8))
    assert pipe.tokenizer.max_length == 24
    assert texts(full(list(TEXTS))) == [pipe(text)["text"] for text in TEXTS]


def test_ids_as_numbers(llama: Path) -> None:
    """The tensors are int64 and N is the most tokens that may be written."""
    pipe = writer(llama)
    output = pipe.model.forward(collate([Encoding([1, 40, 50]), Encoding([60])], pipe.padding, "cpu")).tensors
    assert output["sequences"].shape == (2, NEW)
    assert {tensor.dtype for tensor in output.values()} == {torch.int64}
    assert np.all(output["sequence_lengths"].numpy() <= NEW)
