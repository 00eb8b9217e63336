"""Command line: ``python -m tools.golden TASK ...``; each task's module says what follows."""

from __future__ import annotations

import importlib
import sys

TASKS = {"question-answering": "question_answering", "text2text": "text2text"}
"""By task: the module here whose ``main`` takes the rest of the command line."""


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TASKS:
        sys.exit(f"usage: python -m tools.golden TASK ...; the tasks are: {', '.join(sorted(TASKS))}")
    importlib.import_module(f"tools.golden.{TASKS[sys.argv[1]]}").main(sys.argv[2:])
