"""Leverage scores of every kind."""
