"""The methods, each over embeddings ``[1, T, H]``: captum's own, summed up for each token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from captum import attr

from pk_attribution import MethodName

Forward = Callable[[torch.Tensor], torch.Tensor]
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
    :param run: returns a token's score, ``[T]``, from a forward and embeddings.
    """

    name: str
    summary: str
    complete: bool
    run: Callable[[Forward, torch.Tensor], torch.Tensor]


def _input_x_gradient(forward: Forward, embeddings: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = attr.InputXGradient(forward).attribute(embeddings.clone().requires_grad_())
    return found.detach().double().sum(-1)[0]


def _integrated_gradients(forward: Forward, embeddings: torch.Tensor) -> torch.Tensor:
    together = _together(embeddings)
    method = attr.IntegratedGradients(forward)
    found: torch.Tensor = method.attribute(embeddings.clone(), n_steps=STEPS, internal_batch_size=together)
    return found.detach().double().sum(-1)[0]


def _occlusion(forward: Forward, embeddings: torch.Tensor) -> torch.Tensor:
    window, together = (1, embeddings.shape[2]), _together(embeddings)
    method = attr.Occlusion(forward)
    found: torch.Tensor = method.attribute(embeddings, window, perturbations_per_eval=together)
    return found.detach().double()[0, :, 0]  # every number of a token's embedding has the token's score


def _together(embeddings: torch.Tensor) -> int:
    return max(1, _TOKENS // embeddings.shape[1])


METHODS: Mapping[MethodName, Method] = {
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
