"""Every task gives what transformers gives one example at a time, whatever the batch, the order and the padding.

parity_tasks.py has the checkpoints, the examples and when two answers are equal. Question answering and texts from
texts are compared with recorded answers, in test_parity_question_answering.py and test_parity_text2text.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity_helpers import RIGHT, Case, check_any_order, with_options
from parity_tasks import CASES, PREFIXED

from pipeline_kit import Pipeline
from pipeline_kit.runtime.batching import BatchingPolicy

BY_TASK = {case.parity.task: case.parity for case in CASES}
FEW = [case for task in BY_TASK for case in [case for case in CASES if case.parity.task == task][::5][:3]]


@dataclass(frozen=True)
class Built:
    """A pipeline on a case's checkpoint, and the reference with its answers."""

    case: Case
    folder: Any
    pipe: Pipeline
    reference: Any
    wanted: list[Any]

    def close(self, result: Mapping[str, Any], wanted: Any) -> bool:
        return self.case.parity.close(self.case.parity.read(result), wanted)


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case: Case = request.param
    parity, folder = case.parity, case.folder(tmp_path_factory.mktemp("parity"))
    reference = parity.reference(case, folder)
    wanted = [parity.expected(reference, example, **parity.theirs) for example in parity.texts(case)]
    return Built(case, folder, parity.pipe(case, folder, **parity.ours), reference, wanted)


def test_any_batch_order_and_padding(built: Built) -> None:
    case, pipe = built.case, built.pipe
    assert pipe.model.safe_padding_sides == case.sides
    assert pipe.padding.name == ("longest" if case.sides and pipe.tokenizer.pad_token_id is not None else "none")
    assert case.parity.differ(built.wanted)
    check_any_order(pipe, case.parity.texts(case), built.wanted, built.close)


def test_as_it_comes_one_at_a_time_and_with_other_options(built: Built) -> None:
    """The first two for a few checkpoints of each task: they are ways to batch, too."""
    parity, examples = built.case.parity, built.case.parity.texts(built.case)
    for results in (built.pipe(list(examples)), map(built.pipe, examples)) if built.case in FEW else ():
        for example, result, wanted in zip(examples, results, built.wanted, strict=True):
            assert built.close(result, wanted), example
            parity.check(example, result)
    for ours, theirs, some in parity.variants(built.case, built.reference):
        results = with_options(parity.task, built.pipe, built.folder, **ours)(list(some))
        for example, result in zip(some, results, strict=True):
            assert built.close(result, parity.expected(built.reference, example, **theirs)), (ours, example)
    parity.check_more(built.case, built.pipe, built.wanted)


WORDS = ["love", "hate", "this", "movie", "not", "bad", "Paris", "</s>", "[PAD]", "<|endoftext|>", "[SEP]", "zq", "漢"]
MORE = ["U.N.", "2024", "漢字", "😀", "हिन्दी", "שלום", "e\u0301", "\n", " ", "…", *WORDS]


SHORT = [word for word in WORDS if len(word) < 6]


def some_text(words: list[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=most).map(" ".join)


A_TEXT = some_text(WORDS, 20)
EXAMPLES: dict[str, st.SearchStrategy[Any]] = {
    "text-classification": st.one_of(A_TEXT, st.builds(lambda a, b: {"text": a, "text_pair": b}, A_TEXT, A_TEXT)),
    "token-classification": some_text(MORE, 30),
    "multiple-choice": st.builds(
        lambda a, b: {"text": a, "choices": b},
        some_text(SHORT, 6),
        st.lists(some_text(SHORT, 6), min_size=2, max_size=5),
    ),
    "text-generation": some_text(WORDS, 20),
}
INVARIANT = [
    ("text-classification", "nystromformer", {}),
    ("text-classification", "gpt2", {"pad_token": "<|endoftext|>", "padding_side": "left"}),
    ("token-classification", "roberta", {"labels": PREFIXED}),
    *(("multiple-choice", name, {}) for name in ("bert", "roformer")),
    ("text-generation", "llama", {"seed": 2}),
]


@pytest.fixture(scope="module", params=INVARIANT, ids=lambda asked: "-".join(map(str, asked)))
def invariant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Pipeline]:
    task, architecture, options = request.param
    case = Case(BY_TASK[task], architecture, RIGHT, options)
    folder = case.folder(tmp_path_factory.mktemp("invariant"))
    ours = {"aggregation": "average"} if task == "token-classification" else {}
    return case, case.parity.pipe(case, folder, **case.parity.ours, **ours)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data(), rows=st.integers(1, 9), sort=st.booleans())
def test_an_answer_does_not_depend_on_its_batch(
    invariant: tuple[Case, Pipeline], data: st.DataObject, rows: int, sort: bool
) -> None:
    case, pipe = invariant
    examples = data.draw(st.lists(EXAMPLES[case.parity.task], min_size=1, max_size=6))
    alone = [pipe([example])[0] for example in examples]
    together = replace(pipe, batching=BatchingPolicy(sort, None, rows, 64))(examples)
    for example, result, single in zip(examples, together, alone, strict=True):
        assert case.parity.close(case.parity.read(result), case.parity.read(single)), example
        case.parity.check(example, result)
