"""The graph of a checkpoint: from the cache, or exported into it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline_kit.builtin.models.hf.batches import (
    NetworkInputs,
    groups_by_end,
    groups_by_padding,
    inputs_of,
    known_sides,
    network_inputs,
    probe_sides,
    sample_batch,
    select_rows,
)
from pipeline_kit.builtin.models.hf.layers import sparse_part
from pipeline_kit.builtin.models.hf.loading import load_network
from pipeline_kit.checkpoint.resolve import fingerprint
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Device, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import CheckpointError, for_message
from pipeline_kit.graphs.cache import cached, silence
from pipeline_kit.graphs.format import PER_TOKEN, Graph, GraphFormat, GraphInfo, graph_inputs

_log = logging.getLogger(__name__)


def graph_key(context: StageContext, head: str, recipe: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return all that an exported network depends on, as JSON values.

    :param recipe: counted up by a plugin when what it makes comes out otherwise.
    """
    return {
        "recipe": recipe,
        "checkpoint": fingerprint(context.checkpoint),
        "head": head,
        "token_type_ids": _gives_types(context),
        "versions": dict(versions),
    }


def find_graph(root: Path, context: StageContext, key: Mapping[str, Any], kind: GraphFormat) -> tuple[Path, GraphInfo]:
    """Find the float32 graph for `key` below `root`, or export it.

    :param key: what :func:`graph_key` returned.
    :returns: the folder that `kind` loads, every file in it as it was written, and what is known of the graph.
    :raises CheckpointError: if the checkpoint lacks the head, or cannot be exported.
    :raises ConfigError: if the cache cannot be written.
    """

    def export_it(folder: Path) -> dict[str, Any]:
        _log.warning("exporting %s to %s for the head %s, once", context.checkpoint.name, kind.name, key["head"])
        return export(context, key["head"], key["token_type_ids"], folder, kind).to_json()

    folder, facts = cached(root, {**key, "precision": "float32"}, export_it)
    return folder, GraphInfo.from_json(facts)


def _gives_types(context: StageContext) -> bool:
    """Return whether the tokenizer returns ``token_type_ids``; GPT-2 and XLNet do not distinguish none from zeros."""
    if context.tokenizer is None:
        return False
    return context.tokenizer.encode(["a"])[0].token_type_ids is not None


def export(context: StageContext, head: str, types: bool, folder: Path, kind: GraphFormat) -> GraphInfo:
    """Write the graph of the checkpoint's network into `folder`, in float32.

    :param types: whether the tokenizer returns ``token_type_ids``.
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
    facts = GraphInfo(head, takes, frozenset(), end)
    with torch.inference_mode(), silence():
        batch = sample(settings, takes)
        try:
            program = _trace(kind, network, facts, graph_inputs(batch, head, takes))
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
            where = largest_difference(network, graph, facts, trial)
            if where is not None:
                raise _refused(checkpoint, head, kind, where)
        return replace(facts, sides=safe_sides(graph, facts, context, settings))


def _trace(kind: GraphFormat, network: Any, facts: GraphInfo, given: dict[str, torch.Tensor]) -> Any:
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
        f"the checkpoint '{for_message(checkpoint.name)}' is a {for_message(architecture, 80)}, which cannot be "
        "exported to "
        f"{kind.name} with the head {head}: {for_message(first, 200)}. Use model=hf"
    )


# The graph's arithmetic is the network's in another order; a branch that was traced for one length alone, or a
# dimension that was taken for a constant, is some hundred times above this share of the largest number.
_NOISE = 1e-4
_LONGEST = 1024  # tokens of the longest trial; attention takes memory by the square of them


def sample(settings: Any, takes: NetworkInputs) -> TokenBatch:
    """Return two rows of equal length on the CPU, with token types where the graph has them."""
    return _typed(sample_batch(settings, Device()), takes, settings)


def trials(batch: TokenBatch, context: StageContext, settings: Any) -> Iterator[TokenBatch]:
    """Yield batches without padding, of one row and of several, from one token to the most there may be.

    :param batch: what :func:`sample` returned.
    """
    longest = _longest(context, settings)
    for rows, width in ((2, batch.input_ids.shape[1]), (1, 1), (1, 2), (3, 6), (1, longest)):
        body = batch.input_ids[0, :-1].repeat(width // 10 + 2)
        ids = torch.stack([torch.cat([body[row : row + width - 1], batch.input_ids[0, -1:]]) for row in range(rows)])
        types = batch.token_type_ids
        if types is not None:
            types = types[:1].repeat(rows, width // types.shape[1] + 1)[:, :width]
        lengths = batch.lengths[:1].repeat(rows) * 0 + width
        yield replace(batch, input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=types, lengths=lengths)


def largest_difference(network: Any, graph: Graph, facts: GraphInfo, batch: TokenBatch) -> str | None:
    """Describe where the graph parts from the network as ``model=hf`` calls it, None if it does not."""
    count, width = batch.input_ids.shape
    try:
        found = graph(graph_inputs(batch, facts.head, facts.takes), facts.outputs)
    except RuntimeError as error:
        return f"the graph fails for {count} x {width} tokens: {error}"
    given = network_inputs(batch, facts.takes)
    if facts.head == "multiple-choice":
        given = {name: v[:, None] if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    answers = network(**given)
    for name, value in found.items():
        expected = getattr(answers, name)
        limit = _NOISE * expected.abs().max().clamp(min=1.0)
        if value.shape != expected.shape or not bool((value - expected).abs().max() <= limit):
            return f"the graph's answers differ for {count} x {width} tokens"
    return None


def safe_sides(graph: Graph, facts: GraphInfo, context: StageContext, settings: Any) -> frozenset[Side]:
    """Find the padding sides that leave the graph's answers as they are."""
    filler = None if context.tokenizer is None else context.tokenizer.pad_token_id

    def forward(batch: TokenBatch) -> Any:
        return run_graph(graph, facts, _typed(batch, facts.takes, None))

    tried = probe_sides(forward, settings, Device(), filler)
    known = known_sides(settings, facts.head)
    return tried if known is None else tried & known


def _typed(batch: TokenBatch, takes: NetworkInputs, settings: Any) -> TokenBatch:
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


def run_graph(graph: Graph, facts: GraphInfo, batch: TokenBatch) -> ModelOutput:
    """Run `batch` through the graph.

    :returns: the tensors of the head, float32, on the batch's device.
    """
    if facts.head in PER_TOKEN:
        tensors = graph(graph_inputs(batch, facts.head, facts.takes), facts.outputs)
        return ModelOutput(tensors, frozenset(tensors))
    groups = _groups(facts, batch)
    if len(groups) < 2:
        return ModelOutput({"logits": _logits(graph, facts, batch)})
    parts = torch.cat([_logits(graph, facts, select_rows(batch, rows)) for rows in groups])
    return ModelOutput({"logits": parts[torch.cat(groups).argsort()]})


def _logits(graph: Graph, facts: GraphInfo, batch: TokenBatch) -> torch.Tensor:
    logits = graph(graph_inputs(batch, facts.head, facts.takes), facts.outputs)["logits"]
    return logits[:, 0] if facts.head == "multiple-choice" else logits


def _groups(facts: GraphInfo, batch: TokenBatch) -> list[torch.Tensor]:
    if facts.head != "sequence-classification":
        return []
    if facts.end is not None:
        return groups_by_end(batch, facts.end)
    if facts.takes.pad_token_id is not None:
        return groups_by_padding(batch, facts.takes.pad_token_id)
    return []
