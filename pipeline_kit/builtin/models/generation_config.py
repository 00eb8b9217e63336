"""The settled settings as transformers' GenerationConfig, and where they make padding show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_kit.builtin.languages import target_token
from pipeline_kit.builtin.models.generation_settings import Settings
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.errors import CheckpointError, shorten
from pipeline_kit.stages import StageContext

__all__ = ["generation_config", "padding_shows"]

_ONLY_FOR_DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def generation_config(settings: Settings, context: StageContext, network: Any) -> Any:
    """Make the config of the search, and the network's own out of it, so that nothing else is followed.

    Draws are made by :class:`~pipeline_kit.builtin.models.sampling.Draw`, so the search itself is greedy.

    :raises CheckpointError: if transformers does not take the checkpoint's settings.
    :raises ConfigError: if the target language is missing or unknown.
    """
    from transformers import GenerationConfig

    values = {name: value for name, value in settings.values.items() if name not in _ONLY_FOR_DRAWS}
    values |= {"do_sample": False, "max_new_tokens": settings.new_tokens, "num_beams": settings.num_beams}
    language = target_token(context)
    if language is not None:
        values["forced_bos_token_id"] = language
    if values.get("pad_token_id") is None or values["pad_token_id"] < 0:
        values["pad_token_id"] = _filler(values, context)
    own = network.config
    if own.is_encoder_decoder and values.get("decoder_start_token_id") is None:
        start = getattr(own, "decoder_start_token_id", None)
        if start is None and values.get("bos_token_id") is None:
            raise CheckpointError(
                f"the checkpoint '{shorten(context.checkpoint.name)}' names no decoder_start_token_id and no "
                "bos_token_id, so its decoder has nothing to start with; add one to its generation_config.json"
            )
        values["decoder_start_token_id"] = start
    try:
        with quiet():
            found = GenerationConfig(**values)
            found.validate()
            network.generation_config = GenerationConfig()
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the generation settings of '{shorten(context.checkpoint.name)}' are not valid: {shorten(str(error), 300)}"
        ) from error
    return found


def padding_shows(values: Mapping[str, Any], causal: bool) -> bool:
    """Tell whether the settings count padding as text, so that it may not be there.

    transformers bans runs of tokens that a prompt holds, padding included, and so does what it reads off the
    encoder's input.
    """
    if causal:
        return bool(values.get("no_repeat_ngram_size"))
    return bool(values.get("encoder_no_repeat_ngram_size")) or values.get("encoder_repetition_penalty", 1.0) != 1.0


def _filler(values: Mapping[str, Any], context: StageContext) -> int:
    """Choose what fills a row that has come to its end; it is cut off again."""
    pad = None if context.tokenizer is None else context.tokenizer.pad_token_id
    if pad is not None:
        return pad
    ends = values.get("eos_token_id")
    return int(ends[0] if isinstance(ends, list) and ends else ends if isinstance(ends, int) else 0)
