"""From a checkpoint to a graph in a folder, checked against the network that it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline_kit.builtin.models.batches import inputs_of
from pipeline_kit.builtin.models.loading import load_network
from pipeline_kit.builtin.models.sparse_attention import sparse_part
from pipeline_kit.errors import CheckpointError, shorten
from pipeline_kit.exported.compare import difference, safe_sides, sample, trials
from pipeline_kit.exported.facts import Facts, feed
from pipeline_kit.exported.format import GraphFormat
from pipeline_kit.exported.silence import silence
from pipeline_kit.stages import StageContext
from pipeline_kit.types import Checkpoint, Device

__all__ = ["export"]


def export(context: StageContext, head: str, types: bool, folder: Path, kind: GraphFormat) -> Facts:
    """Write the graph of the checkpoint's network into `folder`, in float32.

    :param types: whether the tokenizer gives ``token_type_ids``.
    :raises CheckpointError: if the checkpoint lacks the head or a part of the network, or if the exporter cannot
        express the network, or not for every length.
    """
    checkpoint, cpu = context.checkpoint, Device(threads=context.device.threads)
    network = load_network(checkpoint, cpu, head, None)
    if sparse_part(network) is not None:
        raise _refused(checkpoint, head, kind, "its attention is sparse for long texts and full for short ones")
    takes = inputs_of(network)
    # DistilBERT does not flatten the positions of choices; without them only left padding is lost, which none needs.
    positions = takes.position_ids and head != "multiple-choice"
    takes = replace(takes, token_type_ids=takes.token_type_ids and types, position_ids=positions)
    settings = network.config
    if head == "sequence-classification" and takes.pad_token_id is None and not settings.is_encoder_decoder:
        # A decoder's classifier refuses several rows, since it could not tell padding from text. With an id that
        # no token has it reads each row's last position, as it does for a row alone.
        settings.get_text_config().pad_token_id = -1
    end = settings.eos_token_id if head == "sequence-classification" and settings.is_encoder_decoder else None
    facts = Facts(head, takes, frozenset(), end)
    with torch.inference_mode(), silence():
        batch = sample(settings, takes)
        try:
            program = _trace(kind, network, facts, feed(batch, head, takes))
        except MemoryError:
            raise
        except Exception as error:
            raise _refused(checkpoint, head, kind, f"{type(error).__name__}: {error}") from error
        kind.save(program, folder)
        try:
            graph = kind.load(folder, cpu)
        except RuntimeError as error:
            raise _refused(checkpoint, head, kind, f"the graph does not load: {error}") from error
        for trial in trials(batch, context, settings):
            where = difference(network, graph, facts, trial)
            if where is not None:
                raise _refused(checkpoint, head, kind, where)
        return replace(facts, sides=safe_sides(graph, facts, context, settings))


def _trace(kind: GraphFormat, network: Any, facts: Facts, given: dict[str, torch.Tensor]) -> Any:
    dynamic = torch.export.Dim.DYNAMIC  # an error where a length is taken for a constant; AUTO would let it pass
    shapes = {name: {0: dynamic, value.dim() - 1: dynamic} for name, value in given.items()}
    inputs: dict[str, Any] = {name: value.clone() for name, value in given.items()}
    if facts.takes.use_cache:
        inputs["use_cache"] = False
    with torch.inference_mode(False):
        return kind.trace(network, inputs, shapes, facts.outputs)


def _refused(checkpoint: Checkpoint, head: str, kind: GraphFormat, why: str) -> CheckpointError:
    architecture = checkpoint.config.get("model_type")
    first = next((line for line in why.splitlines() if line.strip()), why)
    return CheckpointError(
        f"the checkpoint '{shorten(checkpoint.name)}' is a {shorten(architecture, 80)}, which cannot be exported to "
        f"{kind.name} with the head {head}: {shorten(first, 200)}. Use model=hf"
    )
