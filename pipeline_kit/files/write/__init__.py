"""Rows to files: JSON lines, CSV and Parquet, as one file or as shards."""
