"""Rows from files, streams and Python objects."""
