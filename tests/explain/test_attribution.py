"""Attribution: scores recomputed with torch on the raw transformers network, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from model_helpers import Make, maker

import pipeline_kit as pk
from pipeline_kit.builtin.models.kernels.linears import can_quantize
from pipeline_kit.contract.stages import HasGradients
from pipeline_kit.errors import StageError, UsageError
from pipeline_kit.explain.attribution import METHODS, STEPS, attribute
from pipeline_kit.explain.trace import Attribution, RowTrace, Trace
from pipeline_kit.testing import tiny_pipeline
from pipeline_kit.testing.kit import TinyModelConfig
from pipeline_kit.testing.stages import TinyModel, tiny_stage_context

pytest.importorskip("captum")

TEXTS = ("I love this film.", "No.", "the old bridge was cold, and nobody saw it; it is a long walk", "日本 é")
NLI = ("contradiction", "neutral", "entailment")
TAGS = ("O", "B-PER", "I-PER", "B-LOC")
# With AVX2 sums over many gradients differ more than with wider vectors: 1.5e-6 was measured.
CLOSE = 2e-6 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 1e-6
Value = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    return maker(tmp_path_factory)


def load(folder: Path, task: str = "text-classification", *more: str) -> pk.Pipeline:
    return pk.load(f"task={task}", f"checkpoint.path={folder}", "device=cpu", "device.threads=1", *more)


def explained(pipe: pk.Pipeline, examples: Any, methods: Sequence[str] = tuple(METHODS)) -> Trace:
    return attribute(pipe, pipe.explain(examples), methods)


def raw(folder: Path, kind: str = "SequenceClassification") -> Any:
    found = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder)
    return found.eval().requires_grad_(False)


def inputs_of(row: RowTrace, number: int) -> dict[str, torch.Tensor]:
    tokens = row.sequences[number].tokens
    given = {"input_ids": torch.tensor([[token.id for token in tokens]])}
    if tokens[0].type is not None:
        given["token_type_ids"] = torch.tensor([[token.type for token in tokens]])
    return given


def by_hand(network: Any, given: Mapping[str, torch.Tensor], value: Value) -> dict[str, tuple[np.ndarray, Any]]:
    """All three methods, with the sum that they should have, through transformers' own ``inputs_embeds``.

    :param value: from logits of N variants to the number that is explained, ``[N]``.
    """
    own = network.get_input_embeddings()(given["input_ids"]).detach()

    def run(embeddings: torch.Tensor) -> torch.Tensor:
        more = {name: item.expand(len(embeddings), -1) for name, item in given.items() if name != "input_ids"}
        return value(network(inputs_embeds=embeddings, **more).logits)

    def gradient(embeddings: torch.Tensor) -> torch.Tensor:
        leaf = embeddings.clone().requires_grad_()
        run(leaf).sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    without = own.repeat(own.shape[1], 1, 1)
    without[range(own.shape[1]), range(own.shape[1])] = 0
    with torch.no_grad():
        full, zero = run(own).item(), run(torch.zeros_like(own)).item()
        falls = full - run(without).double().numpy()
    places, weights = (torch.tensor(item)[:, None, None] for item in np.polynomial.legendre.leggauss(STEPS))
    path = (weights / 2 * gradient((own * (places + 1) / 2).float())).sum(0)
    return {
        "input x gradient": ((own * gradient(own)).sum(-1)[0].double().numpy(), full - zero),
        "integrated gradients": ((own * path).sum(-1)[0].double().numpy(), full - zero),
        "occlusion": (falls, None),
    }


def check(found: Attribution, expected: Mapping[str, tuple[np.ndarray, Any]]) -> None:
    scores, total = expected[found.method]
    size = max(1.0, float(np.abs(scores).max()))
    assert found.scores.shape == scores.shape
    assert np.abs(found.scores - scores).max() <= CLOSE * size * (5 if found.method == "occlusion" else 1), found.method
    if total is None:
        assert found.completeness_error is None
    else:
        assert found.completeness_error == pytest.approx(abs(scores.sum() - total), abs=1e-5 * size)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra", "roberta", "gpt2", "llama", "modernbert"])
def test_scores_are_those_of_the_raw_network(make: Make, architecture: str) -> None:
    folder = make(architecture)
    pipe, network = load(folder), raw(folder)
    trace = explained(pipe, list(TEXTS))
    for row in trace.rows:
        assert row.result is not None
        best = trace.labels.index(row.result["label"])
        expected = by_hand(network, inputs_of(row, 0), lambda logits, best=best: logits[:, best])  # type: ignore[misc]
        assert [found.method for found in row.attributions] == [method.name for method in METHODS.values()]
        for found in row.attributions:
            assert found.target.startswith(f"logit of '{row.result['label']}', ")
            check(found, expected)
    assert any(not batch.attention_mask.all() for batch in trace.batches) or pipe.padding.name == "none"


@pytest.mark.parametrize("architecture", ["bart", "t5", "xlnet", "longformer"])
def test_networks_without_embeddings_as_input_get_theirs_in_place(make: Make, architecture: str) -> None:
    """By the gradient of the table itself, whose rows hold what each token adds wherever it is looked up."""
    folder = make(architecture)
    network = raw(folder)
    table = network.get_input_embeddings().weight.requires_grad_()
    trace = explained(load(folder), TEXTS[0], ("input_x_gradient",))
    [found] = trace.rows[0].attributions
    assert trace.rows[0].result is not None
    given = inputs_of(trace.rows[0], 0)
    network(**given).logits[0, trace.labels.index(trace.rows[0].result["label"])].backward()
    ids = given["input_ids"][0].tolist()
    outside = {network.config.pad_token_id, getattr(network.config, "decoder_start_token_id", None)}
    once = [place for place, id in enumerate(ids) if ids.count(id) == 1 and id not in outside]
    expected = (table * table.grad).sum(-1)[ids].detach().numpy()
    assert len(once) >= 4
    np.testing.assert_allclose(found.scores[once], expected[once], atol=1e-5 * max(1, np.abs(expected).max()))


def test_each_window_of_a_long_text_is_attributed(make: Make) -> None:
    folder = make("bert")
    options = ("tokenizer.overflow=window", "tokenizer.max_length=12", "tokenizer.overlap=2")
    trace = explained(load(folder, "text-classification", *options), [TEXTS[2], "short"])
    row, network = trace.rows[0], raw(folder)
    assert row.result is not None
    best = trace.labels.index(row.result["label"])
    assert len(row.sequences) > 1
    assert [found.sequence for found in row.attributions] == [n for n in range(len(row.sequences)) for _ in METHODS]
    for found in row.attributions:
        check(found, by_hand(network, inputs_of(row, found.sequence), lambda logits: logits[:, best]))


@pytest.mark.parametrize(("architecture", "side"), [("roberta", "right"), ("gpt2", "left")])
def test_a_row_alone_has_the_scores_that_it_has_among_others(make: Make, architecture: str, side: str) -> None:
    pipe = load(make(architecture), "text-classification", "padding=max_length", f"padding.side={side}")
    together = explained(pipe, list(TEXTS))
    assert {batch.side for batch in together.batches} == {side}
    for text, row in zip(TEXTS, together.rows, strict=True):
        for found, alone in zip(row.attributions, explained(pipe, text).rows[0].attributions, strict=True):
            np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "labels"),
    [((), ["sport", "art", "sports"]), (("postprocessor.multi_label=true",), ["sport", "art"]), ((), ["a"])],
)
def test_zero_shot_explains_the_label_that_won(make: Make, options: tuple[str, ...], labels: list[str]) -> None:
    folder = make("bert", labels=NLI)
    example = {"text": TEXTS[0], "labels": labels}
    trace = explained(load(folder, "zero-shot-classification", *options), example)
    [row] = trace.rows
    assert row.result is not None
    won = labels.index(row.result["label"])
    apart = bool(options) or len(labels) == 1

    def value(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 2] - logits[:, 0] if apart else logits[:, 2]

    for found in row.attributions:
        assert found.sequence == won
        assert f"for '{labels[won]}'" in found.target
        assert ("less that of 'contradiction'" in found.target) == apart
        check(found, by_hand(raw(folder), inputs_of(row, won), value))


def test_ranking_explains_what_the_best_document_is_ranked_by(make: Make) -> None:
    folder = make("bert")
    pipe = load(folder, "text-ranking", "postprocessor.label=POSITIVE", "postprocessor.function=softmax")
    trace = explained(pipe, {"query": "old bridge", "documents": ["a film", "the old bridge", ""]})
    [row] = trace.rows
    assert row.result is not None
    best = row.result["ranking"][0]["index"]
    for found in row.attributions:
        assert found.sequence == best
        check(found, by_hand(raw(folder), inputs_of(row, best), lambda logits: logits.log_softmax(-1)[:, 1]))


def test_multiple_choice_explains_the_choice(make: Make) -> None:
    folder = make("bert", head="multiple-choice")
    trace = explained(load(folder, "multiple-choice"), {"text": TEXTS[0], "choices": ["yes", "no", "yes it is"]})
    [row] = trace.rows
    assert row.result is not None
    best = int(np.argmax(row.result["scores"]))
    network = raw(folder, "MultipleChoice")
    given = {name: value[:, None] for name, value in inputs_of(row, best).items()}
    own = network.get_input_embeddings()(given["input_ids"]).detach().requires_grad_()
    types = given["token_type_ids"]
    network(inputs_embeds=own, token_type_ids=types).logits[0, 0].backward()
    assert own.grad is not None
    expected = (own * own.grad).sum(-1)[0, 0].detach().numpy()
    assert row.attributions[0].sequence == best
    np.testing.assert_allclose(row.attributions[0].scores, expected, atol=CLOSE * max(1, np.abs(expected).max()))


def test_a_tagger_explains_one_token(make: Make) -> None:
    folder = make("bert", head="token-classification", labels=TAGS)
    trace = explained(load(folder, "token-classification"), [TEXTS[2], ""])
    row, empty = trace.rows
    assert row.result is not None
    entity = max(row.result["entities"], key=lambda found: found["score"])
    tokens = row.sequences[0].tokens
    place = next(i for i, token in enumerate(tokens) if token.start == entity["start"] and not token.special)
    network, given = raw(folder, "TokenClassification"), inputs_of(row, 0)
    label = int(network(**given).logits[0, place].argmax())
    for found in row.attributions:
        assert found.target.startswith(f"logit of '{TAGS[label]}' at token {place}, ")
        check(found, by_hand(network, given, lambda logits: logits[:, place, label]))
    assert not empty.attributions
    assert any("row 1: its result holds nothing" in note for note in trace.notes)


@pytest.mark.parametrize("engine", ["model.linear=packed", "model.quantization=int8", "device.dtype=bfloat16"])
def test_an_engine_without_gradients_is_explained_by_a_copy_in_float32(make: Make, engine: str) -> None:
    if "int8" in engine and not can_quantize():
        pytest.skip("this CPU has no products in int8")
    folder = make("distilbert")
    plain = explained(load(folder, "text-classification", "model.linear=eager"), TEXTS[2])
    other = explained(load(folder, "text-classification", engine), TEXTS[2])
    for found, expected in zip(other.rows[0].attributions, plain.rows[0].attributions, strict=True):
        assert expected.note.startswith("the network itself; its logits are within ")
        assert found.note.startswith("a copy of the network in float32")
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_the_pipeline_and_the_rest_of_the_trace_stay_as_they_are(make: Make) -> None:
    pipe = load(make("bert"), "text-classification", "model.linear=eager")
    before = pipe(list(TEXTS))
    trace = pipe.explain(list(TEXTS))
    with torch.inference_mode():
        found = attribute(pipe, trace, ("occlusion", "input_x_gradient"))
    bare = tuple(replace(row, attributions=()) for row in found.rows)
    assert all(mine is theirs.result for mine, theirs in zip([row.result for row in bare], trace.rows, strict=True))
    assert (found.batches, found.stages, found.notes) == (trace.batches, trace.stages, trace.notes)
    assert [item.method for item in found.rows[0].attributions] == ["occlusion", "input x gradient"]
    assert pipe(list(TEXTS)) == before
    assert isinstance(pipe.model, HasGradients)


def test_a_row_that_failed_has_none_and_harms_no_other(make: Make) -> None:
    pipe = load(make("bert"))
    trace = explained(pipe, [{"txt": "a"}, TEXTS[0]])
    assert trace.rows[0].failure is not None
    assert trace.rows[0].attributions == ()
    assert len(trace.rows[1].attributions) == len(METHODS)
    assert attribute(pipe, pipe.explain([])).rows == ()


def test_without_a_label_over_its_threshold_the_best_one_is_explained(make: Make) -> None:
    pipe = load(make("bert"), "text-classification", "postprocessor.thresholds={NEGATIVE: 1, POSITIVE: 1}")
    trace = explained(pipe, TEXTS[0], ("occlusion",))
    [row] = trace.rows
    assert row.result is not None
    assert row.result["label"] is None
    best = trace.labels[int(trace.batches[0].outputs["logits"][0].argmax())]
    assert row.attributions[0].target.startswith(f"logit of '{best}'")


def test_the_trace_of_another_checkpoint_is_refused(make: Make) -> None:
    pipe, other = load(make("bert")), load(make("bert", seed=1))
    with pytest.raises(StageError, match="Was the trace made by this pipeline"):
        attribute(pipe, other.explain(TEXTS[0]))


@pytest.mark.parametrize(
    ("head", "task", "example"),
    [
        ("base", "feature-extraction", "a"),
        ("masked-lm", "fill-mask", "a [MASK] b"),
        ("question-answering", "question-answering", {"question": "who?", "context": "an old man"}),
    ],
)
def test_a_task_without_classes_is_refused(make: Make, head: str, task: str, example: Any) -> None:
    pipe = load(make("bert", head=head), task)
    with pytest.raises(UsageError, match=f"task={task} gives none. It is for text-classification"):
        explained(pipe, example)


def test_a_model_without_gradients_is_refused(make: Make) -> None:
    writer = load(make("gpt2", head="causal-lm"), "text-generation", "model.generation.max_new_tokens=2")
    with pytest.raises(UsageError, match=r"model=generate has none to give; use model=hf"):
        attribute(writer, writer.explain("a"))
    trained = pk.load("device=cpu")
    plugin = tiny_pipeline(trained.postprocessor, model=TinyModel(TinyModelConfig(), tiny_stage_context()))
    with pytest.raises(UsageError, match=r"model=TinyModel has none to give"):
        attribute(plugin, trained.explain("a"))


def test_an_unknown_method_is_refused(make: Make) -> None:
    pipe = load(make("bert"))
    with pytest.raises(UsageError, match=r"Did you mean 'occlusion'\?\n  allowed: input_x_gradient, "):
        attribute(pipe, pipe.explain("a"), ("oclusion",))


def test_without_captum_it_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(make("bert"))
    trace = pipe.explain("a")
    for name in ("captum", "captum.attr"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"captum, which is not installed: pip install 'pipeline-kit\[attribution\]'"):
        attribute(pipe, trace)


def test_an_embedding_table_that_is_read_otherwise_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(make("bert"), "text-classification", "model.linear=eager")
    trace = pipe.explain(TEXTS[0])
    network = pipe.model._network  # type: ignore[attr-defined]
    monkeypatch.setattr(network, "get_input_embeddings", lambda: network.classifier)
    with pytest.raises(UsageError, match="BertForSequenceClassification has no table of token embeddings"):
        attribute(pipe, trace)


def test_attributions_are_plain_data(make: Make) -> None:
    [row] = explained(load(make("bert")), TEXTS[0]).rows
    for found in row.attributions:
        assert found.scores.dtype == np.float64
        assert json.loads(json.dumps(found.scores.tolist())) == found.scores.tolist()
