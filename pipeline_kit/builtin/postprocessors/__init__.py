"""Built-in postprocessors."""
