"""The proof of the container stack; started by tests/compose/run, not by pytest."""
