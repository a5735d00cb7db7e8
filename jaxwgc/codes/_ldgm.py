"""Low-density generator-matrix codes: plain parts, and sums of a few of them."""

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.codes import _random_matrices
from jaxwgc.codes._constructors import code_of_sums
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, Peeling


def ldgm(
    key: jax.Array, num_workers: int, num_parts: int, parity_degree: int
) -> GradientCode:
    """A worker for each part, and parities of random parts (Horii et al.).

    Worker i < k is systematic: it holds part i alone. Each of the n - k others sends
    the sum of `parity_degree` parts, drawn uniformly without replacement. Peeling
    decodes: a parity of which all parts but one are known gives the last one. The parts
    that it recovers are exact, and scaled up for the lost ones. That is right on
    average, not small in error: `decoders.LeastSquares` has the least error.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, greater than k.
      num_parts: k, at least 1.
      parity_degree: the parts in a parity, from 1 to k.

    Returns:
      A real code with entries 0 and 1, decoded by peeling. One straggler is survived
      for certain where each parity holds all parts, none otherwise.

    Raises:
      ValueError: where the parameters break one of the rules above.
      TypeError: where the integers are not ints or the key is no PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.ldgm(jax.random.key(0), 6, num_parts=4, parity_degree=2)
      >>> code.encoding_matrix[:4]
      array([[1., 0., 0., 0.],
             [0., 1., 0., 0.],
             [0., 0., 1., 0.],
             [0., 0., 0., 1.]])
      >>> code.parts_per_worker.tolist()
      [1, 1, 1, 1, 2, 2]

    References:
      Horii, Yoshida, Kobayashi, Matsushima, "Distributed stochastic gradient descent
      using LDGM codes", ISIT 2019.
    """
    num_workers = _validation.check_int("num_workers", num_workers)
    _validation.check_up_to("parity_degree", parity_degree, num_parts=num_parts)
    rule = f"be greater than num_parts = {num_parts}"
    _validation.require(num_workers > num_parts, "num_workers", rule, num_workers)
    parities = _random_matrices.random_subsets(
        key, parity_degree, (num_workers - num_parts, num_parts)
    )
    assignment = _random_matrices.known(
        jnp.concatenate([jnp.eye(num_parts, dtype=bool), parities])
    )
    num_stragglers = 1 if parity_degree == num_parts else 0
    return code_of_sums(
        assignment,
        Peeling(assignment),
        LeastSquares(num_stragglers),
        num_stragglers=num_stragglers,
    )
