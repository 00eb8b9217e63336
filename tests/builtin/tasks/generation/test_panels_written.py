"""Panels of fill-mask and of generated text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from generate_helpers import TEXTS, with_files, writer
from harness import checkpoint
from panels_helpers import LONG, WINDOWS, ask, assemble, close, column, last_number, network, padded, reference, shown

from pipeline_kit.builtin.tasks.generation.panels import generation_panels
from pipeline_kit.testing.checkpoints import tiny_translator

MASKS: Mapping[str, str] = {"bert": "[MASK]", "roberta": "<mask>", "xlnet": "<mask>"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("panels")
    found = {name: checkpoint(name, head="masked-lm") for name in ("bert", "roberta")}
    found["gpt2"] = checkpoint("gpt2", head="causal-lm")
    found["llama"] = checkpoint("llama", head="causal-lm")
    found["t5"] = checkpoint("t5", head="seq2seq-lm", seed=1)
    found["nllb"] = tiny_translator(root / "nllb", ("eng_Latn", "fra_Latn"), seed=1)
    return found


@pytest.mark.parametrize("targets", [[], ["good", "bad", "!"]])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_candidates_of_each_mask(folders: Mapping[str, Path], name: str, targets: list[str]) -> None:
    mask = MASKS[name]
    texts = (f"I {mask} this {mask}.", mask, f"Ünïcödé 漢字 😀 {mask} \t zzz", f"{LONG} so {mask}", f"{mask} {LONG}")
    model = network(folders[name], "AutoModelForMaskedLM")
    post = {"name": "fill_mask", "top_k": 3, "targets": targets}
    pipe = assemble(folders[name], "fill-mask", post, WINDOWS)
    id = transformers.AutoTokenizer.from_pretrained(folders[name]).mask_token_id
    for side in sorted(pipe.model.safe_padding_sides):
        for told, text in zip(ask(padded(pipe, side), texts), texts, strict=True):
            rows = reference(model, told)
            found: dict[int, tuple[int, int, torch.Tensor]] = {}
            for encoding, row in zip(told.encodings, rows, strict=True):
                last = len(encoding.input_ids) - 1
                for place, token in enumerate(encoding.input_ids):
                    if token == id:
                        begin = (encoding.offsets or ())[place][0]
                        context = min(place, last - place)
                        if begin not in found or context > found[begin][0]:
                            found[begin] = context, encoding.window, row["logits"][place]
            assert len(told.panels) == text.count(mask) == len(found)
            for panel, begin, listed in zip(told.panels, sorted(found), told.result["masks"], strict=True):
                _, window, logits = found[begin]
                chances, ids = logits.double().softmax(0), column(panel, "id")
                close(column(panel, "logit"), logits[ids])
                close(column(panel, "exp(logit - max)"), (logits - logits.max()).double().exp()[ids])
                close(column(panel, "score"), chances[ids])
                assert [(row[0], row[1], row[-1]) for row in panel.rows] == [
                    (item["token"], item["id"], item["score"]) for item in listed
                ]
                assert last_number(panel, 2) == shown(float((logits - logits.max()).exp().sum()))
                assert last_number(panel) == shown(listed[0]["score"])
                assert float(panel.note.partition(" have ")[2].split()[0]) == shown(1 - float(chances[ids].sum()))
                assert (f"window {window}," in panel.note) is (len(told.encodings) > 1)
                if not targets:
                    assert ids == torch.argsort(chances, descending=True, stable=True)[:3].tolist()


def test_many_masks_are_bounded(folders: Mapping[str, Path]) -> None:
    pipe = assemble(folders["bert"], "fill-mask", {"name": "fill_mask", "top_k": 300})
    [told] = ask(pipe, ["[MASK] good " * 15])
    assert len(told.panels) == 10
    assert "only the first 10 masks are shown" in told.panels[0].note
    assert "250 tokens left out" in told.panels[0].note


@pytest.mark.parametrize("options", [{}, {"full_text": True}])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_ids_carried_on(folders: Mapping[str, Path], name: str, options: Mapping[str, Any]) -> None:
    pipe = writer(folders[name], postprocessor=options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[name])
    examples = [text for text in TEXTS if len(text) < 100]
    for told, text in zip(ask(padded(pipe, "left"), examples), examples, strict=True):
        given = tokenizer(text, return_tensors="pt")
        whole = model.generate(**given, max_new_tokens=8, do_sample=False)[0].tolist()
        new = whole[given["input_ids"].shape[1] :]
        panel = told.panel("ids that were written")
        ids = column(panel, "id")
        assert ids == (new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new)
        assert column(panel, "step") == list(range(1, len(ids) + 1))
        assert column(panel, "alone") == [tokenizer.decode([id], skip_special_tokens=True) for id in ids]
        written = told.result["text"].removeprefix(text) if options else told.result["text"]
        if "\ufffd" not in written:
            assert "".join(column(panel, "adds")) == written
        way = told.panel("ids to text").formula.split("\n")
        assert way[0] == f"decode(prompt + {len(ids)} ids) without decode(prompt)"
        assert any(line.startswith("text = prompt ") for line in way) is bool(options)


def test_what_an_id_adds_depends_on_those_before_it(folders: Mapping[str, Path]) -> None:
    """A decoder may drop the space before the first word of what it is given, but not behind a prompt."""
    tokenizer = writer(folders["t5"], "summarization").tokenizer
    prompt, new = (tokenizer.encode([text])[0] for text in ("I love", "it is"))
    ids = list(new.input_ids)[:-1]  # without the end token
    for causal, adds in ((True, [" it", " is"]), (False, ["it", " is"])):
        panel = generation_panels(tokenizer, causal, (), [prompt], [ids], ["it is"], None)[0]
        assert column(panel, "alone") == ["it", "is"]
        assert column(panel, "adds") == adds


def test_windows_of_a_long_text_are_written_one_by_one(folders: Mapping[str, Path]) -> None:
    pipe = writer(folders["t5"], "summarization", tokenizer=WINDOWS)
    for told, long in zip(ask(pipe, [LONG, "a"]), (True, False), strict=True):
        panel = told.panel("ids that were written")
        assert (len(told.encodings) > 1) is long
        ids = [row["sequences"][: int(row["sequence_lengths"])].tolist() for row in told.raw]
        assert column(panel, "id") == [id for own in ids for id in own][:50]
        if long:
            assert column(panel, "window") == [w for w, own in enumerate(ids) for _ in own][:50]
            assert "joined by a space" in told.panel("ids to text").formula
        pieces = " ".join(pipe.tokenizer.decode(own) for own in ids)
        assert told.result["text"] == pieces


def test_the_language_of_a_translation_is_named(folders: Mapping[str, Path]) -> None:
    pipe = writer(folders["nllb"], "translation", languages=("eng_Latn", "fra_Latn"))
    for told in ask(pipe, TEXTS[:3]):
        rows = told.panel("ids that were written").rows
        assert [row[-1] for row in rows if row[1] == pipe.tokenizer.languages["fra_Latn"]][:1] == [
            "the language fra_Latn"
        ]


def test_a_stop_string_is_named(folders: Mapping[str, Path]) -> None:
    [plain] = ask(writer(folders["gpt2"]), ["I love it"])
    stop = plain.result["text"][-3:]
    [told] = ask(writer(folders["gpt2"], generation={"stop_strings": [stop]}), ["I love it"])
    assert f"cut before the first of '{stop}'" in told.panel("ids to text").note
    assert stop not in told.result["text"]


def test_many_ids_are_bounded(tmp_path: Path) -> None:
    folder = checkpoint("gpt2", head="causal-lm", max_positions=200)
    pipe = writer(with_files(folder, config={"eos_token_id": None}), most=80)
    [told] = ask(pipe, ["a"])
    assert "30 ids left out" in told.panel("ids that were written").note
