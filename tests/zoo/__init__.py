"""Small hard models, one file a theme; `tests.models` gathers them."""
