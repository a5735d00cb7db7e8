"""Number of gradient descent steps to a target, given moments of the weights."""

from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from jaxwgc import _validation

# Number of curvatures of the quadratic, and of constant step sizes to try, as fractions
# of the largest stable one.
_NUM_CURVATURES = 8
_STEPS = 2.0 * np.geomspace(1e-5, 0.98, 80)
# Range of the number of steps, and number of bisections of its logarithm.
_FEWEST, _MOST, _BISECTIONS = 1e-3, 1e15, 40
# Number of bisections in the comparison of step sizes.
_COARSE_BISECTIONS = 18


class Goal(NamedTuple):
    """Problem to solve and target, see `jaxwgc.plan`."""

    target: float
    condition: float
    heterogeneity: float
    num_workers: int

    @classmethod
    def checked(
        cls, target: Any, condition: Any, heterogeneity: Any, num_workers: int
    ) -> "Goal":
        """Returns a goal with checked numbers."""
        _validation.check_number("target", target, positive=True, traceable=False)
        rule = "be below 1, since the loss starts at 1"
        _validation.require(target < 1, "target", rule, target)
        rule = {"finite": True, "traceable": False}
        _validation.check_number("condition", condition, minimum=1, **rule)
        _validation.check_number("heterogeneity", heterogeneity, minimum=0, **rule)
        return cls(float(target), float(condition), float(heterogeneity), num_workers)


class Weights(NamedTuple):
    """Moments of the weights of the parts in decoded gradients.

    Each is an array of floats with an entry per setting. The weight of part j in round
    t, relative to its target and to the mean of all, is 1 + u_t + a_tj. Here u_t is
    common to all parts, and the a_tj add up to zero.

    Attributes:
      noise: Mean square of a_tj around its mean over rounds.
      bias: Mean square of that mean: parts that are always too light or lost.
      scale_variance: Variance of u_t.
      lasting: Share of the noise that persists between rounds.
      correlation: Correlation of this share in successive rounds; from 0 to 1.
    """

    noise: np.ndarray
    bias: np.ndarray
    scale_variance: np.ndarray
    lasting: np.ndarray
    correlation: np.ndarray

    def over_steps(self) -> "Weights":
        """Adds a trailing axis for step sizes."""
        return Weights(*(np.asarray(number)[..., None] for number in self))

    def loss(
        self, step: Any, goal: Goal, num_steps: np.ndarray | float = np.inf
    ) -> np.ndarray:
        """Computes the expected loss, relative to the initial one, after some steps.

        The loss is the quadratic of `quadratic`. A step multiplies the distance x in a
        direction of curvature c by 1 - s c (1 + u). It adds s times the mean over parts
        of a_tj times the gradients r_j of the parts at the optimum. These have equal
        size in all directions and parts, and add up to zero.
        """
        curvature, parts = quadratic(goal)
        noise, bias, variance, lasting, correlation = (
            np.asarray(number)[..., None] for number in self
        )
        step, num_steps = np.asarray(step)[..., None], np.asarray(num_steps)[..., None]
        moved = step * curvature
        kept = 1 - moved
        # Correlations with earlier rounds add up: of u_t in the product of factors, to
        # second order, and of a_tj in the sum of its decayed contributions.
        like = lasting * correlation * np.abs(kept) / (1 - correlation * np.abs(kept))
        square = kept**2 + moved**2 * variance * (1 + 4 * like)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # This is faster than a power.
            left = np.exp(num_steps * np.log(square))
            again = correlation * kept
            growth = 1 + 2 * lasting * again / (1 - again)
            noisy = step**2 * noise * growth * (1 - left) / (1 - square)
            gone = 1 - np.exp(num_steps * np.log(np.abs(kept)))
            biased = bias / curvature**2 * gone**2
            loss = (left + parts * curvature * (noisy + biased)).mean(-1)
        return np.where((square < 1).all(-1), loss, np.inf)


class Descent(Protocol):
    """Convergence of descent in some settings, (...,)."""

    def over_steps(self) -> Self:
        """Adds a trailing axis for step sizes."""
        ...

    def loss(
        self, step: Any, goal: Goal, num_steps: np.ndarray | float = np.inf
    ) -> np.ndarray:
        """Computes the expected loss, relative to the initial one, after some steps."""
        ...


def best_step(descent: Descent, goal: Goal) -> np.ndarray:
    """Returns the constant step size with the fewest steps to the target, per setting.

    If none reaches the target, it is the one that comes closest.
    """
    each = descent.over_steps()
    steps = num_steps(each, _STEPS, goal, _COARSE_BISECTIONS)
    lowest = each.loss(_STEPS, goal)
    best = np.where(np.isfinite(steps).any(-1), steps.argmin(-1), lowest.argmin(-1))
    return _STEPS[best]


def num_steps(
    descent: Descent, step: Any, goal: Goal, bisections: int = _BISECTIONS
) -> np.ndarray:
    """Computes the number of steps to the target; infinite if it is not reached.

    It is a real number, from bisection: the loss is above the target before, and at
    most the target after.
    """
    reached = descent.loss(step, goal) < goal.target
    low = np.full(reached.shape, np.log(_FEWEST))
    high = np.full(reached.shape, np.log(_MOST))
    for _ in range(bisections):
        middle = (low + high) / 2
        is_later = descent.loss(step, goal, np.exp(middle)) > goal.target
        low, high = np.where(is_later, middle, low), np.where(is_later, high, middle)
    # At least one whole step is taken.
    return np.where(reached, np.maximum(np.exp(high), 1), np.inf)


def quadratic(goal: Goal) -> tuple[np.ndarray, float]:
    """Returns the curvatures, and the size of the parts' gradients at the optimum.

    Curvatures range from 1 / condition to 1, and each direction has an equal share of
    the loss. The size is the squared gradient of a mean of independent parts,
    per direction, for weights with mean square one.
    """
    curvature = np.geomspace(1 / goal.condition, 1, _NUM_CURVATURES)
    # For an initial loss of one half, the squared gradient is the mean curvature. A
    # mean of n independent parts has n - 1 degrees of freedom.
    parts = goal.heterogeneity * curvature.mean() / max(goal.num_workers - 1, 1)
    return curvature, parts
