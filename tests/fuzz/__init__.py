"""Mutated model files: whatever is in them, loading gives a module or a refusal."""
