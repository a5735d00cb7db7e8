"""Checks of a training step, for mistakes that raise no error."""

from jaxwgc.checks._check_step import check_step

__all__ = ["check_step"]
