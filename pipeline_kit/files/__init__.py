"""Bytes in and bytes out. Nothing here knows of models."""
