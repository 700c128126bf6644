"""Data with ground truth: readers for what people have, and two sets that are generated anywhere in seconds."""
