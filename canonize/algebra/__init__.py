"""Affines, weights and exact values: the algebra on tensors, which knows no graph."""
