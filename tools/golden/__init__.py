"""Answers of transformers 4 for tasks without a pipeline in transformers 5, kept as JSON in tests/golden."""
