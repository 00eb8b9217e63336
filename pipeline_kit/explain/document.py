"""Makes the document of one trace, or of two: what is shown is chosen, named and compared once, for both views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline_kit.contract.stages import Cell, Panel
from pipeline_kit.errors import for_message
from pipeline_kit.explain.blocks import (
    SHORT,
    Attention,
    Block,
    Document,
    Flow,
    Grid,
    Limits,
    Marked,
    Norms,
    Result,
    Section,
    Side,
    StageTrace,
    Text,
    TokenTable,
    Value,
    Values,
)
from pipeline_kit.explain.compare import RowComparison, compare_config, compare_rows, flat_config, outputs_of, place_of
from pipeline_kit.explain.formats import example_text, excerpt, invisible, shape_of, visible
from pipeline_kit.explain.trace import BatchTrace, Layer, RowTrace, SequenceTrace, Trace


def document(*traces: Trace, names: Sequence[str] = (), limits: Limits = SHORT) -> Document:
    """Make the document of one trace, or of two of the same examples by two pipelines.

    :param names: what the pipelines are called; the checkpoints' names if there are none.
    """
    most = limits.tokens // len(traces)
    lengths = [[sum(len(sequence.tokens) for sequence in row.sequences) for row in trace.rows] for trace in traces]
    count = max(map(len, lengths))
    shown = min([count, *(fit for own in lengths if (fit := _fitting(own, most)) < len(own))])
    both = traces if len(traces) == 2 else ()
    compared = [compare_rows(*both, place) for place in range(min([shown, *map(len, lengths)]))] if both else []
    sides = []
    for at, trace in enumerate(traces):
        checkpoint = trace.config.get("checkpoint")
        name = str(checkpoint.get("name", "")) if isinstance(checkpoint, Mapping) else ""
        builder = _Builder(trace, limits, shown, most, limits.cells // len(traces), at, len(traces) == 2, compared)
        sections = tuple(section for section in builder.sections() if section.blocks)
        sides.append(Side("AB"[at] if both else "", names[at] if names else name, trace.task, sections))
    titles = [next(trace.rows[i].example for trace in traces if i < len(trace.rows)) for i in range(shown)]
    config = compare_config(*both) if both else Panel("", ("key", "value"), tuple(flat_config(traces[0].config)))
    differences = [Section("config", (replace(config, rows=[row for row in config.rows if row[0]]),))] if both else []
    for place, found in enumerate(compared):
        blocks: tuple[Block, ...] = (*_example(traces[0].rows[place]), *found.panels)
        differences.append(Section(f"row {place}", blocks, place))
    return Document(
        tuple(sides),
        tuple(differences),
        tuple(excerpt(example_text(example), 90) or "(empty text)" for example in titles),
        count - shown,
        Section("config", (config,)),
        limits,
    )


def _fitting(lengths: Sequence[int], room: int) -> int:
    """Count how many of `lengths`, from the first on, fit into `room`: at least one, if there is any."""
    for place, length in enumerate(lengths):
        room -= length
        if room < 0:
            return max(1, place)
    return len(lengths)


def sequence_name(row: int, sequence: SequenceTrace, of: RowTrace) -> str:
    """Return the short name of a sequence: ``0``, ``0.2`` for the third part, ``0w1`` for the second window."""
    several = len({other.part for other in of.sequences}) > 1
    windows = sum(other.part == sequence.part for other in of.sequences) > 1
    return f"{row}{f'.{sequence.part}' if several else ''}{f'w{sequence.window}' if windows else ''}"


def _example(row: RowTrace) -> list[Text]:
    if isinstance(row.example, str):
        return [Text(row.example)]
    return [Text(value if isinstance(value, str) else str(value), str(name)) for name, value in row.example.items()]


@dataclass(frozen=True)
class _Builder:
    """Makes the sections of one trace.

    :param shown: how many examples; of each so many sequences as have `most` tokens.
    :param at: 0 or 1, which of `two` traces it is; `compared` is empty for one.
    """

    trace: Trace
    limits: Limits
    shown: int
    most: int
    cells: int
    at: int
    two: bool
    compared: Sequence[RowComparison]

    def sections(self) -> Iterator[Section]:
        """Yield them in the order in which things happen."""
        trace = self.trace
        rows = list(enumerate(trace.rows[: self.shown]))
        yield Section("pipeline", (self._flow(),))
        for place, row in rows:
            yield Section("text and tokens", tuple(self._text(place, row)), place)
        yield Section("batch", tuple(self._grids()))
        yield Section("model", tuple(block for number in range(len(trace.batches)) for block in self._model(number)))
        for place, row in rows:
            yield Section("model", tuple(self._outputs(place, row)), place)
        for place, row in rows:
            panels = tuple(row.panels.get("postprocessor", ()))
            left = () if panels and not self.limits.reduced else tuple(self._outputs(place, row, reduced=True))
            yield Section("postprocessor", (*panels, *left), place)
        for place, row in rows:
            for name, blocks in row.views.items():
                yield Section(name, tuple(blocks), place)
        for place, row in rows:
            yield Section("result", tuple(_result(place, row)), place, "result" in self._unlike(place))
        mark = f"{'AB'[self.at]}: " if self.two else ""
        yield Section("notes", tuple(Text(mark + note, kind="note") for note in trace.notes))

    def _unlike(self, place: int) -> frozenset[str]:
        return self.compared[place].unlike if place < len(self.compared) else frozenset()

    def _sequences(self, row: RowTrace) -> range:
        return range(_fitting([len(sequence.tokens) for sequence in row.sequences], self.most))

    def _flow(self) -> Flow:
        trace = self.trace
        checkpoint, device = (trace.config.get(name) for name in ("checkpoint", "device"))
        words = [trace.task or "pipeline"]
        words += [f"with {checkpoint['name']}"] if isinstance(checkpoint, dict) else []
        words += [f"on {device['name']} in {device['dtype']}"] if isinstance(device, dict) else []
        return Flow(" ".join(words), trace.stages, tuple(map(_passes, trace.stages)), trace.seconds)

    def _text(self, place: int, row: RowTrace) -> Iterator[Block]:
        yield from _example(row)
        numbers = self._sequences(row)[: self.limits.sequences]
        for number in numbers:
            yield self._tokens(place, row, number)
        if len(numbers) < len(row.sequences):
            yield Text(f"… {len(row.sequences) - len(numbers)} more sequences are left out", kind="warn")
        panels = row.panels.get("tokenizer", ())
        yield from panels[: self.limits.panels]
        if len(panels) > self.limits.panels:
            yield Text(f"… {len(panels) - self.limits.panels} more panels are left out", kind="warn")

    def _tokens(self, place: int, row: RowTrace, number: int) -> TokenTable:
        sequence = row.sequences[number]
        name = sequence_name(place, sequence, row)
        special = sum(token.special for token in sequence.tokens)
        title = f"sequence {name}: {len(sequence.tokens):,} tokens{f', {special} of them special' if special else ''}"
        if sequence.span is not None:
            title += f", window {sequence.window} with the text's tokens {sequence.span[0]} to {sequence.span[1]}"
        own = tuple(text.text for text in _example(row))
        marks = self.compared[place].marks[self.at].get(number, {}) if place < len(self.compared) else {}
        columns, rows = _token_table(sequence, marks)
        words = [None if token.word is None else (token.sequence, token.word) for token in sequence.tokens]
        cut = [f"{sequence.truncated:,} tokens"] if sequence.truncated else []
        cut += [f"{sequence.truncated_chars:,} characters before tokenizing"] if sequence.truncated_chars else []
        return TokenTable(
            name,
            title,
            self._where(place, number),
            () if sequence.source == own else sequence.source,
            "; ".join(found for found in map(invisible, sequence.source) if found),
            columns,
            rows,
            tuple(word is not None and word == before for word, before in zip(words, [None, *words], strict=False)),
            " and ".join(cut),
            sequence.cut,
            tuple(what for what in ("tokens", "padding") if what in self._unlike(place)),
        )

    def _where(self, place: int, number: int) -> str:
        at, line = place_of(self.trace, place, number)
        if at < 0:
            return "in no batch"
        batch = self.trace.batches[at]
        held, width = int((batch.attention_mask[line] != 0).sum()), batch.input_ids.shape[1]
        side = f", padding on the {batch.side}" if held < width else ""
        return f"batch {at}, row {line}: {held} of {width} columns{side}"

    def _grids(self) -> Iterator[Grid]:
        room = self.cells
        for number, batch in enumerate(self.trace.batches):
            count, width = batch.input_ids.shape
            fit = min(count, room // max(1, width))
            room -= fit * width
            padding = int((batch.attention_mask == 0).sum())
            places = f"{padding} of {count * width} places are padding, on the {batch.side}"
            title = f"batch {number}: {count} rows of {width} tokens, {places if padding else 'no padding'}"
            held = []
            for place, which in batch.rows[:fit]:
                row = self.trace.rows[place]
                sequence = row.sequences[which]
                text = excerpt(" · ".join(sequence.source), 40) or "(empty)"
                text += f" (window {sequence.window})" if sequence.window else ""
                held.append((sequence_name(place, sequence, row), text, _names(sequence)))
            types = None if batch.token_type_ids is None else batch.token_type_ids[:fit]
            ids, mask = batch.input_ids[:fit], batch.attention_mask[:fit]
            yield Grid(title, batch.seconds, tuple(held), ids, mask, types, count - fit)

    def _model(self, number: int) -> Iterator[Block]:
        batch = self.trace.batches[number]
        yield from batch.panels
        if batch.layers:
            columns = ("hidden states", "shape", "dtype", "mean norm", "least", "largest")
            rows = [_layer(batch, layer) for layer in batch.layers]
            yield Panel("length of the tokens' vectors, layer by layer", columns, rows)
        given = [f"{name} {shape_of(values.shape)} {values.dtype}" for name, values in batch.outputs.items()]
        yield Text(f"of batch {number} the model returned {', '.join(given) or 'nothing'}", kind="note")

    def _outputs(self, place: int, row: RowTrace, reduced: bool = False) -> Iterator[Block]:
        for number in self._sequences(row):
            at, line = place_of(self.trace, place, number)
            if at < 0:
                continue
            batch, sequence = self.trace.batches[at], row.sequences[number]
            name, names = sequence_name(place, sequence, row), _names(sequence)
            if not reduced:
                yield from _layers(batch, line, name, names)
            raw = outputs_of(self.trace, place, number)
            for key, values in outputs_of(self.trace, place, number, reduced=reduced).items():
                if reduced and key in raw and np.array_equal(values, raw[key], equal_nan=True):
                    continue
                named = len(self.trace.labels) > 0 and values.ndim > 0 and values.shape[-1] == len(self.trace.labels)
                each = key in batch.per_token and values.ndim > 0 and len(values) == len(names)
                yield Values(
                    name,
                    key,
                    "reduced on the device" if reduced else "model",
                    values,
                    self.trace.labels if named else (),
                    names if each else (),
                    not reduced and key in self._unlike(place),
                )


def _passes(stage: StageTrace) -> tuple[str, str]:
    """Describe in a few words what a stage took and returned: of several values the types of the first only."""
    given, gave = stage.inputs, stage.outputs
    if stage.kind == "tokenizer":
        gave = gave[:1]
    if stage.kind == "postprocessor":
        given = tuple(value for value in given if value.name not in ("examples", "encodings")) or given[:1]
    return _described(given), _described(gave)


def _described(values: Sequence[Value]) -> str:
    if not values:
        return "nothing"
    first, rest = values[0], [for_message(value.name, 24) for value in values[1:] if value.shape]
    kind = f"{first.dtype or first.type}{f' {shape_of(first.shape)}' if first.shape else ''}"
    if first.type.startswith("list of "):
        kind = f"{first.shape[0]} {first.type.removeprefix('list of ')}"
    return ", ".join([f"{for_message(first.name, 24)}: {kind}", *rest])


def _names(sequence: SequenceTrace) -> tuple[str, ...]:
    return tuple(visible(token.text) for token in sequence.tokens)


def _token_table(
    sequence: SequenceTrace, marks: Mapping[int, str]
) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Return the columns that hold anything, and the rows."""
    tokens, source = sequence.tokens, sequence.source
    several = len({token.sequence for token in tokens if token.sequence is not None}) > 1
    typed = any(token.type for token in tokens)
    known = [t.start is not None and t.sequence is not None and t.sequence < len(source) for t in tokens]
    columns: dict[str, list[Cell]] = {
        "#": [*range(len(tokens))],
        "id": [t.id for t in tokens],
        "token": [visible(t.text) for t in tokens],
        "in the text": [
            source[t.sequence or 0][t.start : t.end] if there else None for t, there in zip(tokens, known, strict=True)
        ],
        "place": [None if t.start is None else f"{t.start}-{t.end}" for t in tokens],
        "word": [t.word for t in tokens],
        "text": [t.sequence if several else None for t in tokens],
        "type": [t.type if typed else None for t in tokens],
        "kind": ["special" if t.special else None for t in tokens],
        "differs": [marks.get(place) for place in range(len(tokens))],
    }
    always = ("#", "id", "token")
    kept = {name: cells for name, cells in columns.items() if name in always or any(c is not None for c in cells)}
    return tuple(kept), tuple(zip(*kept.values(), strict=True))


def _layer(batch: BatchTrace, layer: Layer) -> tuple[Cell, ...]:
    norms = layer.norms[batch.attention_mask == 1] if layer.norms.shape == batch.attention_mask.shape else layer.norms
    sizes = (float(norms.mean()), float(norms.min()), float(norms.max())) if norms.size else (None, None, None)
    return (layer.name, shape_of(layer.shape), layer.dtype, *sizes)


def _layers(batch: BatchTrace, line: int, name: str, names: tuple[str, ...]) -> Iterator[Norms | Attention]:
    """Yield what the layers did with one row of a batch."""
    columns = np.flatnonzero(batch.attention_mask[line])
    fits = len(columns) == len(names)
    layers = [layer for layer in batch.layers if layer.norms.shape[-1] == batch.input_ids.shape[1]]
    if layers and fits:
        norms = np.stack([layer.norms[line][columns] for layer in layers])
        yield Norms(name, tuple(layer.name for layer in layers), names, norms)
    maps = {layer: weights[line] for layer, weights in batch.attentions.items() if weights.ndim == 4}
    if maps:
        yield Attention(name, maps, columns if fits else None, names)


def _marked(row: RowTrace) -> Iterator[Marked]:
    """Mark in the example's texts what the result cut out of them: in records with that part, its start and its end."""
    result = row.result or {}
    listed = [item for value in result.values() if isinstance(value, list | tuple) for item in value]
    records = [record for record in (result, *listed) if isinstance(record, Mapping)]
    fields = {"": row.example} if isinstance(row.example, str) else row.example
    for name, value in fields.items():
        text = value if isinstance(value, str) else " ".join(map(str, value)) if isinstance(value, list | tuple) else ""
        spans: list[tuple[int, int, str]] = []
        for record in records:
            start, end = record.get("start"), record.get("end")
            if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
                continue
            key = next((key for key, found in record.items() if found == text[start:end]), None)
            if key is not None and not any(start < last and first < end for first, last, _ in spans):
                spans.append((start, end, str(record.get("label", key))))
        pieces: list[tuple[str, str | None]] = []
        at = 0
        for start, end, mark in sorted(spans):
            pieces += [(text[at:start], None), (text[start:end], mark)]
            at = end
        if spans:
            yield Marked(name, tuple(piece for piece in (*pieces, (text[at:], None)) if piece[0]))


def _result(place: int, row: RowTrace) -> Iterator[Block]:
    if row.failure is not None:
        failure = row.failure
        told = f"row {place} failed in the stage {failure.stage}: {failure.error}: {failure.message}"
        yield Text(told, kind="fail")
    elif row.result is not None:
        yield from _marked(row)
        yield Result(row.result)
