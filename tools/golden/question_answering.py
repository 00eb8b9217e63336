"""What the question-answering pipeline of transformers 4 returns on tiny checkpoints.

Two steps, since transformers 4 and 5 draw the weights of a tiny checkpoint in different orders. With transformers 5
and this package::

    python -m tools.golden question-answering FOLDER

writes the checkpoints. With transformers 4.57, torch and safetensors alone::

    python -m tools.golden question-answering FOLDER tests/golden/question_answering.json

asks them, in some minutes. For each case the file has what ``tiny_checkpoint`` was called with, a fingerprint of
the weights, and ``sharpness``, by which the head's weights were multiplied (a large one makes sure answers, as a
trained model returns). Answers are written as ``[answer, score, start, end]``. A run has the pipeline's options, its
``answers`` to each input, and in ``windows`` the best answers to each window of each context by itself, with those
that differ from them in white space alone, and the empty one last. These are over all spans: the pipeline looks at
its best ``2 * top_k + 10`` spans and adds those of the same text, so that the scores it returns depend on ``top_k``,
until that is larger than the number of spans.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

ALL = 700  # its 1,410 spans are more than any context here has
KEPT = 5
DIGITS = 9

_SHORT = [
    ("Who has a dog?", "The friend of Paris has a dog."),
    ("When?", "never"),
    ("What is good food?", "  In Paris people love good food , and music:\n they want more!  "),
    ("Where is the 漢字 star?", "Our star (the sun) rises over Zürich, 漢字 and 🙂 cities\u0301."),
]
_LONG = [
    (
        "Who made the movie?",
        "My friend and her team made that beautiful movie about one small city last year. Every day they would "
        "write new scenes, read old books, watch stars over dull water, then sleep. Its plot works: a poor boy "
        "with no name wants food, finds music, loses it again, so he must help everyone who ever had hate for him.",
    ),
    *_SHORT[:2],
]
INPUTS = {"short": _SHORT, "long": _LONG}
WINDOWS = {"max_seq_len": 40, "doc_stride": 12}

BASE = [
    {"inputs": "short", "options": {}},
    {"inputs": "short", "options": {"top_k": 3}},
    {"inputs": "short", "options": {"align_to_words": False}},
    {"inputs": "short", "options": {"max_answer_len": 3, "top_k": 5}},
    {"inputs": "long", "options": WINDOWS},
    {"inputs": "long", "options": {**WINDOWS, "top_k": 4, "align_to_words": False, "max_answer_len": 6}},
]
IMPOSSIBLE = [
    {"inputs": "short", "options": {"handle_impossible_answer": True, "top_k": 4}},
    {"inputs": "long", "options": {**WINDOWS, "handle_impossible_answer": True, "top_k": 2}},
]


def _case(
    architecture: str, runs: Any = (*BASE, *IMPOSSIBLE), sharpness: float = 1.0, **options: Any
) -> dict[str, Any]:
    checkpoint = {"architecture": architecture, "max_positions": 128, "seed": 1, **options}
    return {"checkpoint": checkpoint, "sharpness": sharpness, "runs": list(runs)}


CASES = {
    **{name: _case(name) for name in ("albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "roberta")},
    **{f"{name}-sure": _case(name, sharpness=24.0) for name in ("bert", "distilbert", "xlm-roberta")},
    "gpt2": _case("gpt2", BASE[:4]),  # it finds nothing in any window but the first, see the docs
    "mpnet": _case("mpnet"),
    "t5": _case("t5", BASE),
    "xlm-roberta": _case("xlm-roberta"),
    "xlnet-left": _case("xlnet", (), 24.0),
    "xlnet-right": _case("xlnet", BASE, padding_side="right"),
}

_DOG = "The friend of Paris has a dog."
DIFFERENCES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "sum over windows": ("bert-sure", "When was it?", _LONG[0][1], {"max_seq_len": 40, "doc_stride": 20}),
    "padding side": ("xlnet-left", "Where is the city?", _DOG, {"top_k": 3}),
    "upper and lower case": ("bert", "Who?", "US and us", {"top_k": ALL}),
    "backward spans": ("bert-sure", "Who?", "good food", {"top_k": 8}),
    "special token in the question": ("bert", "What is [CLS] ?", _DOG, {"top_k": ALL}),
}
"""By what the pipeline does otherwise than it should: the case, question, context and options that show it."""


def make(folder: Path, checkpoint: dict[str, Any], sharpness: float) -> None:
    """Write a checkpoint."""
    from pipeline_kit.testing import tiny_checkpoint

    tiny_checkpoint(folder, head="question-answering", **checkpoint)
    weights = load_file(folder / "model.safetensors")
    sharp = {name: value * sharpness if "qa_outputs" in name else value for name, value in weights.items()}
    save_file(sharp, folder / "model.safetensors", {"format": "pt"})


def fingerprint(folder: Path) -> str:
    """Return a digest of a checkpoint's weights by name, and of its tokenizer."""
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    for name, value in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Write the checkpoints, or from them the file."""
    root = Path(arguments[0])
    if len(arguments) == 1:
        for name, case in CASES.items():
            make(root / name, case["checkpoint"], case["sharpness"])
        return
    import tokenizers
    import torch
    import transformers

    versions = {module.__name__: module.__version__ for module in (tokenizers, torch, transformers)}
    cases = {name: _asked(root / name, case) for name, case in CASES.items()}
    data = {"versions": versions, "inputs": INPUTS, "differences": _differences(root), "cases": cases}
    Path(arguments[1]).write_text(_one_line_a_run(data) + "\n", encoding="utf-8")


def _asked(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    import transformers

    print(folder.name, file=sys.stderr)
    pipe = transformers.pipeline("question-answering", model=str(folder), device="cpu")
    runs = []
    for run in case["runs"]:
        answers, windows = [], []
        for question, context in INPUTS[run["inputs"]]:
            answers.append(_short(pipe(question=question, context=context, **run["options"])))
            windows.append([_short(found) for found in _by_window(pipe, question, context, run["options"])])
        runs.append({**run, "answers": answers, "windows": windows})
    return {**case, "fingerprint": fingerprint(folder), "runs": runs}


def _differences(root: Path) -> dict[str, Any]:
    import transformers

    found = {}
    for name, (case, question, context, options) in DIFFERENCES.items():
        pipe = transformers.pipeline("question-answering", model=str(root / case), device="cpu")
        answers = _short(pipe(question=question, context=context, **options))[:9]
        found[name] = {"case": case, "question": question, "context": context, "options": options, "answers": answers}
    return found


def _by_window(pipe: Any, question: str, context: str, options: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Return the best answers to each window, over all its spans; the empty one, where asked for, is always there."""
    before, _, after = pipe._sanitize_parameters(**{**options, "top_k": ALL})
    for window in pipe.preprocess({"question": question, "context": context}, **before):
        found = pipe.postprocess([pipe.forward(dict(window))], **after)
        listed = found if isinstance(found, list) else [found]
        sums: Counter[str] = Counter()
        for answer in listed:
            sums[answer["answer"].strip()] += answer["score"]
        best = {text for text, _ in sums.most_common(KEPT + 1) if text}
        empty = [answer for answer in listed if not answer["answer"]]
        yield [*[answer for answer in listed if answer["answer"].strip() in best], *empty[:1]]


def _short(found: dict[str, Any] | list[dict[str, Any]]) -> list[list[Any]]:
    listed = found if isinstance(found, list) else [found]
    return [[item["answer"], round(item["score"], DIGITS), item["start"], item["end"]] for item in listed]


def _one_line_a_run(data: dict[str, Any]) -> str:
    """Write JSON with a line for each run, which is readable and not too long."""
    lines: list[str] = []
    for case in data["cases"].values():
        for run in case["runs"]:
            lines.append(json.dumps(run, ensure_ascii=False))
    cases = {name: {**case, "runs": [None] * len(case["runs"])} for name, case in data["cases"].items()}
    text = json.dumps({**data, "cases": cases}, ensure_ascii=False, indent=1)
    first, *rest = text.split("null")
    return first + "".join(line + part for line, part in zip(lines, rest, strict=True))
