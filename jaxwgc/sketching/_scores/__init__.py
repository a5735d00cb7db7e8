"""Leverage scores: exact, approximate, with a ridge, and in other norms."""
