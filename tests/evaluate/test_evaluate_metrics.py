"""Every metric by hand-computed cases, and against scikit-learn and scipy on random ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import builtins
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.builtin.tasks.answers.stage import AnswerEvaluator, normalized, overlap
from pipeline_kit.builtin.tasks.choice import ChoiceEvaluator
from pipeline_kit.builtin.tasks.classification.metrics import (
    MultiLabel,
    SingleLabel,
    confusion,
)
from pipeline_kit.builtin.tasks.embedding.stage import EmbeddingEvaluator
from pipeline_kit.builtin.tasks.fill_mask.stage import MaskEvaluator
from pipeline_kit.builtin.tasks.generation import TextEvaluator
from pipeline_kit.builtin.tasks.options import ClassificationConfig, RankingConfig, ZeroShotConfig
from pipeline_kit.builtin.tasks.ranking import RankingEvaluator, ndcg
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator
from pipeline_kit.errors import InputError, StageError, UsageError
from pipeline_kit.evaluate.labels import Labels, parse_labels_map
from pipeline_kit.evaluate.numbers import ScoreEvaluator, wilson
from pipeline_kit.evaluate.run import maker_of

sklearn_metrics = pytest.importorskip("sklearn.metrics")
FAST = settings(max_examples=40, deadline=None, derandomize=True)
NAMES = ("NEGATIVE", "NEUTRAL", "POSITIVE")
MULTI = ClassificationConfig(function="sigmoid")
ANY = EvaluationContext("any")


def evaluator_for(context: EvaluationContext, first: Any) -> Evaluator:
    """Make the task's evaluator as the command does."""
    found: Evaluator = maker_of(context.task, builtins())(replace(context, first=first))
    return found


def judge(evaluator: Evaluator, rows: list[tuple[Any, Any]], example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read and add (label, result) pairs; give the metrics."""
    for gold, result in rows:
        evaluator.add(evaluator.read(gold, example or {}), result if isinstance(result, list) else [result])
    return evaluator.metrics().values


def labels(*names: str | None) -> list[dict[str, Any]]:
    return [{"label": name, "score": 0.5} for name in names]


def test_single_labels_by_hand() -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", NAMES), "NEGATIVE")
    gold = ["NEGATIVE", "NEGATIVE", "POSITIVE", "POSITIVE"]
    found = judge(evaluator, list(zip(gold, labels("NEGATIVE", "POSITIVE", "POSITIVE", "NEUTRAL"), strict=True)))
    assert found["accuracy"] == 0.5
    assert found["per_label"] == {
        "NEGATIVE": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "NEUTRAL": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        "POSITIVE": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
    }
    assert found["macro_precision"] == 0.5
    assert found["macro_recall"] == pytest.approx(1 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 3)
    assert found["confusion"] == {
        "labels": list(NAMES),
        "predicted": list(NAMES),
        "counts": [[1, 0, 1], [0, 0, 0], [0, 1, 1]],
        "pairs": [
            {"gold": "NEGATIVE", "predicted": "POSITIVE", "count": 1},
            {"gold": "POSITIVE", "predicted": "NEUTRAL", "count": 1},
        ],
    }
    assert evaluator.metrics().notes == ("predicted, but never in the file, so 0 in the macro means: NEUTRAL",)


def test_a_label_that_never_occurs_is_in_no_mean_and_named() -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", NAMES), "NEGATIVE")
    found = judge(evaluator, [("NEGATIVE", labels("NEGATIVE")[0])])
    assert (found["accuracy"], found["macro_f1"], list(found["per_label"])) == (1.0, 1.0, ["NEGATIVE"])
    [note] = evaluator.metrics().notes
    assert note == "neither in the file nor predicted, so not in the macro means: NEUTRAL, POSITIVE"


def test_a_row_without_a_chosen_label_is_wrong_and_has_a_column_of_its_own() -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", NAMES), "NEGATIVE")
    found = judge(evaluator, list(zip(["NEGATIVE", "NEGATIVE"], labels("NEGATIVE", None), strict=True)))
    assert (found["accuracy"], found["per_label"]["NEGATIVE"]["recall"]) == (0.5, 0.5)
    assert found["per_label"]["NEGATIVE"]["precision"] == 1.0
    assert found["confusion"]["predicted"] == ["NEGATIVE", None]
    assert found["confusion"]["counts"] == [[1, 1]]
    assert "for 1 rows no label reached its threshold; they count as wrong" in evaluator.metrics().notes


@FAST
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=30))
def test_single_labels_against_scikit_learn(rows: list[tuple[str, str]]) -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", NAMES), NAMES[0])
    found = judge(evaluator, [(gold, labels(name)[0]) for gold, name in rows])
    gold, predicted = [row[0] for row in rows], [row[1] for row in rows]
    expected = sklearn_metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(gold, predicted))
    for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert found[f"macro_{key}"] == pytest.approx(expected["macro avg"][name])
        for label, row in found["per_label"].items():
            assert row[key] == pytest.approx(expected[label][name])
            assert type(row["support"]) is int
    present = sorted({*gold, *predicted})
    if len(present) > 1:  # scikit-learn warns of a matrix of one label
        assert found["confusion"]["counts"] == sklearn_metrics.confusion_matrix(gold, predicted).tolist()
    else:
        assert found["confusion"]["counts"] == [[len(rows)]]


def test_of_very_many_labels_there_is_no_matrix_but_the_commonest_mistakes() -> None:
    names = [f"label {number}" for number in range(300)]
    gold = np.arange(300)
    found = confusion(gold, np.where(gold < 3, 299, gold), range(300), names)
    assert found["counts"] is None
    assert found["pairs"][0] == {"gold": "label 0", "predicted": "label 299", "count": 1}
    assert len(found["pairs"]) == 3


def test_wilson_by_published_values() -> None:
    # R's prop.test(k, n, correct=FALSE)
    assert wilson(0, 10) == pytest.approx([0.0, 0.2775328], abs=1e-6)
    assert wilson(10, 10) == pytest.approx([0.7224672, 1.0], abs=1e-6)
    assert wilson(1, 1) == pytest.approx([0.2065493, 1.0], abs=1e-6)
    z, n, p = 1.959963984540054, 1000, 0.9
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    half /= 1 + z * z / n
    assert wilson(900, 1000) == pytest.approx([middle - half, middle + half], abs=1e-9)


def scored(**scores: float) -> dict[str, Any]:
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return {"label": ranked[0][0], "score": ranked[0][1], "labels": [{"label": n, "score": s} for n, s in ranked]}


def test_lists_of_labels_by_hand() -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", ("joy", "anger", "fear"), options=MULTI), [])
    assert isinstance(evaluator, MultiLabel)
    assert evaluator.options == {"top_k": None}
    rows = [
        (["joy", "fear"], scored(joy=0.9, anger=0.1, fear=0.2)),
        ([], scored(joy=0.1, anger=0.5, fear=0.2)),
        ('["joy"]', scored(joy=0.7, anger=0.49, fear=0.2)),
    ]
    found = judge(evaluator, rows)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["micro_precision"] == pytest.approx(2 / 3)
    assert found["micro_recall"] == pytest.approx(2 / 3)
    assert found["micro_f1"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx(1 / 3)
    assert found["per_label"]["joy"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 2}
    assert found["per_label"]["anger"]["support"] == 0
    verdict = evaluator.add(evaluator.read(["fear"], {}), [scored(joy=0.9, anger=0.1, fear=0.6)])
    assert (verdict.right, verdict.gold, verdict.predicted) == (False, ["fear"], ["joy", "fear"])


def test_a_threshold_of_the_postprocessor_goes_before_the_flag() -> None:
    options = ClassificationConfig(function="sigmoid", thresholds={"fear": 0.1})
    setting = EvaluationContext("text-classification", ("joy", "fear"), options=options, threshold=0.8)
    found = judge(evaluator_for(setting, []), [(["fear"], scored(joy=0.7, fear=0.15))])
    assert found["exact_match"] == 1.0


SETS = st.lists(st.sampled_from([0, 1, 2]), unique=True).map(sorted)


@FAST
@given(st.lists(st.tuples(SETS, SETS), min_size=1, max_size=20))
def test_lists_of_labels_against_scikit_learn(rows: list[tuple[list[int], list[int]]]) -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", NAMES, options=MULTI), [])
    results = [
        scored(**{name: 0.9 if i in predicted else 0.1 for i, name in enumerate(NAMES)}) for _, predicted in rows
    ]
    found = judge(evaluator, [([NAMES[i] for i in gold], r) for (gold, _), r in zip(rows, results, strict=True)])
    both = [np.array([[i in row[side] for i in range(3)] for row in rows], dtype=int) for side in (0, 1)]
    present = [i for i in range(3) if both[0][:, i].any() or both[1][:, i].any()]
    assert found["exact_match"] == pytest.approx(sklearn_metrics.accuracy_score(*both))
    if not present:
        assert "micro_f1" not in found
        return
    for average in ("micro", "macro"):
        kept = [side[:, present] for side in both]
        if len(present) == 1:  # scikit-learn takes one column for one label of two
            kept = [np.hstack([side, np.zeros_like(side)]) for side in kept]
        scores = sklearn_metrics.precision_recall_fscore_support(
            *kept, labels=list(range(len(present))), average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            assert found[f"{average}_{name}"] == pytest.approx(value)


def test_lists_need_a_checkpoint_of_several_labels() -> None:
    for options in (ClassificationConfig(), ClassificationConfig(function="softmax")):
        with pytest.raises(UsageError, match=r"postprocessor\.function=sigmoid"):
            evaluator_for(EvaluationContext("text-classification", NAMES, options=options), ["NEUTRAL"])
    multi = {"problem_type": "multi_label_classification"}
    found = evaluator_for(EvaluationContext("text-classification", NAMES, multi, ClassificationConfig()), ["NEUTRAL"])
    assert isinstance(found, MultiLabel)
    assert isinstance(
        evaluator_for(EvaluationContext("text-classification", NAMES, multi, MULTI), "NEUTRAL"), SingleLabel
    )
    assert isinstance(
        evaluator_for(EvaluationContext("text-classification", ("[x]", "y"), options=MULTI), "[x]"), SingleLabel
    )


@pytest.mark.parametrize(("first", "then"), [("NEUTRAL", ["NEUTRAL"]), (["NEUTRAL"], "NEUTRAL")])
def test_labels_are_all_of_one_form(first: Any, then: Any) -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", NAMES, options=MULTI), first)
    with pytest.raises(InputError, match="list"):
        evaluator.read(then, {})


def test_labels_by_name_number_map_and_normalization() -> None:
    names = ("très bon", "日本", "3")
    found = Labels(names, {"good": "très bon", "5": "日本", "x": "2"})
    values = ("très bon", "tre\u0300s bon", " 日本 ", "good", 5, "x")
    assert [found.find(value) for value in values] == [0, 0, 1, 0, 1, 2]
    assert found.note is None
    by_number = Labels(names)
    assert [by_number.find(value) for value in (1, 1.0, "1", "3")] == [1, 1, 1, 2]
    assert by_number.note is not None
    assert "0=très bon, 1=日本, 2=3" in by_number.note


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("POSITIV", "'POSITIV' is none of the checkpoint's: NEGATIVE, NEUTRAL, POSITIVE. Did you mean 'POSITIVE'?"),
        ("pos", "--labels-map 'pos=POSITIVE'"),
        ("xyz", "--labels-map 'xyz=NAME'"),
        (3, "'3' is none"),
        (True, "'true' is none"),
        (None, "empty"),
        ("  ", "empty"),
        (0.5, "not 0.5"),
        ({"a": 1}, 'not {"a": 1}'),
        ("a" * 500 + "\x1b", "none of"),
        ("٣", "none of"),
    ],
)
def test_an_unknown_label_is_named_with_the_closest(value: Any, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        Labels(NAMES).find(value)
    assert problem in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_labels_maps() -> None:
    assert parse_labels_map(["a=X, b=Y", '{"c,d": "Z", "1": 2}']) == {"a": "X", "b": "Y", "c,d": "Z", "1": "2"}
    for bad in ("a", "=X", "a=", "", "{", '{"a": null}'):
        with pytest.raises(UsageError, match="--labels-map"):
            parse_labels_map([bad])
    with pytest.raises(UsageError, match="stands for 'X' and for 'Y'"):
        parse_labels_map(["a=X", "a=Y"])
    with pytest.raises(UsageError, match="Did you mean 'a=POSITIVE'"):
        evaluator_for(EvaluationContext("text-classification", NAMES, labels_map={"a": "POSITVE"}), "a")


def test_a_label_that_the_checkpoint_does_not_have_is_no_prediction() -> None:
    evaluator = evaluator_for(EvaluationContext("text-classification", NAMES), "NEUTRAL")
    with pytest.raises(StageError, match="'good', which is none of the checkpoint's"):
        evaluator.add(0, [{"label": "good"}])
    with pytest.raises(StageError, match="judged by their 'label', and this postprocessor returns logits"):
        evaluator.add(0, [{"logits": {}}])


def test_candidates_of_the_config_and_of_rows() -> None:
    setting = EvaluationContext(
        "zero-shot-classification", ("entailment",), options=ZeroShotConfig(labels=["sport", "art"])
    )
    evaluator = evaluator_for(setting, "art")
    assert evaluator.read("art", {}) == evaluator.read(1, {}) == 1
    own = evaluator.read("tax", {"labels": "tax, war"})
    with pytest.raises(InputError, match="none of the candidates: tax, war"):
        evaluator.read("art", {"labels": ["tax", "war"]})
    found = judge(evaluator, [("art", labels("art")[0])])
    verdict = evaluator.add(own, [{"label": "war", "score": 0.6}])
    assert (found["accuracy"], verdict.right, verdict.gold) == (1.0, False, "tax")
    assert evaluator.metrics().values["per_label"]["tax"]["support"] == 1
    with pytest.raises(UsageError, match="no candidate labels"):
        evaluator_for(EvaluationContext("zero-shot-classification", (), options=ZeroShotConfig()), "a").read("a", {})
    with pytest.raises(UsageError, match="multi_label=true"):
        evaluator_for(setting, ["art"])


def test_correlations_by_hand_and_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    gold: list[Any] = [1, 2, "3.0", 4, 4.0]
    predicted = [0.1, 0.3, 0.2, 0.9, 0.8]
    found = judge(ScoreEvaluator(ANY), [(g, {"score": p}) for g, p in zip(gold, predicted, strict=True)])
    numbers = [float(value) for value in gold]
    assert found["pearson"] == pytest.approx(np.corrcoef(numbers, predicted)[0, 1])
    ranks = [1, 2, 3, 4.5, 4.5], [1, 3, 2, 5, 4]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["spearman"] == pytest.approx(stats.spearmanr(numbers, predicted).statistic)


@pytest.mark.parametrize("rows", [[(1, 0.5)], [(1, 0.5), (1, 0.6)], [(1, 0.5), (2, 0.5)]])
def test_a_correlation_that_is_not_defined_is_null(rows: list[tuple[float, float]]) -> None:
    evaluator = ScoreEvaluator(ANY)
    assert judge(evaluator, [(g, {"score": p}) for g, p in rows]) == {"spearman": None, "pearson": None}
    assert evaluator.metrics().notes


def test_a_correlation_of_scores_that_are_nearly_equal_is_doubted() -> None:
    evaluator = ScoreEvaluator(ANY)
    judge(evaluator, [(1, {"score": 1.0}), (2, {"score": 1.0 + 1e-15})])
    assert evaluator.metrics().notes == ("the scores of one side are nearly equal, so the correlations are not exact",)


@pytest.mark.parametrize("score", [math.nan, math.inf, "0.5", None])
def test_a_score_that_cannot_be_compared_is_refused(score: Any) -> None:
    with pytest.raises(StageError, match="a score is not a finite number in"):
        ScoreEvaluator(ANY).add(1.0, [{"score": score}])


def test_a_cosine() -> None:
    evaluator = EmbeddingEvaluator(ANY)
    assert evaluator.score([{"embedding": [3.0, 0.0]}, {"embedding": [3.0, 3.0]}]) == pytest.approx(math.sqrt(0.5))
    assert evaluator.score([{"embedding": [0.0]}, {"embedding": [1.0]}]) == 0.0


@pytest.mark.parametrize("value", ["", None, "high", True, [1], math.nan, "inf", 10**400])
def test_a_score_is_a_number(value: Any) -> None:
    with pytest.raises(InputError, match="not a number"):
        ScoreEvaluator(ANY).read(value, {})


def test_regression_is_told_by_the_checkpoint() -> None:
    one = EvaluationContext("text-classification", ("LABEL_0",))
    assert isinstance(evaluator_for(one, 0.3), ScoreEvaluator)
    with pytest.raises(UsageError, match="regression with 3 outputs"):
        evaluator_for(EvaluationContext("text-classification", NAMES, {"problem_type": "regression"}), 0.3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's, hat!", "cats hat"),
        ("a an the theater", "theater"),
        ("U.S.", "us"),
        ("«Été» the", "«été»"),
        ("...", ""),
    ],
)
def test_squad_normalization(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("the cat sat", "a cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("the", "a", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_squad_f1(predicted: str, gold: str, expected: float) -> None:
    assert overlap(predicted, gold) == pytest.approx(expected)


def test_answers_take_the_best_of_several_and_tell_the_impossible_apart() -> None:
    evaluator = AnswerEvaluator(EvaluationContext("question-answering"))
    rows = [
        (["the city of Paris", "Paris"], {"answer": "City of Paris", "score": 0.5}),
        ({"text": ["two dogs"], "answer_start": [4]}, {"answer": "dogs", "score": 0.5}),
        ([{"text": "x", "answer_start": 0}], {"answer": "y", "score": 0.5}),
        ([], {"answer": "", "score": 0.5}),
        ("", {"answer": "wrong", "score": 0.5}),
        ("[sic]", {"answer": "sic", "score": 0.5}),
    ]
    found = judge(evaluator, rows)
    assert found["exact_match"] == pytest.approx(3 / 6)
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 0 + 1 + 0 + 1) / 6)
    assert (found["answerable_rows"], found["impossible_rows"]) == (4, 2)
    assert found["answerable_exact_match"] == 0.5
    assert found["answerable_f1"] == pytest.approx((1 + 2 / 3 + 1) / 4)
    assert (found["impossible_exact_match"], found["impossible_f1"]) == (0.5, 0.5)
    bads: list[Any] = [3, None, [3], {"texts": []}, {}, [{}], [["a"]]]
    for bad in bads:
        with pytest.raises(InputError, match="holds no answers"):
            evaluator.read(bad, {})


def test_masks_and_their_lists() -> None:
    def mask(*tokens: str) -> list[dict[str, Any]]:
        return [{"token": token, "score": 0.4} for token in tokens]

    evaluator = MaskEvaluator(ANY)
    rows = [("good", {"masks": [mask(" good", "bad")]}), (["a", "b"], {"masks": [mask("b", "a"), mask("c", "d")]})]
    found = judge(evaluator, rows)
    assert (found["accuracy"], found["listed"], found["masks"]) == (1 / 3, 2 / 3, 3)
    with pytest.raises(InputError, match="has 1 masks, and the label 2 tokens"):
        evaluator.add(["a", "b"], [{"masks": [mask("a")]}])
    for bad in ([], "", [1], None):
        with pytest.raises(InputError, match="neither a token"):
            evaluator.read(bad, {})


def test_choices_by_number_and_text() -> None:
    example = {"choices": ["stay", "swim", "0"]}
    evaluator = ChoiceEvaluator(EvaluationContext("multiple-choice"))
    assert [evaluator.read(value, example) for value in (0, "1", "swim", "0")] == ["stay", "swim", "swim", "0"]
    assert judge(evaluator, [("swim", {"choice": "swim"}), (0, {"choice": "swim"})], example)["accuracy"] == 0.5
    with pytest.raises(InputError, match="none of the choices: stay, swim, 0"):
        evaluator.read("walk", example)
    with pytest.raises(InputError, match="'choices'"):
        evaluator.read(0, {"choices": "stay"})


def test_rankings_by_hand() -> None:
    evaluator = RankingEvaluator(EvaluationContext("text-ranking", options=RankingConfig(top_k=2)))
    assert evaluator.options == {"top_k": None}

    def ranking(*order: int) -> dict[str, Any]:
        return {"ranking": [{"index": index, "score": -rank} for rank, index in enumerate(order)]}

    three = {"documents": ["a", "b", "c"]}
    found = judge(evaluator, [([0, 3, 1], ranking(2, 1, 0)), ("[0, 0, 0]", ranking(0, 1, 2))], three)
    ideal = 3 + 1 / math.log2(3)
    assert found["ndcg_at_10"] == pytest.approx((1 + 3 / math.log2(3)) / ideal / 2)
    assert found["mrr"] == 0.5
    assert evaluator.metrics().notes == ("1 queries have no relevant document and count as 0",)
    for bad in ([1, 2], "1", [1, 2, -1], [1, 2, "x"], None):
        with pytest.raises(InputError):
            evaluator.read(bad, three)


@FAST
@given(st.lists(st.integers(0, 3), min_size=2, max_size=25), st.randoms(use_true_random=False))
def test_ndcg_against_scikit_learn(gold: list[int], random: Any) -> None:
    order = list(range(len(gold)))
    random.shuffle(order)
    scores = [0.0] * len(gold)
    for rank, index in enumerate(order):
        scores[index] = -float(rank)
    expected = sklearn_metrics.ndcg_score([gold], [scores], k=10)
    assert ndcg([gold[index] for index in order], gold) == pytest.approx(expected)


def test_texts_match_exactly_but_for_white_space() -> None:
    found = judge(TextEvaluator(ANY), [("a  b\n", {"text": " a b"}), (["x", "y"], {"text": "y"}), ("A", {"text": "a"})])
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert "BLEU" in TextEvaluator.metrics(_one_text()).notes[0]
    for bad in (None, 3, [], [3]):
        with pytest.raises(InputError, match="neither a text"):
            TextEvaluator(ANY).read(bad, {})


def _one_text() -> TextEvaluator:
    evaluator = TextEvaluator(ANY)
    evaluator.add(["a"], [{"text": "a"}])
    return evaluator


def test_a_task_that_cannot_be_evaluated_names_those_that_can() -> None:
    with pytest.raises(UsageError) as caught:
        evaluator_for(EvaluationContext("my-text-classification"), "x")
    assert all(spec.name in str(caught.value) for spec in builtins().specs("evaluator"))
    assert "Did you mean 'text-classification'" in str(caught.value)
