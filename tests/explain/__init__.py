"""Heatmaps: what rule-based explainers make of a canonical model."""
