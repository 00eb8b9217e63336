"""What a stage author signs: data, interfaces, options, names. Nothing here runs a pipeline."""
