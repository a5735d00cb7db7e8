"""Codes from random regular graphs, with small errors for every straggler pattern."""

import jax
import numpy as np

from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._graphs import random_regular_graph
from jaxwgc.codes._random_matrices import zeros_and_ones
from jaxwgc.decoders import LeastSquares, OneStep


def regular_graph(key: jax.Array, num_workers: int, replication: int) -> GradientCode:
    """Returns the code B = A / d of a random d-regular graph.

    Worker i holds the parts of its d neighbours; A is the adjacency matrix. One-step
    decoding uses weights a = n / (n - s) for the responses. Its squared decoding error
    is at most (λ / d)² n s / (n - s) for any s stragglers. Here λ is the second-largest
    absolute eigenvalue of A; the largest is d, for the vector of ones. Random graphs
    are nearly optimal expanders: λ is about 2 √(d - 1) for large n.

    All simple d-regular graphs with labelled vertices are about equally likely: the
    graph is the result of ten random swaps per edge.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 2; also the number of parts.
      replication: d, from 1 to n - 1, with n * d even.

    Returns:
      A real code, decoded by least squares by default.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.regular_graph(jax.random.key(0), 10, replication=4)
      >>> code.assignment.sum(0).tolist(), code.parts_per_worker.tolist()
      ([4, 4, 4, 4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4])

    References:
      Raviv, Tamo, Tandon, Dimakis, "Gradient coding from cyclic MDS codes and expander
      graphs", ICML 2018 (the bound); Charles, Papailiopoulos, Ellenberg, "Approximate
      gradient coding via sparse random graphs", 2017.
    """
    adjacency = random_regular_graph(
        key, num_workers, replication, ("num_workers", "replication")
    )
    return GradientCode(
        encoding_matrix=zeros_and_ones(adjacency) / replication,
        assignment=adjacency,
        target=np.ones(num_workers),
        num_stragglers=0,
        decoders=(LeastSquares(), OneStep(float(num_workers))),
    )
