"""Every deliberate difference from transformers.pipeline(), in one list; each is proved by the test that it names.

The proofs stand in ``test_differences_TASK.py``: they work the right answer out from the model's raw output, or show
the error that transformers raises. A difference without a proof, or a proof that is not listed, fails here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
DIFFERENCES: dict[str, dict[str, str]] = {
    "feature-extraction": {
        "there_is_one_vector_a_token_and_none_for_padding": "theirs has rows of padding, unmarked",
        "the_padding_rows_of_transformers_are_not_those_of_the_text": "theirs has more rows in a batch than alone",
        "special_tokens_can_be_left_out": "theirs always has them, and does not say where",
        "a_long_text_is_cut_and_says_so": "theirs fails inside the network",
        "a_long_text_can_be_read_to_its_end": "theirs has no windows",
        "no_texts_give_no_results": "theirs raises IndexError",
        "one_text_gives_one_result": "theirs puts a list around it",
    },
    "fill-mask": {
        "one_mask_gives_a_list_of_lists_too": "theirs changes shape with the number of masks",
        "the_text_is_the_users": "theirs loses case, white space and accents",
        "a_target_is_a_word_not_a_vocabulary_entry": "theirs takes a target without its space",
        "a_target_of_several_tokens_is_refused": "theirs scores its first piece",
        "an_unknown_target_is_refused": "theirs scores the unknown token",
        "a_mask_that_is_cut_off_is_an_error": "theirs leaves it out",
        "more_tokens_than_there_are": "theirs fails",
    },
    "question-answering": {
        "a_score_does_not_depend_on_how_many_answers_are_listed": "theirs adds up only the best few spans",
        "a_score_is_a_probability_however_many_windows_have_the_answer": "theirs adds windows up, beyond 1",
        "the_padding_side_does_not_change_what_may_be_an_answer": "theirs lets the question take part",
        "us_is_not_us": "theirs adds up answers that differ in case",
        "there_are_no_answers_but_spans_of_the_context": "theirs lists spans that end before they begin",
        "a_special_token_in_the_question_is_a_part_of_the_question": "theirs lets it be part of an answer",
        "words_are_whole_where_a_window_cuts_them": "theirs gives half a word",
        "an_answer_has_no_white_space_at_its_ends": "theirs has the space of a byte-level token",
        "accents_belong_to_the_letter_before": "theirs loses an accent at the end",
        "a_tokenizer_without_special_tokens_has_answers_in_every_window": "theirs looks at the first window only",
    },
    "text-classification": {
        "the_shape_does_not_depend_on_the_options": "theirs nests with top_k",
        "a_pair_has_the_shape_that_a_text_has": "theirs gives a dict for a mapping, a list for a string",
        "no_texts_give_no_results": "theirs raises IndexError",
        "a_long_text_is_cut_and_says_so": "theirs fails, or cuts without a word",
        "a_long_text_can_be_read_to_its_end": "theirs has no windows",
        "an_option_that_is_not_there_is_refused": "theirs ignores it",
        "a_wrong_function_names_the_right_ones": "theirs says KeyError",
        "a_field_that_is_not_there_is_refused": "theirs ignores it",
        "two_texts_in_a_tuple_are_two_texts": "theirs fails",
        "a_bad_row_does_not_take_the_others_with_it": "theirs gives nothing at all",
        "the_function_is_that_of_the_problem_type": "the same in both: problem_type decides first",
    },
    "text-generation": {
        "the_text_is_what_was_written": "theirs repeats the prompt",
        "a_checkpoint_that_says_nothing_is_not_drawn_from": "theirs draws at a temperature of 0.7",
        "a_draw_does_not_depend_on_the_batch": "theirs shares one generator",
        "a_long_prompt_leaves_room_and_says_so": "theirs runs past the positions",
        "a_stop_string_is_not_part_of_the_text": "theirs keeps it",
        "an_option_without_effect_is_an_error": "theirs warns at most",
        "a_task_keeps_its_own_length": "theirs writes 256 tokens all the same",
        "a_blank_prompt_is_an_error": "theirs carries it on from nothing",
        "min_length_does_not_count_padding": "theirs counts it",
    },
    "token-classification": {
        "text_is_a_slice_of_the_source_without_white_space": "theirs is decoded from tokens",
        "a_character_of_several_tokens_is_in_one_entity": "theirs gives overlapping ones",
        "a_long_text_is_never_cut_in_silence": "theirs drops the rest",
        "a_full_stop_is_no_part_of_the_word": "theirs makes it one, for some tokenizers",
        "a_line_break_separates_words": "theirs does not let it",
        "the_blank_before_a_word_belongs_to_it": "theirs takes it for a word",
        "words_are_not_told_by_the_length_of_tokens": "theirs compares lengths",
        "a_list_of_words_is_the_words": "theirs splits them again",
        "a_hyphen_in_a_label_is_no_prefix": "theirs drops all before it",
        "the_schemes_with_e_and_s": "theirs knows B- and I- only",
        "ignore_labels_with_a_prefix_is_an_error": "theirs does nothing then",
    },
    "zero-shot-classification": {
        "contradiction_is_found_by_its_name": "theirs takes the first label or the last for it",
        "large_logits_give_numbers": "theirs gives NaN",
        "equal_labels_keep_their_order": "theirs turns it around",
        "a_doubled_label_is_refused": "theirs lets it take from the others",
        "a_checkpoint_without_entailment_is_refused": "theirs takes the last label",
        "cut_texts_say_so": "theirs cuts without a word",
        "blank_texts_are_refused": "theirs scores them",
    },
}
"""By task: the proving test without its ``test_``, and what transformers does instead."""


def proofs(task: str) -> dict[str, str | None]:
    """The tests of a task's file and their docstrings."""
    source = next(HERE.rglob(f"test_differences_{task.replace('-', '_')}.py")).read_text(encoding="utf-8")
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {n.name.removeprefix("test_"): ast.get_docstring(n) for n in found if n.name.startswith("test_")}


def test_every_file_of_proofs_is_listed() -> None:
    files = {path.stem.removeprefix("test_differences_") for path in HERE.rglob("test_differences_*.py")}
    assert files == {task.replace("-", "_") for task in DIFFERENCES}


@pytest.mark.parametrize("task", DIFFERENCES)
def test_every_difference_has_its_proof_and_its_place_in_the_docs(task: str) -> None:
    found = proofs(task)
    assert set(found) == set(DIFFERENCES[task])
    assert [name for name, text in found.items() if not text] == [], "say what transformers does, and why ours is right"
    page = (HERE.parent / "docs" / "tasks" / f"{task}.md").read_text(encoding="utf-8")
    assert "## Where results differ" in page
