"""A conversation with a run's model on a terminal, or with questions from a file."""
