"""The last step of training the shipped classifier: fitted on long texts, true to its answers on short ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tools.train_tiny_sentiment import refit
from tools.train_tiny_sentiment.data import Example
from tools.train_tiny_sentiment.evaluate import Accuracy
from tools.train_tiny_sentiment.refit import Material, Pooled, cross_validated, fit
from tools.train_tiny_sentiment.settings import RefitSettings

REVIEWS, WIDTH, SHORT = 23, 8, 200
SETTINGS = RefitSettings()


@pytest.fixture
def found() -> Material:
    """Two windows and three crops of each review; the first unit knows the label, which only long texts use."""
    chance = torch.Generator().manual_seed(1)
    labels = torch.arange(REVIEWS) % 2

    def states(owners: torch.Tensor) -> Pooled:
        drawn = torch.randn(len(owners), WIDTH, generator=chance, dtype=torch.float64)
        drawn[:, 0] = 2.0 * labels[owners] - 1
        return Pooled(drawn, owners)

    short = torch.randn(SHORT, WIDTH, generator=chance, dtype=torch.float64)
    short[:, 0] = 0
    reviews = [Example("", int(label)) for label in labels]
    places = torch.arange(REVIEWS)
    return Material(reviews, states(places.repeat_interleave(2)), states(places.repeat_interleave(3)), short)


@pytest.fixture
def student() -> Any:
    torch.manual_seed(2)
    classifier = torch.nn.Linear(WIDTH, 2)
    with torch.no_grad():
        classifier.bias.add_(torch.tensor([1.5, -1.5]))  # leans to the first label
    return SimpleNamespace(classifier=classifier)


def test_long_texts_are_learned_and_short_ones_keep_their_answers(found: Material, student: Any) -> None:
    before = refit.parameters(student)
    after = fit(*before, found, torch.arange(REVIEWS), SETTINGS)
    labels = torch.tensor([row.label for row in found.reviews])[found.windows.owners]

    def right(weight: torch.Tensor, bias: torch.Tensor) -> float:
        return float(((found.windows.states @ weight.T + bias).argmax(-1) == labels).double().mean())

    assert right(*before) < 0.8 < 0.95 < right(*after)
    answers = [(found.short @ weight.T + bias).softmax(-1) for weight, bias in (before, after)]
    assert float((answers[0] - answers[1]).abs().mean()) < 0.02


def test_no_review_is_judged_by_what_was_fitted_on_it(
    found: Material, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits say which fold's classifier they are of."""
    chosen: list[set[int]] = []

    def noted(weight: Any, bias: Any, found: Material, rows: torch.Tensor, settings: Any) -> tuple[Any, Any]:
        chosen.append(set(rows.tolist()))
        return torch.zeros(2, WIDTH, dtype=torch.float64), torch.tensor([0.0, float(len(chosen))], dtype=torch.float64)

    judged: list[torch.Tensor] = []

    def kept(logits: torch.Tensor, rows: list[Example]) -> Accuracy:
        judged.append(logits)
        return Accuracy(1.0, len(rows), ())

    monkeypatch.setattr(refit, "fit", noted)
    monkeypatch.setattr(refit, "score", kept)
    assert {accuracy.rows for accuracy in cross_validated(student, found, SETTINGS, 0).values()} == {REVIEWS}
    assert len(chosen) == SETTINGS.folds
    for logits in judged:
        folds = logits[:, 1].long() - 1
        assert all(place not in chosen[int(fold)] for place, fold in enumerate(folds))
        assert sorted({*folds.tolist()}) == [*range(SETTINGS.folds)]
