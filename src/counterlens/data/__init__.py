"""Datasets (one per file), the fetcher, the preparation step and the named weights."""
