"""What a trace shows is what the raw transformers network computes, to 1e-6; its result is the pipeline's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from explain_helpers import EAGER, TASKS, close, task_checkpoint, task_pipeline

from pipeline_kit import Example, Trace
from pipeline_kit.builtin.models.hf.heads import HEAD_KINDS
from pipeline_kit.builtin.models.hf.linears import can_quantize
from pipeline_kit.explain.terminal import to_text
from pipeline_kit.explain.trace import BatchTrace

ENCODERS = ("bert", "distilbert", "roberta", "albert", "electra")
DECODERS = {
    "text-generation": ("gpt2", "llama"),
    "summarization": ("t5",),
    "translation": ("bart",),
    "text2text-generation": ("t5",),
}
REST = [task for task in TASKS if task not in DECODERS and task != "text-classification"]
CASES = [
    *(("text-classification", architecture) for architecture in ("bert", "bart", "llama")),
    # Each of the other tasks with one of the five, so that every architecture has two or three tasks.
    *((task, ENCODERS[place % 5]) for place, task in enumerate(REST)),
    *((task, architecture) for task, architectures in DECODERS.items() for architecture in architectures),
    ("sentence-embedding", "t5"),
    ("feature-extraction", "llama"),
]


def raw_network(task: str, architecture: str) -> Any:
    """Load the checkpoint with transformers alone."""
    folder = task_checkpoint(task, architecture)
    loader = getattr(transformers, HEAD_KINDS[TASKS[task][0]].auto)
    network = loader.from_pretrained(folder, attn_implementation="eager").eval()
    return network.get_encoder() if TASKS[task][0] == "base" and network.config.is_encoder_decoder else network


def raw_inputs(task: str, batch: BatchTrace, network: Any) -> dict[str, torch.Tensor]:
    """Return a batch as a person would give it to the network."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.token_type_ids is not None:
        given["token_type_ids"] = batch.token_type_ids
    if batch.side == "left":
        given["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clip(min=0)
    found = {name: torch.from_numpy(values) for name, values in given.items()}
    if TASKS[task][0] == "multiple-choice":
        found = {name: values[:, None] for name, values in found.items()}
    return found


def check_layers(task: str, trace: Trace, network: Any) -> None:
    """Recompute norms and attentions at all tokens; of an encoder-decoder those of its encoder."""
    for batch in trace.batches:
        layers = {layer.name: layer for layer in batch.layers}
        prefix = "encoder " if "encoder layer 1" in layers else ""
        given = raw_inputs(task, batch, network)
        with torch.inference_mode():
            part = network.get_encoder() if prefix else network
            output = part(**given, output_hidden_states=True, output_attentions=True)
        kept = batch.attention_mask == 1
        assert len(output.hidden_states) == 3
        for number, states in enumerate(output.hidden_states):
            # Where a norm follows the last layer, transformers' last hidden state is behind it.
            after = number == 2 and f"{prefix}final norm" in layers
            name = "final norm" if after else f"layer {number}" if number else "embeddings"
            assert layers[prefix + name].shape == tuple(states.shape)
            close(layers[prefix + name].norms[kept], torch.linalg.vector_norm(states, dim=-1).numpy()[kept])
        for number, weights in enumerate(output.attentions, start=1):
            found, expected = batch.attentions[f"{prefix}layer {number}"], weights.numpy()
            close(found.transpose(0, 2, 1, 3)[kept], expected.transpose(0, 2, 1, 3)[kept])


def check_outputs(task: str, trace: Trace, network: Any) -> None:
    """Recompute what the model gave at all tokens."""
    for batch in trace.batches:
        with torch.inference_mode():
            output = network(**raw_inputs(task, batch, network))
        for name, values in batch.outputs.items():
            expected, kept = output[name].numpy(), batch.attention_mask == 1
            if name in batch.per_token:
                close(values[kept], expected[kept])
            else:
                close(values.reshape(expected.shape), expected)


def check_terminal(trace: Trace) -> None:
    """The terminal's view fits 80 columns and shows the result."""
    short, full = to_text(trace), to_text(trace, full=True)
    assert max(map(len, (short + full).split("\n"))) <= 80
    headings = [line.rstrip(" ─") for line in full.split("\n") if line.endswith("──") and line[0].isalpha()]
    assert headings[:2] == ["pipeline", "text and tokens of row 0"]
    assert headings.index("batch") < headings.index("model") < headings.index("result")
    result = trace.rows[0].result
    assert result is not None
    assert f'{{"{next(iter(result))}"' in full


@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_the_trace_is_what_the_network_computes(task: str, architecture: str) -> None:
    pipe, examples = task_pipeline(task, architecture, *EAGER)
    if architecture == "bart" and task == "text-classification":  # a raw BART refuses a pair beside a text
        examples = ["I love this film.", "Good."]
    trace = pipe.explain(examples, attentions=True)
    assert [row.result for row in trace.rows] == pipe(examples)
    assert pipe.explain(examples[0]).rows[0].result == pipe(examples[0])
    assert trace.batches
    assert not [note for note in trace.notes if "failed" in note], trace.notes
    network = raw_network(task, architecture)
    check_layers(task, trace, network)
    assert trace.batches[0].input_ids.shape == trace.batches[0].layers[0].norms.shape
    if task not in DECODERS:
        check_outputs(task, trace, network)
    check_terminal(trace)
    if (task, architecture) == CASES[0]:
        once, again = (to_text(run, full=True, times=False) for run in (trace, pipe.explain(examples, attentions=True)))
        assert once == again
        assert " ms" not in once
        assert " ms" in to_text(trace)


@pytest.mark.parametrize(("task", "architecture"), [("text-generation", "gpt2"), ("summarization", "t5")])
def test_what_was_written_is_what_transformers_writes(task: str, architecture: str) -> None:
    pipe, examples = task_pipeline(task, architecture, *EAGER)
    batch = pipe.explain(examples[0]).batches[0]
    network = raw_network(task, architecture)
    given = raw_inputs(task, batch, network)
    written = network.generate(**given, max_new_tokens=4)
    written = written[0, given["input_ids"].shape[1] if architecture == "gpt2" else 1 :].tolist()
    length = int(batch.outputs["sequence_lengths"][0])
    assert batch.outputs["sequences"][0][:length].tolist() == written[:length]


def test_an_encoder_decoder_names_both_and_a_decoder_has_its_first_pass() -> None:
    pipe, examples = task_pipeline("summarization", "t5", *EAGER)
    batch = pipe.explain(examples, attentions=True).batches[0]
    shapes = {layer.name: layer.shape for layer in batch.layers}
    rows, width = batch.input_ids.shape
    assert shapes["encoder layer 2"] == (rows, width, 32)
    assert shapes["decoder layer 2"] == (rows, 1, 32)
    assert [name for name, _ in shapes.items()].count("decoder layer 1") == 1
    assert batch.attentions["cross layer 1"].shape == (rows, 4, 1, width)


def test_rows_that_run_apart_are_put_back_in_their_places() -> None:
    pipe, _ = task_pipeline("text-classification", "bart", *EAGER)
    examples: list[Example] = [
        {"text": "Good", "text_pair": "film"},
        "I love this film.",
        {"text": "a", "text_pair": "b"},
        "So bad.",
    ]
    trace = pipe.explain(examples, attentions=True)
    assert [row.result for row in trace.rows] == pipe(examples)
    for place, example in enumerate(examples):
        number, row = trace.rows[place].places[0]
        together, alone = trace.batches[number], pipe.explain(example, attentions=True).batches[0]
        kept = together.attention_mask[row] == 1
        assert [layer.name for layer in together.layers] == [layer.name for layer in alone.layers]
        for found, expected in zip(together.layers, alone.layers, strict=True):
            close(found.norms[row][kept], expected.norms[0], 5e-6)
        weights = together.attentions["encoder layer 2"][row][:, kept][:, :, kept]
        close(weights, alone.attentions["encoder layer 2"][0], 5e-6)
    assert any("differ by" in note for note in trace.notes)


def test_of_beams_the_first_of_each_row_is_shown() -> None:
    pipe, examples = task_pipeline("text-generation", "gpt2", *EAGER, "model.generation.num_beams=3")
    trace = pipe.explain(examples, attentions=True)
    assert [row.result for row in trace.rows] == pipe(examples)
    check_layers("text-generation", trace, raw_network("text-generation", "gpt2"))
    assert any("differ by" in note for note in trace.notes)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("bert", ()),
        ("bert", ("model.linear=packed",)),
        ("modernbert", ()),
        ("distilbert", ("padding.side=left",)),
        ("xlnet", ()),
        ("mobilebert", ()),
        ("deberta-v2", ()),
        ("longformer", ()),
        ("fnet", ()),
    ],
)
def test_other_engines_and_architectures(architecture: str, overrides: tuple[str, ...]) -> None:
    pipe, examples = task_pipeline("feature-extraction", architecture, *overrides)
    before = pipe(examples)
    trace = pipe.explain(examples, attentions=True)
    assert [row.result for row in trace.rows] == before
    assert pipe(examples) == before, "the engine is as it was before"
    network = raw_network("feature-extraction", architecture)
    for batch in trace.batches:
        assert batch.layers
        with torch.inference_mode():
            states = network(
                **raw_inputs("feature-extraction", batch, network), output_hidden_states=True
            ).hidden_states
        kept = batch.attention_mask == 1
        for layer, expected in zip(batch.layers[:2], states, strict=False):
            close(layer.norms[kept], torch.linalg.vector_norm(expected, dim=-1).numpy()[kept], 2e-5)
        assert bool(batch.attentions) == (architecture not in ("longformer", "fnet"))
        for weights in batch.attentions.values():
            close(weights.sum(-1).transpose(0, 2, 1)[kept], 1.0, 1e-4)


@pytest.mark.skipif(not can_quantize(), reason="torch has no products in int8 here")
def test_int8_shows_its_own_layers() -> None:
    pipe, examples = task_pipeline("text-classification", "bert", "model.quantization=int8_per_token")
    plain, _ = task_pipeline("text-classification", "bert", *EAGER)
    trace, exact = pipe.explain(examples, attentions=True), plain.explain(examples)
    assert [row.result for row in trace.rows] == pipe(examples)
    rounded, right = trace.batches[0].layers[-1].norms, exact.batches[0].layers[-1].norms
    assert 0 < np.abs(rounded - right).max() < 1
