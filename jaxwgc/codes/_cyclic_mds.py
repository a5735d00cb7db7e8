"""Cyclic MDS codes: every row of B is the previous one, rotated."""

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares


def cyclic_mds(num_workers: int, num_stragglers: int) -> GradientCode:
    """Returns a cyclic MDS code: worker i holds parts i, ..., i + s around a ring.

    Every row of the encoding matrix is the first row, rotated. The first row has the
    coefficients of g(x) = ∏ⱼ (x - ωʲ), ω = exp(2πi / n), over s consecutive exponents
    around n / 2. This generates a cyclic code of distance s + 1, so any n - s rows are
    a basis of it. It contains the vector of ones, since g(1) is not zero.

    The assignment is the one of `cyclic_repetition`. Coefficients are better
    conditioned than the random ones there, and typical patterns amplify rounding
    little. Bursts of neighbouring stragglers, such as a lost rack, are ill-conditioned:
    float32 cannot decode a burst of 10 out of 50 workers, and float64 cannot decode one
    of 20 out of 300. `reed_solomon` is much better for bursts.

    Args:
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, from 0 to n - 1.

    Returns:
      A real code with positive entries if n + s is odd, otherwise a complex one. Rows
      sum to s + 1: if all workers respond, every weight is 1 / (s + 1).

    Raises:
      ValueError: If s is negative or not less than n.
      TypeError: If a parameter is not an int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(5, num_stragglers=2)
      >>> code.encoding_matrix.round(2)
      array([[0.83, 1.34, 0.83, 0.  , 0.  ],
             [0.  , 0.83, 1.34, 0.83, 0.  ],
             [0.  , 0.  , 0.83, 1.34, 0.83],
             [0.83, 0.  , 0.  , 0.83, 1.34],
             [1.34, 0.83, 0.  , 0.  , 0.83]])

    References:
      Raviv, Tamo, Tandon, Dimakis, "Gradient coding from cyclic MDS codes and expander
      graphs", ICML 2018, section 3.
    """
    num_stragglers = _validation.check_stragglers(num_stragglers, num_workers)
    coefficients = _coefficients(num_workers, num_stragglers)
    workers = np.arange(num_workers)[:, None]
    parts = (workers + np.arange(num_stragglers + 1)) % num_workers
    matrix = np.zeros((num_workers, num_workers), coefficients.dtype)
    matrix[workers, parts] = coefficients
    assignment = np.zeros((num_workers, num_workers), bool)
    assignment[workers, parts] = True
    return GradientCode(
        encoding_matrix=matrix,
        assignment=assignment,
        target=np.ones(num_workers),
        num_stragglers=num_stragglers,
        decoders=(LeastSquares(num_stragglers),),
    )


def _coefficients(num_workers: int, num_stragglers: int) -> np.ndarray:
    """Returns the coefficients of g, from the constant one up, scaled to sum to s + 1.

    By the q-binomial theorem the coefficient of x^(s - t) is (-ω^c)^t times a product
    of ratios of sines, with c the middle of the exponents. The product is accurate to
    the last bits; multiplying out the factors would lose all digits (s = 98, n = 100).
    """
    order = np.arange(1, num_stragglers + 1)
    ratios = np.sin(np.pi * order[::-1] / num_workers) / np.sin(
        np.pi * order / num_workers
    )
    # Symmetric in t and s - t, so that reversing the powers does not change them.
    coefficients = np.concatenate([[1.0], np.cumprod(ratios)])
    if (num_workers + num_stragglers) % 2 == 0:
        # c is (n - 1) / 2 here. For n + s odd it is n / 2, and -omega^c is one.
        powers = np.arange(num_stragglers, -1, -1)
        coefficients = coefficients * np.exp(-1j * np.pi * powers / num_workers)
    return coefficients * ((num_stragglers + 1) / coefficients.sum())
