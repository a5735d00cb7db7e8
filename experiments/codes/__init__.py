"""All codes compared: `python -m experiments codes`, a module a section."""

from experiments.codes.command import codes

__all__ = ["codes"]
