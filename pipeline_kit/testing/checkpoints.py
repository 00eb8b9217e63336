"""Tiny checkpoints for tests: complete Hugging Face folders with random weights, written in a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_kit.testing.tiny_tokenizers import STYLES, tiny_tokenizer
from pipeline_kit.types import Side

__all__ = ["ARCHITECTURES", "HEADS", "Architecture", "tiny_checkpoint", "tiny_tokenizer"]

HIDDEN, HEADS_OF_ATTENTION, LAYERS, INNER = 32, 4, 2, 48


@dataclass(frozen=True)
class Architecture:
    """How a tiny checkpoint of one ``model_type`` is made.

    :param tokenizer: a key of :data:`pipeline_kit.testing.tiny_tokenizers.STYLES`.
    :param sizes: options of the model's configuration apart from vocabulary, positions and special tokens.
    :param positions: the option that holds the number of positions, None where there is no limit.
    :param reserved: positions that are no token's, such as the first two of RoBERTa.
    """

    tokenizer: str
    sizes: Mapping[str, Any]
    positions: str | None = "max_position_embeddings"
    reserved: int = 0


def _bert(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS_OF_ATTENTION,
        "intermediate_size": INNER,
        **more,
    }


def _bart(**more: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {"d_model": HIDDEN}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": LAYERS, f"{part}_attention_heads": HEADS_OF_ATTENTION, f"{part}_ffn_dim": INNER}
    return sizes | more


def _gpt2(**more: Any) -> dict[str, Any]:
    return {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS_OF_ATTENTION, **more}


_LLAMA = _bert(num_key_value_heads=2)
_T5 = {"d_model": HIDDEN, "d_kv": 8, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS_OF_ATTENTION}
_DEBERTA = _bert(relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=-1)

ARCHITECTURES: Mapping[str, Architecture] = {
    "albert": Architecture("albert", _bert(embedding_size=16)),
    "bart": Architecture("roberta", _bart()),
    "bert": Architecture("bert", _bert()),
    "big_bird": Architecture("xlm-roberta", _bert(block_size=4)),
    "bloom": Architecture("gpt2", {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS_OF_ATTENTION}, None),
    "convbert": Architecture("bert", _bert(embedding_size=HIDDEN, conv_kernel_size=3, head_ratio=2)),
    "deberta": Architecture("roberta", _DEBERTA),
    "deberta-v2": Architecture("albert", _DEBERTA | {"share_att_key": True, "norm_rel_ebd": "layer_norm"}),
    "distilbert": Architecture(
        "distilbert", {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS_OF_ATTENTION, "hidden_dim": INNER}
    ),
    "electra": Architecture("bert", _bert(embedding_size=16)),
    "fnet": Architecture("albert", _bert()),
    "funnel": Architecture(
        "bert",
        {"d_model": HIDDEN, "n_head": HEADS_OF_ATTENTION, "d_head": 8, "d_inner": INNER, "block_sizes": [1, 1]},
        None,
    ),
    "gpt2": Architecture("gpt2", _gpt2(), "n_positions"),
    "gpt_neox": Architecture("gpt2", _bert()),
    "llama": Architecture("llama", _LLAMA),
    "longformer": Architecture("roberta", _bert(attention_window=8), reserved=2),
    "m2m_100": Architecture("roberta", _bart()),
    "mamba": Architecture("gpt2", {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 8}, None),
    "marian": Architecture("t5", _bart()),
    "mbart": Architecture("roberta", _bart()),
    "mistral": Architecture("llama", _LLAMA),
    "mobilebert": Architecture("bert", _bert(embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16)),
    "modernbert": Architecture("modernbert", _bert(local_attention=8)),
    "mpnet": Architecture("mpnet", _bert(), reserved=2),
    "nystromformer": Architecture("albert", _bert(num_landmarks=64, segment_means_seq_len=64)),
    "opt": Architecture("roberta", _bert(ffn_dim=INNER, word_embed_proj_dim=16)),
    "pegasus": Architecture("t5", _bart()),
    "qwen2": Architecture("qwen2", _LLAMA),
    "qwen3": Architecture("qwen2", _LLAMA | {"head_dim": 8}),
    "roberta": Architecture("roberta", _bert(), reserved=2),
    "roformer": Architecture("bert", _bert(embedding_size=HIDDEN)),
    "squeezebert": Architecture("bert", _bert(embedding_size=HIDDEN)),
    "t5": Architecture("t5", _T5, None),
    "xlm-roberta": Architecture("xlm-roberta", _bert(), reserved=2),
    "xlnet": Architecture(
        "xlnet", {"d_model": HIDDEN, "n_layer": LAYERS, "n_head": HEADS_OF_ATTENTION, "d_inner": INNER}, None
    ),
}
"""By ``model_type``: what :func:`tiny_checkpoint` can make."""

HEADS: Mapping[str, str] = {
    "base": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "multiple-choice": "AutoModelForMultipleChoice",
    "question-answering": "AutoModelForQuestionAnswering",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""By head: the transformers class that makes it."""


def tiny_checkpoint(
    folder: Path,
    architecture: str = "bert",
    *,
    head: str = "sequence-classification",
    labels: Sequence[str] = ("NEGATIVE", "POSITIVE"),
    problem_type: str | None = None,
    seed: int = 0,
    padding_side: Side | None = None,
    pad_token: bool | str = True,
    max_positions: int = 64,
    **config: Any,
) -> Path:
    """Write a checkpoint of two layers with ``config.json``, ``model.safetensors`` and a tokenizer into `folder`.

    The weights are random but far larger than at the start of a training, so that the answers to two texts
    differ clearly. The same arguments give the same weights.

    :param architecture: a key of `ARCHITECTURES`.
    :param head: a key of `HEADS`.
    :param problem_type: ``single_label_classification``, ``multi_label_classification`` or ``regression``.
    :param padding_side: None gives the one that is usual for the architecture.
    :param pad_token: False for a checkpoint without one, or the special token that pads, such as the last one.
    :param max_positions: tokens of the longest text.
    :param config: further options of the model's configuration.
    :returns: `folder`, which is made if it is not there.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    made = ARCHITECTURES[architecture]
    special = dict(STYLES[made.tokenizer].special)
    if pad_token is not True:
        special.pop("pad", None)
        special |= {"pad": pad_token} if pad_token else {}
    tokenizer = tiny_tokenizer(made.tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_tokenizer_config(folder, made, special, padding_side, max_positions)
    options: dict[str, Any] = {**made.sizes, "vocab_size": tokenizer.get_vocab_size()}
    if made.positions is not None:
        options[made.positions] = max_positions + made.reserved
    for role in ("pad", "bos", "eos", "cls", "sep"):
        options[f"{role}_token_id"] = tokenizer.token_to_id(special[role]) if role in special else None
    options |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    options |= {"problem_type": problem_type, **config}
    if architecture in ("marian", "pegasus", "t5"):
        options["decoder_start_token_id"] = options["pad_token_id"]
    settings = transformers.AutoConfig.for_model(architecture, **options)
    model = getattr(transformers, HEADS[head]).from_config(settings)
    _randomize(model, torch.Generator().manual_seed(seed))
    with _no_progress_bar():
        model.save_pretrained(folder)
    return folder


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_tokenizer_config(
    folder: Path, made: Architecture, special: Mapping[str, str], side: Side | None, max_length: int
) -> None:
    style = STYLES[made.tokenizer]
    names = ["input_ids", "token_type_ids", "attention_mask"] if style.segments else ["input_ids", "attention_mask"]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "padding_side": side or style.padding_side,
        "model_input_names": names,
        **{f"{role}_token": token for role, token in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Draw every weight anew: matrices by their input size, vectors around what they start from."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data = noise * parameter.shape[-1] ** -0.5 * 1.5
        else:
            parameter.data = parameter.data + 0.2 * noise
