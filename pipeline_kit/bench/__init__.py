"""Measures pipelines: sides take turns on the same texts."""
