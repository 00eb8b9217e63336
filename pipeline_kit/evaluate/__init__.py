"""Measures how good a pipeline is: reads labels, compares results with them, reports metrics."""
