"""Attribution: scores recomputed with torch on the raw transformers network, and what is refused."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pk_attribution
import pytest
import torch
import transformers
from pk_attribution import AttributionConfig, MethodName
from pk_attribution.methods import METHODS, STEPS
from pk_attribution.view import BARS, Attribution, Scores

import pipeline_kit as pk
from pipeline_kit.kit import Marked, Panel, RowTrace, StageError, Text, UsageError
from pipeline_kit.testing import TinyModel, TinyModelConfig, tiny_checkpoint, tiny_pipeline, tiny_stage_context

ALL = get_args(MethodName)
TEXTS = ("I love this film.", "No.", "the old bridge was cold, and nobody saw it; it is a long walk", "日本 é")
NLI = ("contradiction", "neutral", "entailment")
TAGS = ("O", "B-PER", "I-PER", "B-LOC")
# With AVX2 sums over many gradients differ more than with wider vectors: 1.5e-6 was measured.
CLOSE = 2e-6 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 1e-6
Value = Callable[[torch.Tensor], torch.Tensor]


@functools.cache
def make(architecture: str, **options: Any) -> Path:
    """Write a tiny checkpoint once."""
    return tiny_checkpoint(Path(tempfile.mkdtemp()), architecture, **options)


def load(folder: Path, task: str = "text-classification", *more: str) -> pk.Pipeline:
    return pk.load(f"task={task}", f"checkpoint.path={folder}", "device=cpu", "device.threads=1", *more)


def explained(
    pipe: pk.Pipeline, examples: Any, methods: Sequence[MethodName] = ALL
) -> tuple[pk.Trace, list[list[Scores]]]:
    view = Attribution(AttributionConfig(list(methods)))
    trace = pipe.explain(examples, views={"attribution": view})
    return trace, view.scores


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


def check(found: Scores, expected: Mapping[str, tuple[np.ndarray, Any]]) -> None:
    scores, total = expected[found.method]
    size = max(1.0, float(np.abs(scores).max()))
    assert found.scores.shape == scores.shape
    assert np.abs(found.scores - scores).max() <= CLOSE * size * (5 if found.method == "occlusion" else 1), found.method
    if total is None:
        assert found.completeness_error is None
    else:
        assert found.completeness_error == pytest.approx(abs(scores.sum() - total), abs=1e-5 * size)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra", "roberta", "gpt2", "llama", "modernbert"])
def test_scores_are_those_of_the_raw_network(architecture: str) -> None:
    folder = make(architecture)
    pipe, network = load(folder), raw(folder)
    trace, scores = explained(pipe, list(TEXTS))
    for row, own in zip(trace.rows, scores, strict=True):
        assert row.result is not None
        best = trace.labels.index(row.result["label"])
        expected = by_hand(network, inputs_of(row, 0), lambda logits, best=best: logits[:, best])  # type: ignore[misc]
        assert [found.method for found in own] == [method.name for method in METHODS.values()]
        for found in own:
            assert found.target.startswith(f"logit of '{row.result['label']}', ")
            check(found, expected)
    assert any(not batch.attention_mask.all() for batch in trace.batches) or pipe.padding.name == "none"


@pytest.mark.parametrize("architecture", ["bart", "t5", "xlnet", "longformer"])
def test_networks_without_embeddings_as_input_get_theirs_in_place(architecture: str) -> None:
    """By the gradient of the table itself, whose rows hold what each token adds wherever it is looked up."""
    folder = make(architecture)
    network = raw(folder)
    table = network.get_input_embeddings().weight.requires_grad_()
    trace, [[found]] = explained(load(folder), TEXTS[0], ["input_x_gradient"])
    assert trace.rows[0].result is not None
    given = inputs_of(trace.rows[0], 0)
    network(**given).logits[0, trace.labels.index(trace.rows[0].result["label"])].backward()
    ids = given["input_ids"][0].tolist()
    outside = {network.config.pad_token_id, getattr(network.config, "decoder_start_token_id", None)}
    once = [place for place, id in enumerate(ids) if ids.count(id) == 1 and id not in outside]
    expected = (table * table.grad).sum(-1)[ids].detach().numpy()
    assert len(once) >= 4
    np.testing.assert_allclose(found.scores[once], expected[once], atol=1e-5 * max(1, np.abs(expected).max()))


def test_each_window_of_a_long_text_is_attributed() -> None:
    folder = make("bert")
    options = ("tokenizer.overflow=window", "tokenizer.max_length=12", "tokenizer.overlap=2")
    trace, [scores, _] = explained(load(folder, "text-classification", *options), [TEXTS[2], "short"])
    row, network = trace.rows[0], raw(folder)
    assert row.result is not None
    best = trace.labels.index(row.result["label"])
    assert len(row.sequences) > 1
    assert [found.sequence for found in scores] == [n for n in range(len(row.sequences)) for _ in METHODS]
    for found in scores:
        check(found, by_hand(network, inputs_of(row, found.sequence), lambda logits: logits[:, best]))


@pytest.mark.parametrize(("architecture", "side"), [("roberta", "right"), ("gpt2", "left")])
def test_a_row_alone_has_the_scores_that_it_has_among_others(architecture: str, side: str) -> None:
    pipe = load(make(architecture), "text-classification", "padding=max_length", f"padding.side={side}")
    trace, together = explained(pipe, list(TEXTS))
    assert {batch.side for batch in trace.batches} == {side}
    for text, scores in zip(TEXTS, together, strict=True):
        for found, alone in zip(scores, explained(pipe, text)[1][0], strict=True):
            np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "labels"),
    [((), ["sport", "art", "sports"]), (("postprocessor.multi_label=true",), ["sport", "art"]), ((), ["a"])],
)
def test_zero_shot_explains_the_label_that_won(options: tuple[str, ...], labels: list[str]) -> None:
    folder = make("bert", labels=NLI)
    example = {"text": TEXTS[0], "labels": labels}
    trace, [scores] = explained(load(folder, "zero-shot-classification", *options), example)
    [row] = trace.rows
    assert row.result is not None
    won = labels.index(row.result["label"])
    apart = bool(options) or len(labels) == 1

    def value(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 2] - logits[:, 0] if apart else logits[:, 2]

    for found in scores:
        assert found.sequence == won
        assert f"for '{labels[won]}'" in found.target
        assert ("less that of 'contradiction'" in found.target) == apart
        check(found, by_hand(raw(folder), inputs_of(row, won), value))


def test_ranking_explains_what_the_best_document_is_ranked_by() -> None:
    folder = make("bert")
    pipe = load(folder, "text-ranking", "postprocessor.label=POSITIVE", "postprocessor.function=softmax")
    trace, [scores] = explained(pipe, {"query": "old bridge", "documents": ["a film", "the old bridge", ""]})
    [row] = trace.rows
    assert row.result is not None
    best = row.result["ranking"][0]["index"]
    for found in scores:
        assert found.sequence == best
        check(found, by_hand(raw(folder), inputs_of(row, best), lambda logits: logits.log_softmax(-1)[:, 1]))


def test_multiple_choice_explains_the_choice() -> None:
    folder = make("bert", head="multiple-choice")
    trace, [scores] = explained(
        load(folder, "multiple-choice"), {"text": TEXTS[0], "choices": ["yes", "no", "yes it is"]}
    )
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
    assert scores[0].sequence == best
    np.testing.assert_allclose(scores[0].scores, expected, atol=CLOSE * max(1, np.abs(expected).max()))


def test_a_tagger_explains_one_token() -> None:
    folder = make("bert", head="token-classification", labels=TAGS)
    trace, [scores, none] = explained(load(folder, "token-classification"), [TEXTS[2], ""])
    row, empty = trace.rows
    assert row.result is not None
    entity = max(row.result["entities"], key=lambda found: found["score"])
    tokens = row.sequences[0].tokens
    place = next(i for i, token in enumerate(tokens) if token.start == entity["start"] and not token.special)
    network, given = raw(folder, "TokenClassification"), inputs_of(row, 0)
    label = int(network(**given).logits[0, place].argmax())
    for found in scores:
        assert found.target.startswith(f"logit of '{TAGS[label]}' at token {place} of ")
        check(found, by_hand(network, given, lambda logits: logits[:, place, label]))
    assert none == []
    [note] = empty.views["attribution"]
    assert isinstance(note, Text)
    assert "holds nothing" in note.text


@pytest.mark.parametrize("engine", ["model.linear=packed", "model.quantization=int8", "device.dtype=bfloat16"])
def test_an_engine_without_gradients_is_explained_by_a_copy_in_float32(engine: str) -> None:
    folder = make("distilbert")
    _, [plain] = explained(load(folder, "text-classification", "model.linear=eager"), TEXTS[2])
    try:
        pipe = load(folder, "text-classification", engine)
    except pk.PipelineKitError:
        pytest.skip(f"this CPU has no {engine}")
    for found, expected in zip(explained(pipe, TEXTS[2])[1][0], plain, strict=True):
        assert expected.note.startswith("the network itself; its outputs are within ")
        assert found.note.startswith("a copy of the network in float32")
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_the_pipeline_and_the_rest_of_the_trace_stay_as_they_are() -> None:
    pipe = load(make("bert"), "text-classification", "model.linear=eager")
    before, trace = pipe(list(TEXTS)), pipe.explain(list(TEXTS))
    with torch.inference_mode():
        found, scores = explained(pipe, list(TEXTS), ["occlusion", "input_x_gradient"])
    assert [row.result for row in found.rows] == before == pipe(list(TEXTS))
    assert [list(row.views) for row in found.rows] == [["attribution"]] * len(TEXTS)
    np.testing.assert_array_equal(found.batches[0].outputs["logits"], trace.batches[0].outputs["logits"])
    assert found.notes == trace.notes
    assert [item.method for item in scores[0]] == ["occlusion", "input x gradient"]


def test_a_row_that_failed_has_none_and_harms_no_other() -> None:
    pipe = load(make("bert"))
    trace, scores = explained(pipe, [{"txt": "a"}, TEXTS[0]])
    assert trace.rows[0].failure is not None
    assert (scores[0], trace.rows[0].views["attribution"]) == ([], ())
    assert len(scores[1]) == len(METHODS)
    assert explained(pipe, [])[0].rows == ()


def test_without_a_label_over_its_threshold_the_best_one_is_explained() -> None:
    pipe = load(make("bert"), "text-classification", "postprocessor.thresholds={NEGATIVE: 1, POSITIVE: 1}")
    trace, [[found]] = explained(pipe, TEXTS[0], ["occlusion"])
    [row] = trace.rows
    assert row.result is not None
    assert row.result["label"] is None
    best = trace.labels[int(trace.batches[0].outputs["logits"][0].argmax())]
    assert found.target.startswith(f"logit of '{best}'")


def test_a_network_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, other = load(make("bert")), load(make("bert", seed=1)).model.differentiable()
    monkeypatch.setattr(type(pipe.model), "differentiable", lambda _: other)
    with pytest.raises(StageError, match="it would explain another result"):
        explained(pipe, TEXTS[0])


@pytest.mark.parametrize(
    ("head", "task", "example"),
    [
        ("base", "feature-extraction", "a"),
        ("masked-lm", "fill-mask", "a [MASK] b"),
        ("question-answering", "question-answering", {"question": "who?", "context": "an old man"}),
    ],
)
def test_a_task_without_classes_is_refused(head: str, task: str, example: Any) -> None:
    pipe = load(make("bert", head=head), task)
    with pytest.raises(UsageError, match=f"task={task} names none .* such as text-classification"):
        explained(pipe, example)


def test_a_model_without_gradients_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = load(make("gpt2", head="causal-lm"), "text-generation", "model.generation.max_new_tokens=2")
    monkeypatch.setattr(type(writer.model), "forward", lambda *_: pytest.fail("it ran"))
    with pytest.raises(UsageError, match=r"model=generate has none; use model=hf"):
        explained(writer, "a")
    trained = pk.load("device=cpu")
    plugin = tiny_pipeline(trained.postprocessor, model=TinyModel(TinyModelConfig(), tiny_stage_context()))
    with pytest.raises(UsageError, match=r"model=TinyModel has none"):
        explained(plugin, "a")


def test_an_embedding_table_that_is_read_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(make("bert"), "text-classification", "model.linear=eager")
    found = pipe.model.differentiable()
    assert found is not None
    monkeypatch.setattr(found.network, "get_input_embeddings", lambda: found.network.classifier)
    with pytest.raises(UsageError, match="BertForSequenceClassification has no table of token embeddings"):
        explained(pipe, TEXTS[0])


def test_a_view_is_blocks_and_plain_data() -> None:
    text = " ".join(["good film"] * 20)
    trace, [[found]] = explained(load(make("bert")), text, ["occlusion"])
    marked, bars = trace.rows[0].views["attribution"]
    assert isinstance(marked, Marked)
    assert isinstance(bars, Panel)
    assert "".join(piece for piece, _ in marked.pieces) == text
    assert marked.title == f"occlusion: {found.target}"
    assert found.scores.dtype == np.float64
    kept = np.sort(np.argsort(-np.abs(found.scores), kind="stable")[:BARS])
    assert [row[1] for row in bars.rows] == found.scores[kept].tolist()
    assert f"{BARS} of {len(found.scores)} tokens; completeness error not defined; " in bars.note
    views = json.loads(json.dumps(trace.to_dict(), allow_nan=False))["rows"][0]["views"]
    assert views["attribution"][0]["title"] == marked.title


def command(*words: str) -> subprocess.CompletedProcess[str]:
    folder = f"checkpoint.path={make('bert')}"
    line = [sys.executable, "-m", "pipeline_kit", "explain", "--plugin", "pk_attribution", "--text", TEXTS[0], folder]
    env = os.environ | {"PYTHONPATH": str(Path(pk_attribution.__file__).parents[1])}
    return subprocess.run([*line, *words], capture_output=True, text=True, env=env, timeout=120)


def test_the_command_shows_it_with_the_options_of_the_line(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["--view", "attribution", "--view", "attribution.methods=[occlusion]", "--html", str(page)]
    done = command(*words, "--format", "text")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nattribution ──" in done.stdout
    assert "occlusion: logit of '" in done.stdout
    assert "integrated" not in done.stdout
    assert 'class="shaded"' in page.read_text(encoding="utf-8")
    wrong = command("--view", "attribution.methods=[oclusion]", "--view", "attribution.method=occlusion")
    assert wrong.returncode == 2
    assert "Did you mean 'occlusion'?" in wrong.stderr
    assert "attribution.method: unknown option. Did you mean 'methods'?" in wrong.stderr
