"""Algorithms for the location of corrupted messages."""
