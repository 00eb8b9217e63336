"""How good a pipeline is: its results held against the labels of a file."""
