"""What each command does once its arguments are read; ``cli.py`` says what can be asked."""
