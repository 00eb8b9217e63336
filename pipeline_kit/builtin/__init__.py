"""The built-in stages."""

from __future__ import annotations

from typing import Any

from pipeline_kit.builtin.models import options as models
from pipeline_kit.builtin.tasks import options as tasks
from pipeline_kit.builtin.tokenizers import options as tokenizers
from pipeline_kit.contract.registry import Registry


def register(registry: Registry) -> None:
    """Add every built-in stage."""

    def tokenizer(name: str, target: str, config: type[Any], summary: str) -> None:
        registry.tokenizer(name, f"pipeline_kit.builtin.tokenizers.{target}", config, summary=summary)

    def model(name: str, target: str, config: type[Any], summary: str) -> None:
        registry.model(name, f"pipeline_kit.builtin.models.{target}", config, summary=summary)

    def task(name: str, target: str, config: type[Any], summary: str) -> None:
        registry.postprocessor(name, f"pipeline_kit.builtin.tasks.{target}", config, summary=summary)

    summary = "the checkpoint's fast tokenizer, through transformers' AutoTokenizer"
    tokenizer("hf", "hf:HfTokenizer", tokenizers.HfTokenizerConfig, summary)
    summary = "a tokenizer.json read by the tokenizers library alone, without transformers"
    tokenizer("tokenizers_json", "tokenizers_json:TokenizersJson", tokenizers.TokenizersJsonConfig, summary)
    summary = "a transformers model with the task's head, from safetensors"
    model("hf", "hf.stage:HfModel", models.HfModelConfig, summary)
    summary = "static token embeddings, averaged, with a linear head; no transformers, very fast"
    model("static", "static:StaticModel", models.StaticModelConfig, summary)
    summary = "a transformers model that writes text: causal or encoder-decoder"
    model("generate", "generate.stage:GenerateModel", models.GenerateModelConfig, summary)
    summary = "logits to labels and scores"
    task("classification", "classification.stage:Classification", tasks.ClassificationConfig, summary)
    task("pooling", "embedding.stage:Pooling", tasks.PoolingConfig, "token vectors to one vector per text")
    summary = "the token vectors themselves, without padding"
    task("features", "embedding.features:Features", tasks.FeaturesConfig, summary)
    task("logits", "classification.stage:Logits", tasks.LogitsConfig, "the raw logits with their label names")
    summary = "a label for each token to entities with their places in the text"
    task("entities", "entities.stage:Entities", tasks.EntitiesConfig, summary)
    summary = "start and end logits to the best spans of the context"
    task("answers", "answers.stage:Answers", tasks.AnswersConfig, summary)
    task("fill_mask", "fill_mask.stage:FillMask", tasks.FillMaskConfig, "the likeliest tokens for each mask")
    task("zero_shot", "zero_shot.stage:ZeroShot", tasks.ZeroShotConfig, "entailment logits to scores of any labels")
    task("ranking", "ranking.stage:Ranking", tasks.RankingConfig, "a score for each document, sorted")
    task("choice", "choice.stage:Choice", tasks.ChoiceConfig, "the best of several choices")
    task("generated_text", "generation.stage:GeneratedText", tasks.GeneratedTextConfig, "generated ids to text")
