"""``pipeline-kit evaluate``: files, counts, tables, JSON, saved rows, sweeps, and every task from end to end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from fake_plugins import POISON
from harness import Done, builtins, checkpoint, cli

from pipeline_kit import load
from pipeline_kit.evaluate.run import require_libraries

sklearn_metrics = pytest.importorskip("sklearn.metrics")

TINY = f"checkpoint.path={checkpoint()}"
REVIEWS = [
    ("a warm, funny and moving film", "POSITIVE"),
    ("one of the best films of the year", "POSITIVE"),
    ("smart, original and beautifully acted", "POSITIVE"),
    ("a delight from beginning to end", "POSITIVE"),
    ("I love this.", "POSITIVE"),
    ("a dull and lifeless mess", "NEGATIVE"),
    ("boring, predictable and far too long", "NEGATIVE"),
    ("the worst film I have seen in years", "NEGATIVE"),
    ("a waste of time and talent", "NEGATIVE"),
    ("I hate it.", "NEGATIVE"),
    ("not funny at all", "POSITIVE"),  # on purpose
    ("a masterpiece", "NEGATIVE"),  # on purpose
]


class Ran(Done):
    """What one evaluation printed."""

    @property
    def report(self) -> Any:
        [line] = self.out.splitlines()
        return json.loads(line)


def evaluate(*argv: object, code: int = 0, stdin: str = "") -> Ran:
    done = cli("evaluate", *argv, stdin=stdin)
    assert "Traceback" not in done.err
    assert done.code == code, done.err
    return Ran(done.code, done.out, done.err)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    return write(tmp_path / "reviews.jsonl", [{"text": text, "label": label} for text, label in REVIEWS])


@pytest.fixture
def poison(tmp_path: Path) -> list[str]:
    source = POISON.replace('"poison" in examples', 'any("poison" in example["text"] for example in examples)')
    (tmp_path / "poison.py").write_text(source.replace('"text": example', '"label": "POSITIVE"'))
    return ["--plugin", str(tmp_path / "poison.py"), "postprocessor=poison"]


def test_the_shipped_checkpoint_on_labelled_reviews(reviews: str, tmp_path: Path) -> None:
    save = tmp_path / "wrong.jsonl"
    report = evaluate("--input", reviews, "--json", "--save", str(save)).report
    gold, texts = [label for _, label in REVIEWS], [text for text, _ in REVIEWS]
    results = load()(texts)
    predicted = [result["label"] for result in results]
    expected = sklearn_metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
    metrics = report["metrics"]
    assert metrics["accuracy"] == pytest.approx(expected["accuracy"])
    assert metrics["accuracy"] >= 0.75
    assert metrics["macro_f1"] == pytest.approx(expected["macro avg"]["f1-score"])
    assert metrics["confusion"]["counts"] == sklearn_metrics.confusion_matrix(gold, predicted).tolist()
    assert metrics["accuracy_interval"][0] < metrics["accuracy"] < metrics["accuracy_interval"][1]
    assert (report["rows"], report["evaluated"], report["failed"], report["truncated"]) == (12, 12, 0, 0)
    assert report["rows_per_second"] == pytest.approx(12 / report["seconds"])
    wrong = [place for place in range(12) if gold[place] != predicted[place]]
    saved = [json.loads(line) for line in save.read_text(encoding="utf-8").splitlines()]
    assert [(row["row"], row["id"]) for row in saved] == [(place, f"reviews.jsonl:{place + 1}") for place in wrong]
    assert wrong
    for row, place in zip(saved, wrong, strict=True):
        assert row["example"] == {"text": texts[place]}
        assert (row["gold"], row["predicted"]) == (gold[place], predicted[place])
        assert row["score"] == pytest.approx(results[place]["score"], abs=1e-5)


def test_tables_are_plain_when_piped(reviews: str) -> None:
    done = evaluate("--input", reviews, TINY)
    assert "\x1b" not in done.out
    lines = [line.split() for line in done.out.splitlines()]
    assert ["label", "precision", "recall", "f1", "support"] in lines
    assert ["label", "\\", "predicted", "NEGATIVE", "POSITIVE"] in lines
    assert any(line[:1] == ["accuracy"] and len(line) == 3 for line in lines)
    assert "12 rows in " in done.out


def test_csv_with_other_columns_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('id,body,stars\n1,"I love\nthis.",5\n2,I hate it.,1\n3,"""x""",1\n', encoding="utf-8")
    flags = ["--input", str(path), "--fields", "text=body", "--label", "stars", "--labels-map", "1=NEGATIVE,5=POSITIVE"]
    save = tmp_path / "wrong.jsonl"
    report = evaluate(*flags, "--json", "--save", str(save), TINY).report
    assert report["rows"] == 3
    assert report["metrics"]["per_label"]["NEGATIVE"]["support"] == 2
    expected = [r["label"] for r in load(TINY)(["I love\nthis.", "I hate it.", '"x"'])]
    pairs = zip(expected, ["POSITIVE", "NEGATIVE", "NEGATIVE"], strict=True)
    assert report["metrics"]["accuracy"] == sum(a == b for a, b in pairs) / 3
    for line in save.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) == {"row", "id", "example", "gold", "predicted", "score"}
        assert row["id"] == ["data.csv:2", "data.csv:4", "data.csv:5"][row["row"]]
    again = evaluate(*flags[:4], "--fields", "label=stars", *flags[-2:], "--json", TINY).report
    assert again["metrics"] == report["metrics"]


def test_numbers_are_ids_and_a_note_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "I love this.", "label": 1}, {"text": "no", "label": 0}])
    report = evaluate("--input", path, "--json", TINY).report
    assert list(report["metrics"]["per_label"]) == ["NEGATIVE", "POSITIVE"]
    assert report["notes"] == ["the labels are numbers and were read as the checkpoint's own: 0=NEGATIVE, 1=POSITIVE"]


def test_stdin_is_kept_for_the_second_reading_and_for_sweeps(reviews: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(reviews).read_text(encoding="utf-8")
    whole = evaluate("--input", reviews, "--json", TINY).report["metrics"]
    flags = ["--input", "-", "--input-format", "jsonl", "--json", TINY]
    assert evaluate(*flags, stdin=text).report["metrics"] == whole
    done = evaluate("-m", "padding=longest,max_length", *flags, stdin=text)
    reports = [json.loads(line) for line in done.out.splitlines()]
    assert [report["metrics"] for report in reports] == [whole, whole]
    assert [report["overrides"][0] for report in reports] == ["padding=longest", "padding=max_length"]


def test_a_sweep_prints_a_row_for_each_combination_and_saves_each(reviews: str, tmp_path: Path) -> None:
    save = tmp_path / "wrong.jsonl"
    done = evaluate("-m", "padding=longest,max_length", "--input", reviews, "--save", str(save), TINY)
    rows = [line for line in done.out.splitlines() if line.strip().startswith("padding=")]
    assert [row.split()[0] for row in rows] == ["padding=longest", "padding=max_length"]
    assert "accuracy" in done.out
    assert "rows/s" in done.out
    assert done.err.count("accuracy") == 2  # told as they come, for a sweep that does not get to its end
    files = [tmp_path / f"wrong.padding={name}.jsonl" for name in ("longest", "max_length")]
    one, other = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert [row["row"] for row in one] == [row["row"] for row in other]
    assert not save.exists()


def test_failed_rows_are_counted_told_and_left_out(tmp_path: Path, poison: list[str]) -> None:
    rows = [{"text": "a", "label": "POSITIVE"}, {"text": "poison", "label": "POSITIVE"}, {"text": "b", "label": 0}]
    path = Path(write(tmp_path / "a.jsonl", rows))
    path.write_text(path.read_text() + '{"text": \n"text alone"\n{"text": "no label"}\n')
    save = tmp_path / "wrong.jsonl"
    done = evaluate("--input", str(path), "--json", "--save", str(save), *poison, TINY, code=1)
    assert (done.report["rows"], done.report["evaluated"], done.report["failed"]) == (6, 2, 4)
    assert done.report["metrics"]["accuracy"] == 0.5
    assert done.report["notes"][0] == "4 rows failed and are not in the metrics"
    for part in ("row 1 failed: postprocessor: ValueError: cannot swallow this", "row 3 failed: input", "row 5 failed"):
        assert part in done.err
    [saved] = [json.loads(line) for line in save.read_text().splitlines()]
    assert (saved["row"], saved["id"], saved["gold"]) == (2, "a.jsonl:3", "NEGATIVE")


def test_all_rows_failed(tmp_path: Path, poison: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "poison", "label": "POSITIVE"}] * 22)
    done = evaluate("--input", path, "--json", *poison, TINY, code=1)
    assert (done.report["evaluated"], done.report["failed"], done.report["metrics"]) == (0, 22, {})
    assert done.report["notes"] == ["no row gave a result, so there is nothing to measure"]
    assert "... and 2 more rows failed" in done.err
    table = evaluate("--input", path, *poison, TINY, code=1)
    assert "22 rows, 22 failed" in table.out
    assert "nothing to measure" in table.out
    assert "nothing to measure" in evaluate("-m", "--input", path, *poison, TINY, code=1).out


def test_cut_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "word " * 100, "label": "POSITIVE"}, {"text": "word", "label": "NEGATIVE"}]
    done = evaluate("--input", write(tmp_path / "a.jsonl", rows), TINY)
    assert "2 rows, 1 truncated in " in done.out


def test_unicode_labels(tmp_path: Path) -> None:
    folder = checkpoint(labels=["très négatif", "とても良い"])
    rows = [{"text": "I love this.", "label": "とても良い"}, {"text": "no", "label": "tre\u0300s ne\u0301gatif"}]
    done = evaluate("--input", write(tmp_path / "a.jsonl", rows), f"checkpoint.path={folder}")
    assert "とても良い" in done.out


def refused(*argv: object) -> str:
    done = evaluate(*argv, code=2)
    assert done.out == ""
    return str(done.err)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the input has no row to evaluate"),
        ("\n\n", "the input has no row to evaluate"),
        ('{"text": "a", "lable": "POSITIVE"}\n', "Did you mean 'lable'?"),
        ('{"text": "a"}\n{\n', "'label' is missing"),
        ('"a"\n', "is a text alone"),
        (
            '{"text": "a", "label": "POSITIVE"}\n\n{"text": "a", "label": "POSITVE"}\n',
            "a.jsonl:3: the label 'POSITVE'",
        ),
        ('{"text": "a", "label": ["POSITIVE"]}\n', "postprocessor.function=sigmoid"),
        (
            '{"text": "a", "label": "POSITIVE"}\n{"text": "a", "label": ["POSITIVE"]}\n',
            "a.jsonl:2: the label is a list",
        ),
    ],
)
def test_files_that_cannot_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, problem: str
) -> None:
    monkeypatch.setattr("pipeline_kit.compose.build.build", lambda *_: pytest.fail("the model is not loaded for this"))
    (tmp_path / "a.jsonl").write_text(content)
    assert problem in refused("--input", str(tmp_path / "a.jsonl"), TINY)


def test_a_table_without_the_label_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,labels\na,POSITIVE\n")
    error = refused("--input", str(tmp_path / "a.csv"), TINY)
    assert "a.csv: 'label' is missing; there are: text, labels. Did you mean 'labels'?" in error
    (tmp_path / "b.csv").write_text("text,label\n")
    assert "no row to evaluate" in refused("--input", str(tmp_path / "b.csv"), TINY)


def test_without_the_extra_it_says_what_to_install(reviews: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("pipeline_kit.evaluate.run.find_spec", lambda name: None if name == "sklearn" else find(name))
    assert "needs scikit-learn, which is not installed: pip install 'pipeline-kit[evaluate]'" in refused(
        "--input", reviews
    )
    monkeypatch.undo()
    require_libraries()


def test_another_postprocessor_is_named_in_the_error(reviews: str) -> None:
    done = evaluate("--input", reviews, TINY, "postprocessor=logits", code=1)
    assert "judged by their 'label', and this postprocessor returns labels, logits" in done.err


def test_memory_holds_no_rows() -> None:
    """No more rows wait than the pipeline has taken and not yet answered."""
    from pipeline_kit.builtin.tasks.classification.metrics import classification_evaluator
    from pipeline_kit.contract.evaluator import EvaluationContext
    from pipeline_kit.evaluate.run import labelled, run
    from pipeline_kit.files.read.source import SourceRow

    alive: list[int] = []

    class Echo:
        def judged_results(self, examples: Any, stats: Any = None) -> Any:
            for example in examples:
                alive.append(taken[0] - example["text"])
                yield {"label": "a", "score": 1.0}

    taken = [0]

    def records() -> Any:
        for number in range(1000):
            taken[0] = number
            yield SourceRow(number, f"f:{number}", {"text": number, "label": "a"}, {})

    evaluator = classification_evaluator(EvaluationContext("text-classification", ("a", "b"), first="a"))
    pipeline: Any = Echo()
    counts = run(pipeline, labelled(records()), evaluator)
    assert (counts.rows, counts.failed, max(alive)) == (1000, 0, 0)


TEXTS = ["I love this.", "I hate it.", "a film of the year", "not so good"]


def task_folder(head: str, **more: Any) -> str:
    return f"checkpoint.path={checkpoint(head=head, **more)}"


def test_lists_of_labels_from_end_to_end(tmp_path: Path) -> None:
    names = ["joy", "anger", "fear"]
    where = task_folder("sequence-classification", labels=names, problem_type="multi_label_classification", seed=3)
    gold = [["joy"], [], ["anger", "fear"], ["fear"]]
    path = write(tmp_path / "a.jsonl", [{"text": t, "label": g} for t, g in zip(TEXTS, gold, strict=True)])
    report = evaluate("--input", path, "--json", "--threshold", "0.4", where).report
    results = load(where, "postprocessor.top_k=null")(TEXTS)
    found = [{item["label"] for item in result["labels"] if item["score"] >= 0.4} for result in results]
    hits = sum(len(set(g) & f) for g, f in zip(gold, found, strict=True))
    total = sum(map(len, gold)) + sum(map(len, found))
    assert report["metrics"]["micro_f1"] == pytest.approx(2 * hits / total)
    assert report["metrics"]["exact_match"] == sum(set(g) == f for g, f in zip(gold, found, strict=True)) / 4


def test_regression_and_pairs_of_texts_from_end_to_end(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    gold = [1.0, 2.5, 0.5, 4.0]
    where = task_folder("sequence-classification", labels=["LABEL_0"], problem_type="regression")
    path = write(tmp_path / "a.jsonl", [{"text": t, "label": g} for t, g in zip(TEXTS, gold, strict=True)])
    save = tmp_path / "all.jsonl"
    report = evaluate("--input", path, "--json", "--save", str(save), where).report
    scores = [result["score"] for result in load(where)(TEXTS)]
    assert report["metrics"]["pearson"] == pytest.approx(numpy.corrcoef(gold, scores)[0, 1], abs=1e-4)
    assert len(save.read_text().splitlines()) == 4  # a score is neither right nor wrong

    pairs = [{"text": t, "text_pair": TEXTS[0], "label": g} for t, g in zip(TEXTS, gold, strict=True)]
    path = write(tmp_path / "b.jsonl", pairs)
    where = f"checkpoint.path={checkpoint(head='base')}"
    report = evaluate("--input", path, "--json", "task=sentence-embedding", where).report
    vectors = numpy.array([result["embedding"] for result in load("task=sentence-embedding", where)(TEXTS)])
    cosines = vectors @ vectors[0]
    assert report["metrics"]["pearson"] == pytest.approx(numpy.corrcoef(gold, cosines)[0, 1], abs=1e-4)
    assert report["rows"] == 4


def test_a_pair_of_which_one_text_fails_is_one_failed_row(tmp_path: Path) -> None:
    rows = [{"text": "a", "text_pair": pair, "label": number} for number, pair in enumerate(["b", 3, "c", "dog"])]
    where = f"checkpoint.path={checkpoint(head='base')}"
    path = write(tmp_path / "a.jsonl", rows)
    done = evaluate("--input", path, "--json", "task=sentence-embedding", where, code=1)
    assert (done.report["rows"], done.report["evaluated"], done.report["failed"]) == (4, 3, 1)
    assert "row 1 failed" in done.err


def test_entities_from_end_to_end(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    where = task_folder("token-classification", labels=names)
    flags = ["task=ner", where]
    results = load(*flags)(TEXTS)
    gold = [
        [{"start": e["start"], "end": e["end"], "label": e["label"]} for e in result["entities"]] for result in results
    ]
    assert any(gold)
    path = write(tmp_path / "a.jsonl", [{"text": t, "label": g} for t, g in zip(TEXTS, gold, strict=True)])
    report = evaluate("--input", path, "--json", *flags).report
    assert (report["metrics"]["micro_f1"], report["metrics"]["rows_right"]) == (1.0, 1.0)
    words = [text.split() for text in TEXTS]
    path = write(tmp_path / "b.jsonl", [{"words": w, "label": ["B-PER", *["O"] * (len(w) - 1)]} for w in words])
    report = evaluate("--input", path, "--json", "postprocessor.aggregation=first", *flags).report
    assert report["metrics"]["per_label"]["PER"]["support"] == 4
    assert "simple" in refused("--input", path, "postprocessor.aggregation=none", *flags)


def test_answers_from_end_to_end(tmp_path: Path) -> None:
    where = task_folder("question-answering")
    examples = [{"question": "Where?", "context": context} for context in TEXTS]
    results = load("task=question-answering", where)(examples)
    rows = [
        {**e, "label": {"text": [r["answer"]], "answer_start": [0]}} for e, r in zip(examples, results, strict=True)
    ]
    rows[0]["label"] = []
    report = evaluate("--input", write(tmp_path / "a.jsonl", rows), "--json", "task=question-answering", where).report
    assert (report["metrics"]["answerable_f1"], report["metrics"]["exact_match"]) == (1.0, 0.75)
    assert "handle_impossible_answer=true" in report["notes"][0]


def test_the_other_tasks_from_end_to_end(tmp_path: Path) -> None:
    def run(task: str, head: str, rows: list[Any], *more: str, **config: Any) -> dict[str, Any]:
        folder = checkpoint(head=head, **config)
        path = write(tmp_path / f"{task}.jsonl", rows)
        found = evaluate("--input", path, "--json", f"task={task}", f"checkpoint.path={folder}", *more).report
        assert (found["rows"], found["failed"]) == (len(rows), 0)
        return dict(found["metrics"])

    nli = ["contradiction", "neutral", "entailment"]
    rows: list[Any] = [{"text": text, "label": "sport"} for text in TEXTS]
    labels = "postprocessor.labels=[sport,art]"
    found = run("zero-shot-classification", "sequence-classification", rows, labels, labels=nli)
    assert found["per_label"]["sport"]["support"] == 4
    masked = [{"text": "a [MASK] film", "label": "good"}]
    assert run("fill-mask", "masked-lm", masked)["masks"] == 1
    rows = [{"text": text, "choices": ["good", "bad"], "label": 1} for text in TEXTS]
    assert 0 <= run("multiple-choice", "multiple-choice", rows)["accuracy"] <= 1
    rows = [{"query": text, "documents": TEXTS, "label": [1, 0, 0, 0]} for text in TEXTS]
    cut = "postprocessor.top_k=1"
    ranked = run("text-ranking", "sequence-classification", rows, cut, labels=["LABEL_0"])
    assert 0.25 <= ranked["mrr"] <= 1  # all documents are ranked, though the results would list one
    rows = [{"text": text, "label": "x"} for text in TEXTS[:2]]
    written = run("text2text-generation", "seq2seq-lm", rows, "model.generation.max_new_tokens=3", architecture="t5")
    assert written["exact_match"] == 0.0


def test_every_task_of_the_package_is_evaluated_or_known_not_to_be() -> None:
    tasks = {spec.detail.name for spec in builtins().specs("task")}
    assert tasks - {spec.name for spec in builtins().specs("evaluator")} == {"feature-extraction"}


# What is evaluated, and how its rows are named, is chosen by the same options as those of ``run``.


@pytest.fixture
def keyed(tmp_path: Path) -> list[str]:
    rows = [{"key": f"r{i}", "body": f"text {i}", "label": "POSITIVE" if i % 2 else "NEGATIVE"} for i in range(12)]
    return ["--input", write(tmp_path / "in.jsonl", rows), "--json", "--quiet", TINY]


def saved(path: Path) -> list[tuple[str, int]]:
    return [(row["id"], row["row"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize("field", [["input.fields.text=body"], ["--fields", "text=body"]])
def test_rows_are_chosen_and_saved_with_their_ids(keyed: list[str], tmp_path: Path, field: list[str]) -> None:
    flags = [*keyed, *field, "--save", str(tmp_path / "wrong.jsonl")]
    assert evaluate(*flags, "input.id=key").report["rows"] == 12
    wrong = saved(tmp_path / "wrong.jsonl")
    assert 0 < len(wrong) < 12
    assert all(id == f"r{row}" for id, row in wrong)
    assert evaluate(*flags, "input.id=key", "input.skip=3", "input.limit=6").report["rows"] == 6
    assert saved(tmp_path / "wrong.jsonl") == [pair for pair in wrong if 3 <= pair[1] < 9]
    assert evaluate(*flags, "input.shard=1/4").report["rows"] == 3
    assert saved(tmp_path / "wrong.jsonl") == [(f"in.jsonl:{row + 1}", row) for _, row in wrong if row % 4 == 1]


def test_the_format_may_be_an_option_and_rows_may_be_swept(keyed: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.dat").write_text("text,label\nx,POSITIVE\n")
    assert "a line of text has no label" in refused("--input", str(tmp_path / "in.dat"), "input.format=text")
    done = evaluate(*keyed, "input.fields.text=body", "-m", "input.limit=2,5")
    assert [json.loads(line)["rows"] for line in done.out.splitlines()] == [2, 5]
