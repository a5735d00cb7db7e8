"""Ringmaster: a rule that drops stale gradients."""

import dataclasses
from typing import Any

from jaxwgc._common import validation
from jaxwgc._common.pytrees import Static, register
from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule, Decision


@register
@dataclasses.dataclass(frozen=True)
class ringmaster(AsynchronousRule):
    """Applies gradients of staleness below a threshold, and drops other gradients.

    Args:
      threshold: Staleness R from which gradients are dropped, at least 1. With 1, only
        gradients of the newest parameters count.
      stops: Whether workers whose staleness reaches the threshold are stopped, and
        begin anew with the newest parameters. If not, they complete a gradient that
        will be dropped.

    Raises:
      ValueError: If threshold is below 1.
      TypeError: If threshold is not an int, or stops is not a bool.

    Example:
      >>> from jaxwgc import asynchronous
      >>> asynchronous.ringmaster(threshold=8, stops=True)
      ringmaster(threshold=8, stops=True)

    References:
      Maranjyan, Tyurin, Richtárik, "Ringmaster ASGD: the first asynchronous SGD with
      optimal time complexity", ICML 2025 (arXiv 2501.16168; algorithm 4, and 5 with
      stops).
    """

    threshold: Static[int]
    stops: Static[bool] = False

    def __post_init__(self):
        validation.check_int("threshold", self.threshold, minimum=1)
        validation.check_bool("stops", self.stops)

    def decide(self, arrival: Arrival, state: Any) -> tuple[Decision, Any]:
        """Decides to update unless staleness is too large; returns also the state."""
        is_update = arrival.staleness[arrival.worker] < self.threshold
        restarts = arrival.is_worker
        if self.stops:
            staleness = arrival.staleness + is_update
            restarts |= staleness >= self.threshold
        return Decision(is_update, arrival.gradient, restarts), state
