"""Keeps transformers from writing to a user's terminal while a model is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

_turn, _silence = Lock(), ExitStack()
_inside = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' log, its progress bars and Python warnings in the body; put all back after it.

    Threads may be in the body at once: the last one to leave puts all back.
    """
    global _inside
    with _turn:
        _inside += 1
        if _inside == 1:
            _silence.enter_context(_silenced())
    try:
        yield
    finally:
        with _turn:
            _inside -= 1
            if not _inside:
                _silence.close()


@contextmanager
def _silenced() -> Iterator[None]:
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
