"""Runs three built stages over a stream of examples."""
