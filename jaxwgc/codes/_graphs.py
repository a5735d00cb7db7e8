"""Codes from regular graphs: workers are vertices or edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwgc._common import validation
from jaxwgc._common.arrays import array_module
from jaxwgc.codes._constructors import (
    as_floats,
    check_prime,
    known,
    replicated_sums,
    ring_distances,
    unweighted,
)
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.decoders import Components, LeastSquares, OneStep

# Attempted swaps per edge, at least 200 in total. For up to 12 edges, the distribution
# is then within 1e-8 of the uniform one in total variation (powers of the transition
# matrix). With 100 to 300 vertices, four times as many swaps do not change eigenvalues,
# triangles and retained edges.
_SWAPS_PER_EDGE = 10
_MIN_SWAPS = 200


def random_regular_graph(
    key: jax.Array,
    num_vertices: int,
    degree: int,
    *,
    vertices_name: str,
    degree_name: str,
) -> Array:
    """Draws a simple regular graph, as an adjacency matrix.

    A circulant graph is changed by random double edge swaps. The limit of this Markov
    chain is the uniform distribution over all simple d-regular graphs with labelled
    vertices. The number of attempts is ten per edge, at least 200. Graphs with more
    than half of all edges are complements of sparse graphs, for which attempts seldom
    fail.

    Args:
      key: PRNG key of either kind; may be traced.
      num_vertices: n, at least 2.
      degree: d, from 1 to n - 1, with n * d even.
      vertices_name: Name of `num_vertices` in error messages.
      degree_name: Name of `degree` in error messages.

    Returns:
      Bool (num_vertices, num_vertices), in NumPy unless the key is traced.

    Raises:
      ValueError: If an integer is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.
    """
    num_vertices = validation.check_int(vertices_name, num_vertices, minimum=2)
    degree = validation.check_int(degree_name, degree)
    max_degree = num_vertices - 1
    has_odd_sum = num_vertices % 2 == 1 and degree % 2 == 1
    if not 1 <= degree <= max_degree or has_odd_sum:
        raise ValueError(
            f"{degree_name} must be from 1 to {max_degree}, and even if "
            f"{vertices_name} = {num_vertices} is odd; got {degree}"
        )
    return known(_swapped(key, num_vertices, degree))


def lps_graph(prime: int, modulus: int) -> np.ndarray:
    """Returns the Ramanujan graph of two primes, as an adjacency matrix.

    Vertices are the invertible 2 × 2 matrices modulo q up to a factor, or half of them
    if p is a square modulo q. Neighbours differ by one of p + 1 matrices, which
    represent the integral quaternions of norm p with odd, positive real part.

    Args:
      prime: p, a prime with remainder 1 modulo 4.
      modulus: q, another such prime, larger than 2 √p.

    Returns:
      Bool, with q (q² - 1) vertices or half as many, and p + 1 neighbours each.
    """
    bound = int(prime**0.5)
    span = np.arange(-bound, bound + 1)
    grid = np.meshgrid(span, span, span, span)
    quaternions = np.stack(grid, -1).reshape(-1, 4)
    is_chosen = (quaternions**2).sum(-1) == prime
    is_chosen &= (quaternions[:, 0] > 0) & (quaternions[:, 0] % 2 == 1)
    a, b, c, d = quaternions[is_chosen].T
    numbers = np.arange(modulus)
    # A square root of -1 modulo `modulus`.
    root = numbers[numbers**2 % modulus == modulus - 1][0]
    first_row = [a + root * b, c + root * d]
    second_row = [root * d - c, a - root * b]
    generators = np.array([first_row, second_row]).transpose(2, 0, 1) % modulus
    # Zero has no inverse.
    inverses = np.zeros(modulus, int)
    for number in range(1, modulus):
        inverses[number] = pow(number, -1, modulus)

    def number_of(matrices):
        """Numbers projective matrices, equally for a matrix and its multiples."""
        flat = matrices.reshape(-1, 4) % modulus
        place = (flat != 0).argmax(-1)
        first = flat[np.arange(len(flat)), place]
        flat = flat * inverses[first][:, None] % modulus
        return flat @ modulus ** np.arange(4)

    # The group is found by breadth-first search from the identity.
    known = number_of(np.eye(2, dtype=int))
    frontier = known
    while len(frontier):
        matrices = frontier[:, None] // modulus ** np.arange(4) % modulus
        around = number_of(matrices.reshape(-1, 1, 2, 2) @ generators)
        frontier = np.setdiff1d(around, known)
        known = np.union1d(known, frontier)
    matrices = known[:, None] // modulus ** np.arange(4) % modulus
    around = number_of(matrices.reshape(-1, 1, 2, 2) @ generators)
    adjacency = np.zeros((len(known), len(known)), bool)
    vertex = np.arange(len(known)).repeat(len(generators))
    adjacency[vertex, np.searchsorted(known, around)] = True
    return adjacency


# Under jit, later calls reuse the compiled loop.
@functools.partial(jax.jit, static_argnames=("num_vertices", "degree"))
def _swapped(key: jax.Array, num_vertices: int, degree: int) -> jax.Array:
    sparse_degree = min(degree, num_vertices - 1 - degree)
    start = _circulant_graph(num_vertices, sparse_degree)
    adjacency = jnp.asarray(start)
    if sparse_degree:
        edges = np.argwhere(np.triu(start)).astype(np.int32)
        _, columns = np.nonzero(start)
        neighbours = columns.reshape(num_vertices, -1).astype(np.int32)
        swapped = _swap_edges(key, jnp.asarray(neighbours), jnp.asarray(edges))
        first, last = swapped.T
        adjacency = jnp.zeros_like(adjacency).at[first, last].set(True)
        adjacency |= adjacency.T
    if sparse_degree == degree:
        return adjacency
    return ~adjacency & ~np.eye(num_vertices, dtype=bool)


def _circulant_graph(num_vertices: int, degree: int) -> np.ndarray:
    """Returns a ring with edges to near vertices, the start of random swaps.

    Edges have up to degree // 2 steps, with diameters if the degree is odd.
    """
    forward = ring_distances(num_vertices)
    distance = np.minimum(forward, forward.T)
    adjacency = (distance > 0) & (distance <= degree // 2)
    if degree % 2:
        adjacency |= distance == num_vertices // 2
    return adjacency


def _swap_edges(key: jax.Array, neighbours: jax.Array, edges: jax.Array) -> jax.Array:
    """Swaps the ends of random pairs of edges many times.

    Edges (a, b), (c, d) become (a, d), (c, b). An attempt that would create a loop
    or a double edge is skipped. Both directions of a swap are then equally likely,
    and the limit is uniform.

    Args:
      key: PRNG key.
      neighbours: int (num_vertices, degree). Used to look up edges: every swap would
        copy an adjacency matrix.
      edges: int (num_edges, 2).

    Returns:
      The edges after all attempts.
    """
    num_edges = len(edges)
    num_rounds = max(_SWAPS_PER_EDGE, -(-_MIN_SWAPS // num_edges))

    def attempt(index, state):
        neighbours, edges, draws = state
        first, second = draws[index]
        a, b = edges[first]
        c, d = edges[second % num_edges]
        # Either end of the second edge can be first.
        forward = jnp.stack([c, d])
        backward = jnp.stack([d, c])
        c, d = jnp.where(second < num_edges, forward, backward)
        ends = jnp.stack([a, b, c, d])
        rows = neighbours[ends]
        is_double = (rows[0] == d).any() | (rows[1] == c).any()
        swap = (a != d) & (b != c) & ~is_double
        old_neighbours = jnp.stack([b, a, d, c])[:, None]
        new_neighbours = jnp.stack([d, c, b, a])[:, None]
        is_replaced = swap & (rows == old_neighbours)
        rows = jnp.where(is_replaced, new_neighbours, rows)
        neighbours = neighbours.at[ends].set(rows)
        first_edge = jnp.where(swap, jnp.stack([a, d]), edges[first])
        edges = edges.at[first].set(first_edge)
        second = second % num_edges
        second_edge = jnp.where(swap, jnp.stack([c, b]), edges[second])
        edges = edges.at[second].set(second_edge)
        return neighbours, edges, draws

    def run_round(index, state):
        # Random numbers are drawn for one round of swaps at a time. All at once would
        # need much memory, and one by one would be slow.
        ends = np.array([num_edges, 2 * num_edges], np.int32)
        draws = jax.random.randint(
            jax.random.fold_in(key, index), (num_edges, 2), 0, ends, jnp.int32
        )
        neighbours, edges, _ = lax.fori_loop(0, num_edges, attempt, (*state, draws))
        return neighbours, edges

    _, edges = lax.fori_loop(0, num_rounds, run_round, (neighbours, edges))
    return edges


def regular_graph(key: jax.Array, num_workers: int, copies: int) -> GradientCode:
    """Returns an approximate code from a random regular graph of workers.

    It is B = A / d for the adjacency matrix A of a random d-regular graph. Worker i
    holds the parts of its d neighbours; A is the adjacency matrix. One-step
    decoding uses weights a = n / (n - s) for the responses. Its squared decoding
    error is at most (λ / d)² n s / (n - s) for any s stragglers. Here λ is the
    second-largest absolute eigenvalue of A; the largest is d, for the vector of
    ones. Random graphs are nearly optimal expanders: λ is about 2 √(d - 1) for
    large n.

    All simple d-regular graphs with labelled vertices are about equally likely: the
    graph is the result of ten random swaps per edge.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 2; also the number of parts.
      copies: Number d of copies of a part, from 1 to n - 1, with n * d even.

    Returns:
      A real code, decoded by least squares by default.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.regular_graph(jax.random.key(0), 10, copies=4)
      >>> code.assignment.sum(0).tolist(), code.parts_per_worker.tolist()
      ([4, 4, 4, 4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4])

    References:
      Raviv, Tamo, Tandon, Dimakis, "Gradient coding from cyclic MDS codes and expander
      graphs", ICML 2018 (the bound); Charles, Papailiopoulos, Ellenberg, "Approximate
      gradient coding via sparse random graphs", 2017.
    """
    adjacency = random_regular_graph(
        key,
        num_workers,
        copies,
        vertices_name="num_workers",
        degree_name="copies",
    )
    matrix = as_floats(adjacency) / copies
    return unweighted(matrix, adjacency, LeastSquares(), OneStep(float(num_workers)))


def edge_graph(key: jax.Array, num_parts: int, degree: int) -> GradientCode:
    """Returns an approximate code with workers on the edges of a random graph.

    Parts are the vertices of the graph. Every worker holds two parts and sends
    their sum; d workers hold each part. Random stragglers leave almost all parts in
    one component with odd cycles, which is decoded exactly. An adversary has to
    isolate parts one by one. With two parts per worker for every d, the error is
    about that of fractional repetition with d copies for random stragglers, and
    half as large for adversarial ones.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_parts: k, at least 2.
      degree: Number d of copies of a part, from 1 to k - 1, with k * d even.

    Returns:
      A real code of zeros and ones with k d / 2 workers, by default decoded by
      connected components (`jaxwgc.decoders.Components`).

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.edge_graph(jax.random.key(0), 10, degree=6)
      >>> (
      ...     code.num_workers,
      ...     set(code.parts_per_worker.tolist()),
      ...     code.assignment.sum(0).tolist(),
      ... )
      (30, {2}, [6, 6, 6, 6, 6, 6, 6, 6, 6, 6])

    References:
      Glasgow, Wootters, "Approximate gradient coding with optimal decoding", IEEE
      Journal on Selected Areas in Information Theory, 2021.
    """
    adjacency = random_regular_graph(
        key, num_parts, degree, vertices_name="num_parts", degree_name="degree"
    )
    return _code_of_edges(adjacency, degree)


def ramanujan_graph(prime: int, modulus: int) -> GradientCode:
    """Returns an approximate code with workers on the edges of a Ramanujan graph.

    The graphs are those of Lubotzky, Phillips and Sarnak. Workers are edges, as in
    `edge_graph`, with degree p + 1. The graph is an optimal expander: all
    eigenvalues of its adjacency matrix except the largest are at most 2 √p in
    absolute value. If p is not a square modulo q, the graph is bipartite, and -(p +
    1) is an eigenvalue, too. The smallest graph, p = 5 and q = 13, has 2,184 parts
    and 6,552 workers.

    Args:
      prime: p, a prime with remainder 1 modulo 4: 5, 13, 17, 29, ...
      modulus: q, another such prime, larger than 2 √p.

    Returns:
      A real code of zeros and ones with q (q² - 1) parts, or half as many if p is a
      square modulo q, and (p + 1) / 2 times as many workers.

    Raises:
      ValueError: If a parameter is not such a prime.
      TypeError: If a parameter is not an int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.ramanujan_graph(17, 13)
      >>> code.num_workers, code.num_parts
      (9828, 1092)

    References:
      Lubotzky, Phillips, Sarnak, "Ramanujan graphs", Combinatorica, 1988; code as in
      `edge_graph`.
    """
    # -1 is then a square modulo the prime.
    check_prime("prime", prime, remainder=1)
    check_prime("modulus", modulus, remainder=1)
    if modulus == prime or modulus**2 <= 4 * prime:
        raise ValueError(
            "modulus must differ from prime and be larger than 2 * sqrt(prime); got "
            f"modulus = {modulus} and prime = {prime}"
        )
    return _code_of_edges(lps_graph(prime, modulus), prime + 1)


def _code_of_edges(adjacency: Array, degree: int) -> GradientCode:
    xp = array_module(adjacency)
    num_parts = len(adjacency)
    num_workers = num_parts * degree // 2
    if isinstance(adjacency, np.ndarray):
        edges = np.argwhere(np.triu(adjacency))
    else:
        # The number of edges of a traced graph is unknown, unless it is given.
        edges = jnp.argwhere(jnp.triu(adjacency), size=num_workers)
    # A stable sort of all ends gives the edges of each part. Every part has equally
    # many.
    incident = xp.argsort(edges.ravel(), stable=True).reshape(num_parts, degree) // 2
    assignment = (edges[:, :, None] == xp.arange(num_parts)).any(1)
    return replicated_sums(assignment, degree, Components(incident))
