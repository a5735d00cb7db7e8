"""Helpers for all modules: arrays, pytrees, argument checks and text."""
