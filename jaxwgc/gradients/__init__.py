"""Contributions of parts to the decoded sum: gradients of a loss, or local steps."""

from jaxwgc.gradients._gradients import decoded_value_and_grad, partial_value_and_grad
from jaxwgc.gradients._local_steps import local_steps

__all__ = ["decoded_value_and_grad", "local_steps", "partial_value_and_grad"]
