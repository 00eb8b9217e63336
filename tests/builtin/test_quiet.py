"""Silence around transformers, which threads may ask for at once."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

import pytest

from pipeline_kit.builtin.quiet import quiet


def test_the_last_one_to_leave_puts_all_back() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)
    one, two = ExitStack(), ExitStack()
    one.enter_context(quiet())
    two.enter_context(quiet())
    one.close()
    warnings.warn("nobody sees this", stacklevel=1)
    assert logging.get_verbosity() == logging.CRITICAL
    two.close()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)) == before
    with pytest.raises(UserWarning):
        warnings.warn("somebody does again", stacklevel=1)
