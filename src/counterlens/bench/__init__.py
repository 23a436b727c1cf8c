"""What a counterfactual costs, beside the least that it could cost."""
