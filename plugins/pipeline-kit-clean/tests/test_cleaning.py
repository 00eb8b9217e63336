"""What is cleaned, that every place leads back to its source, and that hostile text costs little."""

from __future__ import annotations

import time
import unicodedata
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pk_clean import CleanConfig
from pk_clean.cleaning import clean, normal_form, steps
from pk_clean.edits import apply, trace

# Letters that join, a ligature, a full-width letter, a Korean syllable and its parts.
JOINING = "e\u0301\u0323\u1100\u1161\u11a8\ufb01\uff21\uac00"
MESSY = st.text(st.sampled_from("ab @#<>/&;!-.http:(www) \n'\"" + JOINING) | st.characters(codec="utf-8"))
EVERYTHING = CleanConfig(mentions="@user", urls="http", unicode="NFKC")


def cleaned(text: str, **options: Any) -> str:
    off: dict[str, Any] = {"html": False, "unicode": None, "whitespace": False}
    return clean(text, steps(CleanConfig(**{**off, **options})))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>One</p><p>Two</p>", " One  Two "),
        ("w<b>or</b>d<br/>next", "word next"),
        ("a < b, <3 and 1<2>3", "a < b, <3 and 1<2>3"),
        ("mail <bob@example.com> or <https://example.com>", "mail <bob@example.com> or <https://example.com>"),
        ("x<script>if (a<b) {}</script>y<style>p{}</style>z", "x y z"),
        ("a<!-- <b>no</b> -->b", "ab"),
        ("a<!-- never closed", "a<!-- never closed"),
        ("<script>never closed", " never closed"),
        ("&lt;b&gt; &amp; &#8217;&#x41; &nosuch; AT&T ?a=1&copy=2", "<b> & \u2019A &nosuch; AT&T ?a=1&copy=2"),
        ("&amp;lt;", "&lt;"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";"),
        ("&#0; &#xD800; &#1114112;", "\ufffd \ufffd \ufffd"),
        ("<!DOCTYPE html><html lang='en'>x", "  x"),
    ],
)
def test_html(text: str, expected: str) -> None:
    assert cleaned(text, html=True) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@bob: see https://example.com/a?b=c, ok", "U: see L, ok"),
        (".@bob @Ann_1! (@eve)", ".U U! (U)"),
        ("bob@example.com @ home @@x", "bob@example.com @ home @@x"),
        ("@ann@social.example. Hi", "U. Hi"),
        ("(see www.example.com/a_(b)) HTTPS://X.ORG", "(see L) L"),
        ("https://medium.com/@bob/x", "L"),
        ("http and httpd", "http and httpd"),
    ],
)
def test_mentions_and_urls(text: str, expected: str) -> None:
    assert cleaned(text, mentions="U", urls="L") == expected


def test_mentions_and_urls_are_chosen_apart() -> None:
    text = "@bob https://x.org/@ann"
    assert cleaned(text, mentions="U") == "U https://x.org/@ann"
    assert cleaned(text, urls="L") == "@bob L"
    assert cleaned(text, urls="@link", mentions="U") == "U @link"
    assert cleaned("by @bob now", mentions="") == "by  now"


def test_whitespace_and_unicode() -> None:
    assert cleaned(" a\t\n b\u00a0c \n", whitespace=True) == "a b c"
    assert cleaned(" \n ", whitespace=True) == ""
    assert cleaned("cafe\u0301 \ufb01", unicode="NFC") == "caf\u00e9 \ufb01"
    assert cleaned("cafe\u0301 \ufb01 \uff21", unicode="NFKC") == "caf\u00e9 fi A"


def as_on_the_model_cards(text: str) -> str:
    """The rule on https://huggingface.co/cardiffnlp/twitter-roberta-base, said in other words."""
    words = text.split(" ")
    words = ["@user" if word.startswith("@") and word != "@" else word for word in words]
    return " ".join("http" if word.startswith("http") else word for word in words)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("@ahtp:/.! é")))
def test_the_preset_tweets_does_what_the_model_cards_say(text: str) -> None:
    assert cleaned(text, mentions="@user", urls="http", whole_words=True) == as_on_the_model_cards(text)


@settings(max_examples=500, deadline=None)
@given(MESSY, st.sampled_from(["NFC", "NFKC"]))
def test_the_parts_normal_forms_are_that_of_the_whole(text: str, form: Literal["NFC", "NFKC"]) -> None:
    assert apply(text, normal_form(form, text))[0] == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_no_character_joins_one_of_another_cluster(form: Literal["NFC", "NFKC"]) -> None:
    """All that Unicode joins into one character is kept together, Korean syllables among it."""
    for code in range(0x110000):
        joined = chr(code)
        apart = unicodedata.normalize("NFD", joined)
        if len(apart) > 1 and unicodedata.normalize("NFC", apart) == joined:
            assert apply(apart, normal_form(form, apart))[0] == unicodedata.normalize(form, joined)


@settings(max_examples=500, deadline=None)
@given(MESSY)
def test_every_place_leads_back_to_its_source(text: str) -> None:
    new, ways = clean(text, steps(EVERYTHING))
    sources = trace(ways, [(i, i + 1) for i in range(len(new))])
    for i, (begin, end) in enumerate(sources):
        assert 0 <= begin < end <= len(text)
        assert i == 0 or begin >= sources[i - 1][0]
    whole = trace(ways, [(0, len(new))])[0]
    assert not new or whole == (sources[0][0], sources[-1][1])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text("ab", max_size=4), st.text("ab", max_size=2), st.text("xy", max_size=2)), max_size=5))
def test_what_was_not_replaced_is_its_own_source(parts: list[tuple[str, str, str]]) -> None:
    old, edits = "", []
    for kept, gone, put in parts:
        edits.append((len(old + kept), len(old + kept + gone), put))
        old += kept + gone
    new, way = apply(old, edits)
    assert new == "".join(kept + put for kept, _, put in parts)
    for i, character in enumerate(new):
        [(begin, end)] = trace([] if way is None else [way], [(i, i + 1)])
        if character in "ab":
            assert old[begin:end] == character
        else:
            assert any((begin, end) == edit[:2] for edit in edits)


def test_a_replaced_piece_is_the_source_of_every_part_of_it() -> None:
    text = "hi @bob &amp; cafe\u0301"
    new, ways = clean(text, steps(EVERYTHING))
    assert new == "hi @user & caf\u00e9"
    places = {piece: new.index(piece) for piece in ("@", "user", "&", "\u00e9", "hi")}
    found = {piece: text[slice(*trace(ways, [(i, i + len(piece))])[0])] for piece, i in places.items()}
    assert found == {"@": "@bob", "user": "@bob", "&": "&amp;", "\u00e9": "e\u0301", "hi": "hi"}


HOSTILE = {
    "angle brackets": "<",
    "open tags": "<a",
    "open scripts": "<script>",
    "open comments": "<!--",
    "ampersands": "&",
    "long names": "&aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "at signs": "@",
    "half mentions": "@a@a.-",
    "addresses": "http://",
    "marks out of order": "\u0301\u0323",
    "spaces": " \t",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_linear_time(name: str) -> None:
    """Four times the text must not take anything near sixteen times the processor's time."""

    def seconds(length: int) -> float:
        text = HOSTILE[name] * (length // len(HOSTILE[name]))
        started = time.process_time()
        clean(text, steps(EVERYTHING))
        return time.process_time() - started

    short = min(seconds(30_000) for _ in range(3))
    long = min(seconds(120_000) for _ in range(3))
    assert long < max(short, 0.005) * 10
