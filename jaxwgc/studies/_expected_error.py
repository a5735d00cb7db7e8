"""The mean squared error of codes whose answers are just summed, in closed form."""

from typing import NamedTuple

import jax
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes import GradientCode, correlations_of, variances_of
from jaxwgc.decoders import OneStep


class ExpectedError(NamedTuple):
    """Bias and error of a code whose answers have fixed weights, in NumPy float64.

    Attributes:
      bias: (num_parts,), of the weight of each partial gradient: its mean less the
        target. Zero for an unbiased code.
      squared_error: E‖ĝ - g‖², in units of the mean square of a partial gradient.
    """

    bias: np.ndarray
    squared_error: float


def expected_error(
    code: GradientCode,
    straggler_probabilities: jax.typing.ArrayLike,
    *,
    correlation: jax.typing.ArrayLike = 0.0,
    quantization_variance: jax.typing.ArrayLike = 0.0,
) -> ExpectedError:
    """Returns bias and mean squared error of a code whose answers are just summed.

    Exactly, where worker i straggles with probability pᵢ on its own. Of a code that was
    made with estimated probabilities, the true ones (or the ends of their intervals)
    give what the estimates cost: codes.unequal(p̂, ...) has the bias Σᵢ αᵢⱼ (1 - pᵢ) /
    (1 - p̂ᵢ) - 1 in part j.

    Args:
      code: of one message a worker and fixed weights, such as those of `codes.unequal`
        and `codes.stochastic`. Not traced.
      straggler_probabilities: p, (num_workers,), from 0 to 1, or one for all.
      correlation: ρ of any two partial gradients, for G = (1 - ρ) I + ρ 11ᵀ, or G
        itself, positive semidefinite. With 0 the error is E‖c - 1‖², c the effective
        weights; with 1, where all partial gradients are alike, E(Σⱼ cⱼ - k)², the worst
        case of unbiased codes without negative entries.
      quantization_variance: as for `codes.unequal`.

    Returns:
      An `ExpectedError`.

    Raises:
      ValueError: where an argument breaks its rule, or answers have no fixed weights.
      TypeError: where an argument has the wrong type or is traced.

    Example:
      >>> from jaxwgc import codes, studies
      >>> probabilities = [0.5, 0.5, 0.1]
      >>> code = codes.unequal(probabilities, num_parts=4)
      >>> expected = studies.expected_error(code, probabilities, correlation=1.0)
      >>> round(expected.squared_error, 6)
      1.454545
      >>> studies.expected_error(code, [0.6, 0.5, 0.1]).bias.round(3)
      array([-0.073,  0.   ,  0.   ,  0.   ])

    References:
      Derived on the page Mathematics; for equal workers, Bitar, Wootters, El Rouayheb,
      "Stochastic gradient coding for straggler mitigation in distributed learning",
      2020.
    """
    GradientCode.check(code, concrete="its error is computed on the host")
    code.check_plain("expected_error")
    fixed = [decoder for decoder in code.decoders_of(OneStep) if not decoder.shared]
    rule = "be real, with OneStep(..., shared=False) among its decoders"
    _validation.require(not code.is_complex and fixed, "code", rule, code)
    name = "straggler_probabilities"
    sizes = {"or_number": True, "num_workers": code.num_workers}
    given = straggler_probabilities
    given = _validation.concrete_array(name, given, "real numbers", **sizes)
    stragglers = np.broadcast_to(given, code.num_workers).astype(np.float64)
    is_right = (stragglers >= 0) & (stragglers <= 1)
    _validation.check_entries(name, stragglers, is_right, "from 0 to 1")
    variance = variances_of(quantization_variance, code.num_workers)
    inner = correlations_of(correlation, code.num_parts)

    def squared_norms(rows):
        """Returns squared norms of the sums of partial gradients with these weights."""
        if inner.ndim:
            return np.einsum("ij,jl,il->i", rows, inner, rows, optimize=True)
        return (1 - inner) * np.sum(rows**2, 1) + inner * rows.sum(1) ** 2

    answers = 1 - stragglers
    sent = float(fixed[0].scale) * np.asarray(code.encoding_matrix, np.float64)
    bias = answers @ sent - np.asarray(code.target, np.float64)
    [systematic] = squared_norms(bias[None])
    chance = answers * (stragglers + variance) @ squared_norms(sent)
    return ExpectedError(bias, float(systematic + chance))
