"""What a runtime's plugin brings: a graph that runs, and how one is written and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from pipeline_kit.types import Device

__all__ = ["Graph", "GraphFormat"]


class Graph(ABC):
    """A graph that is loaded."""

    @abstractmethod
    def __call__(self, given: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Run the graph.

        :param given: its inputs by name, and perhaps more than it has; int64.
        :param names: the outputs to give.
        :returns: float tensors on the device of the inputs, in memory of their own.
        :raises RuntimeError: whatever the runtime reports, lack of memory in torch's words.
        """


class GraphFormat(ABC):
    """How a network becomes a graph in a folder.

    :cvar name: what messages call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def trace(self, network: Any, inputs: Mapping[str, Any], shapes: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        """Give the graph of `network` in float32, in the runtime's own form.

        Any exception but lack of memory means that the exporter cannot express the network. What is printed or
        logged meanwhile is hidden.

        :param inputs: a trial batch by the names of the network's inputs, and perhaps ``use_cache``.
        :param shapes: the dimensions of those tensors that vary, for ``torch.export``.
        :param outputs: the tensors to keep, by transformers' names; what only other ones need should go.
        """

    @abstractmethod
    def save(self, program: Any, folder: Path) -> None:
        """Write what `trace` gave into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, device: Device) -> Graph:
        """Load what `save` wrote.

        :raises RuntimeError: if the runtime cannot.
        """
