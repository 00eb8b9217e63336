# What CI checks, in an existing .venv. `.ci/run` does the same, and more, from nothing.
.PHONY: check lint test
SHELL := bash

check: lint test

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q tests/system/test_layers.py

# The command behind `<!-- test -->` in README.md.
test:
	bash -euo pipefail -c "$$(awk '/^<!-- test -->$$/ { found = 1; next } found && /^```/ { if (inside) exit; inside = 1; next } inside' README.md)"
