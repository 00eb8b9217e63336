"""A document as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline_kit.explain import charts, formats
from pipeline_kit.explain.blocks import PAGE, Attention, Block
from pipeline_kit.explain.document import document
from pipeline_kit.explain.trace import Trace

_TEMPLATES = Path(__file__).parent / "templates"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
_LONE = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)

WEIGHTS = 900_000
"""So many weights a page keeps in all, about three megabytes; one of 16 bits counts twice."""

_FINE = 150_000
_LEAST = 4


def to_html(trace: Trace, other: Trace | None = None, *, names: Sequence[str] = ()) -> str:
    """Draw `trace` as a page: no network, no outside script, style or font; its policy refuses them.

    What is beyond 6,000 tokens (examples, or windows of a single long one), rows of batches beyond 12,000 places and
    small attention weights are left out, each with a note, so that a page stays under some megabytes.

    :param other: a trace of the same examples by another pipeline, shown beside it; what differs is marked.
    :param names: what the two pipelines are called; the checkpoints' names if there are none.
    :returns: the page; it can be written as UTF-8 whatever the texts hold.
    """
    shown = document(trace, *(() if other is None else (other,)), names=names, limits=PAGE)
    found = [b for side in shown.sides for s in side.sections for b in s.blocks if isinstance(b, Attention)]
    room = TokenBudget(len(found))
    packed = {id(block): attention_view(block, room) for block in found}
    page = environment().get_template("page.html").render(document=shown, packed=packed, **assets())
    # No UTF-8 file can hold halves of surrogate pairs; controls become their pictures, U+0000 is U+2400.
    return page.translate(_PICTURES | _LONE)


@cache
def environment(own: Path | None = None) -> Environment:
    """Return the templates, and those of a folder that builds on them."""
    environment = Environment(
        loader=FileSystemLoader([own or _TEMPLATES, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "id": id,
        "kind": lambda value: type(value).__name__,
        "number": formats.number,
        "seconds": formats.seconds,
        "shape_of": formats.shape_of,
        "bars": charts.panel_bars,
        "picture": charts.picture,
        "summary": charts.summary,
        "level": charts.level,
        "result_blocks": charts.result_blocks,
        "json": lambda result: json.dumps(result.value, ensure_ascii=False, indent=2, default=str),
        "row": lambda side, row: [section for section in side.sections if section.row == row],
        "windows": _windows,
    }
    return environment


def _windows(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Put together what is about the same sequence."""
    return [(name, list(own)) for name, own in groupby(blocks, key=lambda block: getattr(block, "sequence", ""))]


@cache
def assets() -> Mapping[str, str]:
    """Return the page's style and script, and the hashes by which its policy allows them and nothing else."""
    style, style_hash = inline(_TEMPLATES / "page.css")
    script, script_hash = inline(_TEMPLATES / "page.js", _TEMPLATES / "attention.js")
    return {"style": style, "script": script, "style_hash": style_hash, "script_hash": script_hash}


def inline(*files: Path) -> tuple[Markup, str]:
    """Return files of this package as one style or script, and the hash by which a page's policy allows it."""
    text = Markup("".join(file.read_text(encoding="utf-8") for file in files))  # noqa: S704
    return text, "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@dataclass(slots=True)
class TokenBudget:
    """How many weights the page may still take, and how many sequences ask for some."""

    sequences: int
    weights: int = WEIGHTS

    def take(self, lines: int, width: int, fine: bool) -> int:
        """Return how many weights each of `lines` lines may keep, 0 if that would be too few to be of use."""
        cost = 2 if fine else 1
        kept = min(width, self.weights // max(1, self.sequences) // max(1, lines) // cost)
        self.sequences -= 1
        if kept < min(_LEAST, width):
            return 0
        self.weights -= kept * lines * cost
        return kept


class AttentionView(NamedTuple):
    """What the page's script draws; `data` is JSON text without ``<``, ``>`` and ``&``.

    :param layers: their names with the number of heads of each.
    """

    layers: tuple[tuple[str, int], ...]
    data: str
    note: str


def attention_view(block: Attention, room: TokenBudget) -> AttentionView:
    """Pack the attention of one sequence.

    A weight ``w`` is kept as ``round(m * sqrt(w))`` with ``m`` 255, or 65535 where there are few: small weights
    keep their first digit. A layer is its heads' maps, one line a query, packed by zlib.
    """
    cut = {name: _cut(values, block.columns) for name, values in block.maps.items()}
    lines = sum(values.shape[0] * values.shape[1] for values in cut.values())
    width = max((values.shape[2] for values in cut.values()), default=0)
    weights = sum(values.size for values in cut.values())
    fine = weights <= _FINE
    kept = room.take(lines, width, fine)
    if not kept:
        note = f"Left out: {formats.number(weights)} weights are more than this page has room for."
        return AttentionView((), "", note)
    share, packed = 0.0, []
    most, kind = (65535, "<u2") if fine else (255, "u1")
    for name, values in cut.items():
        thin = _largest(values, kept)
        share += float(thin.sum()) / max(1e-9, float(values.sum())) / len(cut)
        whole = np.rint(most * np.sqrt(thin.clip(0, 1))).astype(kind)
        text = base64.b64encode(zlib.compress(whole.tobytes(), 9 if fine else 6)).decode("ascii")
        packed.append({"name": name, "shape": values.shape, "data": text})
    data = json.dumps({"bits": 16 if fine else 8, "tokens": block.tokens, "layers": packed})
    # So that nothing in a token ends the script that it stands in.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    note = f"Weights are rounded by up to {'0.00002' if fine else '0.004'}."
    if kept < width:
        note += f" Of each token's {width} weights the largest {kept} are here, {100 * share:.1f} % of the sum."
    return AttentionView(tuple((name, values.shape[0]) for name, values in cut.items()), data, note)


def _cut(values: NDArray[Any], columns: NDArray[Any] | None) -> NDArray[Any]:
    values = np.nan_to_num(np.asarray(values, dtype=np.float32))
    if columns is None:
        return values
    if values.shape[1] > columns.max():
        values = values[:, columns]
    return values[:, :, columns] if values.shape[2] > columns.max() else values


def _largest(values: NDArray[Any], kept: int) -> NDArray[Any]:
    if kept >= values.shape[-1]:
        return values
    places = np.argpartition(values, -kept, axis=-1)[..., -kept:]
    thin = np.zeros_like(values)
    np.put_along_axis(thin, places, np.take_along_axis(values, places, axis=-1), axis=-1)
    return thin
