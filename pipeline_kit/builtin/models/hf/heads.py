"""Which head a checkpoint has, and which task to use with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline_kit.checkpoint.resolve import weight_shapes
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, ConfigError, Fault, closest_match, for_message


@dataclass(frozen=True)
class HeadKind:
    """One kind of model class in transformers.

    :param suffixes: how the names of its classes end.
    :param head: our name of the head.
    :param tasks: the values of ``task=`` that use it.
    :param tensors: how the names of weights begin that no other kind has.
    :param auto: transformers' class that builds it.
    :param outputs: what it returns, by transformers' names.
    :param per_token: whether it does so for each token; else for each row.
    :param presets: the values of ``checkpoint=`` that have it and can do the first of its tasks.
    """

    suffixes: tuple[str, ...]
    head: str
    tasks: tuple[str, ...]
    tensors: tuple[str, ...] = ()
    auto: str = ""
    outputs: tuple[str, ...] = ("logits",)
    per_token: bool = False
    presets: tuple[str, ...] = ()


KINDS: tuple[HeadKind, ...] = (
    HeadKind(
        ("ForSequenceClassification",),
        "sequence-classification",
        ("text-classification", "zero-shot-classification", "text-ranking"),
        ("pre_classifier.",),
        "AutoModelForSequenceClassification",
        presets=("distilbert_sst2", "go_emotions", "multilingual_sentiment", "tiny_sentiment", "toxic_bert"),
    ),
    HeadKind(
        ("ForTokenClassification",),
        "token-classification",
        ("token-classification",),
        auto="AutoModelForTokenClassification",
        per_token=True,
        presets=("bert_ner",),
    ),
    HeadKind(
        ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
        "question-answering",
        ("question-answering",),
        ("qa_outputs.",),
        "AutoModelForQuestionAnswering",
        ("start_logits", "end_logits"),
        per_token=True,
        presets=("distilbert_squad",),
    ),
    HeadKind(
        ("ForMaskedLM", "ForPreTraining", "WithLMHeadModel"),
        "masked-lm",
        ("fill-mask",),
        ("cls.predictions.", "lm_head.", "vocab_", "generator_", "lm_predictions.", "predictions."),
        "AutoModelForMaskedLM",
        per_token=True,
    ),
    HeadKind(("ForMultipleChoice",), "multiple-choice", ("multiple-choice",), auto="AutoModelForMultipleChoice"),
    HeadKind(("ForNextSentencePrediction",), "next-sentence-prediction", (), ("cls.seq_relationship.",)),
    HeadKind(
        ("ForConditionalGeneration", "MTModel"),
        "seq2seq-lm",
        ("summarization", "translation", "text2text-generation"),
        auto="AutoModelForSeq2SeqLM",
        presets=("flan_t5_small",),
    ),
    HeadKind(
        ("ForCausalLM", "LMHeadModel"),
        "causal-lm",
        ("text-generation",),
        auto="AutoModelForCausalLM",
        presets=("gpt2",),
    ),
    HeadKind(
        ("EncoderModel", "Model"),
        "base",
        ("sentence-embedding", "feature-extraction"),
        auto="AutoModel",
        outputs=("last_hidden_state",),
        per_token=True,
    ),
)
"""In the order in which a class name is compared: an ending that holds another one comes before it."""

HEAD_KINDS: Mapping[str, HeadKind] = {kind.head: kind for kind in KINDS if kind.auto}
"""By our name: the heads that can be built."""

GENERATION_HEADS = ("causal-lm", "seq2seq-lm")
"""The heads that ``model=generate`` can write text with."""

HEADS = tuple(head for head in HEAD_KINDS if head not in GENERATION_HEADS)
"""The heads that ``model=hf`` can put on a network."""

_LOOKALIKES = frozenset(
    {"sequence-classification", "token-classification", "multiple-choice", "next-sentence-prediction"}
)


_CLASSIFIERS = ("classifier.", "classification_head.", "score.", "logits_proj.")


def check_head_name(head: str, known: Sequence[str] = HEADS) -> None:
    """Raise ConfigError if `head` is none of `known`, the heads that a model stage has."""
    if head not in known:
        fault = Fault(
            "model.head", f"'{for_message(head)}' is not one of the choices.", tuple(known), closest_match(head, known)
        )
        if head in GENERATION_HEADS:
            fault = Fault("model.head", f"'{head}' writes text.", tuple(known), hint="use model=generate for the task")
        elif head in HEADS:
            fault = Fault("model.head", f"this model has no '{head}' head.", tuple(known), hint="use model=hf")
        raise ConfigError([fault])


def kind_of(checkpoint: Checkpoint, weights: Collection[str] = ()) -> HeadKind | None:
    """Find the kind of head that a checkpoint was saved with, by its class, else its `weights`; None: unknown."""
    name = _class_name(checkpoint)
    for kind in KINDS:
        if name.endswith(kind.suffixes):
            return kind
    for kind in KINDS:
        if any(weight.startswith(kind.tensors) for weight in weights):
            return kind
    return None


def refuse_lookalike(checkpoint: Checkpoint, head: str, weights: Collection[str] = ()) -> None:
    """Raise CheckpointError for a head that the weights do not hold and whose lack nothing else would show.

    A classifier on a decoder holds all that writing takes where that is tied to the embeddings, and so does the
    decoder of an encoder-decoder; what they wrote would mean nothing. Some classes that answer questions refuse the
    labels of another head before any weight is compared.
    """
    if head == "question-answering" and not any("qa_" in name for name in weights):
        found = kind_of(checkpoint, weights)
        if found is not None and found.head != head:
            raise missing_head(checkpoint, head, (), weights)
    kind = kind_of(checkpoint)
    if kind is None:
        return
    writes = {head, "base"} | ({"masked-lm"} if checkpoint.config.get("is_decoder") or head == "seq2seq-lm" else set())
    lookalike = head in _LOOKALIKES and kind.head in _LOOKALIKES - {head}
    if lookalike or (head in GENERATION_HEADS and kind.head not in writes):
        raise missing_head(checkpoint, head, ())


def check_saved(checkpoint: Checkpoint, head: str) -> None:
    """Raise CheckpointError if the names of the weights show another head, before anything is loaded."""
    weights = weight_shapes(checkpoint)
    refuse_lookalike(checkpoint, head, weights)
    kind = kind_of(checkpoint, weights)
    if kind is None or head == "base" or kind.head == head or head in GENERATION_HEADS:
        return
    # A class name may be wrong where the weights themselves show a head.
    shown = any(name.startswith(HEAD_KINDS[head].tensors) for name in weights)
    if not shown and not (kind.head == "base" and any(name.startswith(_CLASSIFIERS) for name in weights)):
        raise missing_head(checkpoint, head, (), weights)


def missing_head(
    checkpoint: Checkpoint, head: str, missing: Sequence[str], others: Collection[str] = ()
) -> CheckpointError:
    """Make the error for a checkpoint that lacks the weights `missing` of `head`, and has `others` without a place."""
    lack = f"Its weights lack {few(sorted(missing))}."
    if head == "base":
        name, found = for_message(checkpoint.name), f" They hold {few(sorted(others))}." if others else ""
        return CheckpointError(
            f"the checkpoint '{name}' does not hold the whole network that its config.json describes. {lack}{found} "
            "Check model_type and the number of layers in config.json, or download it again."
        )
    lines = [f"the checkpoint '{for_message(checkpoint.name)}' has no {head} head."]
    if missing:
        lines.append(lack)
    kind = kind_of(checkpoint, others)
    name = _class_name(checkpoint)
    if kind is not None:
        what = "no head (it is a base model)" if kind.head == "base" else f"a {kind.head} head"
        lines.append(f"It has {what}{f', saved as {for_message(name, 80)}' if name else ''}.")
        tasks = " or ".join(f"task={task}" for task in kind.tasks)
        lines.append(f"Use {tasks} with it." if tasks else "No task uses that head.")
    elif others:
        lines.append(f"It has weights that this head does not use: {few(sorted(others))}.")
    wanted = next((kind for kind in KINDS if kind.head == head and kind.tasks), None)
    if wanted is not None:
        such = ", ".join(f"checkpoint={preset}" for preset in wanted.presets)
        line = f"For task={wanted.tasks[0]} take a checkpoint that was fine-tuned for it"
        lines.append(f"{line}, such as {such}." if such else f"{line}.")
    return CheckpointError(" ".join(lines))


def _class_name(checkpoint: Checkpoint) -> str:
    names = checkpoint.config.get("architectures")
    return str(names[0]) if isinstance(names, Sequence) and not isinstance(names, str) and names else ""


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first names for a message, and how many more there are."""
    shown = ", ".join(for_message(name, 80) for name in names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
