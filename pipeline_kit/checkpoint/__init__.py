"""From a path or hub id to a model folder that was found, checked and parsed."""
