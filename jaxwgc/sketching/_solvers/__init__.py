"""Sketching solvers for least squares and for convex losses."""
