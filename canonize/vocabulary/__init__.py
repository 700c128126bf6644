"""What an operator is, and which may be named by a file."""
