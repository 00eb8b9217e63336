"""Labels for a text, and raw logits."""
