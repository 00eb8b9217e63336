"""Entities in a text."""
