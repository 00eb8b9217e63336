"""Measuring pipelines: several take turns on the same texts, and every figure says what it was taken from."""
