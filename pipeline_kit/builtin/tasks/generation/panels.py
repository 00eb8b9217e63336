"""What ``postprocessor=generated_text`` shows: the ids that were written, and the text they make."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from pipeline_kit.builtin.tasks.common.panels import ROWS, cell, counted, drop_window_column, notes
from pipeline_kit.contract.stages import Cell, Panel, Tokenizer
from pipeline_kit.contract.types import Encoding
from pipeline_kit.errors import for_message

_HALF = "\ufffd"
_WINDOWS = 10  # that are written out


def generation_panels(
    tokenizer: Tokenizer,
    causal: bool,
    stops: Sequence[str],
    encodings: Sequence[Encoding],
    ids: Sequence[Sequence[int]],
    texts: Sequence[str],
    front: str | None,
) -> list[Panel]:
    """Show each id with the text it adds, and how the result's text was put together.

    :param causal: whether the ids carry on those of the text.
    :param ids: what the model wrote to each window; `texts` is what became of it.
    :param front: the prompt, where it stands before what was written.
    """
    rows: list[Sequence[Cell]] = []
    for window, (encoding, own) in enumerate(zip(encodings, ids, strict=True)):
        before = encoding.input_ids if causal else ()
        rows += [(window, *row) for row in _steps(tokenizer, before, own[: ROWS - len(rows)])]
    left = sum(len(own) for own in ids) - len(rows)
    note = notes(
        "end tokens are not counted",
        f"{_HALF} stands for a part of a character" if any(_HALF in str(row[3]) for row in rows) else "",
        f"{counted(left, 'id')} left out" if left else "",
    )
    table = drop_window_column(("window", "step", "id", "alone", "adds", "what"), rows, len(ids))
    return [Panel("ids that were written", *table, note=note), _joined(causal, stops, ids, texts, front)]


def _steps(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> list[Sequence[Cell]]:
    """Show ids one by one; what one adds is told by decoding it together with those before it."""
    before = list(prompt)
    languages = {id: code for code, id in tokenizer.languages.items()}
    known = tokenizer.decode(before)
    rows: list[Sequence[Cell]] = []
    for step, id in enumerate(ids, 1):
        before.append(id)
        text = tokenizer.decode(before)
        alone = tokenizer.decode([id])
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, text, strict=False)))
        adds = text[kept:]
        role = f"the language {languages[id]}" if id in languages else "" if alone or adds else "special"
        rows.append((step, id, cell(alone), cell(adds), role))
        known = text
    return rows


def _joined(
    causal: bool, stops: Sequence[str], ids: Sequence[Sequence[int]], texts: Sequence[str], front: str | None
) -> Panel:
    lines = []
    for window, (own, text) in enumerate(list(zip(ids, texts, strict=True))[:_WINDOWS]):
        name = f"window {window}: " if len(texts) > 1 else ""
        ways = f"decode(prompt + {len(own)} ids) without decode(prompt)" if causal else f"decode({len(own)} ids)"
        lines += [f"{name}{ways}", f"  = '{for_message(text, 72)}'"]
    if len(texts) > _WINDOWS:
        lines.append(f"… ({len(texts) - _WINDOWS} more)")
    if len(texts) > 1:
        lines.append(f"text = the texts of {len(texts)} windows, joined by a space")
    if front is not None:
        lines.append(f"text = prompt '{for_message(front, 40)}' + what was written")
    shown = ", ".join(f"'{for_message(stop, 20)}'" for stop in stops[:8])
    note = notes("special tokens are left out", f"cut before the first of {shown}" if stops else "")
    return Panel("ids to text", formula="\n".join(lines), note=note)
