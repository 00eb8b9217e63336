"""Panels: what a stage shows of its work is what it showed when each number was worked out from raw logits.

tests/golden/panels.json has the panels and the results of every case below. To write it anew, run
``PYTHONPATH=tests python tests/builtin/test_panels.py`` and read what ``git diff`` shows: numbers change only with a
result, which the tests of parity hold against transformers.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from generate_helpers import TEMPLATE
from harness import checkpoint, pipeline_of, scratch, with_files
from hypothesis import given, settings, strategies

from pipeline_kit import Pipeline
from pipeline_kit.builtin.tasks.generation import generation_panels
from pipeline_kit.contract.stages import Panel
from pipeline_kit.contract.types import Example
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.testing.checkpoints import tiny_translator

GOLDEN = Path(__file__).parents[1] / "golden" / "panels.json"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
WINDOWS = {"overflow": "window", "max_length": 24, "overlap": 6}
ODD = "Ünïcödé 漢字 😀 e\u0301 עברית \t zzz"
LONG = "It was a terrible film, and the plot was so dull that I never want to see it again! 🙂 " * 3
TEXTS = ("I love this movie.", ODD, LONG)
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
THREE, NLI = ("BAD", "MIXED", "GOOD"), ("contradiction", "neutral", "entailment")
CANDIDATES = ["good", "bad", "about food, or Paris", "漢字 😀"]
MANY = tuple(f"a label with a long name {i} of many" for i in range(120))
LANGUAGES = ("eng_Latn", "fra_Latn")
QUESTIONS = (
    {"question": "Who was in Paris?", "context": "My friend Sarah was in Paris, and Sarah was happy."},
    {"question": "a", "context": "b"},
    {"question": "漢字?", "context": "  Ünïcödé 漢字 😀 e\u0301 עברית \t zzz "},
    {"question": "Was it dull?", "context": LONG},
    {"question": "Was it dull?", "context": LONG[:90]},
)
NAMED = ("My name is Sarah and I live in Paris", "name Sarah lives in Zürich", ODD, LONG)
WORDS = {"words": ["New York", "is", "zzz"]}
QUERY = {"query": "Was it dull?", "documents": ["a", LONG, "", "Grüße 🙂 aus Paris, so good", "no"]}
CHOICES = (
    {"text": "It was a long day, so", "choices": ["I want some food.", "it will rain.", "a"]},
    {"text": LONG, "choices": ["שלום עולם", "the same"]},
)
TOKENIZED = (
    "I love this movie!",
    ODD,
    "  odd   spaces \n\r\x00 here  ",
    "I love [MASK] this <mask>  movie </s> and [SEP]<s>a[CLS] [UNK] <unk>",
    {"text": "So Good", "text_pair": "Grüße"},
    "👩‍👩‍👧 ﬁne ½ ㎏",
    "\u200b",
    "",
)


Folder = Callable[[], Path]


def _folder(name: str) -> Path:
    """Return a checkpoint that has files of its own."""
    folder = scratch() / "panels" / name
    if folder.exists():
        return folder
    if name == "nllb":
        return tiny_translator(folder, LANGUAGES, seed=1)
    if name == "endless":
        shutil.copytree(checkpoint("gpt2", head="causal-lm", max_positions=200), folder)
        return with_files(folder, config={"eos_token_id": None})
    if name == "chat":
        shutil.copytree(checkpoint("llama", head="causal-lm"), folder)
        return with_files(folder, tokenizer_config={"chat_template": TEMPLATE})
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as st

    torch.manual_seed(0)
    network = st.Transformer(str(checkpoint(head="base")))
    pooling = st.Pooling(32, ("mean", "max", "weightedmean"), include_prompt=False)
    layers = [st.Dense(96, 20, activation_function=torch.nn.Tanh()), st.LayerNorm(20), st.Normalize()]
    SentenceTransformer(modules=[network, pooling, *layers], device="cpu").save(str(folder), create_model_card=False)
    return folder


CASES: dict[str, tuple[str, Folder, dict[str, Any], Sequence[Example]]] = {}
"""By name: the task, what makes the checkpoint, the options of :func:`pipeline_of`, and the examples."""


def add(name: str, task: str, folder: Folder, examples: Sequence[Example], /, **options: Any) -> None:
    assert name not in CASES
    CASES[name] = (task, folder, options, examples)


at, own, windows = partial(partial, checkpoint), partial(partial, _folder), {"tokenizer": WINDOWS}


def add_labels_and_vectors() -> None:
    classes = "text-classification"
    models = {
        "softmax": at(labels=THREE),
        "sigmoid": at("xlnet", labels=THREE, problem_type="multi_label_classification"),
        "regression": at(labels=("STARS",), problem_type="regression"),
        "one label": at("llama", labels=("SPAM",)),
    }
    for name, folder in models.items():
        add(name, classes, folder, TEXTS[:2])
        for merge in ("mean", "max") if name != "one label" else ():
            add(f"{name} {merge}", classes, folder, (LONG, "a"), **windows, merge=merge, top_k=None)
    add("labels", classes, models["softmax"], TEXTS[:1], top_k=2)
    add("threshold", classes, models["softmax"], TEXTS[:1], top_k=None, thresholds={"BAD": 1.0})
    add("no label", classes, models["softmax"], TEXTS[:1], thresholds=dict.fromkeys(THREE, 1.0))
    add("many labels", classes, at(labels=MANY), ("a", LONG), **windows, top_k=None)
    add("logits", classes, models["softmax"], ("a", LONG), **windows, name="logits")

    base = {name: at(name, head="base") for name in ("bert", "xlnet")}
    embed, vectors = "sentence-embedding", "feature-extraction"
    for mode in ("mean", "cls", "last", "max", "mean_sqrt_len", "weighted_mean"):
        add(f"pooling {mode}", embed, base["bert"], TEXTS[1:], **windows, pooling=mode)
    add("pooling left", embed, base["xlnet"], TEXTS[1:], **windows, pooling="weighted_mean")
    add("cut vector", embed, base["bert"], TEXTS[:1], normalize=False, dimensions=5)
    add("modules", embed, own("modules"), (*TEXTS[:1], LONG), **windows, prompt="so good: ")
    add("features", vectors, base["bert"], TEXTS[:2])
    add("features left", vectors, base["xlnet"], TEXTS[:2], special_tokens=False)
    add("features windows", vectors, base["bert"], (LONG[:120],), tokenizer={**WINDOWS, "max_length": 22})


def add_spans_and_choices() -> None:
    ask = "question-answering"
    for name in ("bert", "roberta", "xlnet"):
        folder = at(name, head=ask, seed=1)
        add(f"answers {name}", ask, folder, QUESTIONS, **windows)
        add(f"answers {name} tokens", ask, folder, QUESTIONS, **windows, align_to_words=False, max_answer_len=4)
    folder = at(head=ask, seed=1)
    add("short answers", ask, folder, QUESTIONS[:1], max_answer_len=3)
    add("no answer", ask, folder, QUESTIONS, **windows, handle_impossible_answer=True, top_k=3)

    tags = "token-classification"
    tagged = {
        name: at(name, head=tags, labels=BIO, seed=seed) for name, seed in (("bert", 2), ("roberta", 9), ("xlnet", 3))
    }
    for name, folder in tagged.items():
        for how in ("none", "simple", "first", "average", "max"):
            examples = (NAMED[1], WORDS) if name == "bert" and how in ("first", "average", "max") else NAMED[2:]
            add(f"entities {name} {how}", tags, folder, examples, **windows, aggregation=how)
    add("entities of nothing", tags, tagged["bert"], ("", "I love this"), ignore_labels=["O", "PER", "LOC"])
    add("entities of many tokens", tags, tagged["bert"], ("it was so good and " * 14,), **windows, aggregation="none")
    add("entity in a character", tags, tagged["roberta"], ("😀 漢字 👩‍👩‍👧 is good",), aggregation="simple")

    zero, rank, choose = "zero-shot-classification", "text-ranking", "multiple-choice"
    nli, ranker = at(labels=NLI), at(labels=("RELEVANT",))
    room = {"tokenizer": {**WINDOWS, "max_length": 40}}
    for multi in (False, True):
        for merge in ("mean", "max"):
            extra = {"labels": CANDIDATES, "multi_label": multi, "merge": merge}
            add(f"zero-shot {multi} {merge}", zero, nli, TEXTS[1:], **room, **extra)
    add("zero-shot left", zero, at("xlnet", labels=NLI), TEXTS[1:], **room, labels=CANDIDATES)
    add("one candidate", zero, nli, ({"text": "I love it", "labels": ["good"]},))
    for merge in ("mean", "max"):
        add(f"ranking {merge}", rank, ranker, (QUERY,), **windows, merge=merge, top_k=3)
        add(f"ranking by label {merge}", rank, nli, (QUERY,), **windows, merge=merge, top_k=3, label="entailment")
    add("ranking by logits", rank, ranker, (QUERY,), **windows, function="none")
    many = {"query": "x", "documents": [f"{i} {'so good ' * 30}" for i in range(60)]}
    add("many documents", rank, ranker, (many,))
    for name in ("bert", "xlnet"):
        add(f"choice {name}", choose, at(name, head=choose), CHOICES, **windows)


def add_tokens() -> None:
    base, vectors = at("bert", head="base"), "feature-extraction"
    for name, mask in (("bert", "[MASK]"), ("roberta", "<mask>")):
        folder, masked = at(name, head="masked-lm"), (f"I {mask} this {mask}.", f"{mask} {LONG} so {mask}")
        add(f"masks {name}", "fill-mask", folder, masked, **windows, top_k=3)
        add(f"targets {name}", "fill-mask", folder, masked, **windows, targets=["good", "bad", "!"])
    add("many masks", "fill-mask", at(head="masked-lm"), ("[MASK] good " * 15,), top_k=300)

    write, short, written = "text-generation", "summarization", {"generation": {"max_new_tokens": 8}}
    gpt2, t5 = at("gpt2", head="causal-lm"), at("t5", head="seq2seq-lm", seed=1)
    for name, folder in (("gpt2", gpt2), ("llama", at("llama", head="causal-lm"))):
        add(f"ids {name}", write, folder, TEXTS[:2], model=written)
        add(f"ids {name} full", write, folder, TEXTS[:2], model=written, full_text=True)
    stops = {"generation": {"max_new_tokens": 8, "stop_strings": ["e"]}}
    add("stop string", write, gpt2, ("I love it", "a", *TEXTS[:1]), model=stops)
    add("many ids", write, own("endless"), ("a",), model={"generation": {"max_new_tokens": 80}})
    add("written windows", short, t5, (LONG, "a"), model=written, **windows)
    add("translation", "translation", own("nllb"), TEXTS[:1], model=written, languages=LANGUAGES)

    for name in ("bert", "roberta", "xlm-roberta", "albert", "t5", "xlnet", "llama", "qwen2"):
        folder = at(name, head="base", max_positions=500)
        add(f"tokens {name}", vectors, folder, TOKENIZED if name == "bert" else TOKENIZED[:6])
    for name in ("hf", "tokenizers_json"):
        for overflow in ("truncate", "window"):
            tokenizer = {"name": name, **WINDOWS, "overflow": overflow}
            tokenizer["overlap"] = 6 if overflow == "window" else None
            add(f"tokens {name} {overflow}", vectors, base, (LONG,), tokenizer=tokenizer)
    add("tokens cut left", write, gpt2, (LONG + "so good",), model=written)
    add("tokens alone", vectors, base, TEXTS[:1], tokenizer={"add_special_tokens": False})
    talk = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "Is it good? 🙂\nyes"}]
    add("tokens chat", write, own("chat"), ({"messages": talk},), model=written)
    add("tokens language", "translation", own("nllb"), TEXTS[:1], model=written, languages=LANGUAGES[::-1])


add_labels_and_vectors()
add_spans_and_choices()
add_tokens()


def built(name: str) -> Pipeline:
    task, folder, options, _ = CASES[name]
    options = {"model": {"linear": "eager"}, **options}
    if "tokenizer" in options:
        options["tokenizer"] = {key: value for key, value in options["tokenizer"].items() if value is not None}
    return pipeline_of(task, folder(), **options)


def padded(pipe: Pipeline) -> Pipeline:
    """Return the pipeline with padding on the last side that is safe, and batches that have some."""
    side = max(pipe.model.safe_padding_sides)
    policy = PaddingPolicy("multiple_of", side, pipe.padding.pad_token_id, pipe.tokenizer.max_length, multiple_of=7)
    return replace(pipe, padding=policy, batching=BatchingPolicy(False, None, 3, 100))


def short(value: Any) -> Any:
    """Round numbers to six digits and cut long lists."""
    if isinstance(value, Mapping):
        return {key: short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [short(item) for item in value[:4]]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def summed(panel: Panel) -> dict[str, Any]:
    """Return a panel without most of its rows, but with a sum over each column of all."""
    columns = zip(*panel.rows, strict=True) if panel.rows else ()
    sums = [sum(zlib.crc32(cell.encode()) if isinstance(cell, str) else cell or 0 for cell in each) for each in columns]
    text = " ".join(f"{panel.formula} {panel.note}".split())  # where a line ends depends on its last digits
    found = {"title": panel.title, "columns": list(panel.columns), "rows": short(panel.rows), "bar": panel.bar}
    return {**found, "count": len(panel.rows), "sums": [short(total) for total in sums], "text": text}


def shown(pipe: Pipeline, name: str) -> list[dict[str, Any]]:
    """Return each example's result and panels, after checking what every panel owes its reader."""
    examples = CASES[name][3]
    trace = pipe.explain(list(examples))
    assert not [note for note in trace.notes if "failed" in note], trace.notes
    for row in trace.rows:
        for panel in (panel for panels in row.panels.values() for panel in panels):
            assert panel.title
            assert len(panel.rows) <= 50, panel.title
            assert all(len(line) <= 78 for line in panel.formula.split("\n")), panel.formula
            assert panel.bar is None or panel.bar in panel.columns
            assert all(len(cells) == len(panel.columns) for cells in panel.rows), panel.title
            cells = [cell for cells in panel.rows for cell in cells]
            assert all(type(cell) in (str, int, float, bool, type(None)) for cell in cells), panel.title
            assert all(np.isfinite(cell) for cell in cells if type(cell) is float), panel.title
    stage = "tokenizer" if name.startswith("tokens") else "postprocessor"
    return [
        {
            "result": None if stage == "tokenizer" else short(row.result),
            "panels": [summed(panel) for panel in row.panels.get(stage, ())],
        }
        for row in trace.rows
    ]


def alike(found: Any, wanted: Any) -> bool:
    """Compare to the last digits that a processor may round in another way, the numbers in texts too."""
    if isinstance(wanted, str) and isinstance(found, str):
        numbers = zip(NUMBER.findall(found), NUMBER.findall(wanted), strict=False)
        return NUMBER.sub("#", found) == NUMBER.sub("#", wanted) and all(alike(float(a), float(b)) for a, b in numbers)
    if isinstance(wanted, list | dict) and type(found) is type(wanted) and len(found) == len(wanted):
        keys = wanted if isinstance(wanted, dict) else range(len(wanted))
        return all(not isinstance(wanted, dict) or key in found for key in keys) and all(
            alike(found[key], wanted[key]) for key in keys
        )
    if type(wanted) is float and isinstance(found, float):
        return math.isclose(found, wanted, rel_tol=1e-4, abs_tol=5e-5)
    return bool(found == wanted)


@pytest.mark.parametrize("name", CASES)
def test_panels_are_what_they_were(name: str) -> None:
    wanted, pipe = json.loads(GOLDEN.read_text(encoding="utf-8"))[name], built(name)
    ways = [pipe, padded(pipe)] if pipe.model.safe_padding_sides and pipe.tokenizer.pad_token_id is not None else [pipe]
    for way in ways if not name.startswith("tokens") else ways[:1]:
        for found, own in zip(json.loads(json.dumps(shown(way, name))), wanted, strict=True):
            assert alike(found["result"], own["result"]), (found["result"], own["result"])
            assert [panel["title"] for panel in found["panels"]] == [panel["title"] for panel in own["panels"]]
            for panel, before in zip(found["panels"], own["panels"], strict=True):
                assert alike(panel, before), (panel, before)


@settings(max_examples=60)
@given(
    strategies.text(alphabet="aA eé\u0301漢😀\t\u200d<>[]/smk.MASK", max_size=30),
    strategies.sampled_from(["", "[MASK]", "<mask>", "</s>"]),
)
@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
def test_pre_tokens_are_the_words_of_the_encoding(name: str, text: str, more: str) -> None:
    """Of any text: each word has its own tokens and stands where the encoding says."""
    whole, pipe = text + more + text[:5], _tokenizers(name)
    encoded = pipe[1].encode(whole, add_special_tokens=False)
    words: dict[int, tuple[list[str], int, int]] = {}
    for token, number, (begin, end) in zip(encoded.tokens, encoded.word_ids, encoded.offsets, strict=True):
        pieces, start, stop = words.get(-1 if number is None else number, ([], begin, end))
        words[-1 if number is None else number] = [*pieces, token], min(start, begin), max(stop, end)
    [panel] = [panel for panel in pipe[0].panels(whole, pipe[0].encode([whole])) if panel.title == "pre-tokens"]
    rows = [dict(zip(panel.columns, row, strict=True)) for row in panel.rows]
    assert [row["tokens"] for row in rows] == [" ".join(words[word][0]) for word in sorted(words)[:50]]
    for row, (_, begin, stop) in zip(rows, (words[word] for word in sorted(words)), strict=False):
        assert row["start"] <= begin <= stop <= row["end"]


_TOKENIZERS: dict[str, tuple[Any, Any]] = {}


def _tokenizers(name: str) -> tuple[Any, Any]:
    """Return our tokenizer, and what transformers makes of the folder, which may differ from its tokenizer.json."""
    if name not in _TOKENIZERS:
        folder = CASES[f"tokens {name}"][1]()
        theirs = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
        _TOKENIZERS[name] = built(f"tokens {name}").tokenizer, theirs
    return _TOKENIZERS[name]


def test_a_huge_text_costs_little() -> None:
    tokenizer, text = _tokenizers("bert")[0], "so good " * 100_000
    panels = {panel.title: panel for panel in tokenizer.panels(text, tokenizer.encode([text]))}
    assert "20000 characters" in panels["normalised text"].note
    assert len(str(panels["normalised text"].rows)) < 3000
    assert "pre-tokens left out" in panels["pre-tokens"].note


def test_what_an_id_adds_depends_on_those_before_it() -> None:
    """A decoder may drop the space before the first word of what it is given, but not behind a prompt."""
    tokenizer = built("written windows").tokenizer
    prompt, new = (tokenizer.encode([text])[0] for text in ("I love", "it is"))
    ids = list(new.input_ids)[:-1]  # without the end token
    for causal, adds in ((True, [" it", " is"]), (False, ["it", " is"])):
        panel = generation_panels(tokenizer, causal, (), [prompt], [ids], ["it is"], None)[0]
        columns = dict(zip(panel.columns, zip(*panel.rows, strict=True), strict=True))
        assert (list(columns["alone"]), list(columns["adds"])) == (["it", "is"], adds)


if __name__ == "__main__":
    written = {name: shown(built(name), name) for name in CASES}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows, ensure_ascii=False)}" for name, rows in written.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
