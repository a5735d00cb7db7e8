"""Mistakes that stay silent in training, looked for before it starts."""

from jaxwgc.checks._check_step import StepReport, check_step

__all__ = ["StepReport", "check_step"]
