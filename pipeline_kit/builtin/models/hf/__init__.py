"""``model=hf``: a transformers network with the head of the task."""
