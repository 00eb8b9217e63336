"""The page as text: what is in it, its pictures, and that nothing in a text gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import explain_traces as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline_kit.explain.html as html
from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain import blocks as b
from pipeline_kit.explain.charts import bars, heat, level, picture, shade, spark
from pipeline_kit.explain.html import AttentionView, TokenBudget, attention_view, to_html

VOID = {"meta", "link", "br", "input", "img", "hr"}
TRACES = made.all_traces()
GOLDEN = Path(__file__).parents[1] / "golden" / "explain.html"


class Page(HTMLParser):
    """Reads a page as a browser does and compares every end tag with the begin it should have."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_it_looks_as_it_did() -> None:
    """To change the file: PYTHONPATH=tests python tests/explain/test_page.py, then look at the page in a browser."""
    assert golden() == GOLDEN.read_text(encoding="utf-8")


def golden() -> str:
    pages = [to_html(*traces) for traces in made.golden_cases()]
    return re.sub(r"<head>.*?</head>|<script>.*?</script>", "", "".join(pages), flags=re.DOTALL)


@pytest.mark.parametrize("name", TRACES)
def test_a_page_is_well_formed_and_nothing_but_its_own_script_and_style_may_run(name: str) -> None:
    page = Page(to_html(TRACES[name]))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("style") == 1
    assert sum(tag == "script" and "type" not in attrs for tag, attrs in page.tags) == 1
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(tags)
    for _, attrs in page.tags:
        assert "style" not in attrs
        assert not any(key.startswith("on") for key in attrs)
        assert not {"src", "srcset", "data", "action"} & set(attrs)
        assert attrs.get("href", "#").startswith("#")  # type: ignore[union-attr]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert targets <= {f"#{name}" for name in ids}
    groups = [(attrs["name"], attrs["value"]) for tag, attrs in page.tags if tag == "input"]
    assert len(groups) == len(set(groups)), "two switches of one name would be one"


def test_the_policy_names_the_hashes_of_style_and_script() -> None:
    page = to_html(TRACES["classification"])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src &#39;none&#39;; ") or policy[1].startswith("default-src 'none'; ")
    for kind in ("style", "script"):
        body = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert body
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"sha256-{digest}" in policy[1]
    assert "unsafe" not in policy[1]


def hostile(text: str) -> str:
    """A page with `text` in every place that a user, a checkpoint or a plugin can fill."""
    trace = made.classification(text or "x", heads=1)
    row = trace.rows[0]
    panel = Panel(text, (text, "n"), ((text, 1.5),), bar="n", formula=text, note=text)
    marked = b.Marked(text, ((text, None), (text, text), (text, 0.5)))
    result = {text: text, "list": [{text: text}], "deep": {text: [text]}}
    row = replace(
        row, example={text: text}, result=result, panels={"postprocessor": (panel,)}, views={text: (marked, panel)}
    )
    stage = replace(
        trace.stages[0], name=text, source=text, options={text: text}, inputs=(b.Value(text, text, (), text, text),)
    )
    batch = trace.batches[0]
    batch = replace(
        batch,
        outputs={text: batch.outputs["logits"]},
        layers=tuple(replace(layer, name=text) for layer in batch.layers),
        attentions={text: batch.attentions["layer 1"]},
        panels=(panel,),
    )
    changed = replace(
        trace,
        task=text,
        config={text: {text: text}, "checkpoint": {"name": text}},
        labels=(text, text),
        stages=(stage,),
        rows=(row,),
        batches=(batch,),
        notes=(text,),
    )
    return to_html(changed, trace)


def test_a_hostile_text_stays_text_wherever_it_stands() -> None:
    plain, page = Page(hostile("harmless")), Page(hostile(made.HOSTILE))
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == ["script"] * 3
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert {key for _, attrs in page.tags for key in attrs} == {key for _, attrs in plain.tags for key in attrs}
    assert "{{ 7*7 }}" in page.text
    assert "characters that cannot be seen: U+202E at" in page.text


@settings(max_examples=20)
@given(st.text(max_size=40))
def test_any_text_gives_a_page_that_can_be_written(text: str) -> None:
    written = hostile(text).encode("utf-8")
    assert b"\x00" not in written
    Page(written.decode("utf-8"))


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "PAGE", replace(b.PAGE, tokens=8, cells=7))
    text = Page(to_html(made.classification("one two", "three four", "five six", *["seven"] * 5))).text
    assert "6 more examples are left out" in text
    assert "7 more rows are left out" in text
    assert "1 more sequences are left out" in Page(to_html(made.entities())).text
    monkeypatch.undo()
    text = Page(to_html(made.classification("a", "b", "c"), made.classification("a"))).text
    assert text.count("This trace has no such example.") == 4
    assert "left out" not in text


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(theme: int) -> None:
    """WCAG 2.2's contrast, 4.5 to 1 for text: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    style = (Path(html.__file__).parent / "templates" / "page.css").read_text()
    found = {name: pair[theme] for name, *pair in re.findall(r"--(\w[\w-]*): light-dark\((#\w{6}), (#\w{6})\)", style)}
    pairs = [(ink, on) for ink in ("ink", "soft", "accent", "warn") for on in ("paper", "sheet")]
    pairs += [("ink", "tint"), ("soft", "tint"), ("warn", "warn-tint"), ("bad", "paper"), ("paper", "ink")]
    pairs += [("ink", shade) for shade in ("n1", "n2", "n3", "n4", "s1", "s2", "s3", "s4")]
    pairs += [("on-low", f"s{i}") for i in range(5)] + [("on-high", f"s{i}") for i in range(5, 8)]
    for ink, on in pairs:
        low, high = sorted((_luminance(found[ink]), _luminance(found[on])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, on)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_bars_stand_in_proportion(values: list[float]) -> None:
    drawn = bars([""] * len(values), values)
    for bar, value in zip(drawn.bars, values, strict=True):
        assert -0.01 <= bar.x <= 100.01
        assert bar.x + bar.width <= 100.02
        assert abs((bar.x if value >= 0 else bar.x + bar.width) - drawn.zero) < 0.03  # it begins at nought
    longest = max(range(len(values)), key=lambda i: abs(values[i]))
    assert drawn.bars[longest].width == max(bar.width for bar in drawn.bars)
    assert all(bar.best == (value == max(values)) for bar, value in zip(drawn.bars, values, strict=True))


def test_bars_of_shares_end_at_one_and_of_what_is_no_number_are_empty() -> None:
    assert [bar.width for bar in bars("ab", [0.25, 0.75]).bars] == [25, 75]
    assert [bar.width for bar in bars("ab", [4.0, math.nan]).bars] == [100, 0]
    assert [bar.value for bar in bars("ab", [math.inf, math.nan]).bars] == ["inf", "nan"]
    assert bars("", []).bars == ()


def test_heat_maps_shade_by_row_and_over_all() -> None:
    drawn = heat("norm", ["a", "b"], ["x", "y"], np.array([[1, 2], [3, np.nan]]))
    assert drawn.rows == (
        ("a", (("1", 0, 0), ("2", 7, 4)), "1", "2"),
        ("b", (("3", 0, 7), ("nan", -1, -1)), "3", "3"),
    )
    assert not drawn.dense
    assert shade(5, 5, 5) == 0
    assert heat("", [], [], np.zeros((0, 0))).rows == ()
    assert spark(np.array([1.0, -1.0])).path == "M0.5 20.0V0.0M1.5 20.0V40.0"
    assert spark(np.array([1.0, np.inf, np.nan, -np.inf])).path == "M0.5 40.0V0.0" + "".join(
        f"M{place}.5 40.0V40.0" for place in (1, 2, 3)
    )
    assert spark(np.arange(1000.0)).note == "every 3th number"
    assert [level(x, [0.0, 1.0, -0.5, math.nan]) for x in (0.0, 1.0, -0.5, math.nan)] == ["p0", "p4", "n2", "p0"]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2,), "Bars"),
        ((1, 2), "Bars"),
        ((300,), "Spark"),
        ((4, 2), "Heat"),
        ((4,), "Heat"),
        ((4, 5000), "NoneType"),
        ((0,), "NoneType"),
    ],
)
def test_a_tensor_gets_the_picture_of_its_shape(shape: tuple[int, ...], kind: str) -> None:
    values = np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape)
    labels = ("no", "yes") if shape[-1] == 2 else ()
    drawn: Any = picture(b.Values("0", "t", "model", values, labels, ("a", "b", "c", "d") if shape[0] == 4 else ()))
    assert type(drawn).__name__ == kind
    if kind == "Bars":
        assert [bar.label for bar in drawn.bars] == ["no", "yes"]
    if shape == (4, 2):
        assert [row[0] for row in drawn.rows] == ["no", "yes"]
        assert [cell[0] for cell in drawn.rows[0][1]] == ["\u22121", "\u22120.4286", "0.1429", "0.7143"]


def unpack(view: AttentionView) -> dict[str, Any]:
    data = json.loads(view.data)
    most, kind = (65535, "<u2") if data["bits"] == 16 else (255, "u1")
    return {
        layer["name"]: (
            np.frombuffer(zlib.decompress(base64.b64decode(layer["data"])), kind).reshape(layer["shape"]) / most
        )
        ** 2
        for layer in data["layers"]
    }


def test_attention_comes_back_without_padding_and_to_its_rounding() -> None:
    trace = made.classification(side="left")
    weights = trace.batches[0].attentions["layer 2"][1]
    columns = np.flatnonzero(trace.batches[0].attention_mask[1])
    view = attention_view(b.Attention("1", {"layer 2": weights}, columns, ("a",) * 7), TokenBudget(1))
    assert view.layers == (("layer 2", 2),)
    assert np.abs(unpack(view)["layer 2"] - weights[:, columns][:, :, columns]).max() <= 2e-5


def test_long_attention_keeps_the_largest_weights_within_the_room() -> None:
    draw = np.random.default_rng(1)
    maps = {f"{i}": draw.dirichlet(np.full(200, 0.05), (4, 200)).astype(np.float32) for i in range(2)}
    block = b.Attention("0", maps, None, ("t",) * 200)
    room = TokenBudget(2, 40_000)
    view = attention_view(block, room)
    assert "the largest 12 are here" in view.note
    assert room.weights == 40_000 - 12 * 1600
    for name, values in unpack(view).items():
        kept = values > 0
        assert kept.sum(axis=-1).max() <= 12
        assert np.abs(values - maps[name])[kept].max() <= 0.004
        least = np.sort(maps[name], axis=-1)[..., -12]
        assert (maps[name][kept] >= np.broadcast_to(least[..., None], maps[name].shape)[kept]).all()
    assert attention_view(block, TokenBudget(9, 40_000)).layers == ()


def test_the_page_of_512_tokens_and_144_heads_stays_under_five_megabytes() -> None:
    page = to_html(made.classification(" ".join(f"w{i}" for i in range(510)), layers=12, heads=12))
    assert len(page.encode()) < 5_000_000
    assert page.count("<button") == 512
    HTMLParser().feed(page)


if __name__ == "__main__":
    GOLDEN.write_text(golden(), encoding="utf-8")
