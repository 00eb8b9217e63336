"""Answers that transformers 4 gives for tasks that transformers 5 has no pipeline for, kept as JSON in tests/golden."""
