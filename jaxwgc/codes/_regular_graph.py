"""Codes from random regular graphs, which expand: their error is small for every I."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwgc import _validation
from jaxwgc.codes import _random_matrices
from jaxwgc.codes._constructors import nearest
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, OneStep

# Attempted swaps: in rounds of one for each edge, and no fewer than that many. Up to 12
# edges the distribution is then within 1e-8 of the uniform one (total variation, by
# powers of the transition matrix); at 100 to 300 vertices eigenvalues, triangles and
# edges kept from the start are as after four times as many.
_SWAPS_PER_EDGE = 10
_MIN_SWAPS = 200


def regular_graph(key: jax.Array, num_workers: int, replication: int) -> GradientCode:
    """Parts of the neighbours in a random d-regular graph, B = A / d (Raviv et al.).

    Worker i holds the parts of its d neighbours; A is the adjacency matrix. With
    weights a = n / (n - s) at every answer, one-step decoding, the squared decoding
    error is at most (λ / d)² n s / (n - s) whichever s workers are missing. Here
    λ is the second-largest absolute eigenvalue of A; the largest is d, of the
    vector of ones. Random graphs are nearly as good expanders as can be: λ is
    about 2 √(d - 1) for large n.

    The graph comes from a circulant one by random double edge swaps, a Markov chain
    whose limit is the uniform distribution over all simple d-regular graphs with
    labelled vertices. It makes ten attempts for each edge and at least 200. Graphs with
    more than half of all edges are made as complements of sparse ones, whose attempts
    seldom fail.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 2; also the number of parts.
      replication: d, from 1 to n - 1, with n * d even.

    Returns:
      A real code, decoded by least squares unless asked otherwise.

    Raises:
      ValueError: where the parameters break one of the rules above.
      TypeError: where the integers are not ints or the key is no PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.regular_graph(jax.random.key(0), 10, replication=4)
      >>> code.assignment.sum(0).tolist(), code.loads.tolist()
      ([4, 4, 4, 4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4])

    References:
      Raviv, Tamo, Tandon, Dimakis, "Gradient coding from cyclic MDS codes and expander
      graphs", ICML 2018 (the bound); Charles, Papailiopoulos, Ellenberg, "Approximate
      gradient coding via sparse random graphs", 2017.
    """
    key = _validation.check_key(key)
    num_workers = _validation.check_int("num_workers", num_workers, minimum=2)
    replication = _validation.check_int("replication", replication)
    if not 1 <= replication < num_workers:
        near = nearest(
            replication, lambda d: num_workers * d % 2 == 0, 1, num_workers - 1
        )
        near = f"for replication {near}"
        if replication > 0:
            near += f", and for num_workers it is {replication + 1}"
        raise ValueError(
            "replication must be from 1 to num_workers - 1, since a simple graph has "
            f"no loops; got replication = {replication} and num_workers = "
            f"{num_workers}; {near}"
        )
    if num_workers * replication % 2:
        near = " or ".join(
            str(other) for other in (replication - 1, replication + 1) if other
        )
        raise ValueError(
            "num_workers * replication must be even, since every edge has two ends; "
            f"got num_workers = {num_workers} and replication = {replication}; the "
            f"nearest that work are replication = {near}, or num_workers = "
            f"{num_workers - 1} or {num_workers + 1}"
        )
    adjacency = _random_matrices.known(
        _random_regular_graph(key, num_workers, replication)
    )
    return GradientCode(
        encoding_matrix=_random_matrices.zeros_and_ones(adjacency) / replication,
        assignment=adjacency,
        target=np.ones(num_workers),
        num_stragglers=0,
        decoders=(LeastSquares(), OneStep(float(num_workers))),
    )


# Jitted so that calls outside of jit find the compiled loop again.
@functools.partial(jax.jit, static_argnames=("num_vertices", "degree"))
def _random_regular_graph(key: jax.Array, num_vertices: int, degree: int) -> jax.Array:
    """Adjacency matrix, bool (n, n), of a uniformly random simple regular graph."""
    sparse_degree = min(degree, num_vertices - 1 - degree)
    start = _circulant_graph(num_vertices, sparse_degree)
    adjacency = jnp.asarray(start)
    if sparse_degree:
        edges = np.argwhere(np.triu(start)).astype(np.int32)
        adjacency = _swap_edges(key, adjacency, jnp.asarray(edges))
    if sparse_degree == degree:
        return adjacency
    return ~adjacency & ~np.eye(num_vertices, dtype=bool)


def _circulant_graph(num_vertices: int, degree: int) -> np.ndarray:
    """Neighbours are up to degree // 2 steps away on a ring, or opposite if odd."""
    difference = np.arange(num_vertices) - np.arange(num_vertices)[:, None]
    distance = np.minimum(difference % num_vertices, -difference % num_vertices)
    adjacency = (distance > 0) & (distance <= degree // 2)
    if degree % 2:
        adjacency |= distance == num_vertices // 2
    return adjacency


def _swap_edges(key: jax.Array, adjacency: jax.Array, edges: jax.Array) -> jax.Array:
    """Attempts to replace edges (a, b), (c, d) by (a, d), (c, b), again and again.

    An attempt that would make a loop or a double edge leaves the graph as it is: both
    directions of a swap are then equally likely, and the limit is uniform.
    """
    num_edges = len(edges)
    num_rounds = max(_SWAPS_PER_EDGE, -(-_MIN_SWAPS // num_edges))

    def attempt(index, state):
        adjacency, edges, draws = state
        first, second = draws[index]
        a, b = edges[first]
        c, d = edges[second % num_edges]
        # Either end of the second edge can come first.
        c, d = jnp.where(second < num_edges, c, d), jnp.where(second < num_edges, d, c)
        swap = (a != d) & (b != c) & ~adjacency[a, d] & ~adjacency[b, c]
        rows = jnp.stack([a, b, c, d, a, d, b, c])
        columns = jnp.stack([b, a, d, c, d, a, c, b])
        swapped = jnp.where(swap, np.arange(8) >= 4, adjacency[rows, columns])
        adjacency = adjacency.at[rows, columns].set(swapped)
        edges = edges.at[first].set(jnp.where(swap, jnp.stack([a, d]), edges[first]))
        second = second % num_edges
        edges = edges.at[second].set(jnp.where(swap, jnp.stack([c, b]), edges[second]))
        return adjacency, edges, draws

    def run_round(index, state):
        # A round's draws at a time: all at once would take memory, one by one time.
        ends = np.array([num_edges, 2 * num_edges], np.int32)
        draws = jax.random.randint(
            jax.random.fold_in(key, index), (num_edges, 2), 0, ends, jnp.int32
        )
        return lax.fori_loop(0, num_edges, attempt, (*state, draws))[:2]

    return lax.fori_loop(0, num_rounds, run_round, (adjacency, edges))[0]
