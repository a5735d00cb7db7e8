"""Corrupted messages: detection, location and correction."""
