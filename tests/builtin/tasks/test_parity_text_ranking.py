"""What sentence-transformers and text classification say of the same pairs, beside the cases of test_task_parity.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from harness import checkpoint, pipeline_of
from parity_helpers import MAX_LENGTH
from parity_tasks import DOCUMENTS, QUERIES, TextRanking

from pipeline_kit import Pipeline

sentence_transformers = pytest.importorskip("sentence_transformers")
PARITY = TextRanking()
ROWS = PARITY.examples
PAIRS = [{"text": row["query"], "text_pair": document} for row in ROWS for document in row["documents"]]


def by_document(pipe: Pipeline) -> list[float]:
    """Return the scores of all documents in the order of `PAIRS`."""
    rankings = [PARITY.read(result) for result in pipe(ROWS)]
    return [ranking[i] for ranking in rankings for i in range(len(ranking))]


def test_text_classification_of_the_pair_gives_the_same_score() -> None:
    folder = checkpoint(labels=("LABEL_0",), max_positions=MAX_LENGTH)
    single = [result["score"] for result in pipeline_of("text-classification", folder)(PAIRS)]
    assert by_document(pipeline_of("text-ranking", folder)) == pytest.approx(single, abs=1e-6)


@pytest.mark.parametrize("labels", [("no", "yes"), ("contradiction", "entailment", "neutral")])
@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_one_of_several_labels_ranks_as_text_classification_scores_it(
    labels: Sequence[str], problem_type: str | None
) -> None:
    folder = checkpoint(labels=labels, problem_type=problem_type, max_positions=MAX_LENGTH)
    listed = pipeline_of("text-classification", folder, top_k=None)(PAIRS)
    for label in labels:
        wanted = [next(item["score"] for item in row["labels"] if item["label"] == label) for row in listed]
        assert by_document(pipeline_of("text-ranking", folder, label=label)) == pytest.approx(wanted, abs=1e-6)


def test_raw_logits_of_several_labels_are_those_that_predict_gives() -> None:
    folder = checkpoint(labels=("a", "b", "c"), max_positions=MAX_LENGTH)
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    query, documents = QUERIES[0], list(DOCUMENTS)
    logits = encoder.predict([(query, document) for document in documents], show_progress_bar=False)
    pipe = pipeline_of("text-ranking", folder, label="b", function="none")
    ranking = pipe({"query": query, "documents": documents})["ranking"]
    assert [item["score"] for item in ranking] == pytest.approx(sorted(logits[:, 1].tolist(), reverse=True), abs=1e-5)
    with pytest.raises(ValueError, match="num_labels=1"):
        encoder.rank(query, documents)


def test_an_empty_document_is_scored_as_the_query_alone() -> None:
    """Where the reference gives it the frame of a pair, a text without a second one has no such frame here.

    That is how the tokenizers of transformers read ``tokenizer(text, "")``, and text classification does.
    """
    folder = checkpoint(labels=("LABEL_0",), max_positions=MAX_LENGTH)
    score = PARITY.read(pipeline_of("text-ranking", folder)({"query": QUERIES[0], "documents": ["", "food"]}))[0]
    alone = pipeline_of("text-classification", folder)(QUERIES[0])
    assert score == pytest.approx(alone["score"], abs=1e-6)
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    assert abs(float(encoder.predict([(QUERIES[0], "")], show_progress_bar=False)[0]) - score) > 1e-3
