"""Closed-form mean squared error of codes with fixed decoding weights."""

import math
from typing import NamedTuple

import jax
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.codes import GradientCode
from jaxwgc.codes._unequal import variances_of
from jaxwgc.decoders import OneStep

# Asymmetry or negative eigenvalues of a correlation matrix that count as rounding,
# relative to its largest entry.
_ROUNDING = 1e-9


class ExpectedError(NamedTuple):
    """Bias and mean squared error of a code, the result of `expected_error`."""

    bias: np.ndarray
    squared_error: float


def expected_error(
    code: GradientCode,
    straggler_probabilities: jax.typing.ArrayLike,
    *,
    correlation: jax.typing.ArrayLike = 0.0,
    quantization_variance: jax.typing.ArrayLike = 0.0,
) -> ExpectedError:
    """Computes bias and mean squared error of a code with fixed decoding weights.

    The result is exact if worker i straggles independently with probability pᵢ. To
    find the cost of estimated probabilities, pass a code built from the estimates and
    the true probabilities (or the ends of their intervals): codes.unequal(p̂, ...) has
    the bias Σᵢ αᵢⱼ (1 - pᵢ) / (1 - p̂ᵢ) - 1 in part j.

    Args:
      code: Code with one message per worker and fixed weights, e.g. `codes.unequal` or
        `codes.stochastic`. Not traced.
      straggler_probabilities: p, (num_workers,), from 0 to 1, or one number for all.
      correlation: Correlation ρ of any two partial gradients, for
        G = (1 - ρ) I + ρ 11ᵀ, or G itself, positive semidefinite. For 0, the error is
        E‖c - 1‖² with effective weights c. For 1, i.e. equal partial gradients, it is
        E(Σⱼ cⱼ - k)², the worst case for unbiased codes without negative entries.
      quantization_variance: Variance of the error of each worker's message, relative to
        its squared norm, at least 0: (num_workers,), or one number for all.

    Returns:
      A NamedTuple in float64. Its `bias` is the mean effective weight of each partial
      gradient minus its target, NumPy array (num_parts,), zero for an unbiased code.
      Its `squared_error` is E‖ĝ - g‖², in units of the mean square of a partial
      gradient.

    Raises:
      ValueError: If an argument has an invalid value, or decoding weights are not
        fixed.
      TypeError: If an argument has the wrong type or is traced.

    Example:
      >>> from jaxwgc import codes, simulation
      >>> probabilities = [0.5, 0.5, 0.1]
      >>> code = codes.unequal(probabilities, num_parts=4)
      >>> expected = simulation.expected_error(code, probabilities, correlation=1.0)
      >>> round(expected.squared_error, 6)
      1.454545

      Worker 0 straggles more often than the code assumes:

      >>> simulation.expected_error(code, [0.6, 0.5, 0.1]).bias.round(3)
      array([-0.073,  0.   ,  0.   ,  0.   ])

    References:
      Derived on the page Mathematics; for equal workers, Bitar, Wootters, El Rouayheb,
      "Stochastic gradient coding for straggler mitigation in distributed learning",
      2020.
    """
    GradientCode.check(code, concrete="its error is computed on the host")
    code.check_plain("expected_error")
    one_step = [decoder for decoder in code.decoders if isinstance(decoder, OneStep)]
    fixed = [decoder for decoder in one_step if not decoder.shared]
    if code.is_complex or not fixed:
        raise ValueError(
            "code must be real and have fixed decoding weights, i.e. a decoder "
            "OneStep(..., shared=False), e.g. codes.stochastic or codes.unequal; got "
            f"{code}"
        )
    probabilities = array_validation.concrete_array(
        "straggler_probabilities",
        straggler_probabilities,
        "real numbers",
        or_number=True,
        num_workers=code.num_workers,
    )
    stragglers = np.broadcast_to(probabilities, code.num_workers).astype(np.float64)
    is_probability = (stragglers >= 0) & (stragglers <= 1)
    validation.check_entries(
        "straggler_probabilities", stragglers, is_probability, "from 0 to 1"
    )
    variance = variances_of(quantization_variance, code.num_workers)
    inner = _correlations_of(correlation, code.num_parts)

    def squared_norms(rows):
        """Computes mean squared norms of weighted sums of gradients, one per row."""
        if inner.ndim:
            return np.einsum("ij,jl,il->i", rows, inner, rows, optimize=True)
        return (1 - inner) * np.sum(rows**2, 1) + inner * rows.sum(1) ** 2

    responses = 1 - stragglers
    sent = float(np.asarray(fixed[0].scale)) * np.asarray(
        code.encoding_matrix, np.float64
    )
    bias = responses @ sent - np.asarray(code.target, np.float64)
    [systematic] = squared_norms(bias[None])
    chance = responses * (stragglers + variance) @ squared_norms(sent)
    return ExpectedError(bias=bias, squared_error=float(systematic + chance))


def _correlations_of(correlation: jax.typing.ArrayLike, num_parts: int) -> np.ndarray:
    """Converts the correlation to float64; raises ValueError if it is impossible."""
    gram = array_validation.concrete_array("correlation", correlation, "real numbers")
    gram = gram.astype(np.float64)
    if gram.ndim == 0:
        # Among num_parts vectors, at least two have this correlation or a larger one.
        smallest = -1 / (num_parts - 1) if num_parts > 1 else -math.inf
        if not smallest <= gram <= 1:
            raise ValueError(
                f"correlation must be from -1 / (num_parts - 1) to 1; got {gram}"
            )
        return gram
    shape = (num_parts, num_parts)
    validation.check_shape("correlation", gram, "(num_parts, num_parts)", shape)
    slack = _ROUNDING * np.abs(gram).max()
    if not np.allclose(gram, gram.T, rtol=0, atol=slack):
        shown = validation.in_short(gram.tolist())
        raise ValueError(
            f"correlation must be a finite and symmetric matrix; got {shown}"
        )
    smallest_eigenvalue = np.linalg.eigvalsh(gram)[0]
    if smallest_eigenvalue < -slack * num_parts:
        raise ValueError(
            "correlation must be positive semidefinite; got a matrix with the "
            f"eigenvalue {smallest_eigenvalue}"
        )
    return gram
