"""Candidate labels and the sentences that a template makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter

from pipeline_kit.errors import ConfigError, ExampleError, Fault, shorten
from pipeline_kit.fields import text_of, texts_of

__all__ = ["candidates", "check_candidates", "hypotheses", "read_template"]

_KEY = "postprocessor.hypothesis_template"


def read_template(template: str) -> tuple[str, ...]:
    """Cut `template` at its placeholders, ``{}`` or ``{0}``; ``{{`` and ``}}`` stand for braces.

    That is the grammar of ``str.format`` without what could read attributes of a label.

    :raises ConfigError: if it has no placeholder, another one, or a brace alone.
    """
    hint = f"for example: '{_KEY}=\"This text is about {{}}.\"'"
    pieces, current = [], ""
    try:
        for literal, name, spec, conversion in Formatter().parse(template):
            current += literal
            if name is None:
                continue
            if name not in ("", "0") or spec or conversion:
                problem = f"'{shorten(template)}' has the placeholder '{shorten(name)}'; a label stands at {{}}."
                raise ConfigError([Fault(_KEY, problem, hint=hint)])
            pieces.append(current)
            current = ""
    except ValueError as error:
        problem = f"'{shorten(template)}' cannot be read: {error}; write a brace as {{{{ or }}}}."
        raise ConfigError([Fault(_KEY, problem, hint=hint)]) from error
    if not pieces:
        problem = f"'{shorten(template)}' has no {{}}, so it says the same of every label."
        raise ConfigError([Fault(_KEY, problem, hint=hint)])
    return (*pieces, current)


def hypotheses(template: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Put each of `labels` into the gaps of `template`, as :func:`read_template` gave it."""
    return tuple([label.join(template) for label in labels])


def candidates(value: object, name: str) -> list[str]:
    """Read candidate labels: a list of texts, such a list as JSON, or texts separated by commas.

    :raises ExampleError: naming the field `name`, if it is none of these, or a label is empty or doubled.
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = [label.strip() for label in value.split(",") if label.strip()]
    labels = texts_of(value, name)
    check_candidates(labels, name)
    return labels


def check_candidates(labels: Sequence[str], name: str) -> None:
    """Check that each of `labels` is a text of its own.

    :raises ExampleError: naming the field `name` and the place in it.
    """
    first: dict[str, int] = {}
    for place, label in enumerate(labels):
        text_of(label, f"{name}[{place}]", empty=False)
        if first.setdefault(label, place) != place:
            raise ExampleError(
                f"the field '{name}' has '{shorten(label)}' twice, as [{first[label]}] and [{place}]; "
                "two equal labels would share one score between them"
            )
