"""A coordinate that is zero in every partial gradient decodes to exactly zero.

`python -m pytest tests/test_zeros.py --hypothesis-profile=thorough` goes through every
exact code of up to twelve workers that packs entries of a gradient into one message.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

import jaxwgc
from jaxwgc import codes
from tests.zoo import patterns_within

LENGTH = 24
KEY = jax.random.key(0)


def of_all_sizes(largest):
    """Constructors and arguments of the codes that pack, up to so many workers."""
    for n in range(2, largest + 1):
        for k in range(1, n + 1):
            for d in range(1, n + 1):
                if k * d % n == 0:
                    yield codes.reed_solomon, (n, k, d)
        for s in range(n % 2, n, 2):
            yield codes.cyclic_mds, (n, s)
        for s in range(n):
            for m in range(2, n - s + 1):
                yield codes.communication_efficient, (n, s, m)


SOME = [
    (codes.reed_solomon, (10, 10, 5)),
    # Of the same shape, with as many patterns.
    (codes.reed_solomon, (10, 10, 7, False)),
    (codes.communication_efficient, (9, 3, 3)),
    (lambda: codes.partially_coded(codes.cyclic_mds(6, 2), 1), ()),
]
IS_THOROUGH = settings().max_examples > 1000
CODES = [*of_all_sizes(12), SOME[-1]] if IS_THOROUGH else SOME


def with_dead_coordinates(code, kind, seed=0):
    """Gradients (k, size), and which of their coordinates are zero in all parts.

    Of those that are packed into one entry of a message, all but one may be dead.
    """
    draw = np.random.default_rng(seed)
    blocks = code.num_segments * (2 if code.is_complex else 1)
    gradients = draw.normal(size=(code.num_parts, blocks, LENGTH))
    if kind == "sum to zero":
        gradients -= gradients.mean(0)
    elif kind == "of one part":
        gradients *= (draw.permutation(LENGTH) % code.num_parts) == np.arange(
            code.num_parts
        )[:, None, None]
    is_dead = draw.random((blocks, LENGTH)) < 0.5
    gradients[:, is_dead] = 0
    return gradients.reshape(code.num_parts, -1), is_dead.ravel()


KINDS = "of all parts", "of one part", "sum to zero"


def kinds_of(code):
    """If workers hold most parts, messages of parts that sum to zero do so, too.

    Such messages are rounding errors, and hide their size.
    """
    max_parts = code.parts_per_worker.max()
    return KINDS if 4 * max_parts <= 3 * code.num_parts else KINDS[:2]


@jax.jit
def _on_both_paths(code, masks, gradients):
    params = jax.tree.map(lambda leaf: leaf[:, 0], gradients)
    messages = jax.vmap(lambda rows: jaxwgc.encode(code, rows))(gradients)

    def of_mask(mask, weights):
        decoding = jaxwgc.Decoding(code, mask, weights)

        def of_kind(messages, params, gradients):
            return decoding.combine(messages, params), decoding.collapse(gradients)

        return jax.vmap(of_kind)(messages, params, gradients)

    decodings = jaxwgc.decoding(code, masks)
    return jax.vmap(of_mask)(decodings.mask, decodings.weights)


def check(code, masks, x64=False):
    gradients, is_dead = map(
        np.stack, zip(*(with_dead_coordinates(code, kind) for kind in kinds_of(code)))
    )
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        paths = _on_both_paths(code, masks, gradients.astype(dtype))
        paths = [np.asarray(decoded) for decoded in paths]
    expected = gradients.sum(1)
    scale = np.abs(gradients).sum(1).max()
    for decoded in paths:
        assert not np.any(np.where(is_dead, decoded, 0))
        assert np.abs(decoded - expected).max() < 1e-3 * scale


@pytest.mark.parametrize("make, arguments", CODES)
def test_every_pattern(make, arguments):
    code = make(*arguments)
    masks = patterns_within(code.num_workers, code.num_stragglers)
    # Codes of one shape share a compiled function.
    check(code, np.resize(masks, (-(-len(masks) // 1024) * 1024, code.num_workers)))


@pytest.mark.parametrize(
    ("size", "x64"), [((50, 20, 30), False), ((100, 100, 10), True)]
)
def test_large_codes(size, x64):
    code = codes.reed_solomon(*size)
    draw = np.random.default_rng(0)
    order = draw.random((200, code.num_workers)).argsort(axis=1)
    check(code, order >= code.num_stragglers - np.arange(200)[:, None] % 3, x64)


def test_zeros_stay_zero_if_messages_were_rounded_to_bfloat16():
    code = codes.reed_solomon(6, 6, 3)
    gradients, is_dead = with_dead_coordinates(code, KINDS[0])
    messages = jaxwgc.encode(code, gradients.astype(np.float32))
    parts = (leaf.astype(jnp.bfloat16) for leaf in (messages.real, messages.imag))
    messages = jax.lax.complex(*(leaf.astype(jnp.float32) for leaf in parts))
    params = np.zeros(len(is_dead), np.float32)
    expected = gradients.sum(0)
    decoding = jaxwgc.decoding(code, patterns_within(6, 2))
    decoded = decoding.combine(messages, params, message_dtype=jnp.bfloat16)
    assert not np.any(np.where(is_dead, decoded, 0))
    errors = np.linalg.norm(decoded - expected, axis=1)
    assert np.all(errors < 0.05 * np.linalg.norm(expected))


def test_infinity_and_small_entries_are_not_rounded_to_zero():
    """Infinity that was received, and entries just as small as others are large."""
    code = codes.cyclic_mds(4, 2)
    messages = jaxwgc.encode(code, np.ones((4, 2), np.float32))
    params = np.zeros(2, np.float32)
    assert not np.isfinite(
        jaxwgc.decode(code, messages.at[0].set(jnp.inf), np.ones(4, bool), params)
    ).any()
    gradients = np.ones((4, 2), np.float32) * [1, 1e-4]
    messages = jaxwgc.encode(code, gradients)
    decoded = jaxwgc.decode(code, messages, np.arange(4) > 1, params)
    np.testing.assert_allclose(decoded, gradients.sum(0), rtol=0.02)
