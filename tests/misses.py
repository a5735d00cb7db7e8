"""How far decoders miss the target, beside NumPy's least squares; too long for CI.

    python -m tests.misses 12       every pattern of every exact code, n up to 12
    python -m tests.misses large    n = 50 to 200: all strides, 10,000 random patterns

Prints a line a number of workers, or a code: how many patterns miss by more than 1e-5
of the target in float32, and how many of these by more than three times as much as
NumPy.
"""

import sys

import jax
import numpy as np

import jaxwgc
from jaxwgc import codes
from tests.conftest import every_pattern, random_patterns
from tests.zoo import least_miss

LARGE = (
    (50, 20, 30),
    (100, 100, 10),
    (100, 50, 10),
    (200, 200, 20),
    (200, 100, 8),
    (100, 100, 50),
    (200, 200, 100),
)


def exact_codes(num_workers):
    """Every exact code of so many workers, with up to 12 parts or three segments."""
    for replication in range(1, num_workers + 1):
        for num_parts in range(1, 13):
            if num_parts * replication % num_workers == 0:
                yield codes.reed_solomon(num_workers, num_parts, replication)
    for s in range(num_workers):
        if num_workers % (s + 1) == 0:
            yield codes.fractional_repetition(num_workers, s)
        yield codes.binary(num_workers, s)
        yield codes.cyclic_mds(num_workers, s)
        yield codes.cyclic_repetition(jax.random.key(num_workers), num_workers, s)
        for segments in (2, 3):
            if s + segments <= num_workers:
                yield codes.communication_efficient(num_workers, s, segments)


def ratios(code, masks):
    """Misses over the norm of the target; and over NumPy's, of those above 1e-5."""
    matrix = np.asarray(code.encoding_matrix)
    matrix = matrix.astype(jax.dtypes.canonicalize_dtype(matrix.dtype))
    target = np.kron(np.ones(code.num_parts), np.eye(code.num_segments))
    weights = np.asarray(jaxwgc.decoding_weights(code, masks))
    weights = weights.reshape(len(masks), code.num_segments, -1)
    wide = np.result_type(matrix, np.float64)
    missed = weights.astype(wide) @ matrix.astype(wide) - target
    misses = np.linalg.norm(missed, axis=(1, 2))
    poor = ~(misses <= 1e-5 * np.linalg.norm(target))
    least = [least_miss(matrix, target, mask) for mask in masks[poor]]
    return misses / np.linalg.norm(target), misses[poor] / np.array(least)


def strides(code):
    """Stragglers at equal distances, for every distance."""
    number, lost = code.num_workers, np.arange(code.num_stragglers)
    sets = [step * lost % number for step in range(1, number)]
    sets = [own for own in sets if len(set(own)) == len(own)]
    masks = np.ones((len(sets), number), bool)
    np.put_along_axis(masks, np.array(sets), False, axis=1)
    return masks


def show(name, found):
    """A line: what `ratios` gave, of one code or of several."""
    misses, over = (np.concatenate(own) for own in zip(*found, strict=True))
    print(
        f"{name}: {len(found)} codes, {len(misses):,} patterns, worst miss "
        f"{misses.max():.1e}; {len(over)} above 1e-5, of these {np.sum(over > 3)} "
        f"above 3 times NumPy's (at most {over.max(initial=0):.1f} times)",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1] == "large":
        for parameters in LARGE:
            code = codes.reed_solomon(*parameters)
            random = random_patterns(code.num_workers, code.num_stragglers, 10_000)
            show(parameters, [ratios(code, np.concatenate([strides(code), random]))])
    else:
        for number in range(2, int(sys.argv[1]) + 1):
            show(
                f"n = {number}",
                [
                    ratios(
                        code,
                        np.unique(every_pattern(number, code.num_stragglers), axis=0),
                    )
                    for code in exact_codes(number)
                ],
            )
            jax.clear_caches()
