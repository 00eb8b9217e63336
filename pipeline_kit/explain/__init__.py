"""Shows what happens inside a pipeline: a recording first, views of it after."""
