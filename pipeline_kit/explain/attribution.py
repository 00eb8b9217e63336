"""Which tokens moved a result: fills the attributions of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_kit.differentiable import Differentiable, HasGradients
from pipeline_kit.errors import StageError, UsageError, closest, shorten
from pipeline_kit.explain.attribution_methods import METHODS, Method, need_captum
from pipeline_kit.explain.attribution_targets import Target, raw_logits, targets_of
from pipeline_kit.explain.trace import Attribution, RowTrace, Trace
from pipeline_kit.types import TokenBatch

if TYPE_CHECKING:
    import torch

    from pipeline_kit.pipeline import Pipeline

__all__ = ["METHODS", "attribute", "check_attribution"]

DEFAULT = tuple(METHODS)


def check_attribution(pipeline: Pipeline, methods: Sequence[str] = DEFAULT) -> None:
    """Check, before anything runs, that `methods` are there and the model has gradients.

    :raises UsageError: saying what to change, or to install.
    """
    for method in methods:
        if method not in METHODS:
            near = closest(method, tuple(METHODS))
            raise UsageError(
                f"'{shorten(method, 60)}' is no method of attribution."
                + (f" Did you mean '{near}'?" if near else "")
                + f"\n  allowed: {', '.join(METHODS)}"
            )
    if not isinstance(pipeline.model, HasGradients):
        described = pipeline.description.get("model", {})
        name = described.get("name") or type(pipeline.model).__name__
        raise UsageError(
            f"attribution needs the gradients of a network, and model={shorten(str(name), 60)} has none to give; "
            "use model=hf, with a task that classifies"
        )
    need_captum()


def attribute(pipeline: Pipeline, trace: Trace, methods: Sequence[str] = DEFAULT) -> Trace:
    """Say for each row of `trace` which tokens moved its result, by each of `methods`.

    What is explained is a logit, see :func:`~pipeline_kit.explain.attribution_targets.targets_of`. It is run again
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
        """Give a row of the trace's batches as a batch of its own, without padding."""
        import torch

        place, line = row.places[number]
        batch, device = self.trace.batches[place], self.pipeline.device.name
        kept = batch.attention_mask[line].astype(bool)

        def tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
            return torch.tensor(values[line][kept][None], dtype=torch.int64, device=device)

        ids = tensor(batch.input_ids)
        types = None if batch.token_type_ids is None else tensor(batch.token_type_ids)
        return TokenBatch(ids, torch.ones_like(ids), types, np.array([ids.shape[1]]), batch.side, padded=False)

    def _check(self, row: RowTrace, target: Target, logits: torch.Tensor) -> float:
        """Give how far `logits` are from the trace's, which is as far as the stage and batching may put them."""
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
    method: Method, target: Target, scores: np.ndarray[Any, Any], value: float, zero: float, used: str
) -> Attribution:
    name = f"{target.name}, {value:.4f}"
    if not method.complete:
        return Attribution(method.name, name, target.sequence, scores, None, f"{used}; its scores need not add up")
    total = float(scores.sum())
    wanted = f"{value - zero:.4f}, which is {value:.4f} less {zero:.4f} at zero embeddings"
    note = f"{used}; the scores add up to {total:.4f}, and would ideally to {wanted}"
    return Attribution(method.name, name, target.sequence, scores, abs(total - (value - zero)), note)
