"""The page of explain as text: what is in it, and that nothing in a text gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import explain_traces as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline_kit.explain.html as html
from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain.html import to_html
from pipeline_kit.explain.html_charts import example_text, excerpt, html_number, invisible, seconds, visible
from pipeline_kit.explain.trace import Value

VOID = {"meta", "link", "br", "input", "img", "hr"}
TRACES = made.all_traces()


class Page(HTMLParser):
    """Reads a page as a browser does and holds every end tag against the begin it should have."""

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


def test_the_page_tells_what_is_in_the_trace() -> None:
    text = Page(to_html(TRACES["classification"])).text
    for word in (
        *("tokenizer", "model", "postprocessor", "600 µs", "4.20 ms", "list of str", "[2, 9]", "pipeline_kit"),
        *("waiting", "##erful", "[CLS]", "NEGATIVE", "POSITIVE", "\u22123.9", "4.2", "0.999697", "pad"),
        *("8 of 30 places are padding, 26.7 %, on the right.", "embeddings", "layer 2", "logits to probabilities"),
        *(
            "softmax: exp(4.20)",
            "The largest wins.",
            "cut off: 3 tokens",
            "and more",
            "checkpoint.name",
            "float32 on cpu",
        ),
        *("input x gradient", "logit of 'POSITIVE'", "0.0123", "batch 1, row 2: 7 of 15 columns, padding on the right"),
    ):
        assert word in text, word


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("entities", ["window 2, tokens 4 to 6 of the text", "Zürich", "PER", "[6, 2]"]),
        ("pair", ["Somebody is eating.", "text_pair", "padding on the left", "fields as given"]),
        ("embedding", ["384 numbers", "[5, 384]"]),
        ("generation", ["sequence_lengths", "0 1 2 3", "there was"]),
        ("failure", ["failed in the tokenizer", "ExampleError: the text is <empty>", "Nothing reached the model."]),
        ("one token", ["it reached no batch", "(empty text)", "[SEP]"]),
    ],
)
def test_each_kind_of_trace_shows_its_own(name: str, words: list[str]) -> None:
    text = Page(to_html(TRACES[name])).text
    for word in words:
        assert word in text, word


def hostile(text: str) -> str:
    """A page with `text` in every place that a user, a checkpoint or a plugin can fill."""
    trace = made.classification(text or "x", heads=1)
    row = trace.rows[0]
    panel = Panel(text, (text, "n"), ((text, 1.5),), bar="n", formula=text, note=text)
    told = replace(row.attributions[0], method=text, target=text, note=text)
    result = {text: text, "list": [{text: text}], "deep": {text: [text]}}
    row = replace(row, example={text: text}, result=result, panels={text: (panel,)}, attributions=(told,))
    stage = replace(
        trace.stages[0], name=text, source=text, options={text: text}, inputs=(Value(text, text, (), text, text),)
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
    assert "49" not in page.text.replace("49 ", "")[:400]
    assert "characters that cannot be seen: U+202E at" in page.text


@settings(max_examples=25)
@given(st.text(max_size=40))
def test_any_text_gives_a_page_that_can_be_written(text: str) -> None:
    written = hostile(text).encode("utf-8")
    assert b"\x00" not in written
    Page(written.decode("utf-8"))


def test_a_panel_with_rows_of_any_kind_is_drawn() -> None:
    row = replace(
        TRACES["classification"].rows[0],
        panels={
            "tokenizer": (
                Panel("no table", formula="1 + 1 = 2"),
                Panel("odd", ("a", "b"), (("x", float("nan")), (None, True), ("y", -3)), bar="b"),
                Panel("no such bar", ("a",), ((1,),), bar="z"),
                Panel("no columns", rows=(("just", "cells"),)),
            )
        },
    )
    text = Page(to_html(replace(TRACES["classification"], rows=(row,)))).text
    for word in ("1 + 1 = 2", "nan", "none", "yes", "\u22123", "just"):
        assert word in text


def test_examples_beyond_the_room_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_TOKENS", 20)
    text = Page(to_html(made.classification("one two", "three four", "five six", *["seven"] * 5))).text
    assert "3 more examples are left out" in text


def test_what_is_written_for_odd_values() -> None:
    assert [html_number(x) for x in (None, True, 3, 12345, -0.5, 1e-9, float("inf"), "a")] == [
        *("none", "yes", "3", "12\u202f345", "\u22120.5", "1e-09", "inf", "a")
    ]
    assert [seconds(x) for x in (2, 0.0125, 3e-5)] == ["2.00 s", "12.50 ms", "30 µs"]
    assert visible("") == "(empty)"
    assert visible(" a\n\u200b") == "␣aU+000AU+200B"
    assert visible("x" * 81).endswith("… (81 characters)")
    assert invisible("a\tb") == ""
    assert invisible("\u202e" * 9).endswith("U+202E at 7 and 1 more")
    assert excerpt("a\n b", 10) == "a b"
    assert excerpt("word " * 100, 10) == "word word…"
    assert example_text({"question": "Why?", "labels": ["a"]}) == "Why? · ['a']"


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


def test_windows_beyond_the_room_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_TOKENS", 8)
    text = Page(to_html(made.entities())).text
    assert "1 more sequences are left out" in text
    assert "window 2, tokens" not in text


def test_a_trace_with_fewer_examples_is_shown_beside_one_with_more() -> None:
    text = Page(to_html(made.classification("a", "b", "c"), made.classification("a"))).text
    assert text.count("This trace has no such example.") == 2
    assert "left out" not in text
