"""The YAML that composes a pipeline; importable so that wheels carry it."""
