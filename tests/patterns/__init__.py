"""One test file a pattern: what it folds, refuses and why, leaves alone; and its identity, proven for symbols."""
