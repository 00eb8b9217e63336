"""Entities: spans of a text with a label, right only if begin, end and label are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.builtin.tasks.entities.labels import BLANK, OUTSIDE, TagSpan, label_table, spans_of_tags, split_tag
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.types import Result
from pipeline_kit.errors import InputError, UsageError, for_message
from pipeline_kit.evaluate.labels import Labels, as_list, text_of_label, texts_of_row
from pipeline_kit.evaluate.numbers import mean, precision_recall


@final
class SpanEvaluator(Evaluator):
    """Micro, macro and per-label precision, recall and F1 of spans, in seqeval's manner: a predicted span counts if the
    file has one of the same begin, end and label. Macro means are over labels that occur on either side.

    ``rows_right`` is the share of rows with all their spans and no other.
    """

    def __init__(self, setting: EvaluationContext) -> None:
        """Find the labels without prefixes; raise UsageError if the pipeline returns tokens rather than entities."""
        self._how = getattr(setting.options, "aggregation", None)
        if self._how == "none":
            raise UsageError(
                "postprocessor.aggregation=none gives tokens, and entities are evaluated; use simple, or first for "
                "texts that are given as words"
            )
        names = label_table(setting.labels, (), aggregated=True).names
        self._names = setting.labels
        self._kinds = Labels([name for name in dict.fromkeys(names) if name != OUTSIDE], setting.labels_map)
        if setting.labels_map:
            self._kinds.check_map()
        self._prefixed = {*self._kinds.names, *setting.labels_map}
        self._rows, self._right = 0, 0
        self._hits: Counter[str] = Counter()
        self._in_file: Counter[str] = Counter()
        self._predicted: Counter[str] = Counter()
        self._tags_seen = False

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[TagSpan]:
        values = as_list(gold)
        if values is None:
            raise InputError(
                f"the label {for_message(repr(gold), 60)} is not a list; pass [{{start, end, label}}, ...] in "
                "characters, or with 'words' a tag for each; in CSV as JSON"
            )
        words = None if example.get("words") in (None, "") else texts_of_row(example, "words", 0)
        if values and not isinstance(values[0], Mapping):
            if words is None:
                raise InputError("a list of tags needs the field 'words'; for a text give [{start, end, label}, ...]")
            if len(values) != len(words):
                raise InputError(f"there are {len(values)} tags for {len(words)} words")
            self._tags_seen = True
            return spans_of_tags(words, [self._tag(value) for value in values])
        text = BLANK.join(words) if words is not None else example.get("text")
        found = [self._span(value, text, place) for place, value in enumerate(values)]
        if len(set(found)) < len(found):
            raise InputError("a span is there twice")
        return sorted(found)

    def add(self, gold: list[TagSpan], results: Sequence[Result]) -> Verdict:
        entities = value_of(results[0], "entities")
        found = [(item["start"], item["end"], item["label"]) for item in entities]
        for counter, spans in ((self._in_file, gold), (self._predicted, found), (self._hits, set(gold) & set(found))):
            counter.update(label for _, _, label in spans)
        self._rows += 1
        right = set(gold) == set(found)
        self._right += right
        return Verdict(right, [_shown(span) for span in gold], [_shown(span) for span in found])

    def metrics(self) -> Metrics:
        present = [name for name in self._kinds.names if name in self._in_file or name in self._predicted]
        present += sorted(set(self._predicted) - set(present))
        notes = []
        if self._tags_seen and self._how == "simple":
            notes.append(
                "the words are given, and postprocessor.aggregation=simple may end an entity within one; "
                "with first a word has one label, as in other tools' figures"
            )
        if self._kinds.note:
            notes.append(self._kinds.note)
        values: dict[str, Any] = {"rows_right": self._right / self._rows}
        if not present:
            return Metrics(values, (*notes, "no row has a span, and none was predicted"))
        hits, predicted, in_file = (sum(counts.values()) for counts in (self._hits, self._predicted, self._in_file))
        rows = {
            name: precision_recall(self._hits[name], self._predicted[name], self._in_file[name]) for name in present
        }
        micro = precision_recall(hits, predicted, in_file)
        listed = {name: {**row, "support": self._in_file[name]} for name, row in rows.items()}
        values = {f"micro_{name}": value for name, value in micro.items()} | mean(rows.values()) | values
        only = [name for name in present if not self._in_file[name]]
        if only:
            notes.append(f"predicted, but never in the file, so 0 in the macro means: {', '.join(only)}")
        return Metrics(values | {"per_label": listed}, tuple(notes))

    def _tag(self, value: Any) -> tuple[str, str]:
        tag = text_of_label(value)
        if tag.isascii() and tag.isdigit() and int(tag) < len(self._names) and tag not in self._prefixed:
            tag = self._names[int(tag)]  # as data sets for training have it
        if tag == OUTSIDE:
            return "", OUTSIDE
        prefix, kind = split_tag(tag, tuple(self._prefixed))
        return prefix, self._kinds.names[self._kinds.find(kind)]

    def _span(self, value: Any, text: Any, place: int) -> TagSpan:
        if not isinstance(value, Mapping) or not {"start", "end", "label"} <= value.keys():
            there = ", ".join(map(str, value)) if isinstance(value, Mapping) else for_message(repr(value), 60)
            raise InputError(f"span {place} needs start, end and label; it has: {for_message(there, 120)}")
        if not isinstance(text, str):
            raise InputError("spans need the field 'text'")
        start, end = value["start"], value["end"]
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise InputError(
                f"span {place} is from {for_message(repr(start), 20)} to {for_message(repr(end), 20)}, and the text "
                f"has {len(text)} characters; start is its first character, from 0, and end the one behind its last"
            )
        part = text[start:end]
        if isinstance(value.get("text"), str) and value["text"].strip() != part.strip():
            raise InputError(
                f"span {place} says '{for_message(value['text'], 40)}', but from {start} to {end} stands "
                f"'{for_message(part, 40)}'; places are counted in characters, not in bytes"
            )
        label = self._kinds.names[self._kinds.find(value["label"])]
        lead = len(part) - len(part.lstrip())
        return start + lead, start + lead + len(part.strip()), label


def _shown(span: TagSpan) -> dict[str, Any]:
    return {"start": span[0], "end": span[1], "label": span[2]}
