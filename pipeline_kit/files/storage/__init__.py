"""Where files lie: folders of this machine, object stores, and what plugins add."""
