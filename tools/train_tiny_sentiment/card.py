"""The model card, written from what was measured."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from string import Template

from tools.train_tiny_sentiment.evaluate import Accuracy
from tools.train_tiny_sentiment.recipe import Measured
from tools.train_tiny_sentiment.settings import LABELS, Recipe

SETS = {
    "rt_validation": "movie-review snippets, `rt_validation.jsonl`",
    "movie_reviews_held_out": "whole movie reviews, cut where the model stops reading",
    "movie_reviews_held_out_windows": "whole movie reviews, mean of the logits of all windows of 512 tokens",
    "everyday_held_out": "everyday sentences, `everyday_heldout.jsonl`",
    "pros_cons_held_out": "product phrases, pros and cons",
}


def write(folder: Path, kind: str, measured: Measured, plan: Recipe, seed: int) -> None:
    """Fill in the card of one kind of student and write it beside the weights."""
    template = resources.files(__package__).joinpath("cards", f"{kind}.md").read_text("utf-8")
    sources = resources.files(__package__).joinpath("cards", "sources.md").read_text("utf-8")
    weights = folder / "model.safetensors"
    text = Template(template).substitute(
        accuracy=accuracy_table(measured),
        answers=answer_table(measured),
        seed=seed,
        teacher_epochs=plan.teacher.epochs,
        student_epochs=plan.student.epochs,
        static_epochs=plan.static.epochs,
        seconds=", ".join(f"{name} {seconds:,.0f} s" for name, seconds in measured.seconds.items()),
        minutes=f"{sum(measured.seconds.values()) / 60:.0f}",
        weight_megabytes=f"{weights.stat().st_size / 1e6:.2f}",
        sources=sources.strip(),
    )
    (folder / "README.md").write_text(text, "utf-8")


def percent(accuracy: Accuracy | None) -> str:
    """Write an accuracy and its standard error in percent."""
    return "" if accuracy is None else f"{100 * accuracy.right:.1f} ± {100 * accuracy.standard_error:.1f}"


def accuracy_table(measured: Measured) -> str:
    """One row per set: how many texts, the student, its two labels apart, the teacher."""
    lines = ["| unseen texts | n | this model, % | negative / positive texts, % | its teacher, % |"]
    lines.append("|---|---|---|---|---|")
    for name in (name for name in SETS if name in measured.student):
        found = measured.student[name]
        negative, positive = (100 * share for share in found.by_label)
        theirs = percent(measured.teacher.get(name))
        cells = [SETS[name], f"{found.rows:,}", percent(found), f"{negative:.1f} / {positive:.1f}", theirs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answer_table(measured: Measured) -> str:
    """List what the student answers to single sentences that training never held."""
    lines = ["| text | answer | probability | wanted |", "|---|---|---|---|"]
    for row, label, probability in measured.answers:
        wanted = LABELS[row.label or 0]
        lines.append(f"| {row.text} | {label} | {probability:.2f} | {'yes' if wanted == label else wanted} |")
    return "\n".join(lines)
