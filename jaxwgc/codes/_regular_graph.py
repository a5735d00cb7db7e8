"""Codes from random regular graphs, which expand: their error is small for every I."""

import jax
import numpy as np

from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._graphs import random_regular_graph
from jaxwgc.codes._random_matrices import zeros_and_ones
from jaxwgc.decoders import LeastSquares, OneStep


def regular_graph(key: jax.Array, num_workers: int, replication: int) -> GradientCode:
    """Parts of the neighbours in a random d-regular graph, B = A / d (Raviv et al.).

    Worker i holds the parts of its d neighbours; A is the adjacency matrix. With
    weights a = n / (n - s) at every answer, one-step decoding, the squared decoding
    error is at most (λ / d)² n s / (n - s) whichever s workers are missing. Here
    λ is the second-largest absolute eigenvalue of A; the largest is d, of the
    vector of ones. Random graphs are nearly as good expanders as can be: λ is
    about 2 √(d - 1) for large n.

    All simple d-regular graphs with labelled vertices are equally likely, to within
    what ten random swaps of each edge leave of the graph that they start from.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 2; also the number of parts.
      replication: d, from 1 to n - 1, with n * d even.

    Returns:
      A real code, decoded by least squares unless asked otherwise.

    Raises:
      ValueError: If the parameters break one of the rules above.
      TypeError: If the integers are not ints or the key is no PRNG key.

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
