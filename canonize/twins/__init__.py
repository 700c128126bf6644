"""Copies of a model to run in its place: they share its weights, or hold them in float64; none writes to it."""
