"""Which tokens moved a result: fills the attributions of a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.stages import Differentiable, HasGradients
from pipeline_kit.contract.types import ModelOutput, TokenBatch
from pipeline_kit.errors import StageError, UsageError, did_you_mean, for_message
from pipeline_kit.explain.trace import Attribution, RowTrace, SequenceTrace, Trace

if TYPE_CHECKING:
    import torch

    from pipeline_kit.contract.stages import Postprocessor
    from pipeline_kit.runtime.pipeline import Pipeline

Forward = Callable[["torch.Tensor"], "torch.Tensor"]
"""From embeddings ``[N, T, H]`` to the number that is explained, ``[N]``."""

STEPS = 50  # captum's own default for the path's integral
_TOKENS = 2048  # of the variants that run together


@dataclass(frozen=True)
class Method:
    """One method.

    :param name: as the literature has it.
    :param summary: what a token's score is.
    :param complete: whether the scores of a linear model would add up to its number less that at zero embeddings;
        how far they are from it then says how much the scores leave out.
    :param run: returns a token's score, ``[T]``, from ``captum.attr``, a forward and embeddings.
    """

    name: str
    summary: str
    complete: bool
    run: Callable[[Any, Forward, torch.Tensor], torch.Tensor]


def need_captum() -> Any:
    """Import ``captum.attr``.

    :raises UsageError: without captum; says what to install.
    """
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise UsageError(
            f"attribution needs captum, which is not installed: pip install 'pipeline-kit[attribution]' ({error})"
        ) from error


def _input_x_gradient(attr: Any, forward: Forward, embeddings: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = attr.InputXGradient(forward).attribute(embeddings.clone().requires_grad_())
    return found.detach().double().sum(-1)[0]


def _integrated_gradients(attr: Any, forward: Forward, embeddings: torch.Tensor) -> torch.Tensor:
    together = _together(embeddings)
    method = attr.IntegratedGradients(forward)
    found: torch.Tensor = method.attribute(embeddings.clone(), n_steps=STEPS, internal_batch_size=together)
    return found.detach().double().sum(-1)[0]


def _occlusion(attr: Any, forward: Forward, embeddings: torch.Tensor) -> torch.Tensor:
    window, together = (1, embeddings.shape[2]), _together(embeddings)
    method = attr.Occlusion(forward)
    found: torch.Tensor = method.attribute(embeddings, window, perturbations_per_eval=together)
    return found.detach().double()[0, :, 0]  # every number of a token's embedding has the token's score


def _together(embeddings: torch.Tensor) -> int:
    return max(1, _TOKENS // embeddings.shape[1])


METHODS: Mapping[str, Method] = {
    "input_x_gradient": Method(
        "input x gradient",
        "the token's embedding times the gradient of the number by it: what it adds if the network were linear there",
        True,
        _input_x_gradient,
    ),
    "integrated_gradients": Method(
        "integrated gradients",
        f"the same with the gradient's mean over {STEPS} steps from zero embeddings to the text's",
        True,
        _integrated_gradients,
    ),
    "occlusion": Method(
        "occlusion",
        "how far the number falls when the token's embedding alone is set to zero",
        False,
        _occlusion,
    ),
}
"""By the name a user passes."""

DEFAULT = tuple(METHODS)


def check_attribution(pipeline: Pipeline, methods: Sequence[str] = DEFAULT) -> None:
    """Check, before anything runs, that `methods` are there and the model has gradients.

    :raises UsageError: saying what to change, or to install.
    """
    for method in methods:
        if method not in METHODS:
            raise UsageError(
                f"'{for_message(method, 60)}' is not a method of attribution.{did_you_mean(method, METHODS)}"
                f"\n  allowed: {', '.join(METHODS)}"
            )
    if not isinstance(pipeline.model, HasGradients):
        described = pipeline.description.get("model", {})
        name = described.get("name") or type(pipeline.model).__name__
        raise UsageError(
            f"attribution needs the gradients of a network, and model={for_message(str(name), 60)} has none to give; "
            "use model=hf, with a task that classifies"
        )
    need_captum()


def attribute(pipeline: Pipeline, trace: Trace, methods: Sequence[str] = DEFAULT) -> Trace:
    """Return for each row of `trace` which tokens moved its result, by each of `methods`.

    What is explained is a logit, see :func:`~pipeline_kit.explain.attribution.targets_of`. It is run again
    from the token embeddings, one sequence at a time in float32; the note of an attribution says by which network, and
    how far its logits are from those in the trace.

    :param pipeline: the one that `trace` is of.
    :param methods: keys of `METHODS`.
    :returns: the trace with :attr:`RowTrace.attributions`, one for each sequence and method; rows that failed, or
        whose result holds nothing, have none.
    :raises UsageError: for an unknown method, a model without gradients, a task that does not classify, or without
        captum.
    :raises StageError: if the network's logits are not those in the trace.
    """
    check_attribution(pipeline, methods)
    found = [
        () if row.result is None or not row.sequences else targets_of(trace, row, pipeline.postprocessor)
        for row in trace.rows
    ]
    notes = [
        f"row {number}: its result holds nothing whose tokens could be attributed"
        for number, (row, targets) in enumerate(zip(trace.rows, found, strict=True))
        if row.result is not None and not targets
    ]
    if not any(found):
        return replace(trace, notes=(*trace.notes, *notes))
    assert isinstance(pipeline.model, HasGradients), "`check_attribution` sees to it"
    run = _Run(pipeline, trace, pipeline.model.differentiable(), [METHODS[name] for name in methods])
    rows = tuple(
        replace(row, attributions=tuple(item for target in targets for item in run.of(row, target)))
        for row, targets in zip(trace.rows, found, strict=True)
    )
    return replace(trace, rows=rows, notes=(*trace.notes, *notes))


@dataclass(frozen=True)
class _Run:
    pipeline: Pipeline
    trace: Trace
    network: Differentiable
    methods: Sequence[Method]

    def of(self, row: RowTrace, target: Target) -> list[Attribution]:
        """Attribute one number of one sequence."""
        import torch

        attr = need_captum()
        with torch.inference_mode(mode=False):
            batch = self._alone(row, target.sequence)

            def forward(embeddings: torch.Tensor) -> torch.Tensor:
                return target.pick(self.network.forward_embeddings(embeddings, batch), batch)

            with torch.no_grad():
                embeddings = self.network.embed(batch)
                difference = self._check(row, target, self.network.forward_embeddings(embeddings, batch)["logits"])
                value, zero = (float(forward(given)) for given in (embeddings, torch.zeros_like(embeddings)))
            with torch.enable_grad():
                scores = {method: method.run(attr, forward, embeddings).cpu().numpy() for method in self.methods}
        used = f"{self.network.note}; its logits are within {difference:.1e} of the trace's"
        return [_attribution(method, target, found, value, zero, used) for method, found in scores.items()]

    def _alone(self, row: RowTrace, number: int) -> TokenBatch:
        """Return a row of the trace's batches as a batch of its own, without padding."""
        import torch

        place, line = row.places[number]
        batch, device = self.trace.batches[place], self.pipeline.device.name
        kept = batch.attention_mask[line].astype(bool)

        def tensor(values: NDArray[Any]) -> torch.Tensor:
            return torch.tensor(values[line][kept][None], dtype=torch.int64, device=device)

        ids = tensor(batch.input_ids)
        types = None if batch.token_type_ids is None else tensor(batch.token_type_ids)
        return TokenBatch(ids, torch.ones_like(ids), types, np.array([ids.shape[1]]), batch.side, has_padding=False)

    def _check(self, row: RowTrace, target: Target, logits: torch.Tensor) -> float:
        """Return how far `logits` are from the trace's, which is as far as the stage and batching may put them."""
        seen = raw_logits(self.trace, row, target.sequence)
        here = logits[0].float().cpu().numpy()
        if here.shape != seen.shape:
            raise StageError(f"the trace's logits have the shape {list(seen.shape)}, the network's {list(here.shape)}")
        difference = float(np.abs(here - seen).max())
        size = max(1.0, float(np.abs(seen).max()) / 10)  # tolerances are meant for logits of order 10
        allowed = 2 * self.pipeline.model.tolerance * size  # once for the stage's kernels, once for its batches
        if not difference <= allowed:
            raise StageError(
                f"{self.network.note} gives logits that are {difference:.1e} from the trace's, and {allowed:.1e} is "
                "allowed: it would explain another result. Was the trace made by this pipeline?"
            )
        return difference


def _attribution(
    method: Method, target: Target, scores: NDArray[Any], value: float, zero: float, used: str
) -> Attribution:
    name = f"{target.name}, {value:.4f}"
    if not method.complete:
        return Attribution(method.name, name, target.sequence, scores, None, f"{used}; its scores need not add up")
    total = float(scores.sum())
    wanted = f"{value - zero:.4f}, which is {value:.4f} less {zero:.4f} at zero embeddings"
    note = f"{used}; the scores add up to {total:.4f}, and would ideally to {wanted}"
    return Attribution(method.name, name, target.sequence, scores, abs(total - (value - zero)), note)


Pick = Callable[[ModelOutput, TokenBatch], "torch.Tensor"]
"""Returns the explained number, ``[N]``, from the model's outputs for N variants of one row."""


@dataclass(frozen=True)
class Target:
    """A number of the model's for one sequence of a row.

    :param name: in words, such as ``logit of 'POSITIVE'``.
    """

    sequence: int
    name: str
    pick: Pick


@runtime_checkable
class _Entails(Protocol):
    """A postprocessor that scores labels by whether the text entails a sentence with them."""

    def decisive(self, candidates: int) -> tuple[int, int | None]:
        """Return the label whose logit scores a candidate, among so many, and the one whose logit is taken off it."""
        ...


def targets_of(trace: Trace, row: RowTrace, postprocessor: Postprocessor) -> Sequence[Target]:
    """Find what made the result of `row`: of a classifier the label's logit, in each window of a long text.

    Of several texts a row was made into, one a label, a document or a choice, it is the one that won.

    :returns: nothing for a result that holds nothing, such as no entity.
    :raises UsageError: if the result is made of no logit of a class.
    """
    result = row.result
    if result is None or "logits" not in _outputs(trace, row):
        raise _no_class(trace)
    if isinstance(postprocessor, _Entails):
        return _hypothesis(trace, row, postprocessor)
    if "ranking" in result:
        return _document(trace, row, postprocessor)
    if "choice" in result and isinstance(result.get("scores"), list):
        best = int(np.argmax(result["scores"]))
        name = f"logit of the choice '{for_message(str(result['choice']), 60)}'"
        return [Target(number, name, _logit()) for number in _of_part(row, best)]
    if "entities" in result:
        return _entity(trace, row)
    if "label" in result or "logits" in result:
        return _label(trace, row)
    raise _no_class(trace)


def raw_logits(trace: Trace, row: RowTrace, number: int) -> NDArray[Any]:
    """Return the logits that the model returned for a row's sequence, ``[L]``, ``[T, L]`` or one; none of padding."""
    place, line = row.places[number]
    batch = trace.batches[place]
    found = np.asarray(batch.outputs["logits"][line])
    return found[batch.attention_mask[line].astype(bool)] if "logits" in batch.per_token else found


def _label(trace: Trace, row: RowTrace) -> Sequence[Target]:
    logits = np.stack([raw_logits(trace, row, number) for number in range(len(row.sequences))])
    if logits.ndim != 2 or logits.shape[1] != len(trace.labels) or any(s.part for s in row.sequences):
        raise _no_class(trace)
    assert row.result is not None, "`targets_of` sees to it"
    named = [i for i, label in enumerate(trace.labels) if label == row.result.get("label")]
    best = max(named or range(len(trace.labels)), key=lambda i: float(logits[:, i].mean()))
    name = f"logit of {_quoted(trace.labels[best])}"
    return [Target(number, name, _logit(best)) for number in range(len(row.sequences))]


def _hypothesis(trace: Trace, row: RowTrace, postprocessor: Any) -> Sequence[Target]:
    assert row.result is not None, "`targets_of` sees to it"
    label = row.result["label"]
    text = row.example if isinstance(row.example, str) else row.example["text"]
    parts = postprocessor.prepare(row.example)
    # Beside another label, for a lone one may be refused.
    sentence = postprocessor.prepare({"text": text, "labels": [label, f"{label} "]})[0]["text_pair"]
    won = next(place for place, part in enumerate(parts) if part["text_pair"] == sentence)
    entailed, opposite = postprocessor.decisive(len(parts))
    name = f"logit of {_quoted(trace.labels[entailed])}"
    if opposite is not None:
        name += f" less that of {_quoted(trace.labels[opposite])}"
    name += f" for {_quoted(label)}"
    return [Target(number, name, _logit(entailed, less=opposite)) for number in _of_part(row, won)]


def _document(trace: Trace, row: RowTrace, postprocessor: Postprocessor) -> Sequence[Target]:
    assert row.result is not None, "`targets_of` sees to it"
    best = int(row.result["ranking"][0]["index"])

    def pick(output: ModelOutput, batch: TokenBatch) -> torch.Tensor:
        return postprocessor.reduce(output, batch)["value"][:, 0]

    if "value" not in trace.batches[row.places[0][0]].reduced:
        raise _no_class(trace)
    return [Target(number, f"value that ranks document {best}", pick) for number in _of_part(row, best)]


def _entity(trace: Trace, row: RowTrace) -> Sequence[Target]:
    """Take the first token of the entity with the highest score, in the window where most stands around it."""
    assert row.result is not None, "`targets_of` sees to it"
    entities = row.result["entities"]
    if not entities:
        return ()
    entity = max(entities, key=lambda found: float(found["score"]))
    held = [
        (min(place, len(sequence.tokens) - 1 - place), -number, place)
        for number, sequence in enumerate(row.sequences)
        for place in _first_inside(sequence, entity["start"], entity["end"])
    ]
    if not held:
        return ()
    _, negated, place = max(held)
    number = -negated
    logits = raw_logits(trace, row, number)
    if logits.shape[-1] != len(trace.labels):
        raise _no_class(trace)
    label = int(logits[place].argmax())
    token = row.sequences[number].tokens[place]
    name = f"logit of {_quoted(trace.labels[label])} at token {place}, {_quoted(token.text)}"
    return [Target(number, name, _logit(place, label))]


def _first_inside(sequence: SequenceTrace, start: int, end: int) -> list[int]:
    inside = [
        place
        for place, token in enumerate(sequence.tokens)
        if token.start is not None and token.end is not None and token.start < end and token.end > start
    ]
    return inside[:1]


def _logit(*place: int, less: int | None = None) -> Pick:
    """Pick a logit by its place in a row's, less another one of the same row."""

    def pick(output: ModelOutput, batch: TokenBatch) -> torch.Tensor:
        del batch
        logits = output["logits"]
        found = logits
        for number in place:
            found = found[:, number]
        return found if less is None else found - logits[:, less]

    return pick


def _of_part(row: RowTrace, part: int) -> list[int]:
    return [number for number, sequence in enumerate(row.sequences) if sequence.part == part]


def _outputs(trace: Trace, row: RowTrace) -> Any:
    return trace.batches[row.places[0][0]].outputs if row.places and row.places[0][0] >= 0 else {}


def _quoted(name: str) -> str:
    return f"'{for_message(name, 60)}'"


def _no_class(trace: Trace) -> UsageError:
    return UsageError(
        f"attribution explains the logit of a class, and task={for_message(trace.task, 60)} gives none. It is for "
        "text-classification, zero-shot-classification, text-ranking, multiple-choice and token-classification"
    )
