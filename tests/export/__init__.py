"""Export: what is written, in every format."""
