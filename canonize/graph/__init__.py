"""A model while it is worked on: the graph of named modules, and the shapes of its values."""
