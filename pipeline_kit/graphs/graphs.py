"""The graph of a checkpoint: what a runtime's plugin brings, and the model that runs one of the cache or exports it."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from pipeline_kit.builtin.models.hf import batches
from pipeline_kit.builtin.models.hf.heads import HEAD_KINDS, check_head_name
from pipeline_kit.builtin.models.hf.layers import sparse_part
from pipeline_kit.builtin.models.hf.loading import load_network
from pipeline_kit.checkpoint.resolve import fingerprint
from pipeline_kit.contract.stages import Model, StageContext
from pipeline_kit.contract.types import Checkpoint, Device, Encoding, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import CheckpointError, for_message
from pipeline_kit.graphs.cache import cached, default_folder, required_versions, silence
from pipeline_kit.runtime.padding import PaddingPolicy, collate

_log = logging.getLogger(__name__)


class Graph(ABC):
    """A graph that is loaded."""

    @abstractmethod
    def __call__(self, given: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Run the graph.

        :param given: its inputs by name, and perhaps more than it has; int64.
        :param names: the outputs to return.
        :returns: float tensors on the device of the inputs, in memory of their own.
        :raises RuntimeError: whatever the runtime reports, lack of memory in torch's words.
        """


@dataclass(frozen=True)
class GraphInfo:
    """What is known of a graph.

    :param takes: the inputs of its network; ``token_type_ids`` only if the tokenizer returns them.
    :param end: the token that the classifier of an encoder-decoder reads, None for all others.
    """

    head: str
    takes: batches.NetworkInputs
    sides: frozenset[Side]
    end: int | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        return HEAD_KINDS[self.head].outputs


def graph_inputs(batch: TokenBatch, head: str, takes: batches.NetworkInputs) -> dict[str, torch.Tensor]:
    """Return a graph's inputs for `batch`: all of them, each time.

    They are those of ``model=hf``, and where it leaves one out, what the network then takes for it.
    """
    given = batches.network_inputs(batch, takes)
    given.pop("use_cache", None)
    given.setdefault("attention_mask", batch.attention_mask)
    if takes.token_type_ids and "token_type_ids" not in given:
        raise ValueError("this graph was exported with token_type_ids, and the tokenizer returned none")
    if takes.position_ids and "position_ids" not in given:
        width = batch.input_ids.shape[1]
        places = torch.arange(width, device=batch.input_ids.device)
        given["position_ids"] = places.expand(batch.input_ids.shape)
    if head == "multiple-choice":  # each row is an example of one choice
        given = {name: value[:, None] for name, value in given.items()}
    return given


class GraphModel(Model):
    """Runs a checkpoint's network as a graph of a plugin's runtime; returns what ``model=hf`` returns.

    The graph is exported from the checkpoint's safetensors and kept under a key of all that it depends on. No graph
    of the checkpoint's own is ever opened. Its options are ``head``, ``precision`` and ``cache_dir``.

    :cvar stage: the name it is registered under.
    :cvar format: what messages call its graphs.
    :cvar cache: the folder of the user's cache, below ``pipeline-kit``.
    :cvar recipe: counted up when a graph made by the plugin comes out otherwise.
    :cvar packages: what the graph depends on; `instead` names those that do as well.
    :cvar tolerances: by precision.
    """

    deterministic = True
    stage: ClassVar[str]
    format: ClassVar[str]
    cache: ClassVar[str]
    recipe: ClassVar[int]
    packages: ClassVar[tuple[str, ...]]
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    tolerances: ClassVar[Mapping[str, float]]

    def __init__(self, config: Any, context: StageContext) -> None:
        """Find the graph in the cache, or export it.

        :raises CheckpointError: if the checkpoint lacks the head, or cannot be exported.
        :raises ConfigError: for an unknown head, a missing package or instruction, or a cache that cannot be written.
        :raises DeviceError: if the runtime does not run on the device.
        """
        head, self._precision = config.head or context.head, config.precision
        check_head_name(head)
        found = required_versions(f"model={self.stage}", self.packages, self.instead)
        self.check(context.device, config.precision)
        root = default_folder(self.cache) if config.cache_dir is None else Path(os.path.expanduser(config.cache_dir))
        tokenizer = context.tokenizer
        # GPT-2 and XLNet do not distinguish no types from zeros, so what the tokenizer returns is looked at.
        types = tokenizer is not None and tokenizer.encode(["a"])[0].token_type_ids is not None
        key = {"recipe": self.recipe, "head": head, "token_type_ids": types, "versions": dict(found)}
        key["checkpoint"] = fingerprint(context.checkpoint)

        def export_it(folder: Path) -> dict[str, Any]:
            _log.warning("exporting %s to %s for the head %s, once", context.checkpoint.name, self.format, head)
            info = export(context, head, types, folder, self)
            return {**asdict(info), "sides": sorted(info.sides)}

        def derive_it(folder: Path) -> dict[str, Any]:
            whole, facts = cached(root, {**key, "precision": "float32"}, export_it)
            return {**facts, **self.derive(context.checkpoint, whole, config.precision, folder)}

        more = self.derived_from(config.precision)
        build = export_it if more is None else derive_it
        self._folder, facts = cached(root, {**key, "precision": "float32", **(more or {})}, build)
        takes = batches.NetworkInputs(**facts["takes"])
        self._facts = GraphInfo(facts["head"], takes, frozenset(facts["sides"]), facts["end"])
        self._graph: Any = self.load(self._folder, context.device, config.precision, facts)

    @property
    def runtime_info(self) -> Mapping[str, Any]:
        return {"precision": self._precision, "graph": str(self._folder)}

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """The padding sides that leave the float32 graph's answers as they are, tried out after the export."""
        return self._facts.sides

    @property
    def tolerance(self) -> float:
        return self.tolerances[self._precision]

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the graph, rows that it may not see together apart; return the tensors of the head, float32."""
        return run_graph(self._graph, self._facts, batch)

    @abstractmethod
    def check(self, device: Device, precision: Any) -> None:
        """Refuse what the runtime cannot do here, by DeviceError or ConfigError."""

    @abstractmethod
    def derived_from(self, precision: Any) -> Mapping[str, Any] | None:
        """Return what a graph of `precision` depends on besides; None if it is the one in float32."""

    @abstractmethod
    def derive(self, checkpoint: Checkpoint, source: Path, precision: Any, folder: Path) -> dict[str, Any]:
        """Write the graph of `precision` into `folder`, made of the float32 one in `source`; return more facts."""

    @abstractmethod
    def trace(self, network: Any, inputs: Mapping[str, Any], shapes: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        """Return the graph of `network` in float32, in the runtime's own form.

        Any exception but lack of memory means that the exporter cannot express the network. What is printed or
        logged meanwhile is hidden.

        :param inputs: a trial batch by the names of the network's inputs, and perhaps ``use_cache``.
        :param shapes: the dimensions of those tensors that vary, for ``torch.export``.
        :param outputs: the tensors to keep, by transformers' names; what only other ones need should go.
        """

    @abstractmethod
    def save(self, program: Any, folder: Path) -> None:
        """Write what `trace` returned into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, device: Device, precision: Any, facts: Mapping[str, Any]) -> Graph:
        """Load the graph in `folder`, of which `facts` are known; raise RuntimeError if the runtime cannot."""


def export(context: StageContext, head: str, types: bool, folder: Path, kind: GraphModel) -> GraphInfo:
    """Write the graph of the checkpoint's network into `folder`, in float32, with token `types` if they are returned.

    :raises CheckpointError: if the checkpoint lacks the head or a part of the network, or if the exporter cannot
        express the network, or not for every length.
    """
    checkpoint, cpu = context.checkpoint, Device(threads=context.device.threads)
    network = load_network(checkpoint, cpu, head, None)
    if sparse_part(network) is not None:
        raise _refused(checkpoint, head, kind, "its attention is sparse for long texts and full for short ones")
    takes = batches.inputs_of(network)
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
        batch = _typed(batches.sample_batch(settings, Device()), takes, settings)
        try:
            given: dict[str, Any] = {name: v.clone() for name, v in graph_inputs(batch, head, takes).items()}
            # An error where a length is taken for a constant; AUTO would let it pass.
            dynamic = torch.export.Dim.DYNAMIC
            shapes = {name: {0: dynamic, value.dim() - 1: dynamic} for name, value in given.items()}
            if takes.use_cache:
                given["use_cache"] = False
            with torch.inference_mode(False):
                program = kind.trace(network, given, shapes, facts.outputs)
        except MemoryError:
            raise
        except Exception as error:
            raise _refused(checkpoint, head, kind, f"{type(error).__name__}: {error}") from error
        kind.save(program, folder)
        try:
            graph = kind.load(folder, cpu, "float32", {})
        except RuntimeError as error:
            raise _refused(checkpoint, head, kind, f"the graph does not load: {error}") from error
        for trial in trials(batch, context, settings):
            where = largest_difference(network, graph, facts, trial)
            if where is not None:
                raise _refused(checkpoint, head, kind, where)
        filler = None if context.tokenizer is None else context.tokenizer.pad_token_id
        tried = batches.probe_sides(
            lambda part: run_graph(graph, facts, _typed(part, takes, None)), settings, cpu, filler
        )
        known = batches.known_sides(settings, head)
        return replace(facts, sides=tried if known is None else tried & known)


def _refused(checkpoint: Checkpoint, head: str, kind: GraphModel, why: str) -> CheckpointError:
    architecture = checkpoint.config.get("model_type")
    first = next((line for line in why.splitlines() if line.strip()), why)
    return CheckpointError(
        f"the checkpoint '{for_message(checkpoint.name)}' is a {for_message(architecture, 80)}, which cannot be "
        f"exported to {kind.format} with the head {head}: {for_message(first, 200)}. Use model=hf"
    )


_LONGEST = 1024  # tokens of the longest trial; attention takes memory by the square of them


def trials(batch: TokenBatch, context: StageContext, settings: Any) -> Iterator[TokenBatch]:
    """Yield batches without padding like `batch`, two rows of equal length, from one token to the most there may be."""
    text, tokenizer = settings.get_text_config(), context.tokenizer
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    most = [limit - 2 for limit in limits if isinstance(limit, int) and limit > 2]  # RoBERTa's first two: no token's
    if tokenizer is not None and tokenizer.max_length is not None:
        most = [tokenizer.max_length]
    longest = min([_LONGEST, *most])
    ids, types = batch.input_ids[0].tolist(), batch.token_type_ids
    for rows, width in ((2, len(ids)), (1, 1), (1, 2), (3, 6), (1, longest)):
        body = ids[:-1] * (width // 10 + 2)
        kinds = None if types is None else (types[0].tolist() * (width // len(ids) + 1))[:width]
        encodings = [Encoding([*body[row : row + width - 1], ids[-1]], kinds) for row in range(rows)]
        yield collate(encodings, PaddingPolicy("longest"), str(batch.input_ids.device))


def largest_difference(network: Any, graph: Graph, facts: GraphInfo, batch: TokenBatch) -> str | None:
    """Describe where the graph parts from the network as ``model=hf`` calls it, None if it does not."""
    count, width = batch.input_ids.shape
    try:
        found = graph(graph_inputs(batch, facts.head, facts.takes), facts.outputs)
    except RuntimeError as error:
        return f"the graph fails for {count} x {width} tokens: {error}"
    answers = network(**batches.network_inputs(batch, facts.takes, facts.head))
    noise = batches.noise_of("graph", Device())
    same = all(batches.is_close(value, getattr(answers, name), noise) for name, value in found.items())
    return None if same else f"the graph's answers differ for {count} x {width} tokens"


def _typed(batch: TokenBatch, takes: batches.NetworkInputs, settings: Any) -> TokenBatch:
    """Add token types where the graph has them, both kinds where there are two."""
    if not takes.token_type_ids:
        return batch
    types = torch.zeros_like(batch.input_ids)
    if (getattr(settings, "type_vocab_size", None) or 1) > 1:
        types[:, types.shape[1] // 2 :] = 1
    return replace(batch, token_type_ids=types)


def run_graph(graph: Graph, facts: GraphInfo, batch: TokenBatch) -> ModelOutput:
    """Run `batch` through the graph; return the tensors of the head, float32, on the batch's device."""

    def run(part: TokenBatch) -> ModelOutput:
        tensors = graph(graph_inputs(part, facts.head, facts.takes), facts.outputs)
        if facts.head == "multiple-choice":
            tensors = {"logits": tensors["logits"][:, 0]}
        return ModelOutput(tensors, frozenset(tensors if HEAD_KINDS[facts.head].per_token else ()))

    return batches.forward_in_groups(
        batch, batches.row_groups(batch, facts.head, facts.end, facts.takes.pad_token_id), run
    )
