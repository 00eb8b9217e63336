"""The playground in a real browser, against a real server; and ``/explain`` as what it asks."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import explain_traces as made
import httpx
import pytest
from harness import checkpoint, cli
from serving import get, post, running

import pipeline_kit as pk

HOSTILE = made.HOSTILE.replace("\x00", "").replace("\ud800", "")
AWKWARD = 'it\'s "fine" $HOME `x` 😀 \\ שלום\n</script>'
NAMES = ("reviews", "short", "answers")
Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def pipes() -> dict[str, pk.Pipeline]:
    folder = checkpoint("bert", head="question-answering")
    found = (
        pk.load(),
        pk.load("tokenizer.max_length=8", "postprocessor.top_k=null"),
        pk.load("task=question-answering", f"checkpoint.path={folder}", "device=cpu"),
    )
    return dict(zip(NAMES, found, strict=True))


@pytest.fixture(scope="module")
def url(pipes: dict[str, pk.Pipeline]) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_KIT_PLUGINS", "attribution")
        with running(pipes) as url:
            yield url


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    """Open the playground, with a request in its link; wait for the answer. At the end the page asked nobody else."""
    told: list[str] = []
    asked: list[str] = []
    contexts: list[Any] = []

    def opened(body: Any = None, width: int = 1280, scheme: str = "light", path: str = "/playground") -> Any:
        options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        contexts.append(browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + path + ("" if body is None else "#" + (body if isinstance(body, str) else linked(body))))
        page.locator("#said:text('Answered')").or_(page.locator("#failed:not([hidden])")).first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    # The browser itself writes a line for each answer with a status of an error.
    assert [line for line in told if not line.startswith("Failed to load resource")] == []
    assert {address.partition("#")[0] for address in asked} <= {
        f"{url}{path}" for path in ("/playground", "/explain", "/pipelines/short/playground")
    }


def linked(body: Any) -> str:
    return quote(json.dumps(body))


def label(page: Any, text: str) -> Any:
    """Return the place of a result with this label."""
    return page.locator("#results dd", has_text=text).first


def copied(page: Any, kind: str) -> str:
    page.locator("#code").evaluate("node => { node.open = true }")
    page.get_by_label(kind, exact=True).check()
    page.get_by_role("button", name="Copy").click()
    page.locator("#copied:text('Copied')").wait_for()
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_explain_writes_the_page_of_one_pipeline_or_of_two(pipes: dict[str, pk.Pipeline], url: str) -> None:
    one = post(f"{url}/explain", {"inputs": "I love this.", "format": "html"})
    assert one.headers["content-type"] == "text/html; charset=utf-8"
    assert "0.997" in one.text
    body = {"inputs": "I love this.", "parameters": {"top_k": 2}, "compare": {"parameters": {"top_k": 1}}}
    two = post(f"{url}/explain", body).json()
    assert len(two["first"]["rows"][0]["result"]["labels"]) == 2
    assert "labels" not in two["other"]["rows"][0]["result"]
    page = post(f"{url}/explain", {**body, "compare": {"model": "short"}, "format": "html"}).text
    assert "<bdi>reviews, top_k=2</bdi>" in page
    assert "<bdi>short</bdi>" in page


def test_explain_refuses_what_it_does_not_know(url: str) -> None:
    unknown = post(f"{url}/explain", {"inputs": "a", "compare": {"model": "shord"}})
    assert unknown.status_code == 404
    assert "Did you mean 'short'? There are: reviews, short, answers" in unknown.json()["error"]["message"]
    for wrong in ({"format": "pdf"}, {"compare": "short"}, {"compare": {"path": "/etc"}}, {"parameters": {"a": 1}}):
        assert post(f"{url}/explain", {"inputs": "a", **wrong}).status_code == 422


def test_a_pipeline_with_steps_is_explained_as_json_alone(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "defaults: [config, _self_]\nsteps:\n  sentiment: {}\n  again: {}\n", encoding="utf-8"
    )
    with running(pk.load(config_dir=str(tmp_path), config_name="two")) as url:
        assert [*post(f"{url}/explain", {"inputs": "a"}).json()["steps"]] == ["sentiment", "again"]
        page = post(f"{url}/explain", {"inputs": "a", "format": "html"})
        assert page.status_code == 422
        assert "ask for the format json" in page.json()["error"]["message"]
        assert get(f"{url}/playground").status_code == 200


def test_the_page_has_a_policy_and_nothing_in_its_facts_ends_their_script(pipes: dict[str, pk.Pipeline]) -> None:
    with running({"</script><script>window.hurt=1</script>": pipes["reviews"]}) as url:
        found = get(f"{url}/playground")
    assert found.text.count("</script>") == 3
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", found.text)


def test_the_key_is_asked_for_and_never_shown(browser: Any, pipes: dict[str, pk.Pipeline]) -> None:
    with running(pipes["reviews"], api_key="open-sesame") as url:
        refused = get(f"{url}/playground")
        assert refused.status_code == 401
        assert "Basic" in refused.headers["www-authenticate"]
        with browser.new_context(http_credentials={"username": "", "password": "open-sesame"}) as context:
            page = context.new_page()
            page.goto(f"{url}/playground")
            label(page, "POSITIVE").wait_for()
            page.locator("#code").evaluate("node => { node.open = true }")
            for kind in ("curl", "Python", "YAML", "link"):
                page.get_by_label(kind, exact=True).check()
                shown = page.locator("#code pre").inner_text()
                assert ("PIPELINE_KIT_API_KEY" in shown) == (kind in ("curl", "Python"))
            assert "open-sesame" not in page.content() + page.url


def test_what_is_typed_is_answered_as_one_types(visit: Visit) -> None:
    page = visit()
    assert label(page, "POSITIVE").is_visible()
    page.get_by_label("text", exact=True).fill("I hate unreadable films")
    label(page, "NEGATIVE").wait_for()
    chips = page.locator("#row-0 .chip").all_inner_texts()
    assert [chips[0], *chips[-2:]] == ["[CLS]", "films", "[SEP]"]
    assert page.locator("#batch table.grid td").count() == len(chips)
    assert page.locator("#row-0").get_by_text("logits").first.is_visible()
    page.locator("#row-0 .chip", has_text="films").hover()
    assert "films" in page.locator("#tip").inner_text()


def test_the_last_request_wins_and_the_one_before_is_given_up(visit: Visit) -> None:
    page = visit()
    held: list[Any] = []

    def hold(route: Any) -> None:
        if "slow" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/explain", hold)
    text = page.get_by_label("text", exact=True)
    with page.expect_request("**/explain"):
        text.fill("slow and lovely")
    with page.expect_event("requestfailed") as left:
        text.fill("I hate this.")
    label(page, "NEGATIVE").wait_for()
    assert "slow" in left.value.post_data
    assert page.locator("#results h3").inner_text() == "0. I hate this."
    with page.expect_request("**/explain"):
        text.fill("slow again")
    page.keyboard.press("Escape")
    page.locator("#said:text('Stopped')").wait_for()
    assert page.locator("#results h3").inner_text() == "0. I hate this."
    assert len(held) == 2


def test_an_error_stands_in_its_place_until_it_is_mended(visit: Visit) -> None:
    page = visit()
    page.get_by_text("parameters", exact=True).click()
    top_k = page.get_by_label(re.compile("top_k"))
    assert top_k.get_attribute("placeholder") == "1"
    top_k.fill("many")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "postprocessor.top_k: 'many' is not an integer" in alert.inner_text()
    assert label(page, "POSITIVE").is_visible()
    assert page.locator("main[data-old]").count() == 1
    top_k.fill("null")
    page.locator("#results table").wait_for()
    assert alert.is_hidden()
    assert page.locator("main[data-old]").count() == 0
    page.route("**/explain", lambda route: route.abort())
    page.get_by_role("button", name="Run").click()
    page.locator("#failed", has_text="cannot be reached").wait_for()


def test_a_task_has_its_own_fields_and_example(visit: Visit, pipes: dict[str, pk.Pipeline]) -> None:
    page = visit()
    page.get_by_role("combobox", name="pipeline", exact=True).select_option("answers")
    page.locator("#results", has_text="Sarah").wait_for()
    example = {"question": "Where?", "context": "Sarah lives in London."}
    assert {name: page.get_by_label(name, exact=True).input_value() for name in example} == example
    example["question"] = "Who lives there now?"
    page.get_by_label("question", exact=True).fill(example["question"])
    page.locator("#results h3", has_text="Who").wait_for()
    assert page.locator("#results .facts dd").first.inner_text() == pipes["answers"](example)["answer"]
    assert page.get_by_label("compare with").locator("option").all_inner_texts() == [
        "nothing",
        "the same, other options",
    ]


def test_two_pipelines_stand_side_by_side_with_parameters_of_their_own(visit: Visit) -> None:
    page = visit({"inputs": "I love this film so much that I saw it again"})
    page.get_by_label("compare with").select_option("short")
    page.locator("#differences").wait_for()
    assert page.locator("#results .side").all_inner_texts() == ["A reviews", "B short"]
    assert page.locator("#row-0 .chips").count() == 2
    page.get_by_text("parameters of the second pipeline").click()
    page.locator("[data-parameters=other]").get_by_label(re.compile("top_k")).fill("1")
    page.locator("#results .side", has_text="B short, top_k=1").wait_for()
    page.get_by_label("compare with").select_option("nothing")
    page.locator("#differences").wait_for(state="detached")


def test_several_examples_share_a_batch(visit: Visit) -> None:
    page = visit()
    page.get_by_role("button", name="Add an example").click()
    page.keyboard.type("A longer text that makes padding")
    page.locator("#batch td.pad").first.wait_for()
    assert page.locator("#batch tbody tr").count() == 2
    page.get_by_role("button", name="Remove").first.click()
    page.locator("#batch td.pad").first.wait_for(state="detached")
    assert page.get_by_label("text", exact=True).input_value() == "A longer text that makes padding"


def test_attribution_is_shown_where_it_is_installed(visit: Visit) -> None:
    pytest.importorskip("pk_attribution")
    page = visit()
    page.get_by_label("attribution").check()
    page.locator("#row-0 h4", has_text="attribution").wait_for()
    assert page.locator("#row-0 .shaded span").count() >= 3


def test_what_was_opened_or_chosen_stays_so(visit: Visit) -> None:
    page = visit({"inputs": "I love this.", "attentions": True})
    page.get_by_text("as a table").click()
    page.get_by_label("ids", exact=True).check()
    page.locator("[data-layer]").first.select_option(index=1)
    page.get_by_label("text", exact=True).fill("I hate this.")
    label(page, "NEGATIVE").wait_for()
    assert page.locator("#row-0 table.tokens").is_visible()
    assert page.locator("#batch table.grid td").first.inner_text().isdecimal()
    assert page.locator("[data-layer]").first.evaluate("node => node.selectedIndex") == 1
    page.locator("[data-attention][data-drawn='1 -1']").first.wait_for()


def test_a_link_reproduces_the_view(visit: Visit) -> None:
    body = {
        "inputs": [AWKWARD, {"text": "a", "text_pair": "b"}],
        "model": "short",
        "parameters": {"top_k": 1, "function": "sigmoid", "thresholds": {"POSITIVE": 0.5}},
        "compare": {"model": "short", "parameters": {"top_k": None}},
    }
    one = visit(body)
    assert one.get_by_role("alert").is_hidden()
    other = visit(copied(one, "link").partition("#")[2])
    for page in (one, other):
        assert json.loads(page.evaluate("decodeURIComponent(location.hash.slice(1))")) == body
    assert one.locator("#results").inner_text() == other.locator("#results").inner_text()
    other.evaluate("body => { location.hash = body }", linked({"inputs": "I hate this."}))
    label(other, "NEGATIVE").wait_for()
    own = visit(path="/pipelines/short/playground")
    assert own.get_by_role("combobox", name="pipeline", exact=True).input_value() == "short"


@pytest.mark.parametrize("link", ["%", "{", "[1]", "%22text%22", linked({"model": "other"})])
def test_a_wrong_link_is_an_error_on_the_page(visit: Visit, link: str) -> None:
    page = visit(link)
    assert "the link" in page.get_by_role("alert").inner_text()
    page.get_by_label("text", exact=True).fill("I hate this.")
    label(page, "NEGATIVE").wait_for()


@pytest.mark.parametrize("inputs", [AWKWARD, ["I love this.", {"text": "a", "text_pair": AWKWARD}]])
def test_copies_run_elsewhere(visit: Visit, pipes: dict[str, pk.Pipeline], tmp_path: Path, inputs: Any) -> None:
    page = visit({"inputs": inputs, "parameters": {"top_k": None}})
    examples = inputs if isinstance(inputs, list) else [inputs]
    expected = pipes["reviews"](examples, top_k=None)
    python = subprocess.run([sys.executable, "-c", copied(page, "Python")], capture_output=True, check=True)
    curl = shlex.split(copied(page, "curl"))
    assert curl[:4] == ["curl", page.url.partition("/playground")[0] + "/pipelines/reviews/run", "-H", curl[3]]
    sent = httpx.post(curl[1], content=curl[-1].encode()).json()["results"]
    file = tmp_path / "pipeline.yaml"
    file.write_text(copied(page, "YAML"), encoding="utf-8")
    line = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# pipeline-kit ")
    done = cli(*shlex.split(line.replace("FILE", str(file))))
    assert done.code == 0
    for found in (sent, ast.literal_eval(python.stdout.decode()), map(json.loads, done.out.splitlines())):
        for one, other in zip(found, expected, strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert len(one["labels"]) == 2


def test_a_hostile_text_harms_nothing(visit: Visit) -> None:
    page = visit({"inputs": HOSTILE, "compare": {"model": "short"}}, 400)
    page.locator("#code").evaluate("node => { node.open = true }")
    for kind in ("curl", "Python", "YAML"):
        page.get_by_label(kind, exact=True).check()
    page.locator("#row-0 .chip").first.hover()
    assert page.evaluate("window.hurt") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") == 400


@pytest.mark.parametrize(("width", "scheme", "paper"), [(400, "dark", "15, 19, 24"), (1280, "light", "245, 246, 248")])
def test_it_fits_its_window_in_light_and_dark(visit: Visit, width: int, scheme: str, paper: str) -> None:
    page = visit({"inputs": ["x" * 3000, "two"], "compare": {"model": "short"}}, width, scheme)
    for details in page.locator("details").all():
        details.evaluate("node => { node.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor") == f"rgb({paper})"


def test_it_is_used_by_keyboard_and_all_is_labelled(visit: Visit) -> None:
    page = visit()
    page.get_by_text("parameters", exact=True).click()
    boxes = "[...document.querySelectorAll('#ask :is(input, select, textarea), #code input')]"
    assert page.evaluate(f"{boxes}.filter((box) => !box.labels.length).length") == 0
    text = page.get_by_label("text", exact=True)
    text.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("I hate")
    page.keyboard.press("Enter")
    page.keyboard.type("this.")
    with page.expect_response("**/explain"):
        page.keyboard.press("Control+Enter")
    assert text.input_value() == "I hate\nthis."
    label(page, "NEGATIVE").wait_for()
    page.get_by_label(re.compile("top_k")).focus()
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    page.locator("#results table").wait_for()
    page.get_by_role("link", name="Batches").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "batch"
    assert "inputs" in page.url
