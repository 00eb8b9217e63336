"""What the encoder-decoder pipelines of transformers 4 give, which transformers 5 no longer has.

Run in an environment with transformers 4.57 and this package on the path::

    python -m tools.golden text2text tests/golden/text2text.json

It makes the tiny checkpoints that the test makes again, and keeps a sum of their weights beside the answers, so
that a changed checkpoint is not taken for a changed answer. (Of these architectures transformers 4 and 5 draw the
weights in the same order.)
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pipeline_kit.testing.checkpoints import tiny_checkpoint, tiny_translator

TEXTS = (
    "I love this movie.",
    "It was a terrible film, and the plot was so dull that I never want to see it again!",
    "a",
    "not bad at all",
    "so we are waiting for a Hugging Face course",
    "What a long day. " * 30,
    "Unknown: zq 42",
)


@dataclass(frozen=True)
class Case:
    """One pipeline to ask.

    :param config: further options of the checkpoint's ``config.json``, which hold its own settings.
    :param call: how the pipeline is called, by transformers' names.
    :param task: transformers' name of the task, with the languages in it where the checkpoint goes by them.
    :param own: whether `call` only says what the checkpoint's own settings say. transformers 4.57 puts the defaults
        of its pipelines (256 new tokens, 4 beams) over some of them.
    """

    name: str
    architecture: str
    task: str
    config: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    own: bool = False


_T5 = {
    "summarization": {"prefix": "summary: ", "num_beams": 3, "max_length": 14, "no_repeat_ngram_size": 2},
    "translation_en_to_de": {"prefix": "translate to German: ", "max_length": 12},
    "translation_en_to_fr": {"prefix": "in French please: ", "max_length": 12},
}
_GREEDY = {"num_beams": 1, "max_new_tokens": 12}
_TRANSLATE = {"num_beams": 1, "max_new_tokens": 11}
_BEAMS = {"num_beams": 4, "max_new_tokens": 12, "length_penalty": 2.0, "early_stopping": True}

CASES = (
    *(Case(f"{a}-greedy", a, "text2text-generation", call=_GREEDY) for a in ("t5", "bart", "mbart", "marian")),
    *(Case(f"{a}-greedy", a, "summarization", call=_GREEDY) for a in ("pegasus", "m2m_100")),
    *(Case(f"{a}-beams", a, "summarization", call=_BEAMS) for a in ("t5", "bart", "pegasus", "mbart", "m2m_100")),
    Case("bart-penalties", "bart", "summarization", call={**_GREEDY, "repetition_penalty": 1.7, "min_new_tokens": 6}),
    Case("t5-ngrams", "t5", "text2text-generation", call={**_GREEDY, "no_repeat_ngram_size": 2}),
    Case("t5-own-settings", "t5", "summarization", {"task_specific_params": _T5}, {"max_new_tokens": 13}, own=True),
    *(
        Case(f"t5-en-{code}", "t5", f"translation_en_to_{code}", {"task_specific_params": _T5}, _TRANSLATE, own=True)
        for code in ("de", "fr")
    ),
    Case("nllb", "translator", "translation", call={**_GREEDY, "src_lang": "fra_Latn", "tgt_lang": "deu_Latn"}),
    Case("nllb-beams", "translator", "translation", call={**_BEAMS, "src_lang": "eng_Latn", "tgt_lang": "fra_Latn"}),
)


def make(case: Case, folder: Path) -> Path:
    """Write the checkpoint of `case`."""
    if case.architecture == "translator":
        return tiny_translator(folder)
    return tiny_checkpoint(folder, case.architecture, head="seq2seq-lm", **case.config)


def weights_sum(folder: Path) -> str:
    """Return a checksum of a checkpoint's weights."""
    weights = load_file(folder / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()


def answer(case: Case, folder: Path) -> dict[str, Any]:
    """Ask transformers 4, one text at a time."""
    import transformers

    pipe = transformers.pipeline(case.task, model=str(make(case, folder)), device="cpu")
    ids, texts = [], []
    for text in TEXTS:
        asked = dict(case.call, truncation=True)
        row = pipe(text, return_tensors=True, **asked)[0]
        ids.append(next(value for key, value in row.items() if key.endswith("token_ids")).tolist())
        row = pipe(text, return_tensors=False, return_text=True, **asked)[0]
        texts.append(next(value for key, value in row.items() if key.endswith("text")))
    asked = {key: value for key, value in asdict(case).items() if key != "name"}
    return {**asked, "weights": weights_sum(folder), "ids": ids, "texts": texts}


def main(argv: Sequence[str]) -> None:
    """Write the file that is named on the command line."""
    import transformers

    if len(argv) != 1:
        sys.exit("usage: python -m tools.golden text2text FILE")
    with tempfile.TemporaryDirectory() as root:
        found = {case.name: answer(case, Path(root) / case.name) for case in CASES}
    data = {"transformers": transformers.__version__, "texts": list(TEXTS), "cases": found}
    Path(argv[0]).write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
