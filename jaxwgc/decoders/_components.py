"""Decoding by connected components, for workers that are edges of a graph."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import scale_of, varying_with
from jaxwgc._common.some_rows import in_batches
from jaxwgc.decoders._decoder import Array, Decoder

# Number of entries, over all masks, that are looked up at a time. They fit into the
# cache.
_ENTRIES = 2**18
# The largest integer but one, because 1 is added to it.
_LAST = np.uint32(2**32 - 2)


class Components(Decoder):
    """Decodes codes on graph edges optimally, in linear time.

    Parts are the vertices of a graph, and messages its edges, each the sum of the two
    parts at its ends. The responses split the graph into connected components.
    A component with an odd cycle is decoded exactly. Any other component is bipartite
    with sides L and R, and every message adds equally to both sides. Parts get the
    weight 1 - δ on L and 1 + δ on R, with δ = (|L| - |R|) / (|L| + |R|), which are the
    nearest possible weights to one. The weights of messages follow along a spanning
    tree of shortest paths, from the leaves to the root. The remainder at the root goes
    to the edges that close odd cycles.

    The residual is equal to that of least squares. Weights are larger, since most are
    zero: about four times the norm at six workers per vertex. Time also grows with the
    longest shortest path in a component, which is short in expander graphs.

    Attributes:
      incident: Messages that contain each part, int (num_parts, max_degree), padded
        with -1. Every message contains two parts.

    Example:
      A triangle of parts, and a part that only the last worker holds:

      >>> import jax.numpy as jnp, jaxwgc
      >>> matrix = [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1]]
      >>> code = jaxwgc.GradientCode.from_matrix(matrix)
      >>> decoder = jaxwgc.decoders.Components(
      ...     jnp.array([[0, 2, -1], [0, 1, -1], [1, 2, 3], [3, -1, -1]])
      ... )
      >>> received = jnp.array([[True, True, True, False], [True, True, False, True]])
      >>> jaxwgc.decoding(code, received, decoder).effective_weights
      Array([[1., 1., 1., 0.],
             [1., 1., 1., 1.]], dtype=float32)

    References:
      Glasgow, Wootters, "Approximate gradient coding with optimal decoding", IEEE
      Journal on Selected Areas in Information Theory, 2021.
    """

    incident: Array

    needs: ClassVar[str] = "with workers as edges of a graph, such as codes.edge_graph"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        array_validation.as_array(
            "incident",
            self.incident,
            "integers",
            num_parts=matrix.shape[1],
            max_degree="any",
        )

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _by_components(mask, jnp.asarray(self.incident), target)


@jax.jit
def _by_components(
    mask: jax.Array, incident: jax.Array, target: jax.Array
) -> jax.Array:
    """Computes decoding weights in batches of masks."""
    num_edges = mask.shape[-1]
    num_vertices = len(incident)
    dtype = jnp.result_type(float)
    incident = jnp.where(incident < 0, num_edges, incident)
    vertex = jnp.arange(num_vertices)[:, None]
    # Vertices of each edge, and opposite ends of the edges at each vertex.
    first = jnp.full(num_edges, num_vertices)
    first = first.at[incident].min(vertex, mode="drop")
    last = jnp.full(num_edges, -1)
    last = last.at[incident].max(vertex, mode="drop")
    neighbours = (first + last).at[incident].get(mode="clip") - vertex
    # A part with a smaller weight has a larger allowed error.
    sizes = (jnp.abs(target[0]) / scale_of(target)).astype(dtype)
    slack = 1 / jnp.maximum(sizes, jnp.finfo(dtype).eps) ** 2

    def weights(masks):
        # Masks are the last axis, so that lookups read contiguous entries.
        return _weights(masks.T, incident, (first, last), neighbours, slack).T

    at_once = max(_ENTRIES // incident.size, 1)
    return in_batches(weights, mask, at_once)[..., None, :]


def _weights(
    mask: jax.Array,
    incident: jax.Array,
    ends: tuple[jax.Array, jax.Array],
    neighbours: jax.Array,
    slack: jax.Array,
) -> jax.Array:
    """Computes the weights of messages on the edges of a graph.

    Returns weights (n, masks) of the messages in `mask`, bool (n, masks).
    """
    first, last = ends
    is_there = mask.at[incident].get(mode="fill", fill_value=False)
    root, depth = _shortest_paths(is_there, neighbours)
    sign = (1 - 2 * (depth % 2)).astype(slack.dtype)
    # Depths at the ends of an edge differ by at most one. Equal depths mean that the
    # edge closes an odd cycle.
    depths = depth[neighbours]
    is_odd = is_there & (depths == depth[:, None])
    is_upward = is_there & (depths < depth[:, None])
    earlier = jnp.cumsum(is_upward, axis=1, dtype=jnp.int32) - is_upward
    is_parent = is_upward & (earlier == 0)
    parent_edge = jnp.where(is_parent, incident[..., None], -1).max(1)
    is_child = is_there & (parent_edge[neighbours] == incident[..., None])

    # Each sum is over a vertex and its descendants.
    num_odd = is_odd.sum(1).astype(slack.dtype)
    slack = jnp.broadcast_to(slack[:, None], sign.shape)
    at_vertex = jnp.stack([sign, slack, num_odd])

    def gather(_, below):
        return at_vertex + jnp.where(is_child, below[:, neighbours], 0).sum(2)

    below = jax.lax.fori_loop(0, depth.max(initial=0), gather, at_vertex)
    excess, all_slack, all_odd = jnp.take_along_axis(below, root[None], axis=1)
    # The two sides of a component may have unequal weight. This amount per unit of
    # slack, or per end of an odd edge, compensates the difference.
    has_odd = all_odd > 0
    ratio = excess / jnp.where(has_odd, all_odd, all_slack)
    flow = below[0] - ratio * jnp.where(has_odd, below[2], below[1])
    flow = sign * flow
    ratio = sign * ratio
    edge = jnp.arange(len(mask))[:, None]
    weights = jnp.where(depth[first] == depth[last], ratio[first], 0)
    for end in ends:
        weights = jnp.where(parent_edge[end] == edge, flow[end], weights)
    return jnp.where(mask, weights, 0)


def _shortest_paths(
    is_there: jax.Array, neighbours: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Finds connected components and distances from their first vertices.

    Returns the first vertex of each component and distances from it, (k, masks).
    Propagates minima along edges until nothing changes. Each number encodes a
    vertex and, in the low digits, a distance.
    """
    num_vertices = np.uint32(len(neighbours))

    def advance(state):
        number, _ = state
        around = jnp.where(is_there, number[neighbours], _LAST).min(1)
        nearer = jnp.minimum(number, around + 1)
        return nearer, (nearer != number).any()

    vertex = jnp.arange(num_vertices, dtype=jnp.uint32)[:, None]
    start = varying_with(is_there[:, 0], vertex) * num_vertices
    changes = is_there.any()

    def has_changed(state):
        _, changes = state
        return changes

    number, _ = jax.lax.while_loop(has_changed, advance, (start, changes))
    root = number // num_vertices
    depth = number % num_vertices
    return root.astype(jnp.int32), depth.astype(jnp.int32)
