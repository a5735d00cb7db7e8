"""Patterns of stragglers, gradients and losses that tests of codes share."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.catalogue.codes import CODES
from tests.conftest import every_pattern, weekly

KEY = jax.random.key(0)


def every_code(names):
    """Runs a test with each of these codes, as `name`."""
    return pytest.mark.parametrize("name", names)


def weekly_unless(names, daily):
    """Names of codes as parameters, of which only some are daily."""
    return [name if name in daily else weekly(name) for name in names]


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
