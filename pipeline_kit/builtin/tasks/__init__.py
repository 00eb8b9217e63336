"""The built-in tasks: a folder each, with its postprocessor, metrics and panels."""
