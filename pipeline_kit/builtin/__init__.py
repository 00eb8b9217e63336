"""The stages that come with the package."""

from __future__ import annotations

from pipeline_kit.builtin.models import configs as model_configs
from pipeline_kit.builtin.postprocessors import configs as postprocessor_configs
from pipeline_kit.builtin.tokenizers import configs as tokenizer_configs
from pipeline_kit.registry import Registry

__all__ = ["register"]

_HERE = "pipeline_kit.builtin"


def register(registry: Registry) -> None:
    """Add every built-in stage."""
    registry.tokenizer(
        "hf",
        f"{_HERE}.tokenizers.hf:HfTokenizer",
        tokenizer_configs.HfTokenizerConfig,
        summary="the checkpoint's fast tokenizer, through transformers' AutoTokenizer",
    )
    registry.tokenizer(
        "tokenizers_json",
        f"{_HERE}.tokenizers.tokenizers_json:TokenizersJson",
        tokenizer_configs.TokenizersJsonConfig,
        summary="a tokenizer.json read by the tokenizers library alone, without transformers",
    )
    registry.model(
        "hf",
        f"{_HERE}.models.hf:HfModel",
        model_configs.HfModelConfig,
        summary="a transformers model with the task's head, from safetensors",
    )
    registry.model(
        "static",
        f"{_HERE}.models.static:StaticModel",
        model_configs.StaticModelConfig,
        summary="static token embeddings, averaged, with a linear head; no transformers, very fast",
    )
    registry.model(
        "generate",
        f"{_HERE}.models.generate:GenerateModel",
        model_configs.GenerateModelConfig,
        summary="a transformers model that writes text: causal or encoder-decoder",
    )
    registry.postprocessor(
        "classification",
        f"{_HERE}.postprocessors.classification:Classification",
        postprocessor_configs.ClassificationConfig,
        summary="logits to labels and scores",
    )
    registry.postprocessor(
        "pooling",
        f"{_HERE}.postprocessors.pooling:Pooling",
        postprocessor_configs.PoolingConfig,
        summary="token vectors to one vector per text",
    )
    registry.postprocessor(
        "features",
        f"{_HERE}.postprocessors.features:Features",
        postprocessor_configs.FeaturesConfig,
        summary="the token vectors themselves, without padding",
    )
    registry.postprocessor(
        "logits",
        f"{_HERE}.postprocessors.logits:Logits",
        postprocessor_configs.LogitsConfig,
        summary="the raw logits with their label names",
    )
    registry.postprocessor(
        "entities",
        f"{_HERE}.postprocessors.entities:Entities",
        postprocessor_configs.EntitiesConfig,
        summary="a label for each token to entities with their places in the text",
    )
    registry.postprocessor(
        "answers",
        f"{_HERE}.postprocessors.answers:Answers",
        postprocessor_configs.AnswersConfig,
        summary="start and end logits to the best spans of the context",
    )
    registry.postprocessor(
        "fill_mask",
        f"{_HERE}.postprocessors.fill_mask:FillMask",
        postprocessor_configs.FillMaskConfig,
        summary="the likeliest tokens for each mask",
    )
    registry.postprocessor(
        "zero_shot",
        f"{_HERE}.postprocessors.zero_shot:ZeroShot",
        postprocessor_configs.ZeroShotConfig,
        summary="entailment logits to scores of any labels",
    )
    registry.postprocessor(
        "ranking",
        f"{_HERE}.postprocessors.ranking:Ranking",
        postprocessor_configs.RankingConfig,
        summary="a score for each document, sorted",
    )
    registry.postprocessor(
        "choice",
        f"{_HERE}.postprocessors.choice:Choice",
        postprocessor_configs.ChoiceConfig,
        summary="the best of several choices",
    )
    registry.postprocessor(
        "generated_text",
        f"{_HERE}.postprocessors.generated_text:GeneratedText",
        postprocessor_configs.GeneratedTextConfig,
        summary="generated ids to text",
    )
