"""Counterlens: reproducible visual counterfactual explanations."""

__version__ = "0.2.0"
