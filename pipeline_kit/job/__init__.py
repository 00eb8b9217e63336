"""Durable jobs: files in, a folder of shards out, every row exactly once."""
