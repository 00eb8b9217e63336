"""Tokens for masks."""
