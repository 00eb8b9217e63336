"""The prompts of an embedding model: texts put before each text, by name, and which of them is the default."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_kit.checkpoint_modules import read_mapping
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, Fault, closest, shorten
from pipeline_kit.fields import read_fields, text_of
from pipeline_kit.stages import Tokenizer
from pipeline_kit.types import Checkpoint, Example

__all__ = ["SETTINGS_NAME", "Prompts", "choose_prompts", "prompt_length", "read_settings"]

SETTINGS_NAME = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Prompts:
    """The prompts there are.

    :param default: what stands before a text whose example names none; perhaps empty.
    :param named: by name, from the folder and from ``checkpoint.prompts``.
    """

    default: str
    named: Mapping[str, str]

    def split(self, example: Example) -> tuple[str, str]:
        """Read the fields ``text`` and ``prompt_name`` of an example.

        :returns: the prompt, perhaps empty, and the text.
        :raises ExampleError: for a wrong field, or a name that no prompt has.
        """
        if isinstance(example, str):
            return self.default, text_of(example, "text")
        fields = read_fields(example, ("text",), ("prompt_name",))
        text, name = text_of(fields["text"], "text"), fields.get("prompt_name")
        if name is None:
            return self.default, text
        found = self.named.get(name) if isinstance(name, str) else None
        if found is None:
            near = closest(name, tuple(self.named))
            raise ExampleError(
                f"the field 'prompt_name' is '{shorten(name, 80)}'; {_listed(self.named)}."
                + (f" Did you mean '{near}'?" if near else "")
            )
        return found, text


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Read ``config_sentence_transformers.json`` of a folder, ``{}`` if it has none.

    :raises CheckpointError: if it is no JSON object.
    """
    file = folder / SETTINGS_NAME
    return read_mapping(file) if os.path.lexists(file) else {}


def choose_prompts(
    checkpoint: Checkpoint, settings: Mapping[str, Any], prompt: str | None, prompt_name: str | None
) -> Prompts:
    """Settle which prompt is the default, as sentence-transformers does: `prompt`, `prompt_name`, the folder's own.

    :param settings: what :func:`read_settings` gave.
    :param prompt: may be empty, which leaves the folder's default prompt out.
    :raises ConfigError: if both are given, or no prompt is called `prompt_name`.
    :raises CheckpointError: if the folder's prompts are not texts by name, or do not have the default one.
    """
    where = (checkpoint.root or checkpoint.path) / SETTINGS_NAME
    own = settings.get("prompts") or {}
    if not isinstance(own, Mapping) or not all(isinstance(text, str | None) for text in own.values()):
        raise CheckpointError(f"'{where}': 'prompts' must map names to texts, not {shorten(own, 80)}")
    named = {name: text or "" for name, text in own.items()} | dict(checkpoint.prompts)
    if prompt is not None:
        if prompt_name is not None:
            problem = f"'{shorten(prompt, 80)}' and postprocessor.prompt_name={prompt_name} are both set."
            raise ConfigError([Fault("postprocessor.prompt", problem, hint="leave one of them out")])
        return Prompts(prompt, named)
    if prompt_name is not None:
        if prompt_name not in named:
            problem = f"'{shorten(prompt_name, 80)}' is unknown{'' if named else '; this checkpoint names no prompts'}."
            hint = f"name one of your own: 'checkpoint.prompts={{{shorten(prompt_name, 80)}: \"its text \"}}'"
            near = closest(prompt_name, tuple(named))
            raise ConfigError([Fault("postprocessor.prompt_name", problem, tuple(named), near, hint)])
        return Prompts(named[prompt_name], named)
    default = settings.get("default_prompt_name")
    if default is None:
        return Prompts("", named)
    if default not in named:
        raise CheckpointError(
            f"'{where}': the default prompt '{shorten(default, 80)}' is not among its prompts; "
            "set postprocessor.prompt or prompt_name"
        )
    return Prompts(named[default], named)


def prompt_length(prompt: str, tokenizer: Tokenizer) -> int:
    """Count the tokens that a prompt takes at the beginning of an encoding, special ones before it included.

    They are those of the prompt alone without a special token at the end, as sentence-transformers counts them:
    https://github.com/huggingface/sentence-transformers/blob/main/sentence_transformers/base/modules/transformer.py
    """
    ids = tokenizer.encode([prompt])[0].input_ids
    try:
        frame: Sequence[int] = tokenizer.encode([""])[0].input_ids
    except ExampleError:  # a tokenizer without special tokens makes nothing of an empty text
        frame = ()
    return len(ids) - (bool(frame) and ids[-1] == frame[-1])


def _listed(named: Mapping[str, str]) -> str:
    if not named:
        return "this checkpoint names no prompts"
    return "the prompts are " + ", ".join(f"'{shorten(name, 40)}'" for name in named)
