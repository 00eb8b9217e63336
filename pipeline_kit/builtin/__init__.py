"""The stages that come with the package."""

from __future__ import annotations

from typing import Any

from pipeline_kit.builtin.models import options as models
from pipeline_kit.builtin.tasks import options as tasks
from pipeline_kit.builtin.tokenizers import options as tokenizers
from pipeline_kit.contract.registry import Kind, Registry


def register(registry: Registry) -> None:
    """Add every built-in stage."""

    def add(kind: Kind, name: str, target: str, config: type[Any], summary: str) -> None:
        registry.add(kind, name, f"pipeline_kit.builtin.{target}", config, summary)

    add(
        "tokenizer",
        "hf",
        "tokenizers.hf:HfTokenizer",
        tokenizers.HfTokenizerConfig,
        "the checkpoint's fast tokenizer, through transformers' AutoTokenizer",
    )
    add(
        "tokenizer",
        "tokenizers_json",
        "tokenizers.tokenizers_json:TokenizersJson",
        tokenizers.TokenizersJsonConfig,
        "a tokenizer.json read by the tokenizers library alone, without transformers",
    )
    add(
        "model",
        "hf",
        "models.hf.stage:HfModel",
        models.HfModelConfig,
        "a transformers model with the task's head, from safetensors",
    )
    add(
        "model",
        "static",
        "models.static:StaticModel",
        models.StaticModelConfig,
        "static token embeddings, averaged, with a linear head; no transformers, very fast",
    )
    add(
        "model",
        "generate",
        "models.generate.stage:GenerateModel",
        models.GenerateModelConfig,
        "a transformers model that writes text: causal or encoder-decoder",
    )
    _register_postprocessors(registry)


def _register_postprocessors(registry: Registry) -> None:
    def postprocessor(name: str, target: str, config: type[Any], summary: str) -> None:
        registry.add("postprocessor", name, f"pipeline_kit.builtin.tasks.{target}", config, summary)

    postprocessor(
        "classification",
        "classification.stage:Classification",
        tasks.ClassificationConfig,
        "logits to labels and scores",
    )
    postprocessor("pooling", "embedding.stage:Pooling", tasks.PoolingConfig, "token vectors to one vector per text")
    postprocessor(
        "features", "embedding.features:Features", tasks.FeaturesConfig, "the token vectors themselves, without padding"
    )
    postprocessor("logits", "classification.stage:Logits", tasks.LogitsConfig, "the raw logits with their label names")
    postprocessor(
        "entities",
        "entities.stage:Entities",
        tasks.EntitiesConfig,
        "a label for each token to entities with their places in the text",
    )
    postprocessor(
        "answers", "answers.stage:Answers", tasks.AnswersConfig, "start and end logits to the best spans of the context"
    )
    postprocessor("fill_mask", "fill_mask.stage:FillMask", tasks.FillMaskConfig, "the likeliest tokens for each mask")
    postprocessor(
        "zero_shot", "zero_shot.stage:ZeroShot", tasks.ZeroShotConfig, "entailment logits to scores of any labels"
    )
    postprocessor("ranking", "ranking.stage:Ranking", tasks.RankingConfig, "a score for each document, sorted")
    postprocessor("choice", "choice.stage:Choice", tasks.ChoiceConfig, "the best of several choices")
    postprocessor(
        "generated_text", "generation.stage:GeneratedText", tasks.GeneratedTextConfig, "generated ids to text"
    )
