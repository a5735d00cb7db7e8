"""Laws of finish times on the host, in float64: how likely longer times are."""

from typing import Any, NamedTuple

import numpy as np

from jaxwgc.stragglers._types import Law

# Each halves an interval, so that nothing is left of it in float64.
_BISECTIONS = 60


def scipy(name: str, location: Any, scale: Any, *shape: Any) -> Law:
    """One of `scipy.stats`, which takes a second to import."""
    from scipy import stats

    return getattr(stats, name)(*shape, loc=location, scale=scale)


class Constant(NamedTuple):
    """Always the same time."""

    time: Any

    def sf(self, x: Any) -> np.ndarray:
        """One before it, zero from it on."""
        return np.where(np.asarray(x) < self.time, 1.0, 0.0)

    def isf(self, q: Any) -> np.ndarray:
        """The time itself."""
        return np.broadcast_to(self.time, np.shape(q)).astype(np.float64)


class Shifted(NamedTuple):
    """Of times that are longer by a constant."""

    law: Law
    by: Any

    def sf(self, x: Any) -> np.ndarray:
        """That of the law, so much earlier."""
        return self.law.sf(np.asarray(x) - self.by)

    def isf(self, q: Any) -> np.ndarray:
        """That of the law, so much later."""
        return self.law.isf(q) + self.by


class Mixture(NamedTuple):
    """Of times that are of a second law with some probability."""

    first: Law
    second: Law
    probability: Any

    def sf(self, x: Any) -> np.ndarray:
        """The mean of both."""
        return (1 - self.probability) * self.first.sf(x) + (
            self.probability * self.second.sf(x)
        )

    def isf(self, q: Any) -> np.ndarray:
        """By bisection: it lies between those of both."""
        q = np.asarray(q, np.float64)
        ends = np.stack([self.first.isf(q), self.second.isf(q)])
        low, high = ends.min(0), ends.max(0)
        # Where the second is endless the first has to account for the rest of q.
        rest = np.clip((q - self.probability) / max(1 - self.probability, 1e-300), 0, 1)
        bound = np.where(q < self.probability, np.inf, self.first.isf(rest))
        high = np.where(np.isinf(high), bound, high)
        low = np.minimum(low, high)
        for _ in range(_BISECTIONS):
            # The later one is right where times are not continuous.
            middle = np.where(low < high, low / 2 + high / 2, high)
            is_later = self.sf(middle) > q
            low = np.where(is_later, middle, low)
            high = np.where(is_later, high, middle)
        return high
