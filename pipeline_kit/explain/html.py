"""A document as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline_kit.explain import charts, formats
from pipeline_kit.explain.attention import AttentionView, TokenBudget, attention_view
from pipeline_kit.explain.blocks import PAGE, Attention, Block, Document, Result, Section, Side
from pipeline_kit.explain.document import document
from pipeline_kit.explain.trace import Trace

_TEMPLATES = Path(__file__).parent / "templates"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
_LONE = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def to_html(trace: Trace, other: Trace | None = None) -> str:
    """Draw `trace` as a page: no network, no outside script, style or font; its policy refuses them.

    What is beyond 6,000 tokens (examples, or windows of a single long one), rows of batches beyond 12,000 places and
    small attention weights are left out, each with a note, so that a page stays under some megabytes.

    :param other: a trace of the same examples by another pipeline, shown beside it; what differs is marked.
    :returns: the page; it can be written as UTF-8 whatever the texts hold.
    """
    shown = document(trace, *(() if other is None else (other,)), limits=PAGE)
    page = _environment().get_template("page.html").render(document=shown, packed=_packed(shown), **_assets())
    # No UTF-8 file can hold halves of surrogate pairs; controls become their pictures, U+0000 is U+2400.
    return page.translate(_PICTURES | _LONE)


def _packed(shown: Document) -> Mapping[int, AttentionView]:
    """Pack all attention, each sequence with its part of the room."""
    found = [b for side in shown.sides for s in side.sections for b in s.blocks if isinstance(b, Attention)]
    room = TokenBudget(len(found))
    return {id(block): attention_view(block, room) for block in found}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
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
        "json": _json,
        "row": _row,
        "windows": _windows,
    }
    return environment


def _json(result: Result) -> str:
    return json.dumps(result.value, ensure_ascii=False, indent=2, default=str)


def _row(side: Side, row: int | None) -> list[Section]:
    return [section for section in side.sections if section.row == row]


def _windows(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Put together what is about the same sequence."""
    return [(name, list(own)) for name, own in groupby(blocks, key=lambda block: getattr(block, "sequence", ""))]


@cache
def _assets() -> Mapping[str, str]:
    """Return the page's style and script, and the hashes by which its policy allows them and nothing else."""
    style = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - a file of this package
    scripts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "attention.js")]
    script = Markup("".join(scripts))  # noqa: S704 - files of this package
    return {"style": style, "script": script, "style_hash": _hash(style), "script_hash": _hash(script)}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
