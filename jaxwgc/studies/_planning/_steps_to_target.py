"""How many steps gradient descent needs to a target, by the weights that it sees."""

from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from jaxwgc import _validation

# Curvatures of the quadratic, and constant steps that are tried, as shares of the
# longest at which exact gradients do not diverge.
_NUM_CURVATURES = 8
_STEPS = 2.0 * np.geomspace(1e-5, 0.98, 80)
# Of which the number of steps is found by bisection, of its logarithm.
_FEWEST, _MOST, _BISECTIONS = 1e-3, 1e15, 40
# That tell which step has the fewest.
_COARSE_BISECTIONS = 18


class Goal(NamedTuple):
    """The problem to solve, and how well: see `jaxwgc.plan`."""

    target: float
    condition: float
    heterogeneity: float
    num_workers: int

    @classmethod
    def checked(
        cls, target: Any, condition: Any, heterogeneity: Any, num_workers: int
    ) -> "Goal":
        """One whose numbers follow the rules."""
        _validation.check_number("target", target, positive=True, traceable=False)
        rule = "be below 1, since the loss starts at 1"
        _validation.require(target < 1, "target", rule, target)
        rule = {"finite": True, "traceable": False}
        _validation.check_number("condition", condition, minimum=1, **rule)
        _validation.check_number("heterogeneity", heterogeneity, minimum=0, **rule)
        return cls(float(target), float(condition), float(heterogeneity), num_workers)


class Weights(NamedTuple):
    """Moments of the weights that parts have in decoded gradients.

    Each an array of floats, of as many settings. The weight of part j in round t, over
    its target and over the mean of all, is 1 + u_t + a_tj, where u_t is the same for
    all parts and the a_tj add up to zero.

    Attributes:
      noise: mean square of a_tj around its mean over the rounds.
      bias: mean square of that mean: the same parts are too light, or lost, each time.
      scale_variance: of u_t.
      lasting: the share of the noise that does not pass at once, and
      correlation: of that share in a round with that in the next; from 0 to 1.
    """

    noise: np.ndarray
    bias: np.ndarray
    scale_variance: np.ndarray
    lasting: np.ndarray
    correlation: np.ndarray

    def over_steps(self) -> "Weights":
        """With an axis at the end, for steps that are tried."""
        return Weights(*(np.asarray(number)[..., None] for number in self))

    def loss(
        self, step: Any, goal: Goal, num_steps: np.ndarray | float = np.inf
    ) -> np.ndarray:
        """Expected loss over that of the start, after so many steps, or in the end.

        Of a quadratic (`quadratic`). A step multiplies the distance x in a direction by
        1 - s c (1 + u) and adds s times the sum over the parts of a_tj times the
        gradients r_j that they have at the optimum, over their number. These have equal
        size in all directions and parts, and add up to zero.
        """
        curvature, parts = quadratic(goal)
        noise, bias, variance, lasting, correlation = (
            np.asarray(number)[..., None] for number in self
        )
        step, num_steps = np.asarray(step)[..., None], np.asarray(num_steps)[..., None]
        moved = step * curvature
        kept = 1 - moved
        # What is like in the round before adds up: of u_t in the product of the
        # factors, by its terms of second order, and of a_tj in the sum of what is left
        # of it.
        like = lasting * correlation * np.abs(kept) / (1 - correlation * np.abs(kept))
        square = kept**2 + moved**2 * variance * (1 + 4 * like)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # Faster than powers.
            left = np.exp(num_steps * np.log(square))
            again = correlation * kept
            growth = 1 + 2 * lasting * again / (1 - again)
            noisy = step**2 * noise * growth * (1 - left) / (1 - square)
            gone = 1 - np.exp(num_steps * np.log(np.abs(kept)))
            biased = bias / curvature**2 * gone**2
            loss = (left + parts * curvature * (noisy + biased)).mean(-1)
        return np.where((square < 1).all(-1), loss, np.inf)


class Descent(Protocol):
    """The pace of descent in some settings, (...,)."""

    def over_steps(self) -> Self:
        """With an axis at the end, for steps that are tried."""
        ...

    def loss(
        self, step: Any, goal: Goal, num_steps: np.ndarray | float = np.inf
    ) -> np.ndarray:
        """Expected loss over that of the start, after so many steps, or in the end."""
        ...


def best_step(descent: Descent, goal: Goal) -> np.ndarray:
    """The constant step with the fewest steps to the target, of each setting.

    Where none gets there, the one that comes closest.
    """
    each = descent.over_steps()
    steps = num_steps(each, _STEPS, goal, _COARSE_BISECTIONS)
    lowest = each.loss(_STEPS, goal)
    best = np.where(np.isfinite(steps).any(-1), steps.argmin(-1), lowest.argmin(-1))
    return _STEPS[best]


def num_steps(
    descent: Descent, step: Any, goal: Goal, bisections: int = _BISECTIONS
) -> np.ndarray:
    """How many lead to the target, a real number; infinite where none do.

    By bisection: the loss is above the target before, and not above it after.
    """
    reached = descent.loss(step, goal) < goal.target
    low = np.full(reached.shape, np.log(_FEWEST))
    high = np.full(reached.shape, np.log(_MOST))
    for _ in range(bisections):
        middle = (low + high) / 2
        is_later = descent.loss(step, goal, np.exp(middle)) > goal.target
        low, high = np.where(is_later, middle, low), np.where(is_later, high, middle)
    # A step is taken as a whole, the first one at least.
    return np.where(reached, np.maximum(np.exp(high), 1), np.inf)


def quadratic(goal: Goal) -> tuple[np.ndarray, float]:
    """Its curvatures, and the size of the parts' gradients at the optimum.

    Curvatures are from 1 / condition to 1, in each direction an equal share of the
    loss. The size is that of the squared gradient of a mean of independent parts, in
    each direction, for weights that have a mean square of one.
    """
    curvature = np.geomspace(1 / goal.condition, 1, _NUM_CURVATURES)
    # With a loss of one half at the start its squared gradient is the mean curvature;
    # of a mean of independent parts one less than their number is left.
    parts = goal.heterogeneity * curvature.mean() / max(goal.num_workers - 1, 1)
    return curvature, parts
