"""Answers of one base model with many adapters, to many at once."""
