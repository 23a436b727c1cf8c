"""Ways to make counterfactuals: one method per file."""
