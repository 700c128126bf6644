"""One test file a pattern: what it folds, what it refuses and why, what it leaves alone, and its identity in symbols."""
