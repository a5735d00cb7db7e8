"""Every code at one small shape, and all patterns of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from tests.conftest import every_pattern


def bools(rows):
    """A matrix, from its rows as words of zeros and ones."""
    return np.array([list(row) for row in rows.split()]) == "1"


KEY = jax.random.key(0)
# Two to four holders a part, one to five parts a worker.
PLACEMENT = bools("111101 010000 101010 100110 001001 100000")
# Rows of very different norms, twice: of the shape of the other codes.
_SCALED_ROWS = np.kron(
    np.eye(2), np.diag([1e-3, 1, 1e3]) @ [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]]
)
_UNEQUAL = [0.5, 0.1, 0.3, 0.2, 0.6, 0.05]
_clusters_of_two = functools.partial(codes.clustered, num_clusters=2)

# Of six workers where that is possible, and few where messages are several.
CODES = {
    "uncoded": codes.uncoded(6),
    "fractional_repetition": codes.fractional_repetition(6, 2),
    "cyclic_repetition": codes.cyclic_repetition(KEY, 6, 2),
    "reed_solomon": codes.reed_solomon(6, 6, 3),
    "reed_solomon, slack": codes.reed_solomon(6, 3, 4),
    "cyclic_mds": codes.cyclic_mds(6, 3),
    "cyclic_mds, complex": codes.cyclic_mds(6, 2),
    # Four does not divide six: there are two families.
    "binary": codes.binary(6, 3),
    "communication_efficient": codes.communication_efficient(6, 2, 2),
    "communication_efficient, odd": codes.communication_efficient(6, 1, 3),
    "clustered": _clusters_of_two(codes.cyclic_mds(3, 1)),
    "clustered, lagrange": _clusters_of_two(codes.reed_solomon(3, 3, 2)),
    "clustered, group": _clusters_of_two(codes.binary(3, 1)),
    "clustered, segments": _clusters_of_two(codes.communication_efficient(3, 0, 3)),
    "multi_message": codes.multi_message(codes.fractional_repetition(4, 1)),
    "multi_message, uncoded": codes.multi_message(codes.uncoded(3, 9)),
    "partial": codes.partially_coded(codes.cyclic_repetition(KEY, 3, 1), 1),
    "partial, complex": codes.partially_coded(codes.cyclic_mds(3, 1), 1),
    "replicated": codes.replicated(3, 5, copies=2, loads=[1, 3, 1]),
    "bernoulli": codes.bernoulli(KEY, 6, 6, replication=2),
    "regularized_bernoulli": codes.regularized_bernoulli(KEY, 6, 6, replication=2),
    "regular_graph": codes.regular_graph(KEY, 6, replication=3),
    "edge_graph": codes.edge_graph(KEY, 4, degree=3),
    "stochastic": codes.stochastic(KEY, 6, 6, 2, 0.2),
    "stochastic_block": codes.stochastic_block(KEY, 6, 6, 2, 0.8, 0.1),
    "unequal": codes.unequal(_UNEQUAL, 6),
    "unequal, assignment": codes.unequal(
        _UNEQUAL, 6, assignment=codes.cyclic_mds(6, 2).assignment, correlation=0.3
    ),
    "ldgm": codes.ldgm(KEY, 6, 4, 2),
    "batch_raptor": codes.batch_raptor(KEY, 6, 6, batch_size=2, c=0.5),
    "projective_plane": codes.projective_plane(2),
    "paley": codes.paley(7),
    "any_placement, polynomials": codes.any_placement(KEY, PLACEMENT, 1, "polynomials"),
    "any_placement, random_rows": codes.any_placement(KEY, PLACEMENT, 1, "random_rows"),
    "from_matrix": jaxwgc.GradientCode.from_matrix(_SCALED_ROWS, num_stragglers=1),
    "weighted": jaxwgc.weighted(
        codes.reed_solomon(6, 6, 3), np.array([2.0, 0, 1, 3, 0.5, 1])
    ),
}


def every_code(*names):
    """Runs a test with each of these codes, as `name`."""
    return pytest.mark.parametrize("name", names)


def patterns(num_workers, numbers):
    """Every mask with one of these numbers of stragglers, by their sets in order."""
    masks = [
        ~np.isin(np.arange(num_workers), lost)
        for number in numbers
        for lost in itertools.combinations(range(num_workers), number)
    ]
    return np.array(masks)


def patterns_within(num_workers, num_stragglers):
    """Every mask with at most that many stragglers, each once."""
    return patterns(num_workers, range(num_stragglers + 1))


def messages_sent(code, observed):
    """Messages that arrive of masks, or of numbers of finished parts.

    Bool (..., num_workers) or int of that shape; gives bool (..., num_messages).
    """
    if observed.dtype == bool:
        return observed.repeat(code.messages_per_worker, axis=-1)
    enough = observed[..., None] >= np.asarray(code.required_parts)
    possible = observed <= np.asarray(code.parts_per_worker)
    return (enough & possible[..., None]).reshape(*observed.shape[:-1], -1)


@functools.cache
def observed_rounds(name):
    """All masks of a code; of several messages a worker, numbers of finished parts."""
    code = CODES[name]
    if code.messages_per_worker == 1:
        return every_pattern(code.num_workers, code.num_workers)
    parts = np.asarray(code.parts_per_worker)
    finished = np.random.default_rng(0).integers(0, parts + 1, (64, len(parts)))
    finished[0] = 0
    finished[1] = parts
    # Counts that cannot be, of which a traced one is no answer.
    finished[2] = parts + 3
    finished[3] = -1
    return finished


def gradients_of(num_parts, dtype=np.float32):
    """Seven numbers a part, in two leaves, that no two segments and halves divide."""
    draw = np.random.default_rng(0).normal
    return {
        "w": draw(size=(num_parts, 3, 2)).astype(dtype),
        "b": draw(size=num_parts).astype(dtype),
    }


def like(gradients):
    """Zeros like the gradient that is decoded."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], leaf.dtype), gradients)


def squared_loss(params, part):
    x, y = part
    return jnp.sum((x @ params["w"] + params["b"] - y) ** 2) / 2


def regression(num_parts, dtype=np.float64):
    """Parameters in two leaves, 5 in all, and parts of 4 rows."""
    draw = np.random.default_rng(0).normal
    params = {"w": np.ones((4), dtype), "b": np.zeros((), dtype)}
    parts = draw(size=(num_parts, 4, 4)), draw(size=(num_parts, 4))
    return params, jax.tree.map(lambda leaf: leaf.astype(dtype), parts)
