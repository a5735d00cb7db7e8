"""Decoding on a graph whose edges are workers, one connected component at a time."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._some_masks import in_batches
from jaxwgc._targets import target_scale
from jaxwgc.decoders._decoder import Array, Decoder

# Entries, of all masks together, that are looked up side by side: few enough that they
# stay in cache.
_ENTRIES = 2**18
# One less than the largest, so that one can be added.
_LAST = np.uint32(2**32 - 2)


class Components(Decoder):
    """The weights of least error in time linear in the workers, for codes of edges.

    Parts are the vertices of a graph and messages its edges, each the sum of the two
    parts at its ends. The answers split the parts into connected components. One with
    an odd cycle is decoded exactly. In the others, which have two sides L and R, every
    answer adds as much to one side as to the other: parts get the weight 1 - δ on L and
    1 + δ on R, δ = (|L| - |R|) / (|L| + |R|), the nearest to one that this allows.
    Messages then get their weights along a spanning tree of shortest paths, from the
    leaves to the root. What is over at the root goes to the edges that close odd
    cycles.

    As exact as least squares, but with larger weights, since most are zero: about four
    times the norm at six workers a vertex. The time grows with the longest shortest
    path in a component, too, which is short where the graph expands.

    Attributes:
      incident: int (num_parts, max_degree), the messages that hold each part, and -1
        where they are fewer. Every message holds two.

    Example:
      A triangle of parts, and one beside it that only the last worker holds:

      >>> import jax.numpy as jnp, jaxwgc
      >>> matrix = [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1]]
      >>> code = jaxwgc.GradientCode.from_matrix(matrix)
      >>> decoder = jaxwgc.decoders.Components(
      ...     jnp.array([[0, 2, -1], [0, 1, -1], [1, 2, 3], [3, -1, -1]])
      ... )
      >>> received = jnp.array([[True, True, True, False], [True, True, False, True]])
      >>> jaxwgc.effective_weights(code, received, decoder)
      Array([[1., 1., 1., 0.],
             [1., 1., 1., 1.]], dtype=float32)

    References:
      Glasgow, Wootters, "Approximate gradient coding with optimal decoding", IEEE
      Journal on Selected Areas in Information Theory, 2021.
    """

    incident: Array

    needs: ClassVar[str] = "whose workers are edges of a graph, as codes.edge_graph"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        num_messages, num_parts = matrix.shape
        sizes = {"num_parts": num_parts, "max_degree": "any"}
        incident = _validation.as_array("incident", self.incident, "integers", **sizes)
        if any(isinstance(array, jax.Array) for array in (incident, matrix, target)):
            return
        held = np.zeros(matrix.shape, bool)
        part, place = np.nonzero(incident >= 0)
        edges = incident[part, place]
        if np.all(edges < num_messages):
            held[edges, part] = True
        is_right = np.all(held * target[0] == matrix) and np.all(held.sum(1) == 2)
        self.check_matrix(is_right, matrix)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _by_components(mask, jnp.asarray(self.incident), target)


class _Graph(NamedTuple):
    """A graph, seen from its vertices and from its edges.

    Attributes:
      incident: int (k, d), the edges at each vertex, n where there is none.
      ends: int (2, n), the vertices of each edge.
      neighbours: int (k, d), the other ends.
    """

    incident: jax.Array
    ends: jax.Array
    neighbours: jax.Array


def _graph(incident: jax.Array, num_edges: int) -> _Graph:
    num_vertices = len(incident)
    incident = jnp.where(incident < 0, num_edges, incident)
    vertex = jnp.arange(num_vertices)[:, None]
    first = jnp.full(num_edges, num_vertices).at[incident].min(vertex, mode="drop")
    last = jnp.full(num_edges, -1).at[incident].max(vertex, mode="drop")
    neighbours = (first + last).at[incident].get(mode="clip") - vertex
    return _Graph(incident, jnp.stack([first, last]), neighbours)


@jax.jit
def _by_components(mask, incident, target):
    graph = _graph(incident, mask.shape[-1])
    dtype = jnp.result_type(float)
    # A part may be missed the more, the less it counts.
    sizes = (jnp.abs(target[0]) / target_scale(target)).astype(dtype)
    slack = 1 / jnp.maximum(sizes, jnp.finfo(dtype).eps) ** 2

    def weights(masks):
        # Masks come last, so that what is looked up lies side by side.
        return _weights(masks.T, graph, slack).T

    at_once = max(_ENTRIES // incident.size, 1)
    return in_batches(weights, mask, at_once)[..., None, :]


def _weights(mask, graph, slack):
    """Weights (n, masks) of the answers in `mask`, bool (n, masks)."""
    incident, (first, last), neighbours = graph
    is_there = mask.at[incident].get(mode="fill", fill_value=False)
    root, depth = _shortest_paths(is_there, neighbours)
    sign = (1 - 2 * (depth % 2)).astype(slack.dtype)
    # Shortest paths differ by no more than one at the ends of an edge, and by none only
    # where the edge closes an odd cycle.
    depths = depth[neighbours]
    is_odd = is_there & (depths == depth[:, None])
    is_upward = is_there & (depths < depth[:, None])
    earlier = jnp.cumsum(is_upward, axis=1, dtype=jnp.int32) - is_upward
    is_parent = is_upward & (earlier == 0)
    parent_edge = jnp.where(is_parent, incident[..., None], -1).max(1)
    is_child = is_there & (parent_edge[neighbours] == incident[..., None])

    # Sums over the vertices below each vertex, and it.
    num_odd = is_odd.sum(1).astype(slack.dtype)
    slack = jnp.broadcast_to(slack[:, None], sign.shape)
    at_vertex = jnp.stack([sign, slack, num_odd])

    def gather(_, below):
        return at_vertex + jnp.where(is_child, below[:, neighbours], 0).sum(2)

    below = jax.lax.fori_loop(0, depth.max(), gather, at_vertex)
    excess, all_slack, all_odd = jnp.take_along_axis(below, root[None], axis=1)
    # By how much each unit of slack, or each end of an odd edge, makes up for one side
    # being larger than the other.
    has_odd = all_odd > 0
    ratio = excess / jnp.where(has_odd, all_odd, all_slack)
    flow = below[0] - ratio * jnp.where(has_odd, below[2], below[1])
    flow, ratio = sign * flow, sign * ratio
    edge = jnp.arange(len(mask))[:, None]
    weights = jnp.where(depth[first] == depth[last], ratio[first], 0)
    for end in (first, last):
        weights = jnp.where(parent_edge[end] == edge, flow[end], weights)
    return jnp.where(mask, weights, 0)


def _shortest_paths(is_there, neighbours):
    """The first vertex of each component, and the distances from it, int (k, masks).

    The least number of all that an edge leads to, in rounds until nothing changes; a
    number is a vertex and a distance, in which order they are compared.
    """
    num_vertices = np.uint32(len(neighbours))

    def advance(state):
        number, _ = state
        around = jnp.where(is_there, number[neighbours], _LAST).min(1)
        nearer = jnp.minimum(number, around + 1)
        return nearer, (nearer != number).any()

    vertex = jnp.arange(num_vertices, dtype=jnp.uint32)[:, None]
    # Made of the mask, so that under shard_map they vary with the device as it does.
    start = jnp.where(is_there[:, 0], vertex, vertex) * num_vertices
    changes = is_there.any()
    number, _ = jax.lax.while_loop(lambda state: state[1], advance, (start, changes))
    root, depth = number // num_vertices, number % num_vertices
    return root.astype(jnp.int32), depth.astype(jnp.int32)
