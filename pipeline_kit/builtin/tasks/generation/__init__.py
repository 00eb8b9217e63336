"""Written text."""
