"""Samplers of rows by given probabilities."""
