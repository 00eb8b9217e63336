"""``model=generate``: a transformers network that writes text."""
