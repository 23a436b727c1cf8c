"""Metrics of a counterfactual set, one per file. Each file names its columns in `Options`."""
