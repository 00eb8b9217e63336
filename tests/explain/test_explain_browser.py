"""The page of explain in a real browser: headless Chromium, as a user's hand and keyboard meet it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import explain_traces as made
import numpy as np
import pytest

from pipeline_kit.explain.html import to_html

TRACES = made.all_traces()
LONG = " ".join(f"word{i}" for i in range(510))
Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page; at the end of the test nothing may have been complained about or asked for but the page."""
    told: list[str] = []
    asked: list[str] = []
    contexts: list[Any] = []
    file = tmp_path / "page.html"

    def opened(text: str, width: int = 1280, scheme: str = "light") -> Any:
        file.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert told == []
    assert set(asked) == {file.as_uri()}


@pytest.mark.parametrize("name", TRACES)
def test_every_page_opens_and_fits_its_window(name: str, show: Open) -> None:
    page = show(to_html(TRACES[name]), 400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    for details in page.locator("details").all():
        details.evaluate("node => { node.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_hovering_a_token_tells_its_id_place_and_word(show: Open) -> None:
    page = show(to_html(made.classification()))
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator(".chip", has_text="##ngFace").first.hover()
    facts = dict(zip(tip.locator("dt").all_inner_texts(), tip.locator("dd").all_inner_texts(), strict=True))
    token = made.classification().rows[0].sequences[0].tokens[9]
    assert facts == {
        "#": "9",
        "id": str(token.id),
        "token": token.text,
        "in the text": "ngFace",
        "place": f"{token.start}-{token.end}",
        "word": "6",
    }
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_tokens_are_one_stop_of_the_tab_key_and_arrows_move_among_them(show: Open) -> None:
    page = show(to_html(made.classification()))
    chips = page.locator(".chips").first.locator(".chip")
    assert [chip.get_attribute("tabindex") for chip in chips.all()] == ["0"] + ["-1"] * (chips.count() - 1)
    chips.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent.trim()") == "been"
    assert page.locator("#tip").is_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent.trim()") == "[SEP]"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_cells_of_grids_tell_by_keyboard_what_they_are(show: Open) -> None:
    page = show(to_html(made.classification()))
    page.locator("table.heat td").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    norm = made.classification().batches[0].layers[1].norms[0, 2]
    texts = page.locator("#tip dd").all_inner_texts()
    assert texts == ["layer 1", "2", "been", f"{norm:.4g}"]
    page.locator("table.grid td.pad").first.hover()
    assert page.locator("#tip dd").all_inner_texts() == ["I hate this so much!", "7", "pad", "0", "0", "0"]


def test_switches_change_what_the_grid_and_the_heat_map_show(show: Open) -> None:
    page = show(to_html(made.classification()))
    cell = page.locator("table.grid td").first
    assert cell.inner_text() == "[CLS]"
    for name, shown in (("ids", "101"), ("mask", "1"), ("types", "0"), ("tokens", "[CLS]")):
        page.locator("#batch").get_by_label(name, exact=True).check()
        assert cell.inner_text() == shown
    heat = page.locator("table.heat").first
    colour = "node => getComputedStyle(node.querySelector('td.r7:not(.a7)')).backgroundColor"
    before = heat.evaluate(colour)
    page.get_by_label("over all").first.check()
    assert heat.evaluate(colour) != before
    assert page.locator("table.heat").nth(1).get_attribute("data-scale") == "row"


def test_a_grid_that_is_wider_than_its_place_says_so(show: Open) -> None:
    page = show(to_html(made.classification()), 1400)
    note = page.locator("#batch .more").first
    assert note.is_hidden()
    page.set_viewport_size({"width": 400, "height": 900})
    note.wait_for()
    count = made.classification().batches[0].input_ids.shape[1]
    told = re.fullmatch(r"The table scrolls sideways, (\d+) more columns on the right", note.inner_text())
    assert told, note.inner_text()
    assert count // 2 < int(told[1]) < count
    page.locator("#batch .scroll").first.evaluate("node => { node.scrollLeft = node.scrollWidth }")
    page.wait_for_function("document.querySelector('#batch .more').textContent.endsWith('on the left')")


def picture(figure: Any) -> str:
    drawn: str = figure.locator("canvas").evaluate("node => node.toDataURL()")
    return drawn


def chosen(page: Any, figure: Any, layer: str, head: str) -> str:
    figure.locator("[data-layer]").select_option(label=layer)
    figure.locator("[data-head]").select_option(label=head)
    wanted = figure.evaluate("node => [...node.querySelectorAll('select')].map((box) => box.value).join(' ')")
    page.wait_for_function("wanted => document.querySelector('[data-attention]').dataset.drawn === wanted", arg=wanted)
    return picture(figure)


def test_switching_layer_and_head_draws_other_attention_and_reads_its_weights(show: Open) -> None:
    page = show(to_html(made.classification(heads=3)))
    figure = page.locator("[data-attention]").first
    figure.scroll_into_view_if_needed()
    figure.locator("canvas").focus()
    page.wait_for_selector("[data-attention][data-drawn]")
    drawn = {
        chosen(page, figure, layer, head) for layer in ("layer 1", "layer 2") for head in ("mean of all", "1", "3")
    }
    assert len(drawn) == 6
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    figure.locator("canvas").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    weights = made.classification(heads=3).batches[0].attentions["layer 2"][0, 2]
    said = figure.locator(".readout p").first.inner_text()
    y, x = (int(part.partition(")")[0]) for part in said.split("(")[1:])
    assert said.startswith("layer 2, head 3: ")
    assert said.endswith(f" with {weights[y, x]:.3f}")
    best = np.sort(weights[y])[::-1][:8]
    assert figure.locator(".readout td.num").all_inner_texts() == [f"{weight:.3f}" for weight in best]


def test_pointing_at_attention_reads_the_place(show: Open) -> None:
    page = show(to_html(made.classification(heads=1)))
    figure = page.locator("[data-attention]").first
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("[data-attention][data-drawn]")
    box = figure.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 92 + 3, box["y"] + 78 + 3)
    assert "[CLS] (0) attends to [CLS] (0)" in figure.locator(".readout").inner_text()


def test_512_tokens_draw_their_attention_when_looked_at(show: Open) -> None:
    page = show(to_html(made.classification(LONG, heads=12)))
    assert page.evaluate("document.querySelectorAll('*').length") < 40_000
    figure = page.locator("[data-attention]")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("[data-attention][data-drawn='0 -1']")
    before = picture(figure)
    assert chosen(page, figure, "layer 2", "12") != before
    box = figure.locator("canvas").bounding_box()
    assert 300 <= box["width"] <= 560
    figure.locator("canvas").hover()
    assert "layer 2, head 12: word" in figure.locator(".readout").inner_text()


def test_two_traces_stand_side_by_side_and_what_differs_is_marked(show: Open) -> None:
    one = made.classification("I love Zürich", "same")
    two = made.classification("I love Bern", "same", width=12, side="left", shift=2.0)
    page = show(to_html(one, two))
    marked = [chip.inner_text().split() for chip in page.locator(".chip.differs").all()]
    assert marked == [["Zürich", "≠"], ["Bern", "≠"]]
    page.locator(".chip.differs").first.hover()
    assert page.locator("#tip").inner_text().endswith("not so in B")
    rows = [row.split("\t") for row in page.locator("#differences").inner_text().splitlines() if "\t" in row]
    assert {row[1] for row in rows if row[0] == "≠"} == {"text", "764", "batch", "NEGATIVE", "score"}
    assert {row[1] for row in rows if row[0] == ""} >= {"label", "POSITIVE", "tokens cut off"}
    columns = [box.bounding_box() for box in page.locator("#row-0 .sides > div").all()]
    assert columns[0]["y"] == columns[1]["y"]
    assert columns[0]["x"] + columns[0]["width"] <= columns[1]["x"]
    page.set_viewport_size({"width": 400, "height": 900})
    columns = [box.bounding_box() for box in page.locator("#row-0 .sides > div").all()]
    assert columns[0]["x"] == columns[1]["x"]
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_a_hostile_text_harms_nothing(show: Open) -> None:
    trace = made.classification(made.HOSTILE)
    found = trace.rows[0].sequences[0]
    token = replace(found.tokens[1], text="<img/src=x>")  # a whole tag in one token
    found = replace(found, tokens=(found.tokens[0], token, *found.tokens[2:]))
    trace = replace(trace, rows=(replace(trace.rows[0], sequences=(found,)),))
    page = show(to_html(trace, trace), 400)
    page.locator("[data-attention]").first.scroll_into_view_if_needed()
    page.wait_for_selector("[data-attention][data-drawn]")
    page.locator("[data-attention] canvas").first.focus()
    page.keyboard.press("ArrowDown")
    for chip in page.locator(".chips").first.locator(".chip").all():
        chip.hover()
        assert page.locator("img").count() == 0
    assert page.evaluate("window.hurt") is None
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    shown = page.locator(".source bdi").first.text_content()
    assert shown == made.HOSTILE.replace("\x00", "\u2400").replace("\x1b", "\u241b").replace("\ud800", "\ufffd")
    isolated = page.evaluate("[...document.querySelectorAll('bdi')].map((node) => getComputedStyle(node).unicodeBidi)")
    assert set(isolated) == {"isolate"}


def test_the_policy_stops_a_script_that_gets_in_all_the_same(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    page_text = to_html(made.classification()).replace("<main>", "<main><script>window.hurt = 1</script>", 1)
    file.write_text(page_text, encoding="utf-8")
    with browser.new_context() as context:
        page = context.new_page()
        told: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.goto(file.as_uri())
        assert page.evaluate("window.hurt") is None
        assert any("Content Security Policy" in line for line in told)


def test_colours_follow_the_system_until_one_is_chosen(show: Open) -> None:
    def paper(page: Any) -> str:
        colour: str = page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor")
        return colour

    light, dark = "rgb(245, 246, 248)", "rgb(15, 19, 24)"
    page = show(to_html(made.classification()), scheme="dark")
    assert paper(page) == dark
    page.get_by_label("light", exact=True).check()
    assert paper(page) == light
    page.get_by_label("system", exact=True).check()
    page.emulate_media(color_scheme="light")
    assert paper(page) == light
    page.get_by_label("dark", exact=True).check()
    assert paper(page) == dark


def test_it_prints_light_and_without_controls(show: Open) -> None:
    page = show(to_html(made.entities()), scheme="dark")
    page.get_by_label("dark", exact=True).check()
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("#theme").is_hidden()
    assert page.locator("h1").evaluate("node => getComputedStyle(node).color") == "rgb(27, 36, 48)"
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.window").last.evaluate("node => node.open")
