"""Reading the public data sets and setting the measured rows aside."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from tools.train_tiny_sentiment.settings import LABELS, Recipe

REQUIRED_FILES = ("rt_train.jsonl", "rt_validation.jsonl", "pros_cons.jsonl", "movie_reviews.jsonl")


class DataError(ValueError):
    """A data file is missing or holds a row that cannot be used."""


@dataclass(frozen=True)
class Example:
    """One text with the index of its label, or None where nobody labelled it."""

    text: str
    label: int | None
    weight: float = 1.0


@dataclass(frozen=True)
class DataSets:
    """What may be trained on, and what is only measured on."""

    snippets: list[Example]
    products: list[Example]
    reviews: list[Example]
    measured: dict[str, list[Example]]


def parse_rows(content: str, name: str) -> list[Example]:
    """Read JSON lines that hold a text and a label.

    :raises DataError: when a row is not JSON, or lacks a text or a known label.
    """
    rows: list[Example] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(Example(str(row["text"]), LABELS.index(row["label"])))
        except (KeyError, ValueError, TypeError) as error:
            message = f"{name}, line {number}: wanted a JSON object with 'text' and 'label' (one of {LABELS})"
            raise DataError(message) from error
    return rows


def load(folder: Path, seed: int, recipe: Recipe) -> DataSets:
    """Read the four files and split off the rows that are only measured.

    :raises DataError: when a file is missing or malformed.
    """
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing:
        message = f"{folder} lacks {', '.join(missing)}; see the help of --data for what to put there"
        raise DataError(message)
    rows = {name: parse_rows((folder / name).read_text("utf-8"), name) for name in REQUIRED_FILES}
    reviews, unseen_reviews = hold_out(rows["movie_reviews.jsonl"], recipe.reviews_held_out, seed)
    products, unseen_products = hold_out(rows["pros_cons.jsonl"], recipe.products_held_out, seed)
    measured = {
        "rt_validation": rows["rt_validation.jsonl"],
        "movie_reviews_held_out": without_copies(unseen_reviews, reviews),
        "everyday_held_out": packaged("everyday_heldout.jsonl"),
        "pros_cons_held_out": without_copies(unseen_products, products),
    }
    cut = {name: found[: recipe.measured_rows] for name, found in measured.items()}
    return DataSets(rows["rt_train.jsonl"], products, reviews, cut)


def hold_out(rows: list[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Split rows into the part to train on and a balanced, seeded part of ``count`` rows."""
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    held: list[int] = []
    for label in range(len(LABELS)):
        held += [int(i) for i in order if rows[int(i)].label == label][: count // len(LABELS)]
    chosen = set(held)
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def without_copies(rows: list[Example], seen: list[Example]) -> list[Example]:
    """Drop the rows whose words a row to train on has too; the public data sets hold some texts twice."""
    known = {normalise(row.text) for row in seen}
    return [row for row in rows if normalise(row.text) not in known]


def packaged(name: str) -> list[Example]:
    """Read a labelled file that lies beside this module."""
    content = resources.files(__package__).joinpath(name).read_text("utf-8")
    return parse_rows(content, name)


def normalise(text: str) -> str:
    """Reduce a text to its lower-case words, so that near copies compare equal."""
    return " ".join(re.findall(r"[a-z0-9]+", re.sub(r"['\u2019]", "", text.lower())))
