"""Helpers for all modules: arrays, pytrees, checks of arguments and text."""
