"""Regular graphs: random ones, and those of Lubotzky, Phillips and Sarnak."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwgc import _validation
from jaxwgc.codes import _random_matrices
from jaxwgc.codes._constructors import check_works
from jaxwgc.codes._gradient_code import Array

# Attempted swaps: in rounds of one for each edge, and no fewer than that many. Up to 12
# edges the distribution is then within 1e-8 of the uniform one (total variation, by
# powers of the transition matrix); at 100 to 300 vertices eigenvalues, triangles and
# edges kept from the start are as after four times as many.
_SWAPS_PER_EDGE = 10
_MIN_SWAPS = 200


def random_regular_graph(
    key: jax.Array, num_vertices: int, degree: int, names: tuple[str, str]
) -> Array:
    """Returns the adjacency matrix of a uniformly random simple regular graph.

    It comes from a circulant one by random double edge swaps, a Markov chain whose
    limit is the uniform distribution over all simple d-regular graphs with labelled
    vertices. It makes ten attempts for each edge and at least 200. Graphs with more
    than half of all edges are made as complements of sparse ones, whose attempts
    seldom fail.

    Args:
      key: PRNG key of either kind; may be traced.
      num_vertices: n, at least 2.
      degree: d, from 1 to n - 1, with n * d even.
      names: what the user calls the two, for errors.

    Returns:
      Bool (num_vertices, num_vertices), of NumPy unless the key is traced.

    Raises:
      ValueError: where the integers break one of the rules above.
      TypeError: where they are not ints or the key is no PRNG key.
    """
    vertices, ends = names
    num_vertices = _validation.check_int(vertices, num_vertices, minimum=2)
    degree = _validation.check_int(ends, degree)
    most, step = num_vertices - 1, 1 + num_vertices % 2
    rule = f"be from 1 to {most}, and even if {vertices} = {num_vertices} is odd"
    check_works(ends, degree, range(step, most + 1, step).__contains__, rule, 1, most)
    return _random_matrices.known(_swapped(key, num_vertices, degree))


def lps_graph(prime: int, modulus: int) -> np.ndarray:
    """Returns the adjacency matrix of the Ramanujan graph X of two primes.

    Vertices are the invertible 2 × 2 matrices modulo q up to a factor, or half of them
    where p is a square modulo q. Neighbours differ by one of p + 1 matrices, those of
    the integral quaternions of norm p whose real part is odd and positive.

    Args:
      prime: p, a prime with remainder 1 modulo 4.
      modulus: q, another, larger than 2 √p.

    Returns:
      Bool, q (q² - 1) vertices or half as many, each with p + 1 neighbours.
    """
    bound = int(prime**0.5)
    span = np.arange(-bound, bound + 1)
    quaternions = np.stack(np.meshgrid(span, span, span, span), -1).reshape(-1, 4)
    is_chosen = (quaternions**2).sum(-1) == prime
    is_chosen &= (quaternions[:, 0] > 0) & (quaternions[:, 0] % 2 == 1)
    a, b, c, d = quaternions[is_chosen].T
    numbers = np.arange(modulus)
    # A square root of -1.
    root = numbers[numbers**2 % modulus == modulus - 1][0]
    generators = np.array([[a + root * b, c + root * d], [root * d - c, a - root * b]])
    generators = generators.transpose(2, 0, 1) % modulus
    inverses = np.array([pow(int(x), -1, modulus) if x else 0 for x in numbers])

    def number_of(matrices):
        """One number for all multiples: with a first entry, not zero, of one."""
        flat = matrices.reshape(-1, 4) % modulus
        first = flat[np.arange(len(flat)), (flat != 0).argmax(-1)]
        flat = flat * inverses[first][:, None] % modulus
        return flat @ modulus ** np.arange(4)

    # Breadth first from the identity.
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


# Jitted so that calls outside of jit find the compiled loop again.
@functools.partial(jax.jit, static_argnames=("num_vertices", "degree"))
def _swapped(key: jax.Array, num_vertices: int, degree: int) -> jax.Array:
    sparse_degree = min(degree, num_vertices - 1 - degree)
    start = _circulant_graph(num_vertices, sparse_degree)
    adjacency = jnp.asarray(start)
    if sparse_degree:
        edges = np.argwhere(np.triu(start)).astype(np.int32)
        neighbours = np.nonzero(start)[1].reshape(num_vertices, -1).astype(np.int32)
        first, last = _swap_edges(key, jnp.asarray(neighbours), jnp.asarray(edges)).T
        adjacency = jnp.zeros_like(adjacency).at[first, last].set(True)
        adjacency |= adjacency.T
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


def _swap_edges(key: jax.Array, neighbours: jax.Array, edges: jax.Array) -> jax.Array:
    """Attempts to replace edges (a, b), (c, d) by (a, d), (c, b), again and again.

    An attempt that would make a loop or a double edge leaves the graph as it is: both
    directions of a swap are then equally likely, and the limit is uniform.

    Args:
      key: PRNG key.
      neighbours: int (num_vertices, degree). Who is beside whom is looked up there,
        since of an adjacency matrix every swap would make a copy.
      edges: int (num_edges, 2).

    Returns:
      The edges in the end.
    """
    num_edges = len(edges)
    num_rounds = max(_SWAPS_PER_EDGE, -(-_MIN_SWAPS // num_edges))

    def attempt(index, state):
        neighbours, edges, draws = state
        first, second = draws[index]
        a, b = edges[first]
        c, d = edges[second % num_edges]
        # Either end of the second edge can come first.
        c, d = jnp.where(second < num_edges, c, d), jnp.where(second < num_edges, d, c)
        ends = jnp.stack([a, b, c, d])
        rows = neighbours[ends]
        is_double = (rows[0] == d).any() | (rows[1] == c).any()
        swap = (a != d) & (b != c) & ~is_double
        old, new = jnp.stack([b, a, d, c]), jnp.stack([d, c, b, a])
        rows = jnp.where(swap & (rows == old[:, None]), new[:, None], rows)
        neighbours = neighbours.at[ends].set(rows)
        edges = edges.at[first].set(jnp.where(swap, jnp.stack([a, d]), edges[first]))
        second = second % num_edges
        edges = edges.at[second].set(jnp.where(swap, jnp.stack([c, b]), edges[second]))
        return neighbours, edges, draws

    def run_round(index, state):
        # A round's draws at a time: all at once would take memory, one by one time.
        ends = np.array([num_edges, 2 * num_edges], np.int32)
        draws = jax.random.randint(
            jax.random.fold_in(key, index), (num_edges, 2), 0, ends, jnp.int32
        )
        return lax.fori_loop(0, num_edges, attempt, (*state, draws))[:2]

    return lax.fori_loop(0, num_rounds, run_round, (neighbours, edges))[1]
