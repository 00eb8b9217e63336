"""What the comparisons share: checkpoints, texts, sides, the measurement and its result."""
