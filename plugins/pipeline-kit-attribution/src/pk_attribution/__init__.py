"""Which tokens moved a result: a view of ``pipeline-kit explain`` by the methods of captum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit import Registry, option

MethodName = Literal["input_x_gradient", "integrated_gradients", "occlusion"]


@dataclass
class AttributionConfig:
    """Options of ``--view attribution``."""

    methods: list[MethodName] = option(["integrated_gradients"], "how tokens are scored, one after another", least=1)


def register(registry: Registry) -> None:
    """Add the view ``attribution``."""
    registry.view(
        "attribution", "pk_attribution.view:Attribution", AttributionConfig, summary="which tokens moved the result"
    )
