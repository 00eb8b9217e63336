"""How a checkpoint writes: its own settings as data, the user's over them, checked; loads no model library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline_kit.builtin.config_json import target_token, task_params
from pipeline_kit.builtin.models.options import GenerationOptions
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.builtin.tokenizers.limits import positions
from pipeline_kit.checkpoint.json import read_object
from pipeline_kit.contract.options import parse_options
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.errors import CheckpointError, ConfigError, Fault, for_message

FILE = "generation_config.json"
DEFAULT_NEW_TOKENS = 256  # what transformers' pipelines write at the most where nobody says

# Taken from the checkpoint besides the options of the same names.
_FOLLOWED = frozenset(
    {"bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id"}
    | {"bad_words_ids", "begin_suppress_tokens", "pad_token_id", "sequence_bias", "suppress_tokens"}
    | {"encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "exponential_decay_length_penalty"}
    | {"epsilon_cutoff", "eta_cutoff", "max_length", "min_length", "remove_invalid_values", "renormalize_logits"}
    | {"typical_p"}
)
# They change what is written in ways that are not built in; each with the values that change nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "custom_generate": (None,),
    "dola_layers": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1, 1.0),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "token_healing": (None, False),
    "top_h": (None,),
    "watermarking_config": (None,),
}
_ONE_ID = ("decoder_start_token_id", "pad_token_id")
_NUMBERS = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "typical_p")
_LISTS = ("bad_words_ids", "begin_suppress_tokens", "exponential_decay_length_penalty", "suppress_tokens")
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_OF_BEAMS = ("length_penalty", "early_stopping")


@dataclass(frozen=True)
class Settings:
    """How texts are written, definite.

    :param values: transformers' GenerationConfig by name, without the two lengths that follow.
    :param new_tokens: the most tokens that are written.
    """

    values: Mapping[str, Any]
    new_tokens: int
    seed: int
    stop_strings: Sequence[str]
    do_sample: bool
    num_beams: int


def settle(options: GenerationOptions, context: StageContext, causal: bool) -> Settings:
    """Put the checkpoint's own settings, those for the task and the user's together, the later over the earlier.

    :param causal: whether what is written stands behind the prompt, in the same positions.
    :raises CheckpointError: if the checkpoint asks for a way of writing that is not built in.
    :raises ConfigError: with every option that does not fit the checkpoint or the other options.
    """
    known = _FOLLOWED | set(asdict(options))
    path = context.checkpoint.path / FILE  # checkpoints older than that file keep the same names in config.json
    own = {**(read_object(path) if path.exists() else context.checkpoint.config), **task_params(context)}
    for name, harmless in _REFUSED.items():
        if own.get(name) not in harmless:
            raise CheckpointError(
                f"the checkpoint '{for_message(context.checkpoint.name)}' sets '{name}' to "
                f"{for_message(own[name], 80)} in its {FILE} or config.json, which model=generate does not do; "
                "remove it in a local copy and use checkpoint.path=./copy"
            )
    values = {name: value for name, value in own.items() if name in known and value is not None}
    values.pop("seed", None)
    if isinstance(values.get("stop_strings"), str):
        values["stop_strings"] = [values["stop_strings"]]
    values |= {n: v for n, v in asdict(options).items() if v is not None and n not in ("seed", "stop_strings")}
    least, most = _whole(values.get("min_new_tokens")), _whole(values.get("max_new_tokens"))
    if most and least > most:  # where the user sets one of the two, the checkpoint's other one is dropped
        if options.min_new_tokens is None:
            values["min_new_tokens"] = most
        elif options.max_new_tokens is None:
            values["max_new_tokens"] = least
    _check_own(values, context)
    limit = positions(context.checkpoint.config)
    new_tokens = _new_tokens(values, options, limit, causal)
    stops = options.stop_strings or values.get("stop_strings", [])
    for name in ("stop_strings", "max_new_tokens", "max_length"):
        values.pop(name, None)
    if causal:  # it counts the prompt and, in a batch, its padding
        values.pop("min_length", None)
    do_sample, num_beams = bool(values.get("do_sample")), _whole(values.get("num_beams")) or 1
    settings = Settings(values, new_tokens, options.seed, tuple(map(str, stops)), do_sample, num_beams)
    _check(settings, options, limit, causal)
    return settings


def _check_own(values: Mapping[str, Any], context: StageContext) -> None:
    """Raise CheckpointError for the first setting of the checkpoint that is wrong and is neither idle nor replaced."""
    names = [item.name for item in fields(GenerationOptions)]
    idle = ("do_sample", *(() if values.get("do_sample") else _OF_SAMPLING))
    faults: list[Fault] = []
    parse_options(GenerationOptions, {n: values[n] for n in names if n in values and n not in idle}, FILE, faults)
    if type(values.get("do_sample", False)) is not bool:  # not among the others, as its own clash has a better message
        faults.append(Fault(f"{FILE}.do_sample", f"'{for_message(values['do_sample'], 80)}' is not true or false."))
    for name, value in values.items():
        ids = value if isinstance(value, list) and name not in _ONE_ID else [value]
        what = None
        if name.endswith("_token_id") and not all(type(item) is int for item in ids):
            what = "a token's id"
        elif name in _NUMBERS and type(value) not in (int, float):
            what = "a number"
        elif name in _LISTS and not isinstance(value, list):
            what = "a list"
        if what is not None:
            faults.append(Fault(f"{FILE}.{name}", f"'{for_message(value, 80)}' is not {what}."))
    if faults:
        raise CheckpointError(
            f"the generation settings of '{for_message(context.checkpoint.name)}' are not valid: {faults[0]}"
        )


def _new_tokens(values: Mapping[str, Any], options: GenerationOptions, limit: int | None, causal: bool) -> int:
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    wanted = _whole(values.get("max_new_tokens"))
    if not wanted and not causal:
        wanted = _whole(values.get("max_length")) - 1  # it counts the token that the decoder starts with
    wanted = max(wanted if wanted > 0 else DEFAULT_NEW_TOKENS, _whole(values.get("min_new_tokens")))
    if limit is not None:
        wanted = min(wanted, max(1, limit // 2 if causal else limit - 1))
    return min(wanted, 1_000_000)


def _whole(value: object) -> int:
    """Return `value` if it is a whole number above 0, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _check(settings: Settings, options: GenerationOptions, limit: int | None, causal: bool) -> None:
    faults: list[Fault] = []

    def fault(name: str, problem: str, hint: str, allowed: tuple[str, ...] = ()) -> None:
        faults.append(Fault(f"model.generation.{name}", problem, allowed, hint=hint))

    if settings.do_sample and settings.num_beams > 1:
        owner = "do_sample" if options.num_beams else "num_beams"
        value = "true" if owner == "do_sample" else settings.num_beams
        instead = "do_sample=false" if owner == "do_sample" else "num_beams=1"
        problem = f"the checkpoint sets it to {value}; drawing and searching with beams exclude each other."
        fault(owner, problem, f"set model.generation.{instead}")
    for name in _OF_SAMPLING:
        if getattr(options, name) is not None and not settings.do_sample:
            fault(name, "has no effect where nothing is drawn.", "set model.generation.do_sample=true")
    for name in _OF_BEAMS:
        if getattr(options, name) is not None and settings.num_beams == 1:
            fault(name, "has no effect without beams.", "set model.generation.num_beams=4, say")
    most = None if limit is None else limit - 1
    if most is not None and settings.new_tokens > most:
        problem = f"'{settings.new_tokens}' leaves no room for a prompt: the checkpoint has {limit} positions for both."
        if not causal:
            problem = f"'{settings.new_tokens}' is more than the checkpoint's decoder has positions for."
        fault("max_new_tokens", problem, "set fewer", (f"1 to {most}",))
    if options.min_new_tokens is not None and options.min_new_tokens > settings.new_tokens:
        problem = f"'{options.min_new_tokens}' is over the {settings.new_tokens} tokens that are written at the most."
        fault("min_new_tokens", problem, "set model.generation.max_new_tokens too")
    if faults:
        raise ConfigError(faults)


_ONLY_FOR_DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def generation_config(settings: Settings, context: StageContext, network: Any) -> Any:
    """Make the config of the search, and the network's own out of it, so that nothing else is followed.

    Draws are made by :class:`~pipeline_kit.builtin.models.generate.stage.Draw`, so the search itself is greedy.

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
        pad = None if context.tokenizer is None else context.tokenizer.pad_token_id
        ends = values.get("eos_token_id")
        end = ends[0] if isinstance(ends, list) and ends else ends
        # It fills a row that has come to its end, and is cut off again.
        values["pad_token_id"] = pad if pad is not None else end if isinstance(end, int) else 0
    own = network.config
    if own.is_encoder_decoder and values.get("decoder_start_token_id") is None:
        start = getattr(own, "decoder_start_token_id", None)
        if start is None and values.get("bos_token_id") is None:
            raise CheckpointError(
                f"the checkpoint '{for_message(context.checkpoint.name)}' names no decoder_start_token_id and no "
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
            f"the generation settings of '{for_message(context.checkpoint.name)}' are not valid: "
            f"{for_message(str(error), 300)}"
        ) from error
    return found


def padding_shows(values: Mapping[str, Any], causal: bool) -> bool:
    """Return whether the settings ban what a prompt or the encoder's input holds, padding too: it may not be there."""
    if causal and values.get("no_repeat_ngram_size"):
        return True
    # To transformers a causal model's prompt is the encoder's input too.
    return bool(values.get("encoder_no_repeat_ngram_size")) or values.get("encoder_repetition_penalty", 1.0) != 1.0
