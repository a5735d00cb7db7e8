"""Checks for mistakes that raise no error in training."""

from jaxwgc.checks._check_step import check_step

__all__ = ["check_step"]
