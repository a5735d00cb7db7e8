"""Decoding by NumPy alone, so that codes are not only held against the library."""

import dataclasses
import itertools

import jax
import numpy as np

import jaxwgc
from jaxwgc import decoders
from tests.conftest import arrivals


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


def targets(code):
    """(num_segments, columns), the target of each segment in its own columns."""
    segments = np.eye(code.num_segments)[:, None]
    return (np.asarray(code.target)[:, None] * segments).reshape(code.num_segments, -1)


def worst_miss(code, sent):
    """The largest entry of a^T B - target of each pattern: (patterns,)."""
    return np.abs(best_mixtures(code, np.asarray(sent)) - targets(code)).max((1, 2))


def padded(code, num_workers, num_parts):
    """The same code of one message a worker among that many workers and parts.

    Codes of all sizes so share a compiled function: further workers hold nothing, have
    no group, and are to straggle; the last part comes again and again.
    """
    further = num_workers - code.num_workers
    columns = np.minimum(np.arange(num_parts), code.num_parts - 1)

    def rows(array):
        return np.pad(np.asarray(array)[:, columns], [(0, further), (0, 0)])

    own = code.decoders[0]
    if own.is_a(decoders.Group):
        own = decoders.Group(
            np.pad(own.groups, [(0, 0), (0, further)], constant_values=-1)
        )
    return dataclasses.replace(
        code,
        encoding_matrix=rows(code.encoding_matrix),
        assignment=rows(code.assignment),
        target=np.ones(num_parts),
        num_stragglers=code.num_stragglers + further,
        decoders=(own,),
    )


@jax.jit
def _round_trip(code, weights, received, gradients):
    code = jaxwgc.weighted(code, weights)
    decoding = jaxwgc.decoding(code, **arrivals(received))
    messages = jaxwgc.encode(code, gradients)
    like = jax.tree.map(lambda leaf: leaf[0], gradients)
    return (
        jaxwgc.decoding_weights(code, decoding),
        decoding.error,
        decoding.combine(messages, like),
    )


def check_round_trip(code, received, tolerance):
    """Weighted, encoded and decoded again, in JAX's precision: the weighted sum.

    `received` is a batch of masks, or of numbers of finished parts, that decode.
    """
    random = np.random.default_rng(0)
    weights = random.integers(1, 5, code.num_parts).astype(float)
    # Seven numbers, that no two segments and no two halves divide.
    gradients = {
        "w": random.normal(size=(code.num_parts, 2, 3)),
        "b": random.normal(size=code.num_parts),
    }
    found, error, decoded = _round_trip(code, weights, received, gradients)
    shape = (len(received), code.num_segments, code.num_messages)
    assert found.reshape(shape).shape == shape
    np.testing.assert_allclose(error, 0, atol=tolerance**2 * code.num_parts)
    for name, leaf in gradients.items():
        expected = np.tensordot(weights, leaf, axes=1)
        np.testing.assert_allclose(
            decoded[name],
            np.broadcast_to(expected, decoded[name].shape),
            atol=10 * tolerance,
        )
