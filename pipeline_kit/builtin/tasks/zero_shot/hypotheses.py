"""Candidate labels and the sentences that a template makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, final

from pipeline_kit.contract.evaluator import EvaluationContext
from pipeline_kit.contract.fields import text_of, texts_of
from pipeline_kit.errors import ConfigError, ExampleError, Fault, InputError, UsageError, for_message
from pipeline_kit.evaluate.labels import Labels

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
                problem = (
                    f"'{for_message(template)}' has the placeholder '{for_message(name)}'; a label stands at {{}}."
                )
                raise ConfigError([Fault(_KEY, problem, hint=hint)])
            pieces.append(current)
            current = ""
    except ValueError as error:
        problem = f"'{for_message(template)}' cannot be read: {error}; write a brace as {{{{ or }}}}."
        raise ConfigError([Fault(_KEY, problem, hint=hint)]) from error
    if not pieces:
        problem = f"'{for_message(template)}' has no {{}}, so it says the same of every label."
        raise ConfigError([Fault(_KEY, problem, hint=hint)])
    return (*pieces, current)


def hypotheses(template: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Put each of `labels` into the gaps of `template`, as :func:`read_template` returned it."""
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
                f"the field '{name}' has '{for_message(label)}' twice, as [{first[label]}] and [{place}]; "
                "two equal labels would share one score between them"
            )


@final
class CandidateLabels:
    """The candidate labels of a row where it has its own, else those of the config."""

    def __init__(self, setting: EvaluationContext) -> None:
        """Take the config's, which may be none."""
        self._mapping = setting.labels_map
        self._own = Labels(getattr(setting.options, "labels", ()), self._mapping, "candidates")
        if self._own.names:
            self._own.check_map()
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        for name in self._own.names:
            self._number(name)
        self._last = self._own
        self._by_number: Labels | None = None

    @property
    def names(self) -> Sequence[str]:
        """The labels that occur, by their number."""
        return self._names

    @property
    def note(self) -> str | None:
        """See :class:`~pipeline_kit.evaluate.labels.Labels`."""
        return None if self._by_number is None else self._by_number.note

    def gold(self, value: Any, example: Mapping[str, Any]) -> int:
        """Return the number of a row's label, which is one of its candidates."""
        labels = self._labels(example.get("labels"))
        name = labels.names[labels.find(value)]
        if labels.by_number:
            self._by_number = labels
        return self._number(name)

    def predicted(self, name: Any) -> int:
        """Return the number of a label that the pipeline returned."""
        return self._number(name)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]

    def _labels(self, own: Any) -> Labels:
        if own is None or (isinstance(own, str) and not own.strip()):
            if not self._own.names:
                raise UsageError(
                    "there are no candidate labels: set postprocessor.labels=[sport,politics], say, or give every "
                    "row a field 'labels'"
                )
            return self._own
        try:
            names = tuple(candidates(own, "labels"))
        except ExampleError as error:
            raise InputError(str(error)) from error
        if names != self._last.names:
            self._last = Labels(names, self._mapping, "candidates")
        return self._last
