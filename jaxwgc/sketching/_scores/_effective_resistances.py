"""Effective resistances of the edges of a weighted graph."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation

# Largest number of entries in memory per batch of edges: one per vertex and edge.
_BLOCK = 2**20


def effective_resistances(
    edges: ArrayLike, weights: ArrayLike | None = None, num_vertices: int | None = None
) -> Array:
    """Computes the effective resistance of every edge of a graph.

    It is (e_u - e_v)ᵀ L⁺ (e_u - e_v) for an edge between u and v and the Laplacian
    L. With the weights as conductances, this is the voltage between the ends of the
    edge when a unit of current flows from one end to the other. The resistance
    times the weight is the leverage score of the row √w (e_u - e_v)ᵀ of the
    weighted incidence matrix. These scores sum to the number of vertices minus the
    number of components.

    Args:
      edges: int (m, 2), the two ends of each edge, from 0. Parallel edges are allowed.
        An edge from a vertex to itself has the resistance 0. The graph may be
        disconnected: current flows inside a component.
      weights: w, (m,), positive and finite; 1 by default.
      num_vertices: An int. By default the largest end plus one, if edges are not
        traced.

    Returns:
      (m,), not negative, in the dtype of the weights. The error of the leverage scores
      is of the order of n machine epsilons, also if the graph is weakly connected. If
      traced edges or weights are out of range, all are NaN.

    Raises:
      ValueError: If edges have another shape, are empty, or have ends that are negative
        or not less than num_vertices; if weights have another length, or are not
        positive and finite.
      TypeError: If edges are not integers, weights are not real, or num_vertices is
        missing with traced edges.

    Note:
      The dense adjacency matrix is reduced by a subtraction-free elimination of one
      vertex at a time. For n vertices, this takes time of the order of n³ + m n and
      memory of n².

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> square_and_edge = jnp.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5]])
      >>> print(sketching.effective_resistances(square_and_edge).round(2))
      [0.75 0.75 0.75 0.75 1.  ]

    References:
      Spielman and Srivastava, "Graph sparsification by effective resistances", SIAM J.
      Comput. 40 (2011), section 2. Grassmann, Taksar and Heyman, "Regenerative analysis
      and steady state distributions for Markov chains", Operations Research 33 (1985),
      for the elimination.
    """
    is_traced = array_validation.is_traced(edges)
    if is_traced:
        # A list of tracers becomes an array.
        edges = jnp.asarray(edges)
    ends = array_validation.as_array("edges", edges, "integers")
    validation.check_shape("edges", ends, "(m, 2)", ("any", 2))
    host_edges = None if is_traced else np.asarray(ends)
    if num_vertices is None:
        if host_edges is None:
            raise TypeError("num_vertices must be given if edges are traced")
        num_vertices = int(host_edges.max(initial=0)) + 1
    num_vertices = validation.check_int("num_vertices", num_vertices, minimum=1)
    if host_edges is not None:
        smallest = host_edges.min()
        largest = host_edges.max()
        if smallest < 0 or largest >= num_vertices:
            raise ValueError(
                "edges must have ends from 0 to num_vertices - 1; got "
                f"{smallest} to {largest} with num_vertices = {num_vertices}"
            )
    if weights is None:
        weights = np.ones(len(ends))
    conductances = conversions.gathered(conversions.float_array("weights", weights))
    validation.check_shape("weights", conductances, "(m,)", ends.shape[:1])
    values = conversions.concrete(weights, conductances.dtype)
    if values is not None:
        is_valid = np.isfinite(values) & (values > 0)
        validation.check_entries("weights", values, is_valid, "positive and finite")
    # The dtype of the given ends may be too narrow for the number of vertices.
    vertices = conversions.gathered(jnp.asarray(ends).astype(jnp.int32))
    return _resistances(vertices, conductances, num_vertices)


@functools.partial(jax.jit, static_argnames="num_vertices")
def _resistances(edges: Array, weights: Array, num_vertices: int) -> Array:
    dtype = weights.dtype
    valid = jnp.all((edges >= 0) & (edges < num_vertices))
    valid &= jnp.all((weights > 0) & jnp.isfinite(weights))
    edges = jnp.where(valid, edges, 0)
    weights = jnp.where(valid, weights, 1)
    first, second = edges.T
    # The largest weight is the unit, so that sums do not overflow.
    unit = jnp.max(weights, initial=0)
    unit = jnp.where(unit > 0, unit, 1)
    conductances = jnp.where(first != second, weights / unit, 0)

    adjacency = jnp.zeros((num_vertices, num_vertices), dtype)
    adjacency = adjacency.at[first, second].add(conductances)
    adjacency = adjacency + adjacency.T
    flows, pivots = _eliminated(adjacency)
    inverse_pivots = jnp.where(pivots > 0, 1 / jnp.where(pivots > 0, pivots, 1), 0)

    def resistance(edge: tuple[Array, Array, Array]) -> Array:
        first, second, conductance = edge
        flow = flows[first] - flows[second]
        # A flow is a pivot times a voltage. With a unit current, the largest voltage is
        # that between the ends of the edge, which is at most 1 / conductance. This
        # bound removes rounding errors of flows into weakly connected parts.
        bound = pivots / jnp.where(conductance > 0, conductance, 1)
        return jnp.sum(jnp.clip(flow, -bound, bound) ** 2 * inverse_pivots)

    edges_with_conductances = (first, second, conductances)
    batch_size = max(1, _BLOCK // num_vertices)
    resistances = lax.map(resistance, edges_with_conductances, batch_size=batch_size)
    return jnp.where(valid, resistances / unit, jnp.nan)


def _eliminated(adjacency: Array) -> tuple[Array, Array]:
    """Eliminates vertices; returns the flows and pivots that give resistances.

    The resistance of the edge uv is Σ_k (H_uk - H_vk)² / s_k for flows H and pivots
    s. Gaussian elimination replaces one vertex after the other by edges between its
    neighbours: L = Σ_k s_k (e_k - u_k)(e_k - u_k)ᵀ, with u_k the shares of the
    current from k to its neighbours. Diagonals are sums of off-diagonal entries. So
    nothing is subtracted, and all entries have a small relative error at any
    condition number.
    """
    num_vertices = adjacency.shape[0]
    order = jnp.arange(num_vertices)

    def eliminate(
        k: Array, state: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        left, shares, pivots = state
        row = jnp.where(order > k, left[k], 0)
        pivot = jnp.sum(row)
        share = row / jnp.where(pivot > 0, pivot, 1)
        left = left + row[:, None] * share
        # An edge from a vertex to itself is removed.
        left = jnp.where(order[:, None] == order, 0, left)
        return left, shares.at[k].set(share), pivots.at[k].set(pivot)

    state = (adjacency, jnp.zeros_like(adjacency), jnp.zeros_like(adjacency[0]))
    _, shares, pivots = lax.fori_loop(0, num_vertices, eliminate, state)
    identity = jnp.eye(num_vertices, dtype=adjacency.dtype)
    # Entry (u, k) of (I - U)⁻¹ is the share of a current into u that passes k.
    return solve_triangular(identity - shares, identity, lower=False), pivots
