"""What the postprocessors of several tasks share."""
