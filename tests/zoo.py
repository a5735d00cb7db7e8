"""Every code at one small shape, all patterns of it, and what NumPy makes of them."""

import functools
import itertools

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from tests.conftest import every_pattern

KEY = jax.random.key(0)
# Two to four holders a part, one to five parts a worker.
PLACEMENT = np.array(
    [
        [1, 1, 1, 1, 0, 1],
        [0, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 1],
        [1, 0, 0, 0, 0, 0],
    ],
    bool,
)
_ROW_SCALES = np.array([1e-3, 1, 1e3])[:, None]
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
    "from_matrix": jaxwgc.GradientCode.from_matrix(
        _ROW_SCALES * [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]], num_stragglers=1
    ),
    "weighted": jaxwgc.weighted(
        codes.reed_solomon(6, 6, 3), np.array([2.0, 0, 1, 3, 0.5, 1])
    ),
}


def every_code(*names):
    """Runs a test with each of these codes, or with all, as `name`."""
    return pytest.mark.parametrize("name", names or CODES)


def patterns_within(num_workers, num_stragglers):
    """Every mask with at most that many stragglers, each once."""
    lost = [
        list(workers)
        for number in range(num_stragglers + 1)
        for workers in itertools.combinations(range(num_workers), number)
    ]
    masks = np.ones((len(lost), num_workers), bool)
    for mask, workers in zip(masks, lost, strict=True):
        mask[workers] = False
    return masks


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


def targets(code):
    """(num_segments, columns), the target of each segment in its own columns."""
    segments = np.eye(code.num_segments)[:, None]
    return (np.asarray(code.target)[:, None] * segments).reshape(code.num_segments, -1)


def best_mixtures(code, sent):
    """What the messages that were sent can make of the segments of the target.

    `sent` is bool (patterns, num_messages). Gives (patterns, num_segments, columns):
    for each segment the a^T B nearest to the target on that segment's columns, zero on
    the other segments', by least squares in float64.
    """
    matrix = np.asarray(code.encoding_matrix)
    reached = []
    for one in sent:
        rows = matrix[one]
        weights = np.linalg.lstsq(rows.T, targets(code).T, rcond=1e-13)[0]
        reached.append(weights.T @ rows)
    return np.array(reached)


@functools.cache
def least_errors(name):
    """The least error of each of `observed_rounds`, of the code without weights."""
    code = CODES[name]
    return squared_errors(
        best_mixtures(code, messages_sent(code, observed_rounds(name))), code
    )


def squared_errors(mixtures, code):
    """Their squared distance from the target, the mean over the segments."""
    return np.sum(np.abs(mixtures - targets(code)) ** 2, (1, 2)) / code.num_segments


def worst_miss(code, sent):
    """The largest entry of a^T B - target of each pattern: (patterns,)."""
    return np.abs(best_mixtures(code, np.asarray(sent)) - targets(code)).max((1, 2))


def packed(code, gradients):
    """Partial gradients (k, size) as they are encoded, (k * num_segments, length).

    In segments, of which halves are one complex number where the code is complex.
    """
    halves = 2 if code.is_complex else 1
    count = code.num_segments * halves
    length = -(-gradients.shape[1] // count)
    padded = np.zeros((code.num_parts, count * length))
    padded[:, : gradients.shape[1]] = gradients
    blocks = padded.reshape(code.num_parts * code.num_segments, halves, length)
    return blocks[:, 0] + 1j * blocks[:, 1] if code.is_complex else blocks[:, 0]


def unpacked(code, segments, size):
    """The inverse for sums (..., num_segments, length): (..., size)."""
    if code.is_complex:
        segments = np.stack([segments.real, segments.imag], axis=-2)
    flat = segments.reshape(*segments.shape[: -3 if code.is_complex else -2], -1)
    return flat[..., :size]


def effective(code, mixtures):
    """The weight of each partial gradient, (rounds, num_parts), of a^T B."""
    shape = len(mixtures), code.num_segments, code.num_parts, code.num_segments
    own_share = np.einsum("tuku->tk", mixtures.reshape(shape).real)
    return own_share / code.num_segments


def target_rows(code, weights):
    """What a^T B of a weighted code should be, (num_segments, columns)."""
    rows = weights[:, None] * np.eye(code.num_segments)[:, None, :]
    return rows.reshape(code.num_segments, -1)


def least_miss(matrix, target, mask):
    """The least norm of a^T B - target over weights that are rounded as `matrix` is.

    The best of NumPy's least squares, its rows of norm one, with cut-offs that fit the
    rounding of `matrix`; as in `numpy.linalg.lstsq`, in double precision inside.
    """
    rows = np.asarray(matrix)[mask]
    wide = rows.astype(np.result_type(rows, np.float64))
    norms = np.linalg.norm(wide, axis=1)
    norms[norms == 0] = 1
    missed = [np.linalg.norm(target)]
    eps = np.finfo(rows.dtype).eps
    for cutoff in (max(rows.shape) * eps, 100 * eps) if len(rows) else ():
        solved = np.linalg.lstsq(
            (wide / norms[:, None]).T, target.T.astype(wide.dtype), rcond=cutoff
        )[0].T
        rounded = (solved / norms).astype(rows.dtype)
        missed.append(np.linalg.norm(rounded.astype(wide.dtype) @ wide - target))
    return min(missed)


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


def raveled(tree, batch_axes=1):
    """The leaves side by side in float64, in the order of jax.tree."""
    leaves = [np.float64(leaf) for leaf in jax.tree.leaves(tree)]
    shape = leaves[0].shape[:batch_axes]
    return np.concatenate([leaf.reshape(*shape, -1) for leaf in leaves], axis=-1)
