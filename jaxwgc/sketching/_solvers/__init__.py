"""Least squares and Newton's method by sketches."""
