"""Speed and accuracy: `python -m experiments benchmark`, a module a section."""

from experiments.benchmark.command import benchmark

__all__ = ["benchmark"]
