"""Sketching measured: `python -m experiments sketching`, a module a section."""

from experiments.sketching.command import sketching

__all__ = ["sketching"]
