"""Views, and every surface of explain, for stages that all come from a plugin; the numbers that results are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explain_helpers import TASKS, task_pipeline
from harness import checkpoint, cli

import pipeline_kit
from pipeline_kit import Pipeline, Trace
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen
from pipeline_kit.contract.types import Encoding, ModelOutput
from pipeline_kit.errors import StageError, UsageError
from pipeline_kit.explain.blocks import Block
from pipeline_kit.explain.view import View

TINY = f"checkpoint.path={checkpoint()}"
FOREIGN = """
from dataclasses import dataclass

import torch

from pipeline_kit import Encoding, Model, ModelOutput, Postprocessor, Tokenizer, option
from pipeline_kit.kit import Marked, Panel, Text, View


@dataclass
class Options:
    sign: str = option("!", "what is put behind a word")


class Letters(Tokenizer):
    pad_token_id, padding_side, max_length = 0, "right", None

    def __init__(self, config, context):
        pass

    def encode(self, examples):
        return [Encoding([2, *(ord(c) % 50 + 5 for c in text)], example=i) for i, text in enumerate(examples)]

    def decode(self, ids):
        return "".join(chr(97 + id % 26) for id in ids)


class Counts(Model):
    safe_padding_sides = frozenset({"left", "right"})

    def __init__(self, config, context):
        pass

    def forward(self, batch):
        ids = batch.input_ids.float() * batch.attention_mask
        return ModelOutput({"letters": torch.stack([ids.sum(1), batch.attention_mask.sum(1).float()], 1)})


class Length(Postprocessor):
    def __init__(self, config, context):
        self.sign = config.sign

    def __call__(self, examples, encodings, outputs):
        found = zip(examples, outputs, strict=True)
        return [{"length": int(rows[0]["letters"][1]), "said": text[:3] + self.sign} for text, rows in found]

    def panels(self, seen):
        return (Panel("how long it is", ("letters",), [(seen.result["length"],)]),)


class Shout(View):
    def __init__(self, config):
        self.sign = config.sign

    def check(self, pipeline):
        assert type(pipeline.model).__name__ == "Counts"

    def __call__(self, pipeline, trace, seen):
        again = pipeline([row.example.upper() for row in trace.rows])
        firsts = [((row.example[:1], "first"), (row.example[1:], None)) for row in trace.rows]
        texts = [Text(found["said"] + self.sign, "loud") for found in again]
        return [[text, Marked("", first)] for text, first in zip(texts, firsts, strict=True)]


def register(registry):
    for kind, name in (("tokenizer", "Letters"), ("model", "Counts"), ("postprocessor", "Length"), ("view", "Shout")):
        getattr(registry, kind)(name.lower(), f"{__name__}:{name}", Options)
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The command for a pipeline that has no stage of ours."""
    plugin = tmp_path_factory.mktemp("plugin") / "foreign.py"
    plugin.write_text(FOREIGN, encoding="utf-8")
    stages = ("tokenizer=letters", "model=counts", "postprocessor=length", TINY)
    return ["explain", "--plugin", plugin, *stages, "--text", "hello", "--text", "<b>bye</b>"]


def test_a_terminal_shows_foreign_stages_and_views(words: list[object]) -> None:
    done = cli(*words, "--view", "shout", "--view", "shout.sign='?'", "--attentions")
    assert (done.code, done.err) == (0, "")
    for part in (
        "letters",
        "counts",
        "how long it is",
        '{"length": 6, "said": "hel!"}',
        "does not report its attention",
    ):
        assert part in " ".join(done.out.split()), part
    section = done.out.split("\nshout ─")[1].split("\nresult ─")[0]
    assert "row 0\nloud: HEL!?\n  [h first]ello\n" in section
    assert section.endswith("row 1\nloud: <B>!?\n  [< first]b>bye</b>")


def test_json_and_a_page_show_them_too(words: list[object], tmp_path: Path) -> None:
    done = cli(*words, "--view", "shout", "--format", "json", "--html", tmp_path / "page.html")
    assert (done.code, done.err) == (0, "")
    row = json.loads(done.out)["rows"][0]
    assert row["views"]["shout"][0] == {"text": "HEL!!", "label": "loud", "kind": ""}
    assert row["panels"]["postprocessor"][0]["rows"] == [[6]]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h4>shout</h4>" in page
    assert "<mark><bdi>h</bdi> <small><bdi>first</bdi></small></mark><bdi>ello</bdi>" in page
    assert "how long it is" in page
    assert "<b>bye" not in page


def test_two_of_them_are_compared(words: list[object], tmp_path: Path) -> None:
    sides = [*words, "--view", "shout", "--vs", "postprocessor.sign=."]
    shown = cli(*sides).out
    assert [line.split() for line in shown.split("\n") if "≠" in line][-1] == ["≠", "said", "<b>!", "<b>."]
    found = json.loads(cli(*sides, "--format", "json").out)
    assert [found[side]["rows"][0]["views"]["shout"][0]["text"] for side in ("first", "other")] == ["HEL!!", "HEL.!"]
    assert cli(*sides, "--html", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<h4>shout</h4>") == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["shuot"], "Did you mean 'shout'?"),
        (["shout.sing=x"], "shout.sing: unknown option. Did you mean 'sign'?"),
        (["shout.sign=[a]"], "shout.sign: '['a']' is not a string"),
        (["shout.sign=[a"], "cannot be read as YAML"),
        (["shout.sign"], "write NAME, or NAME.OPTION=VALUE"),
        (["shout."], "write NAME, or NAME.OPTION=VALUE"),
    ],
)
def test_a_wrong_view_or_option_is_refused_before_anything_runs(
    words: list[object], given: list[str], expected: str
) -> None:
    done = cli(*words, *(part for word in given for part in ("--view", word)), "checkpoint.path=/nowhere")
    assert done.code == 2
    assert expected in done.err
    assert "nowhere" not in done.err


def test_views_are_listed_and_shown_and_missing_ones_named(
    words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = words[1:3]
    assert "view           shout" in cli("ls", *plugin).out
    assert cli("show", "view", *plugin).out == cli("ls", "view", *plugin).out
    shown = cli("show", "view/shout", *plugin).out
    assert "options, set with --view shout.OPTION=VALUE" in shown
    assert "pipeline-kit explain --view shout --text" in shown
    monkeypatch.setattr("pipeline_kit.compose.plugins._entry_points", tuple)
    assert "pip install pipeline-kit-attribution" in cli("explain", "--text", "a", "--view", "attribution").err


class Made(View):
    def __init__(self, blocks: Callable[[Trace], Any], refusal: str = "") -> None:
        self.blocks, self.refusal = blocks, refusal

    def check(self, pipeline: Pipeline) -> None:
        if self.refusal:
            raise UsageError(self.refusal)

    def __call__(self, pipeline: Pipeline, trace: Trace, seen: Sequence[Seen | None]) -> Sequence[Sequence[Block]]:
        assert [found is None for found in seen] == [row.result is None for row in trace.rows]
        found: Sequence[Sequence[Block]] = self.blocks(trace)
        return found


def test_what_a_view_does_wrong_is_the_views_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline_kit.load()

    def explained(view: Made) -> Trace:
        found: Trace = pipe.explain(["Good.", {"txt": "typo"}], views={"mine": view})
        return found

    panel = Panel("p")
    assert [row.views for row in explained(Made(lambda trace: [[panel], []])).rows] == [
        {"mine": (panel,)},
        {"mine": ()},
    ]
    with pytest.raises(StageError, match="the view mine failed: ZeroDivisionError"):
        explained(Made(lambda trace: 1 // 0))
    with pytest.raises(StageError, match="returned blocks for 1 rows, not for 2"):
        explained(Made(lambda trace: [[]]))
    with pytest.raises(StageError, match="returned str, which is not a block"):
        explained(Made(lambda trace: [["text"], []]))
    monkeypatch.setattr(type(pipe.model), "forward", lambda *_: pytest.fail("it ran"))
    with pytest.raises(UsageError, match="not this one"):
        explained(Made(lambda trace: [], "not this one"))


def test_without_a_word_of_its_own_a_task_is_explained_by_its_label() -> None:
    class Plain(Postprocessor):
        def __call__(self, *_: Any) -> list[dict[str, Any]]:
            return []

    def names(result: dict[str, Any], *logits: Sequence[float], part: int = 0, labels: str = "ABB") -> Any:
        encodings = [Encoding([1], part=part, window=window) for window in range(len(logits))]
        rows = [{"logits": np.array(values, dtype=np.float32)} for values in logits]
        found = Plain().attribution_targets(Seen("x", encodings, rows, rows, result, tuple(labels)))
        return None if found is None else [(target.encoding, target.name) for target in found]

    assert names({"label": "A"}, [1, 2, 0]) == [(0, "logit of 'A'")]
    assert names({"label": None}, [1, 2, 0], [4, 2, 0]) == [(0, "logit of 'A'"), (1, "logit of 'A'")]
    assert names({}, [1, 0, 2]) == [(0, "logit of 'B'")]
    assert names({}, [1, 0, 2], part=1) is None
    assert names({}, [1, 0]) is None
    assert names({}, [], labels="") is None


ALIKE: Mapping[str, Callable[[Mapping[str, Any], Sequence[Any]], tuple[int, float]]] = {
    "text-classification": lambda result, logits: (0, max(logits[0])),
    "zero-shot-classification": lambda result, logits: max(
        ((i, x[2]) for i, x in enumerate(logits)), key=lambda p: p[1]
    ),
    "text-ranking": lambda result, logits: (i := result["ranking"][0]["index"], logits[i][0]),
    "multiple-choice": lambda result, logits: (int(logits[1] > logits[0]), max(logits)),
    "token-classification": lambda result, logits: (0, -1.0),
}
"""From a result and the raw logits of its encodings to the encoding that made it, and the number."""


@pytest.mark.parametrize("task", [task for task in TASKS if TASKS[task][0] not in ("causal-lm", "seq2seq-lm")])
def test_a_task_names_the_number_that_its_result_is_made_of(task: str) -> None:
    pipe, examples = task_pipeline(task, "bert")
    kept: list[Seen | None] = []

    class Keep(Made):
        def __call__(self, pipeline: Pipeline, trace: Trace, seen: Sequence[Seen | None]) -> Any:
            kept.extend(seen)
            return [[] for _ in seen]

    trace = pipe.explain(examples, views={"kept": Keep(lambda trace: [])})
    for row, seen in zip(trace.rows, kept, strict=True):
        assert seen is not None
        targets = pipe.postprocessor.attribution_targets(seen)
        if task not in ALIKE:
            assert targets is None
            continue
        assert targets is not None
        [target] = targets
        raw = {name: torch.as_tensor(values)[None] for name, values in seen.raw[target.encoding].items()}
        batch: Any = None
        number = float(target.value(ModelOutput(raw), batch)[0])
        if task == "token-classification":
            entity = max(seen.result["entities"], key=lambda found: found["score"])
            offsets = seen.encodings[0].offsets or ()
            place = next(i for i, (start, end) in enumerate(offsets) if start == entity["start"] and end > start)
            assert number == seen.raw[0]["logits"][place].max()
            assert f"at token {place} of '{entity['text']}'" in target.name
        else:
            expected = ALIKE[task](row.result or {}, [found["logits"].tolist() for found in seen.raw])
            assert (target.encoding, number) == pytest.approx(expected)
