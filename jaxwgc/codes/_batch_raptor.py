"""Batch raptor codes: sums of random batches of parts, as many as a soliton says."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes import _random_matrices
from jaxwgc.codes._constructors import check_works, code_of_sums, divides
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, Peeling


def batch_raptor(
    key: jax.Array,
    num_workers: int,
    num_parts: int,
    batch_size: int = 1,
    max_degree: int | None = None,
    c: float = 0.03,
    delta: float = 0.5,
) -> GradientCode:
    """Sums of random batches, their number from a robust soliton (Wang et al.).

    The parts come in batches of `batch_size`, one after the other. Each worker draws a
    degree from the robust soliton distribution over 1, ..., K, with K the number of
    batches, and sends the sum of that many batches, drawn uniformly without
    replacement. Peeling decodes: a message of which all batches but one are known gives
    the last one. The batches that it recovers are exact, and scaled up for the lost
    ones. With few workers few batches are recovered, and the error is larger than
    without any gradient; `decoders.LeastSquares` has the least error.

    The robust soliton distribution is the ideal one, 1 / K at degree 1 and
    1 / (i (i - 1)) at degree i, plus R / (i K) below degree K / R and R log(R / delta)
    / K at it, with R = c log(K / delta) √K, normalised. There is no such spike
    where K / R is more than K.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      batch_size: parts in a batch, which divides k.
      max_degree: bounds the load of a worker at max_degree * batch_size parts: the
        distribution is cut off after it and normalised again. From 1 to K, which is
        the default.
      c: at least 0; more of it means more messages of low degree.
      delta: more than 0 and at most 1; in Luby's analysis, the probability that
        decoding fails.

    Returns:
      A real code with entries 0 and 1, decoded by peeling. No number of stragglers is
      survived for certain.

    Raises:
      ValueError: where the parameters break one of the rules above.
      TypeError: where the integers are not ints, c or delta are not numbers or the key
        is no PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> key = jax.random.key(0)
      >>> code = jaxwgc.codes.batch_raptor(key, 30, 20, batch_size=2, max_degree=4)
      >>> parts = code.parts_per_worker
      >>> bool((parts % 2 == 0).all()), int(parts.max())
      (True, 8)

    References:
      Wang, Liu, Shroff, "Fundamental limits of approximate gradient coding",
      Proceedings of the ACM on Measurement and Analysis of Computing Systems, 2019;
      Luby, "LT codes", FOCS 2002 (the robust soliton distribution).
    """
    num_workers = _validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    batch_size = _validation.check_int("batch_size", batch_size, minimum=1)
    rule = f"divide num_parts = {num_parts}"
    check_works("batch_size", batch_size, divides(num_parts), rule, 1, num_parts)
    num_batches = num_parts // batch_size
    max_degree = num_batches if max_degree is None else max_degree
    _validation.check_up_to("max_degree", max_degree, num_batches=num_batches)
    # The distribution of degrees is computed on the host.
    known = {"finite": True, "traceable": False}
    _validation.check_number("c", c, minimum=0, **known)
    _validation.check_number("delta", delta, positive=True, maximum=1, **known)
    probabilities = robust_soliton(num_batches, float(c), float(delta), max_degree)
    degree_key, batch_key = jax.random.split(key)
    degrees = _sample_degrees(degree_key, probabilities, num_workers)
    batches = _random_matrices.random_subsets(
        batch_key, degrees, (num_workers, num_batches)
    )
    assignment = _random_matrices.known(jnp.repeat(batches, batch_size, axis=1))
    peeling = Peeling(_random_matrices.known(batches))
    return code_of_sums(assignment, peeling, LeastSquares())


def robust_soliton(
    num_batches: int, c: float, delta: float, max_degree: int
) -> np.ndarray:
    """Probabilities of the degrees 1, ..., max_degree, in float64."""
    degrees = np.arange(1, num_batches + 1)
    weights = np.concatenate([[1 / num_batches], 1 / (degrees[1:] * degrees[:-1])])
    # Differences of logarithms, since quotients by the smallest delta overflow.
    log_delta = math.log(delta)
    ripple = c * (math.log(num_batches) - log_delta) * math.sqrt(num_batches)
    # Beyond all degrees, also where the quotient would be too large to be rounded.
    spike = num_batches + 1
    if ripple * spike > num_batches:
        spike = max(1, round(num_batches / ripple))
    weights += np.where(degrees < spike, ripple / (degrees * num_batches), 0)
    if spike <= num_batches:
        at_spike = ripple * (math.log(ripple) - log_delta) / num_batches
        weights[spike - 1] += max(0, at_spike)
    kept = weights[:max_degree]
    return kept / kept.sum()


def _sample_degrees(
    key: jax.Array, probabilities: np.ndarray, num_draws: int
) -> jax.Array:
    """Degrees by the inverse of their distribution function, of shape (num_draws,)."""
    # In 32-bit integers whatever the precision setting, so that a key means one code,
    # and finer than float32 could.
    thresholds = np.minimum(np.cumsum(probabilities)[:-1] * 2**32, 2**32 - 1)
    draws = jax.random.bits(key, (num_draws,), jnp.uint32)
    return 1 + jnp.searchsorted(
        jnp.asarray(thresholds.astype(np.uint32)), draws, side="right"
    )
