"""What is wrong with an override, or with what Hydra could not compose, in this project's words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hydra.errors import MissingConfigException

from pipeline_kit.compose import aliases, hydra
from pipeline_kit.compose.schema import GROUPS
from pipeline_kit.compose.yaml_scan import scan_text
from pipeline_kit.contract.spelling import either, flag, spelled
from pipeline_kit.errors import Fault, closest_match, for_message

MAX_OVERRIDE = 64 * 1024
_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w-]*(\.[\w $-]+|\[\d+\])*")
_OWN_GROUP = re.compile(r"\+{0,2}[A-Za-z_][\w-]*(/[\w-]+)*")
_UNKNOWN = "cannot be composed."
_VALUES = "range(1,9), choice(a,b), glob(*), sort(…), shuffle(…), or values with commas: a,b"
_FUNCTIONS = f"there are: {_VALUES}"

# What Hydra and OmegaConf raise has no types to tell one mistake from another, only texts. Each is matched by the words
# that matter; groups of the pattern fill the places of the sentence. The second part is what to do.
_SENTENCES: tuple[tuple[str, str, str | None], ...] = (
    (r"Could not override '(\S+?)'", "overrides '{0}', of which nothing is chosen yet.", "leave out 'override'"),
    (r"Multiple values for (\S+?)\.", "chooses '{0}' twice.", "write the second one as: override {0}: NAME"),
    (r"Duplicate _self_", "has _self_ twice in its 'defaults'.", None),
    (r"Overrides must be at the end", "has 'override' lines that must be at the end of its 'defaults'.", None),
    (r"You must specify '(\S+?)'", "chooses nothing for '{0}'.", "write {0}=NAME, or {0}: NAME in its 'defaults'"),
    (r"(\S+) appears more than once", "includes '{0}' twice.", None),
    (r"interpolation is not supported|not allowed in the subtree", "has a reference where 'defaults' has none.", None),
    (r"requires 'override' keyword", "changes a choice in 'defaults' without the word 'override'.", None),
    (r"Interpolation key '(.+?)' not found", "refers to '{0}', which is not there.", None),
    (r"InterpolationToMissing", "refers to an option that has no value.", None),
    (r"Recursive interpolation|RecursionError", "refers to itself.", None),
    (r"Unknown function '(.+?)'", "'{0}' is not a function of sweeps.", _FUNCTIONS),
    (r"step.*zero|range\(\) arg 3|must not be zero", "the step of a range must not be zero.", None),
    (r"an interval has no list", "an interval has no list of values; use range or choice.", None),
    (r"token recognition|mismatched|no viable|extraneous|missing .* at", "cannot be parsed.", f"a value is {_VALUES}"),
    (r"while evaluating|mismatch type argument", "calls a function with what it does not take.", _FUNCTIONS),
    (r"raised while composing|Error merging", "has a list, mapping or value where another kind is due.", None),
)


def text_faults(text: str) -> list[Fault]:
    """Find what is unsafe or too long in an override."""
    where = for_message(text, 80)
    if len(text) > MAX_OVERRIDE:
        return [Fault(where, f"has {len(text)} characters.", allowed=(f"{MAX_OVERRIDE} at the most",))]
    if re.match(r"[+~]*hydra([./@=]|$)", text):
        return [Fault(where, "sets Hydra's own options, which pipeline-kit keeps to itself.")]
    return [Fault(where, problem) for problem in scan_text(text)]


def grammar_faults(text: str, known: Mapping[str, Collection[str]], groups: Sequence[str] = GROUPS) -> list[Fault]:
    """Find what keeps a text from being one override of one value.

    :param known: the options there are by group.
    :param groups: the groups that may be chosen from.
    """
    where = for_message(text, 80)
    if text.startswith("~"):
        return [Fault(where, "an option cannot be removed; set another value.")]
    key, equals, value = text.partition("=")
    if not equals:
        if meant := aliases.alone(text, known):
            return [Fault(where, "is not an override.", hint=f"write it as {spelled(meant)}")]
        text_goes = either(f'a text goes behind --text: --text "{where}"', "a text is passed to the pipeline")
        hint = f"{text_goes}; an option is written {spelled('key=value')}"
        return [Fault(where, "is not an override.", suggestion=closest_match(key, groups), hint=hint)]
    group = key.lstrip("+")
    if not _KEY.fullmatch(key) and not (group in groups and _OWN_GROUP.fullmatch(key)):
        problem = f"'{for_message(key, 80)}' is not the name of an option."
        return [Fault(where, problem, tuple(groups), closest_match(key, groups))]
    if group in groups and "," not in value:
        return []
    try:
        override = hydra.parse_override(text)
    except Exception:  # antlr stops at deep brackets with a RecursionError
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        hint = f"quote a value that holds , = : ( ) [ ] {{ }} or spaces: {key}=\"'{for_message(quoted, 60)}'\""
        return [Fault(where, "its value cannot be parsed.", hint=hint)]
    if override.is_sweep_override():
        hint = either("to run each value add -m", "choose one of them")
        if group not in groups:
            hint += f"; a list is written {spelled(f'{key}=[{for_message(value, 60)}]')}"
        return [Fault(where, "has several values.", hint=hint)]
    return []


def sweep_fault(error: Exception, text: str) -> Fault:
    """Return why the override `text` of a sweep has no values."""
    problem, hint = sentence_of(error)
    if problem == _UNKNOWN:
        problem, hint = "cannot be parsed.", f"write KEY=VALUE; a value is {_VALUES}"
    return Fault(for_message(text, 80), problem, hint=hint)


def hydra_fault(error: Exception, config_name: str, folders: Sequence[str | Path]) -> Fault:
    """Turn what Hydra raised when it composed `config_name` into a fault."""
    inside = re.match(r"In '(.+?)': ", str(error))
    start = f"config '{for_message(inside[1] if inside else config_name, 80)}'"
    if not isinstance(error, MissingConfigException):
        problem, hint = sentence_of(error)
        return Fault(start, problem, hint=hint)
    missing, options = str(error.missing_cfg_file), tuple(error.options or ())
    if missing == config_name.removeprefix("/"):
        names = tuple(sorted(path.stem for folder in folders for path in Path(folder).glob("*.yaml")))
        shown = flag("config-name", for_message(config_name, 80))
        return Fault(shown, "this config does not exist.", names, closest_match(config_name, names))
    problem = f"names '{for_message(missing, 80)}', and there is no such option."
    return Fault(start, problem, options, closest_match(missing.rpartition("/")[2], options))


def sentence_of(error: BaseException) -> tuple[str, str | None]:
    """Return in our words what Hydra or OmegaConf raised, and what to do; never its own text."""
    said = ""
    cause: BaseException | None = error
    while cause is not None:
        said, cause = f"{said} {type(cause).__name__} {cause}", cause.__cause__
    for pattern, problem, hint in _SENTENCES:
        if found := re.search(pattern, said[:20_000], flags=re.DOTALL):
            words = [for_message(word, 80) for word in found.groups()]
            return problem.format(*words), hint and hint.format(*words)
    return _UNKNOWN, "start from 'defaults: [config, _self_]' and add one line after the other"
