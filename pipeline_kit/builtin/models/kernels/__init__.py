"""Faster ways to compute a network: packed and int8 linear layers, compiled graphs."""
