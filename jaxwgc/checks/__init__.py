"""Checks for mistakes that raise no error in training."""

from jaxwgc.checks._check_step import StepReport, check_step

__all__ = ["StepReport", "check_step"]
