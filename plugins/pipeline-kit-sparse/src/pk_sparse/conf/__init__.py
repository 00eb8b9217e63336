"""Presets; Hydra finds them through this file."""
