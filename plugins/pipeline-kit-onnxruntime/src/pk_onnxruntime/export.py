"""From a checkpoint to a graph in a folder, checked against the network that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline_kit.builtin.models.batches import Inputs, inputs_of, network_inputs
from pipeline_kit.builtin.models.loading import load_network
from pipeline_kit.builtin.models.padding_safety import known_sides, probe_sides, sample_batch
from pipeline_kit.builtin.models.sparse_attention import sparse_part
from pipeline_kit.errors import CheckpointError, shorten
from pipeline_kit.stages import StageContext
from pipeline_kit.types import Checkpoint, Device, Side, TokenBatch

from .facts import MODEL, Facts, feed
from .running import answer
from .session import Session
from .silence import silence

__all__ = ["export"]

# The graph's arithmetic is the network's in another order; a branch that was traced for one length alone, or a
# dimension that was taken for a constant, is some hundred times above this share of the largest number.
_NOISE = 1e-4
_LONGEST = 1024  # tokens of the longest trial; attention takes memory by the square of them


def export(context: StageContext, head: str, types: bool, folder: Path) -> Facts:
    """Write the graph of the checkpoint's network into `folder`, in float32.

    :param types: whether the tokenizer gives ``token_type_ids``.
    :raises CheckpointError: if the checkpoint lacks the head or a part of the network, or if the exporter cannot
        express the network, or not for every length.
    """
    checkpoint, cpu = context.checkpoint, Device(threads=context.device.threads)
    network = load_network(checkpoint, cpu, head, None)
    if sparse_part(network) is not None:
        raise _refused(checkpoint, head, "its attention is sparse for long texts and full for short ones")
    takes = inputs_of(network)
    # DistilBERT does not flatten the positions of choices; without them only left padding is lost, which none needs.
    positions = takes.position_ids and head != "multiple-choice"
    takes = replace(takes, token_type_ids=takes.token_type_ids and types, position_ids=positions)
    settings = network.config
    if head == "sequence-classification" and takes.pad_token_id is None and not settings.is_encoder_decoder:
        # A decoder's classifier refuses several rows, since it could not tell padding from text. With an id that
        # no token has it reads each row's last position, as it does for a row alone.
        settings.get_text_config().pad_token_id = -1
    with torch.inference_mode(), silence():
        sample = _typed(sample_batch(settings, cpu), takes, settings)
        program = _trace(checkpoint, network, head, feed(sample, head, takes), takes)
        _keep_outputs(program, Facts(head, takes, frozenset(), None).outputs)
        _save(program, folder)
        end = settings.eos_token_id if head == "sequence-classification" and settings.is_encoder_decoder else None
        facts = Facts(head, takes, frozenset(), end)
        session = Session(folder / MODEL, cpu)
        _verify(checkpoint, network, session, facts, list(_trials(sample, _longest(context, settings))))
        return replace(facts, sides=_sides(session, facts, context, settings))


def _trace(checkpoint: Checkpoint, network: Any, head: str, given: dict[str, torch.Tensor], takes: Inputs) -> Any:
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    dynamic = torch.export.Dim.DYNAMIC  # an error where a length is taken for a constant; AUTO would let it pass
    shapes = {name: {0: dynamic, value.dim() - 1: dynamic} for name, value in given.items()}
    inputs: dict[str, Any] = {name: value.clone() for name, value in given.items()}
    if takes.use_cache:
        inputs["use_cache"] = False
    try:
        with torch.inference_mode(False):
            return OnnxExporter().export(network, inputs, OnnxConfig(dynamic_shapes=shapes)).program
    except MemoryError:
        raise
    except Exception as error:
        raise _refused(checkpoint, head, f"{type(error).__name__}: {error}") from error


def _keep_outputs(program: Any, names: tuple[str, ...]) -> None:
    """Drop caches and hidden states, and what computes nothing else."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    by_name = {value.name: value for value in program.graph.outputs}
    program.graph.outputs[:] = [by_name[name] for name in names]
    RemoveUnusedNodesPass()(program)


def _save(program: Any, folder: Path) -> None:
    import onnx_ir

    onnx_ir.save(program, str(folder / MODEL), external_data=f"{MODEL}.data")


def _typed(batch: TokenBatch, takes: Inputs, settings: Any) -> TokenBatch:
    """Add token types where the graph has them, both kinds where there are two."""
    if not takes.token_type_ids:
        return batch
    types = torch.zeros_like(batch.input_ids)
    if (getattr(settings, "type_vocab_size", None) or 1) > 1:
        types[:, types.shape[1] // 2 :] = 1
    return replace(batch, token_type_ids=types)


def _longest(context: StageContext, settings: Any) -> int:
    text = settings.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    known = [
        limit - 2 for limit in limits if isinstance(limit, int) and limit > 2
    ]  # RoBERTa's first two are no token's
    if context.tokenizer is not None and context.tokenizer.max_length is not None:
        known = [context.tokenizer.max_length]
    return min([_LONGEST, *known])


def _trials(sample: TokenBatch, longest: int) -> Iterator[TokenBatch]:
    """Give batches without padding, of one row and of several, from one token to the most there may be."""
    for rows, width in ((2, sample.input_ids.shape[1]), (1, 1), (1, 2), (3, 6), (1, longest)):
        body = sample.input_ids[0, :-1].repeat(width // 10 + 2)
        ids = torch.stack([torch.cat([body[row : row + width - 1], sample.input_ids[0, -1:]]) for row in range(rows)])
        types = sample.token_type_ids
        if types is not None:
            types = types[:1].repeat(rows, width // types.shape[1] + 1)[:, :width]
        lengths = sample.lengths[:1].repeat(rows) * 0 + width
        yield replace(sample, input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=types, lengths=lengths)


def _verify(checkpoint: Checkpoint, network: Any, session: Session, facts: Facts, trials: list[TokenBatch]) -> None:
    """Compare the graph with the network as ``model=hf`` calls it.

    :raises CheckpointError: where they differ, or the graph fails.
    """
    for batch in trials:
        count, width = batch.input_ids.shape
        try:
            found = session(feed(batch, facts.head, facts.takes), facts.outputs)
        except RuntimeError as error:
            raise _refused(checkpoint, facts.head, f"the graph fails for {count} x {width} tokens: {error}") from error
        given = network_inputs(batch, facts.takes)
        if facts.head == "multiple-choice":
            given = {name: v[:, None] if isinstance(v, torch.Tensor) else v for name, v in given.items()}
        answers = network(**given)
        for name, value in found.items():
            expected = getattr(answers, name)
            limit = _NOISE * expected.abs().max().clamp(min=1.0)
            if value.shape != expected.shape or not bool((value - expected).abs().max() <= limit):
                raise _refused(checkpoint, facts.head, f"the graph's answers differ for {count} x {width} tokens")


def _sides(session: Session, facts: Facts, context: StageContext, settings: Any) -> frozenset[Side]:
    filler = None if context.tokenizer is None else context.tokenizer.pad_token_id

    def forward(batch: TokenBatch) -> Any:
        return answer(session, facts, _typed(batch, facts.takes, None))

    tried = probe_sides(forward, settings, Device(), filler)
    known = known_sides(settings, facts.head)
    return tried if known is None else tried & known


def _refused(checkpoint: Checkpoint, head: str, why: str) -> CheckpointError:
    kind = checkpoint.config.get("model_type")
    first = next((line for line in why.splitlines() if line.strip()), why)
    return CheckpointError(
        f"the checkpoint '{shorten(checkpoint.name)}' is a {shorten(kind, 80)}, which cannot be exported to ONNX with "
        f"the head {head}: {shorten(first, 200)}. Use model=hf"
    )
