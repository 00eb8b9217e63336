"""From overrides to a pipeline: what `auto` becomes, what is refused, what is noted."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness import checkpoint

import pipeline_kit as pk
from pipeline_kit.errors import CheckpointError, ConfigError, RegistryError

TEXTS = ["a good film", "bad", "i hate this so much and i love it , a long one with many words in it", "", "film " * 9]


BERT = checkpoint()


def load(*overrides: str, folder: Path = BERT) -> pk.Pipeline:
    return pk.load(f"checkpoint.path='{folder}'", "device=cpu", "device.threads=1", *overrides)


def test_what_auto_became_is_told() -> None:
    told = load().description
    assert told["device"] == {"name": "cpu", "dtype": "float32", "threads": 1}
    assert told["padding"] == {"name": "longest", "side": "right", "max_length": 64}
    assert told["batching"]["max_tokens"] == 1024
    assert told["tokenizer"] == {"name": "hf", "max_length": 64}
    assert told["notes"] == []
    assert load("batching=fixed").description["batching"]["max_rows"] == 8


SHORT = "tokenizer.max_length=20"


@functools.cache
def as_it_comes() -> list[pk.Result]:
    """The results of each text alone."""
    pipe = load(SHORT)
    return [pipe(text) for text in TEXTS]


@pytest.mark.parametrize(
    "overrides",
    [
        ("padding=max_length", "padding.max_length=20", "tokenizer.max_length=20"),
        ("padding=multiple_of", "padding.multiple_of=16"),
        ("padding=none",),
        ("batching=fixed", "batching.max_rows=2"),
        ("batching.max_tokens=1",),
        ("batching.window=1",),
        ("tokenizer=tokenizers_json",),
        ("model=eager",),
    ],
)
def test_policies_and_stages_are_swapped_without_a_change_of_results(overrides: tuple[str, ...]) -> None:
    found = load(SHORT, *overrides)(TEXTS)
    for one, other in zip(as_it_comes(), found, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


@pytest.mark.parametrize("native", [True, False])
def test_an_emulated_dtype_is_noted(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_kit.runtime.device.native_bfloat16", lambda: native)
    # Eager: packed layers need a processor that really has those products.
    notes = load("device.dtype=bfloat16", "model.linear=eager").description["notes"]
    told = ["this CPU has no products in bfloat16: they are emulated, which is slower than device.dtype=float32"]
    assert notes == ([] if native else told)


def test_an_idle_option_is_noted() -> None:
    assert load("padding.max_length=20").description["notes"] == [
        "padding.max_length has no effect with padding=longest"
    ]
    assert (
        "batching.max_tokens has no effect" in load("batching=fixed", "batching.max_tokens=9").description["notes"][0]
    )


def test_a_checkpoint_without_padding_token_batches_equal_lengths() -> None:
    pipe = load(folder=checkpoint("gpt2", pad_token=False))
    assert pipe.description["padding"]["name"] == "none"
    assert "no padding token" in pipe.description["notes"][0]
    texts = [text for text in TEXTS if text]
    for text, result in zip(texts, pipe(texts), strict=True):
        assert result["score"] == pytest.approx(pipe(text)["score"], abs=1e-5)


def test_an_architecture_that_leaks_padding_batches_equal_lengths() -> None:
    pipe = load(folder=checkpoint("convbert"))
    assert pipe.description["padding"]["name"] == "none"
    assert "padding changes" in pipe.description["notes"][0]


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (("padding.side=left",), ConfigError, "padded on the left"),
        (("padding.max_length=65",), ConfigError, "more than the 64 tokens"),
        (("tokenizer.max_length=65",), ConfigError, "positions"),
        (("task=feature-extraction", "postprocessor=classification"), pk.PipelineKitError, "needs 'logits'"),
        (("model=static",), CheckpointError, "model=hf"),
        (("postprocessor.thresholds={POSITIV: 0.5}",), ConfigError, "Did you mean 'POSITIVE'"),
        (("tokenizer.overflow=window", "tokenizer.overlap=80"), ConfigError, "overlap"),
    ],
)
def test_what_does_not_go_together_is_an_error(overrides: tuple[str, ...], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load(*overrides)("a film")


def test_a_stage_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass C: pass\nclass Wrong: pass\n"
        "def register(r):\n    r.model('wrong', f'{__name__}:Wrong', C)\n"
    )
    with pytest.raises(RegistryError, match="is not a Model"):
        pk.load(f"checkpoint.path='{BERT}'", "model=wrong", plugins=[str(tmp_path / "wrong.py")])


COUNTING = """
import torch
from pipeline_kit.testing.kit import TinyModelConfig
from pipeline_kit.testing.stages import TinyModel

class Counting(TinyModel):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.threads = torch.get_num_threads()

def register(registry):
    registry.model("counting", f"{__name__}:Counting", TinyModelConfig)
"""


@pytest.fixture
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_threads")
def test_a_plugins_model_finds_the_process_prepared(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    overrides = (f"checkpoint.path='{BERT}'", "task=feature-extraction", "model=counting", "device=cpu")
    pipe = pk.load(*overrides, "device.threads=3", plugins=[str(tmp_path / "counting.py")])
    assert vars(pipe.model)["threads"] == 3


def test_types_of_the_public_call() -> None:
    pipe = load()
    one: pk.Result = pipe("a film")
    several: list[pk.Result] = pipe(["a film"])
    assert several == [one]
    assert pipe([{"text": "a film", "text_pair": "bad"}])[0]["label"] in ("POSITIVE", "NEGATIVE")
    with pytest.raises(pk.RowError, match="row 1: tokenizer: ExampleError"):
        pipe(["a film", {"txt": "x"}])
