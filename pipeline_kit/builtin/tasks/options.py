"""Options of the built-in postprocessors; importing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.contract.options import option


@dataclass
class ClassificationConfig:
    """Options of ``postprocessor=classification``."""

    function: Literal["auto", "softmax", "sigmoid", "none"] = option(
        "auto", "logits to scores; auto: by the checkpoint's problem_type and number of labels, as in transformers"
    )
    top_k: int | None = option(1, "how many labels a result lists, best first; null: all", minimum=1)
    thresholds: dict[str, float] = option(
        {}, "label: score it must reach to be chosen or listed; if none does, label is null"
    )
    merge: Literal["mean", "max"] = option(
        "mean", "windows of a long text: mean of their scores by tokens, or max of each label"
    )


@dataclass
class PoolingConfig:
    """Options of ``postprocessor=pooling``."""

    pooling: Literal["auto", "mean", "cls", "max", "last", "weighted_mean", "mean_sqrt_len"] = option(
        "auto", "token vectors to one; auto: as the folder's modules.json says, else mean; cls is the first token"
    )
    normalize: bool | None = option(
        None, "scale each vector to length 1; null: as the folder's modules.json says, else true"
    )
    dimensions: int | None = option(
        None, "keep the first so many numbers of each vector; null: the folder's truncate_dim, else all", minimum=1
    )
    prompt: str | None = option(
        None, "a text put before each text; null: what prompt_name, or else the folder's default, names"
    )
    prompt_name: str | None = option(
        None, "the name of a prompt in the folder's config_sentence_transformers.json or in checkpoint.prompts"
    )


@dataclass
class FeaturesConfig:
    """Options of ``postprocessor=features``."""

    special_tokens: bool = option(True, "keep the vectors of special tokens such as [CLS]")


@dataclass
class LogitsConfig:
    """Options of ``postprocessor=logits``."""


@dataclass
class EntitiesConfig:
    """Options of ``postprocessor=entities``."""

    aggregation: Literal["none", "simple", "first", "average", "max"] = option(
        "simple",
        "none: each token with its whole label; simple: neighbours of one tag; first, average, max: words of one tag, "
        "a word having the label of its first token, mean scores or best token",
    )
    ignore_labels: list[str] = option(
        ["O"], "labels that are left out, without B- or I- unless aggregation is none; []: none is"
    )


@dataclass
class AnswersConfig:
    """Options of ``postprocessor=answers``."""

    top_k: int = option(1, "how many answers a result lists, best first", minimum=1)
    max_answer_len: int = option(15, "tokens of the longest answer", minimum=1)
    handle_impossible_answer: bool = option(
        False, "let the empty answer compete, for a model that was trained on questions without an answer"
    )
    align_to_words: bool = option(True, "widen an answer to whole words, where the tokenizer reports words")


@dataclass
class FillMaskConfig:
    """Options of ``postprocessor=fill_mask``."""

    top_k: int = option(5, "how many tokens are listed for each mask, best first", minimum=1)
    targets: list[str] = option(
        [], "only these words are listed, each of them one token; empty: the whole vocabulary is"
    )
    mask_token: str | None = option(None, "how the mask is written in a text; null: the checkpoint's own", secret=False)


@dataclass
class ZeroShotConfig:
    """Options of ``postprocessor=zero_shot``."""

    labels: list[str] = option([], "the candidate labels, for examples that bring none of their own")
    multi_label: bool = option(False, "score each label by itself, so that several or none can be true")
    hypothesis_template: str = option("This example is {}.", "the sentence of a label, which stands at {}")
    top_k: int | None = option(None, "how many labels a result lists, best first; null: all", minimum=1)
    entailment_label: str | None = option(
        None, "the checkpoint's label for entailment; null: the one whose name begins with it"
    )
    contradiction_label: str | None = option(
        None,
        "its label for contradiction; null: the one whose name begins with it or with not_entail, or of two labels "
        "the other",
    )
    merge: Literal["mean", "max"] = option(
        "mean", "windows of a long text: mean of their logits, weighted by tokens, or the window most in favour"
    )


@dataclass
class RankingConfig:
    """Options of ``postprocessor=ranking``."""

    top_k: int | None = option(None, "how many documents a result lists, best first; null: all", minimum=1)
    function: Literal["auto", "sigmoid", "softmax", "none"] = option(
        "auto",
        "logits to scores; auto: of one label what the checkpoint's sentence-transformers config names, else as "
        "task=text-classification",
    )
    label: str | None = option(None, "the label whose score ranks; null: the only one that the checkpoint has")
    merge: Literal["mean", "max"] = option(
        "max", "windows of a long document: as good as its best one, or mean, weighted by their tokens"
    )


@dataclass
class ChoiceConfig:
    """Options of ``postprocessor=choice``."""


@dataclass
class GeneratedTextConfig:
    """Options of ``postprocessor=generated_text``."""

    full_text: bool = option(False, "return the prompt before the text; causal models only")
    prefix: str | None = option(
        None, "put before each text; null: what the checkpoint's config.json names for the task, if anything"
    )
    details: bool = option(
        False, "add tokens, how many were written, and finish_reason: length where no more may be written, else stop"
    )
