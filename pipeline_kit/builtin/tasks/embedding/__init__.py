"""Vectors for texts and tokens."""
