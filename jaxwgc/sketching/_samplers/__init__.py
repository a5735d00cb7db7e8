"""Samplers of parts and rows by given probabilities."""
