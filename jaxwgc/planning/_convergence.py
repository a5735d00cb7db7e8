"""Number of steps until gradient descent reaches a target loss."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from jaxwgc._common import array_validation

# Number of curvatures of the quadratic loss, and constant step sizes to try. Step sizes
# are below 2, since the largest curvature is 1: descent with larger steps diverges.
_NUM_CURVATURES = 8
_STEPS = 2.0 * np.geomspace(1e-5, 0.98, 80)
# Products of step size and curvature for which descent with stored messages is
# simulated. Between these products, the logarithm of the loss is interpolated linearly,
# since it is nearly linear for small products.
MOVES = np.concatenate([[0.0], 2.0 * np.geomspace(1e-2, 0.98, 60)])
_UNIT_VECTORS = np.eye(len(MOVES))
# Smallest and largest number of steps in the bisection.
_FEWEST = 1e-3
_MOST = 1e15
# Number of bisections for each step size that is tried: fewer than for the final number
# of steps, to save time.
_COARSE_BISECTIONS = 18
# Lower bound of mean squares before their logarithm is taken, which avoids log(0).
_SMALLEST = 1e-300

# Model of descent: with new gradients in each step, or with stored messages.
Descent: TypeAlias = "Weights | StaleDescent"
# Function of the number of steps that returns the expected loss, relative to the
# initial loss.
LossAfter: TypeAlias = Callable[[float | np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Goal:
    """Loss that training has to reach, and difficulty of the problem.

    Attributes:
      target: Excess of the loss over its minimum that training has to reach, relative
        to the initial excess; between 0 and 1.
      condition: Ratio of the largest to the smallest curvature, at least 1.
      heterogeneity: Mean square of the gradients of the parts at the optimum, for the
        data split into n parts, relative to the initial gradient; both are means
        over data. Logistic regression on two MNIST digits has about 0.02 with 32
        shuffled parts, and 0.1 to 0.9 if parts are sorted by digit.

    Raises:
      ValueError: If a number is out of its range.
      TypeError: If an attribute is not a real number, or is traced.

    Example:
      >>> import dataclasses
      >>> from jaxwgc import planning
      >>> goal = planning.Goal(target=1e-3, condition=30.0)
      >>> dataclasses.replace(goal, heterogeneity=1.0)
      Goal(target=0.001, condition=30.0, heterogeneity=1.0)
    """

    target: float = 0.01
    condition: float = 100.0
    heterogeneity: float = 0.1

    def __post_init__(self) -> None:
        array_validation.check_share("target", self.target)
        array_validation.check_number(
            "condition", self.condition, minimum=1, finite=True, traceable=False
        )
        array_validation.check_number(
            "heterogeneity", self.heterogeneity, minimum=0, finite=True, traceable=False
        )


class Quadratic(NamedTuple):
    """Quadratic loss with several curvatures, as a model of the training problem.

    Attributes:
      target: Loss to reach, see `Goal`.
      curvature: Curvatures from 1 / condition to 1, (directions,).
      parts: Mean square, per direction, of the mean over parts of weight times gradient
        at the optimum, for independent weights of mean square one.
    """

    target: float
    curvature: np.ndarray
    parts: float

    @classmethod
    def of(cls, goal: Goal, num_workers: int) -> "Quadratic":
        """Returns the quadratic loss for a goal and a number of workers."""
        curvature = np.geomspace(1 / goal.condition, 1, _NUM_CURVATURES)
        # `heterogeneity` is relative to the squared initial gradient, which is the mean
        # curvature if the initial loss is one half. A mean of n independent gradients
        # has n - 1 degrees of freedom, since their sum at the optimum is 0.
        freedom = max(num_workers - 1, 1)
        parts = goal.heterogeneity * curvature.mean() / freedom
        return cls(target=goal.target, curvature=curvature, parts=parts)


class Weights(NamedTuple):
    """Bias and noise of the weights that decoded gradients give to the parts.

    Each attribute is an array of floats with an entry per jackknife sample: all
    clusters, then all but one. The weight of part j in round t, relative to its target
    and to the mean of all weights, is 1 + u_t + a_tj. Here u_t is common to all parts,
    and the a_tj add up to zero.

    Attributes:
      noise: Mean square of a_tj around its mean over rounds.
      bias: Mean square of the mean of a_tj over rounds: parts are always weighted too
        low, or lost.
      scale_variance: Variance of u_t.
      lasting: Share of the noise that persists between rounds.
      correlation: Correlation of this share in successive rounds; from 0 to 1.
    """

    noise: np.ndarray
    bias: np.ndarray
    scale_variance: np.ndarray
    lasting: np.ndarray
    correlation: np.ndarray

    @classmethod
    def equal(cls, num_settings: int) -> "Weights":
        """Returns the weights of exact gradients, without bias and noise."""
        zeros = np.zeros(num_settings)
        return cls(
            noise=zeros,
            bias=zeros,
            scale_variance=zeros,
            lasting=zeros,
            correlation=zeros,
        )

    def loss(self, step: float | np.ndarray, problem: Quadratic) -> LossAfter:
        """Returns a function that computes the expected loss after some steps.

        In a direction of curvature c, a step of size s multiplies the distance from the
        optimum by 1 - s c (1 + u_t). It adds s times the mean over parts j of a_tj r_j.
        The gradients r_j of the parts at the optimum have equal size in all directions
        and parts, and add up to zero.
        """
        # Curvatures are the last axis.
        curvature = problem.curvature
        noise = np.asarray(self.noise)[..., None]
        bias = np.asarray(self.bias)[..., None]
        variance = np.asarray(self.scale_variance)[..., None]
        lasting = np.asarray(self.lasting)[..., None]
        correlation = np.asarray(self.correlation)[..., None]
        step = np.asarray(step)[..., None]
        moved = step * curvature
        kept = 1 - moved
        # If the u_t of successive rounds are correlated, the mean product of the
        # factors 1 - s c (1 + u_t) changes: `square` includes the second-order term. If
        # the a_tj are correlated, more noise accumulates, by the factor `growth`.
        size = np.abs(kept)
        correlated = lasting * correlation * size / (1 - correlation * size)
        square = kept**2 + moved**2 * variance * (1 + 4 * correlated)
        repeated = correlation * kept
        growth = 1 + 2 * lasting * repeated / (1 - repeated)
        with np.errstate(divide="ignore", invalid="ignore"):
            noise_in_limit = step**2 * noise * growth / (1 - square)
            # Exponentials of logarithms are faster than powers.
            log_square = np.log(square)
            log_size = np.log(size)
        is_stable = (square < 1).all(-1)

        def after(num_steps):
            num_steps = np.asarray(num_steps)[..., None]
            with np.errstate(over="ignore", invalid="ignore"):
                left = np.exp(num_steps * log_square)
                left_without_noise = np.exp(num_steps * log_size)
                biased = bias / curvature**2 * (1 - left_without_noise) ** 2
                noisy = noise_in_limit * (1 - left)
                loss = left + problem.parts * curvature * (noisy + biased)
            return np.where(is_stable, loss.mean(-1), np.inf)

        return after


class StaleDescent(NamedTuple):
    """Mean squares of simulated gradient descent with stored messages.

    The distance from the optimum is linear in the initial distance and in the gradients
    of the parts at the optimum. These gradients cancel once every worker has responded.

    Attributes:
      left: Mean square of the remainder of an initial distance of one,
        (..., moves, 1 + steps).
      displaced: Mean square of the distance caused by a step of size one, of the shape
        of `left`. The mean over parts of the gradients at the optimum has mean square
        one.
      unknown: Mean square of these gradients in the last simulated step, from workers
        that have not responded by then, (...,).
    """

    left: jax.Array | np.ndarray
    displaced: jax.Array | np.ndarray
    unknown: jax.Array | np.ndarray

    def loss(self, step: float | np.ndarray, problem: Quadratic) -> LossAfter:
        """Returns a function that computes the expected loss after some steps."""
        curvature = problem.curvature
        step = np.asarray(step)[..., None]
        # Weights of the linear interpolation between simulated products of step size
        # and curvature.
        weights = [np.interp(step * curvature, MOVES, unit) for unit in _UNIT_VECTORS]
        interpolation = np.stack(weights, axis=-1)
        log_left = interpolation @ np.log(np.maximum(self.left, _SMALLEST))
        log_displaced = interpolation @ np.log(np.maximum(self.displaced, _SMALLEST))
        last = log_left.shape[-1] - 1
        half = last // 2
        end = log_left[..., last]
        middle = log_left[..., half]
        is_gone = end < 0.99 * np.log(_SMALLEST)
        pace = np.where(is_gone, end / last, (end - middle) / (last - half))
        is_stable = (pace < 0).all(-1)

        def after(num_steps):
            steps = np.asarray(num_steps)[..., None]
            num_beyond = np.maximum(steps - last, 0)
            # Weights of the linear interpolation between simulated steps.
            distance = np.abs(np.minimum(steps, last) - np.arange(last + 1))
            weights = np.maximum(1 - distance, 0)[..., None]
            with np.errstate(over="ignore", invalid="ignore"):
                log_beyond = np.where(num_beyond > 0, num_beyond * pace, 0)
                initial = np.exp((log_left @ weights)[..., 0] + log_beyond)
                moved = np.exp((log_displaced @ weights)[..., 0] + log_beyond)
                lost = self.unknown[..., None] * (1 - np.exp(log_beyond / 2)) ** 2
                displacement = step**2 * moved + lost / curvature**2
                loss = initial + problem.parts * curvature * displacement
            return np.where(is_stable, loss.mean(-1), np.inf)

        return after


def best_step(descent: Descent, problem: Quadratic) -> np.ndarray:
    """Finds the constant step size with the fewest steps to the target.

    If no step size reaches the target, this is the one with the lowest final loss.
    """
    num_axes = np.ndim(descent[-1])
    tried = np.expand_dims(_STEPS, axis=tuple(range(1, 1 + num_axes)))
    steps = num_steps(descent, tried, problem, _COARSE_BISECTIONS)
    lowest = descent.loss(tried, problem)(np.inf)
    is_reached = np.isfinite(steps).any(axis=0)
    best = np.where(is_reached, steps.argmin(axis=0), lowest.argmin(axis=0))
    return _STEPS[best]


def num_steps(
    descent: Descent,
    step: float | np.ndarray,
    problem: Quadratic,
    bisections: int = 40,
) -> np.ndarray:
    """Computes the number of steps until the target is reached, or infinity.

    The number is not rounded to an integer. Bisection finds it: the loss is above the
    target before, and at most the target after.
    """
    loss_after = descent.loss(step, problem)
    reached = loss_after(np.inf) < problem.target
    low = np.full(reached.shape, np.log(_FEWEST))
    high = np.full(reached.shape, np.log(_MOST))
    for _ in range(bisections):
        middle = (low + high) / 2
        is_later = loss_after(np.exp(middle)) > problem.target
        low = np.where(is_later, middle, low)
        high = np.where(is_later, high, middle)
    # At least one whole step is taken.
    return np.where(reached, np.maximum(np.exp(high), 1), np.inf)


def leave_one_out(groups: np.ndarray) -> np.ndarray:
    """Computes the mean of all groups, then the means that leave out one group each."""
    total = groups.sum(0)
    num_groups = len(groups)
    # If a group is infinite, the mean without this group is inf - inf, which is NaN.
    with np.errstate(invalid="ignore"):
        without_one = (total - groups) / (num_groups - 1)
    return np.concatenate([total[None] / num_groups, without_one])
