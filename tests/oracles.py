"""References in NumPy, in float64 or more, that tests of several files compare with."""

import jax
import numpy as np
import scipy.stats

# Codes, messages and gradients.


def targets(code):
    """(num_segments, columns), the target of each segment in its own columns."""
    segments = np.eye(code.num_segments)[:, None]
    return (np.asarray(code.target)[:, None] * segments).reshape(code.num_segments, -1)


def best_mixtures(code, sent):
    """Best approximations of the target's segments by the messages that were sent.

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


def raveled(tree, batch_axes=1):
    """The leaves side by side in float64, in the order of jax.tree."""
    leaves = [np.float64(leaf) for leaf in jax.tree.leaves(tree)]
    batch_shape = leaves[0].shape[:batch_axes]
    rows = [leaf.reshape((*batch_shape, -1)) for leaf in leaves]
    return np.concatenate(rows, axis=-1)


def row_scales(matrix):
    """Norms of the rows as powers of two: weights of least norm are so times these."""
    norms = np.linalg.norm(matrix, axis=1)
    return 2.0 ** np.ceil(np.log2(np.where(norms > 0, norms, 1) / 1.2))


# Sketching.


def equilibrated(matrix):
    """Divides columns by powers of two, to norms next to one."""
    matrix = np.asarray(matrix, float)
    norms = np.linalg.norm(matrix, axis=0)
    return matrix / 2 ** np.round(np.log2(np.where(norms > 0, norms, 1)))


def leverage_scores(matrix, rcond=1e-10, ridge=0.0, rank=None):
    """Computes scores of rows in the leading directions, by all singular vectors."""
    left, values, _ = np.linalg.svd(np.asarray(matrix, float), full_matrices=False)
    values = np.where(values > rcond * values[0], values, 0)[:rank] ** 2
    shares = np.divide(values, values + ridge, where=values > 0, out=0 * values)
    return left[:, :rank] ** 2 @ shares


def change_of_scores(matrix, change, rank=None):
    """Computes derivatives of scores from those of all left singular vectors."""
    left, values, _ = np.linalg.svd(matrix)
    if rank is None:
        rank = np.count_nonzero(values > 1e-9 * values[0])
    squares = np.append(values**2, np.zeros(len(left) - len(values)))
    moved = left.T @ (change @ matrix.T + matrix @ change.T) @ left
    ratios = moved[rank:, :rank] / (squares[:rank] - squares[rank:, None])
    return 2 * np.sum((left[:, rank:] @ ratios) * left[:, :rank], axis=1)


def ridge_solution(matrix, target, ridge):
    """Solves (XᵀX + ridge I) θ = Xᵀy."""
    normal = matrix.T @ matrix + ridge * np.eye(matrix.shape[1])
    return np.linalg.solve(normal, matrix.T @ target)


def residual(matrix, target, solution):
    """Computes y - Xθ, in more digits than float64: the terms of a large θ cancel."""
    arrays = (np.asarray(array, np.longdouble) for array in (matrix, target, solution))
    matrix, target, solution = arrays
    return target - matrix @ solution


def residual_norm(matrix, target, solution):
    """Computes ‖y - Xθ‖."""
    return float(np.sqrt(np.sum(residual(matrix, target, solution) ** 2)))


def backward_error(matrix, target, solution):
    """Computes Karlson and Waldén's estimate for changes of X, relative to its norm."""
    _, values, right = np.linalg.svd(matrix, full_matrices=False)
    missed = residual(matrix, target, solution)
    gradient = right @ np.asarray(missed @ np.asarray(matrix, np.longdouble), float)
    solution = np.asarray(solution, np.longdouble)
    weight = values**2 * float(solution @ solution) + float(missed @ missed)
    return np.linalg.norm(gradient / np.sqrt(weight)) / np.linalg.norm(values)


def check_mean(samples, expected, atol=0.0, err_msg=""):
    """Compares the mean along the first axis to four standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    miss = np.abs(samples.mean(axis=0) - expected)
    assert np.all(miss <= 4 * error + atol), (err_msg, miss, error)


def check_counts(observed, expected=None):
    """A chi-square test at the level of 0.1%; by default, all cells are as likely.

    Cells that are expected fewer than ten times are taken together.
    """
    observed = np.asarray(observed, float)
    if expected is None:
        expected = np.full(len(observed), observed.mean())
    is_rare = np.asarray(expected) < 10
    pairs = np.stack([observed, expected])
    pooled = pairs[:, is_rare].sum(1, keepdims=True)
    if pooled[1, 0] < 1:
        assert pooled[0, 0] < 10
        pooled = pooled[:, :0]
    observed, expected = np.hstack([pairs[:, ~is_rare], pooled])
    expected = expected * observed.sum() / expected.sum()
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def check_subsets(subsets, number):
    """All subsets are there, and are equally likely."""
    counts = np.unique(subsets, axis=0, return_counts=True)[1]
    assert len(counts) == number
    check_counts(counts)
