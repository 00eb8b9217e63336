"""The steps of the recipe in order: teacher, soft labels, student, refit of its classifier, measurement."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

from tools.train_tiny_sentiment import (
    corpus,
    data,
    distill,
    evaluate,
    export,
    loading,
    prune,
    refit,
    static,
    teacher,
)
from tools.train_tiny_sentiment.everyday import Everyday
from tools.train_tiny_sentiment.settings import MAX_TOKENS, Recipe
from tools.train_tiny_sentiment.vocabulary import Trimmed, open_tokenizer, respell, trim
from tools.train_tiny_sentiment.work import open_work

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taught:
    """The teacher, what it said about the corpus, and the seconds each step took."""

    sets: data.DataSets
    everyday: Everyday
    model: BertForSequenceClassification
    tokenizer: Tokenizer
    corpus: corpus.Corpus
    soft: teacher.SoftLabels
    seconds: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """Accuracy per set of the teacher and of the shipped student, and the student's answers."""

    teacher: dict[str, evaluate.Accuracy]
    student: dict[str, evaluate.Accuracy]
    answers: list[tuple[data.Example, str, float]]
    seconds: dict[str, float]


def teach(data_folder: Path, base: Path, work_folder: Path, recipe: Recipe, seed: int) -> Taught:
    """Make the teacher and its soft labels, or find them in the work folder."""
    sets = data.load(data_folder, seed, recipe)
    held = [row.text for name in ("heldout", "probes") for row in data.packaged(f"everyday_{name}.jsonl")]
    everyday = Everyday(forbidden=held)
    tokenizer = open_tokenizer(base / "tokenizer.json")
    work = open_work(work_folder, data_folder, base, recipe.teacher, recipe.reviews_held_out, seed)

    def fine_tune(path: Path) -> None:
        teacher.train(base, sets, everyday, tokenizer, recipe.teacher, seed).save_pretrained(path)

    folder, teacher_seconds = work.once("teacher", fine_tune)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    texts = corpus.build(sets, everyday, tokenizer, recipe.corpus, seed)
    work = open_work(work_folder, data_folder, base, recipe.teacher, recipe.reviews_held_out, recipe.corpus, seed)

    def label(path: Path) -> None:
        soft = teacher.soft_labels(model, texts.ids)
        save_file({"logits": soft.logits, "hidden": soft.hidden}, path)

    path, label_seconds = work.once("soft-labels", label)
    stored = load_file(path)
    soft = teacher.SoftLabels(stored["logits"], stored["hidden"])
    seconds = {"teacher": teacher_seconds, "soft labels": label_seconds}
    return Taught(sets, everyday, model, tokenizer, texts, soft, seconds)


def trimmed(taught: Taught, size: int, general: int) -> tuple[Trimmed, list[list[int]]]:
    """Trim the word pieces, and encode the corpus with the ones that are left."""
    pieces = trim(taught.tokenizer, taught.corpus.ids, size, general)
    return pieces, respell(taught.corpus.ids, taught.tokenizer, pieces.tokenizer)


def make_transformer(taught: Taught, recipe: Recipe, seed: int, folder: Path) -> dict[str, evaluate.Accuracy]:
    """Prune the teacher, distil the result, fit its classifier again and write it.

    Return the accuracy on the whole reviews, by cross-validation: the classifier that is written has seen them all.
    """
    settings = recipe.student
    pieces, ids = trimmed(taught, settings.vocabulary, settings.general_pieces)
    importance = prune.unit_importance(taught.model, taught.corpus, settings, seed)
    student = prune.student_from(taught.model, pieces.old_ids, importance, settings)
    student = distill.train(student, ids, taught.corpus.labels, taught.soft, settings, seed)
    return refit_and_save(student, pieces.tokenizer, taught.sets, taught.everyday, recipe, seed, folder)


def refit_and_save(
    student: BertForSequenceClassification,
    tokenizer: Tokenizer,
    sets: data.DataSets,
    everyday: Everyday,
    recipe: Recipe,
    seed: int,
    folder: Path,
) -> dict[str, evaluate.Accuracy]:
    """Fit the classifier of a distilled student again and write the student; return what cross-validation found."""
    student = student.half().float()  # as it is stored
    short = sets.snippets[: recipe.corpus.snippet_rows]
    short += everyday.sample(recipe.refit.everyday_rows, np.random.default_rng([seed, 5]))
    reviews = sets.measured["movie_reviews_held_out"]
    found = refit.gather(student, tokenizer, reviews, short, recipe.refit, seed)
    accuracy = refit.cross_validated(student, found, recipe.refit, seed)
    refit.refit(student, found, recipe.refit)
    export.save_transformer(student, tokenizer, folder)
    return accuracy


def make_static(taught: Taught, recipe: Recipe, seed: int, folder: Path) -> dict[str, evaluate.Accuracy]:
    """Distil the bag-of-tokens student and write it."""
    settings = recipe.static
    pieces, ids = trimmed(taught, settings.vocabulary, settings.general_pieces)
    words = taught.model.bert.embeddings.word_embeddings.weight.detach()[pieces.old_ids]
    vectors = static.compressed_vectors(words, settings.width)
    student = static.train(vectors, ids, taught.corpus.labels, taught.soft, settings, seed)
    export.save_static(student, pieces.tokenizer, folder)
    return {}


MAKERS = {"transformer": make_transformer, "static": make_static}


def run(kind: str, data_folder: Path, base: Path, work: Path, folder: Path, seed: int, recipe: Recipe) -> Measured:
    """Follow the recipe for one kind of student and measure the files it wrote."""
    taught = teach(data_folder, base, work, recipe, seed)
    started = time.monotonic()
    by_folds = MAKERS[kind](taught, recipe, seed, folder)
    seconds = {**taught.seconds, "student": time.monotonic() - started}
    classify, tokenizer, limit = loading.load(folder)
    student = evaluate.measure(classify, tokenizer, taught.sets.measured, limit) | by_folds
    theirs = evaluate.measure(loading.classifier_of(taught.model), taught.tokenizer, taught.sets.measured, MAX_TOKENS)
    answers = evaluate.answers(classify, tokenizer, data.packaged("everyday_probes.jsonl"))
    return Measured(theirs, student, answers, seconds)
