"""Cyclic MDS codes: every worker holds the next s + 1 parts, mixed alike."""

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares


def cyclic_mds(num_workers: int, num_stragglers: int) -> GradientCode:
    """Worker i holds parts i, ..., i + s around a ring, mixed alike (Raviv et al.).

    Every row of the encoding matrix is the first one turned around the ring. It holds
    the coefficients of g(x) = ∏ⱼ (x - ωʲ), ω = exp(2πi / n), over s
    exponents in a row around n / 2: a cyclic code of distance s + 1, so that any n - s
    rows are a basis of it, and since g(1) is not zero it has the vector of ones.

    Who holds what is as in `cyclic_repetition`; the coefficients, which are random
    there, are better conditioned here, and typical patterns amplify rounding little.
    Neighbours that straggle together, such as a lost rack, are another matter: a burst
    of ten out of fifty workers is beyond float32, and one of twenty out of 300 beyond
    float64. `reed_solomon` stays far below.

    Args:
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, from 0 to n - 1.

    Returns:
      A real code with positive entries where n + s is odd, and a complex one where it
      is even. The rows sum to s + 1, as those of codes of zeros and ones do: where all
      workers answer, the weight of each is 1 / (s + 1).

    Raises:
      ValueError: where s is negative or not less than n.
      TypeError: where the parameters are not ints.

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
    """The coefficients of g, from the constant one up, scaled to sum to s + 1.

    By the q-binomial theorem that of x^(s - t) is (-ω^c)^t times a product of
    ratios of sines, c the middle of the exponents. The product is accurate to the last
    bits where multiplying out the factors loses all digits (s = 98 of n = 100).
    """
    order = np.arange(1, num_stragglers + 1)
    ratios = np.sin(np.pi * order[::-1] / num_workers) / np.sin(
        np.pi * order / num_workers
    )
    # Symmetric in t and s - t, so the reversal of the powers leaves them as they are.
    coefficients = np.concatenate([[1.0], np.cumprod(ratios)])
    if (num_workers + num_stragglers) % 2 == 0:
        # c is (n - 1) / 2 here; for n + s odd it is n / 2 and -omega^c is one.
        powers = np.arange(num_stragglers, -1, -1)
        coefficients = coefficients * np.exp(-1j * np.pi * powers / num_workers)
    return coefficients * ((num_stragglers + 1) / coefficients.sum())
