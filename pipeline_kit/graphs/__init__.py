"""Checkpoints as graphs of another runtime: exported once, compared with the network, kept in a cache."""
