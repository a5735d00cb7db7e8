"""Catalogue of what the library has: a row per public constructor drives shared tests.

A file per protocol. `test_complete.py` names the constructors without a row.
"""
