"""Trains the small sentiment classifiers that ship inside the package.

Run it with ``python -m tools.train_tiny_sentiment --help``.
"""
