"""Unbiased codes for workers with different straggler probabilities."""

import jax
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.codes._constructors import unweighted
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, OneStep

# Lower bound of straggler probabilities. With probability 0, a worker would receive all
# parts.
_LEAST_PROBABILITY = 1e-6
# Fractions of a part below this number are rounding errors.
_ROUNDING = 1e-9


def unequal(
    straggler_probabilities: jax.typing.ArrayLike,
    num_parts: int,
    *,
    assignment: jax.typing.ArrayLike | None = None,
    quantization_variance: jax.typing.ArrayLike = 0.0,
) -> GradientCode:
    """Returns the unbiased code of least error for unequally reliable workers.

    Worker i straggles independently with probability pᵢ, and responses are summed, as
    for `stochastic`. With Bᵢⱼ = αᵢⱼ / (1 - pᵢ), the sum is unbiased if the columns of α
    add up to 1. Its mean squared error is the sum over i of δᵢ αᵢ G αᵢᵀ, with
    δᵢ = (pᵢ + ωᵢ) / (1 - pᵢ) and G the inner products of the partial gradients. See
    `jaxwgc.simulation.expected_error`.

    Without an assignment, worker i takes Yᵢ parts, k / δᵢ over the sum of all 1 / δ,
    one worker after the other (north-west corner rule). Parts are split only between
    one worker and the next, so that there are at most n + k - 1 copies of the k parts.
    Reliable workers hold more. For partial gradients of norm at most C, this minimises
    the worst-case error, C² k² over the sum of all 1 / δ, which occurs for equal
    partial gradients.

    For a given assignment, αᵢⱼ is 1 / δᵢ over the sum of 1 / δ of the holders of part
    j, which is optimal for uncorrelated partial gradients.

    Args:
      straggler_probabilities: p, (num_workers,), between 0 and 1. A p below 10⁻⁶ counts
        as 10⁻⁶ in δ. For estimates see `jaxwgc.simulation.straggler_probabilities`.
      num_parts: k, at least 1.
      assignment: Which worker holds which part, bool (num_workers, num_parts); every
        part needs at least one worker.
      quantization_variance: ω, at least 0, a number or (num_workers,): variance of
        rounded messages, E‖Q(m) - m‖² ≤ ω ‖m‖², from
        `jaxwgc.coding.quantization_variance`.

    Returns:
      A real code in NumPy float64, decoded in one step with weight 1 for every
      response.

    Raises:
      ValueError: If an argument has an invalid value. For a probability that is not
        between 0 and 1, or a part without a worker, the index is named.
      TypeError: If an argument has the wrong type or is traced.

    Example:
      The third worker responds in nine of ten rounds, the others in every second one:

      >>> import jaxwgc
      >>> code = jaxwgc.codes.unequal([0.5, 0.5, 0.1], num_parts=4)
      >>> code.encoding_matrix.round(3)
      array([[0.727, 0.   , 0.   , 0.   ],
             [0.727, 0.   , 0.   , 0.   ],
             [0.303, 1.111, 1.111, 1.111]])

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for straggler mitigation
      in distributed learning", IEEE Journal on Selected Areas in Information Theory,
      2020, for equal workers; Song, Choi, "Approximate gradient coding for distributed
      learning with heterogeneous stragglers", arXiv:2510.22539, with closed-form
      coefficients of unbiased codes for workers of different straggler probabilities.
      Here, messages may also be rounded. The closed forms and the fill are derived on
      the page Mathematics.
    """
    probabilities = array_validation.probabilities(
        "straggler_probabilities", straggler_probabilities
    )
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    variance = variances_of(quantization_variance, len(probabilities))
    floored = np.maximum(probabilities, _LEAST_PROBABILITY)
    # The trust in a worker is 1 / δ.
    trust = (1 - floored) / (floored + variance)
    if assignment is None:
        shares = _fill(trust, num_parts)
        held = shares > 0
    else:
        held = array_validation.host_array(
            "assignment",
            assignment,
            "bools",
            num_workers=len(probabilities),
            num_parts=num_parts,
        )
        copies = held.sum(0)
        if not copies.all():
            raise ValueError(
                "assignment must assign every part to a worker; got none for part "
                f"{copies.argmin()}"
            )
        shares = trust[:, None] * held / (trust @ held)
    matrix = shares / (1 - probabilities)[:, None]
    return unweighted(matrix, held, OneStep(1.0, shared=False), LeastSquares())


def _fill(trust: np.ndarray, num_parts: int) -> np.ndarray:
    """Divides parts among workers in proportion to trust (north-west corner rule).

    Returns shares α.
    """
    ends = num_parts * trust.cumsum() / trust.sum()
    ends[-1] = num_parts
    whole = ends.round()
    ends = np.where(np.abs(ends - whole) < _ROUNDING, whole, ends)
    starts = np.concatenate([[0.0], ends[:-1]])
    # Worker i takes the interval from starts[i] to ends[i]. Part j is the interval from
    # j to j + 1.
    parts = np.arange(num_parts)
    first = np.maximum(starts[:, None], parts)
    last = np.minimum(ends[:, None], parts + 1)
    return np.clip(last - first, 0, None)


def variances_of(
    quantization_variance: jax.typing.ArrayLike, num_workers: int
) -> np.ndarray:
    """Checks, and returns, the quantization variance of the messages of each worker."""
    variance = array_validation.concrete_array(
        "quantization_variance",
        quantization_variance,
        "real numbers",
        or_number=True,
        num_workers=num_workers,
    )
    variance = np.broadcast_to(variance, num_workers).astype(np.float64)
    validation.check_entries(
        "quantization_variance",
        variance,
        (variance >= 0) & (variance < np.inf),
        "finite and at least 0",
    )
    return variance
