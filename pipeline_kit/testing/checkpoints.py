"""Tiny checkpoints for tests: complete Hugging Face folders with random weights, written in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline_kit.builtin.models.hf.heads import HEAD_KINDS
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import Side
from pipeline_kit.errors import did_you_mean

HIDDEN, HEADS_OF_ATTENTION, LAYERS, INNER = 32, 4, 2, 48


@dataclass(frozen=True)
class Architecture:
    """How a tiny checkpoint of one ``model_type`` is made.

    :param tokenizer: a key of :data:`pipeline_kit.testing.checkpoints.STYLES`.
    :param sizes: options of the model's configuration apart from vocabulary, positions and special tokens.
    :param positions: the option that holds the number of positions, None where there is no limit.
    :param reserved: positions that are no token's, such as the first two of RoBERTa.
    """

    tokenizer: str
    sizes: Mapping[str, Any]
    positions: str | None = "max_position_embeddings"
    reserved: int = 0


def _bert(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS_OF_ATTENTION}
    return {**sizes, "intermediate_size": INNER, **more}


def _bart(**more: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {"d_model": HIDDEN}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": LAYERS, f"{part}_attention_heads": HEADS_OF_ATTENTION, f"{part}_ffn_dim": INNER}
    return sizes | more


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
    "gpt2": Architecture("gpt2", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS_OF_ATTENTION}, "n_positions"),
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


def tiny_checkpoint(
    folder: str | Path,
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
    differ clearly. The same arguments make the same weights.

    :param architecture: a key of `ARCHITECTURES`.
    :param head: a key of :data:`~pipeline_kit.builtin.models.hf.heads.HEAD_KINDS`.
    :param problem_type: ``single_label_classification``, ``multi_label_classification`` or ``regression``.
    :param padding_side: None is the one that is usual for the architecture.
    :param pad_token: False for a checkpoint without one, or the special token that pads, such as the last one.
    :param max_positions: tokens of the longest text.
    :param config: further options of the model's configuration.
    :returns: `folder`, which is made if it is not there.
    :raises ValueError: for an unknown architecture or head, or a head that transformers does not put on it.
    """
    for given, known in ((architecture, ARCHITECTURES), (head, HEAD_KINDS)):
        if given not in known:
            raise ValueError(f"'{given}' is none of {', '.join(known)}.{did_you_mean(given, known)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = ARCHITECTURES[architecture]
    style = STYLES[made.tokenizer]
    special = {role: token for role, token in style.special.items() if role != "pad" or pad_token is True}
    special |= {"pad": pad_token} if isinstance(pad_token, str) else {}
    tokenizer = tiny_tokenizer(made.tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "padding_side": padding_side or style.padding_side,
        "model_input_names": ["input_ids", *(["token_type_ids"] if style.segments else []), "attention_mask"],
        **{f"{role}_token": token for role, token in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    ids = {role: tokenizer.token_to_id(token) for role, token in special.items()}
    options: dict[str, Any] = {**made.sizes, "vocab_size": tokenizer.get_vocab_size()}
    if made.positions is not None:
        options[made.positions] = max_positions + made.reserved
    options |= {f"{role}_token_id": ids.get(role) for role in ("pad", "bos", "eos", "cls", "sep")}
    options |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    options |= {"problem_type": problem_type, **config}
    if architecture in ("marian", "pegasus", "t5"):
        options["decoder_start_token_id"] = options["pad_token_id"]
    model = _network(architecture, head, options, seed)
    with quiet():
        model.save_pretrained(folder)
    return folder


def _network(architecture: str, head: str, options: Mapping[str, Any], seed: int) -> Any:
    import transformers

    config = transformers.AutoConfig.for_model(architecture, **options)
    made_by = getattr(transformers, HEAD_KINDS[head].auto)
    if type(config) not in made_by._model_mapping:
        raise ValueError(f"transformers puts no head '{head}' on '{architecture}'; choose another one of them")
    model = made_by.from_config(config)
    _randomize(model, torch.Generator().manual_seed(seed))
    return model


def _randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Draw every weight anew: matrices by their input size, vectors around what they start from."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        matrix = parameter.dim() > 1
        parameter.data = noise * parameter.shape[-1] ** -0.5 * 1.5 if matrix else parameter.data + 0.2 * noise


_TEXT = """
a about acting after again all amazing am an and answer any are as at awful bad batch be beautiful because
been best better book boring but by can car cat city class course day did do dog dull easy end ever every fast
film fine first food for friend from fun get good great had happy has hate have he help her him his horrible
how hugging face i if in into is it its just kind know last life like little long love made make man many me
more most movie much music my never new nice no not now of on one only or other our out over paris people
perfect place plot poor quick rain read really right sad said say scene school see she short show slow small
so some song soon star still story sun team terrible than that the their them then there these they thing
think this time to too truly two up us very waiting want was watch water way we weak week well were what when
where which who whole why will wish with wonderful word work world worse worst would year yes you young your
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
"""What a tiny tokenizer knows as whole words; other words fall apart into characters or bytes."""

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-/&%$#@*+=<>[]{}|_~^\\`"


@dataclass(frozen=True)
class TokenizerStyle:
    """How a family of checkpoints cuts texts and frames them.

    :param special: the special tokens by role, in the order of their ids from 0; two roles may share one.
    :param single: the frame of one text, in the notation of ``TemplateProcessing``; empty for none.
    :param pair: the frame of a text and its pair.
    :param segments: whether the model takes ``token_type_ids``.
    """

    model: Literal["wordpiece", "bytes", "unigram"]
    special: Mapping[str, str]
    single: str = ""
    pair: str = ""
    segments: bool = False
    padding_side: Side = "right"


_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "bos": "<s>", "pad": "<pad>", "sep": "</s>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
_BERT_FRAMES = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
_ROBERTA_FRAMES = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")

STYLES: Mapping[str, TokenizerStyle] = {
    "bert": TokenizerStyle("wordpiece", _BERT, *_BERT_FRAMES, segments=True),
    "distilbert": TokenizerStyle("wordpiece", _BERT, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "mpnet": TokenizerStyle("wordpiece", _ROBERTA, *_ROBERTA_FRAMES),
    "roberta": TokenizerStyle("bytes", _ROBERTA, *_ROBERTA_FRAMES),
    "xlm-roberta": TokenizerStyle("unigram", _ROBERTA, *_ROBERTA_FRAMES),
    "albert": TokenizerStyle("unigram", _BERT, *_BERT_FRAMES, segments=True),
    "modernbert": TokenizerStyle("bytes", _BERT, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "t5": TokenizerStyle("unigram", {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "$A </s>", "$A </s> $B </s>"),
    "gpt2": TokenizerStyle("bytes", {"pad": "<|pad|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
    "llama": TokenizerStyle(
        "bytes",
        {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        "<s> $A",
        "<s> $A <s>:1 $B:1",
        padding_side="left",
    ),
    "qwen2": TokenizerStyle("bytes", {"pad": "<|endoftext|>", "eos": "<|im_end|>"}, padding_side="left"),
    "xlnet": TokenizerStyle(
        "unigram",
        {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>"},
        "$A <sep> <cls>:2",
        "$A <sep> $B:1 <sep>:1 <cls>:2",
        segments=True,
        padding_side="left",
    ),
}
"""By family; :data:`pipeline_kit.testing.checkpoints.ARCHITECTURES` says which one an architecture has."""


def tiny_tokenizer(style: str = "bert") -> Tokenizer:
    """Build a tokenizer of about 350 tokens that encodes any text and frames it as `style` does.

    It is lower-casing only for word pieces, and it knows the whole words of `WORDS`.

    :param style: a key of `STYLES`.
    """
    chosen = STYLES[style]
    special = list(dict.fromkeys(chosen.special.values()))
    build = {"wordpiece": _wordpiece, "bytes": _byte_level, "unigram": _unigram}[chosen.model]
    tokenizer = build(special, chosen.special.get("unk"))
    mask = chosen.special.get("mask")
    tokenizer.add_special_tokens([AddedToken(token, special=True, lstrip=token == mask) for token in special])
    if chosen.single:
        framing = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=chosen.single, pair=chosen.pair, special_tokens=framing
        )
    return tokenizer


def _wordpiece(special: list[str], unknown: str | None) -> Tokenizer:
    characters = dict.fromkeys(_CHARACTERS.lower())
    pieces = [*special, *characters, *(f"##{c}" for c in characters), *(w for w in WORDS if len(w) > 1)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown or "[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_level(special: list[str], unknown: str | None) -> Tokenizer:
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(*_grown_words("Ġ", pieces)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _grown_words(space: str, pieces: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary of `pieces` and what it takes to grow each word of `WORDS` from its left, and the merges.

    Only prefixes that begin with a space are merged.
    """
    found = dict.fromkeys(pieces)
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for end in range(1, len(word) + 1):
            merges[(space + word[: end - 1], word[end - 1])] = None
            found[space + word[:end]] = None
    return {piece: i for i, piece in enumerate(found)}, list(merges)


def _unigram(special: list[str], unknown: str | None) -> Tokenizer:
    pieces = [(token, 0.0) for token in special]
    pieces += [("▁", -6.0), *((character, -8.0) for character in dict.fromkeys(_CHARACTERS))]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, special.index(unknown or "<unk>"), False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def tiny_translator(
    folder: Path, languages: Sequence[str] = ("eng_Latn", "fra_Latn", "deu_Latn"), *, seed: int = 0
) -> Path:
    """Write an ``m2m_100`` of two layers with random weights and the tokenizer class of NLLB into `folder`.

    Its tokenizer grows each word of `WORDS` from its left, in the manner of sentencepiece.

    :param languages: their codes, each of which becomes a special token.
    :returns: `folder`, which is made if it is not there.
    """
    grown = _grown_words("▁", [*_SPECIAL, "▁", *map(chr, range(33, 127))])
    tokenizer = Tokenizer(models.BPE(*grown, unk_token="<unk>", fuse_unk=True))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*_SPECIAL, *languages, "<mask>")])
    frame = [(token, tokenizer.token_to_id(token)) for token in (languages[0], "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{languages[0]} $A </s>", pair=f"{languages[0]} $A $B </s>", special_tokens=frame
    )
    size = tokenizer.get_vocab_size()
    tiny_checkpoint(folder, "m2m_100", head="seq2seq-lm", seed=seed, vocab_size=size, decoder_start_token_id=2)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = folder / "tokenizer_config.json"
    settings = json.loads(written.read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": list(languages)}
    written.write_text(json.dumps(settings | {"src_lang": languages[0]}, indent=2), encoding="utf-8")
    return folder
