"""Solvers for least squares and convex losses by sketches."""
