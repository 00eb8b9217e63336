"""What a model stage may offer besides ``forward``: its network from the token embeddings on, with gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from pipeline_kit.types import ModelOutput, TokenBatch

__all__ = ["Differentiable", "HasGradients"]


class Differentiable(ABC):
    """A network that takes token embeddings, in float32 and without anything that has no gradient.

    It reads one row at a time, a batch of one without padding, and gives to it what the stage gives in any batch.
    """

    @property
    @abstractmethod
    def note(self) -> str:
        """What network it is, in a few words for people, such as ``the network itself``."""

    @abstractmethod
    def embed(self, batch: TokenBatch) -> torch.Tensor:
        """Give what stands for the row's tokens in the network before anything else is added to it.

        :param batch: one row without padding, ``input_ids [1, T]``.
        :returns: ``[1, T, H]``, float32, without a gradient of its own.
        """

    @abstractmethod
    def forward_embeddings(self, embeddings: torch.Tensor, batch: TokenBatch) -> ModelOutput:
        """Run the network on other embeddings in place of the row's own; positions, segments and ids stay the row's.

        :param embeddings: ``[N, T, H]``, N variants of what :meth:`embed` gave.
        :returns: the tensors of ``forward`` with first dimension ``N``, through which gradients flow back to
            `embeddings`.
        """


@runtime_checkable
class HasGradients(Protocol):
    """A model stage that has such a network."""

    def differentiable(self) -> Differentiable:
        """Give the network; it may be loaded for this, which takes as long as building the stage.

        :raises UsageError: if this checkpoint's network cannot be run from embeddings.
        """
        ...
