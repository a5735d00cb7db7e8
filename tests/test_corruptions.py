"""Corruption models against what they say in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import corruptions, stragglers
from tests.catalogue.corruptions import CODE, EXAMPLES, WHO

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_only_messages_of_corrupted_workers_change(name):
    """Messages are complex; those of real ones have tests of their own."""
    model = EXAMPLES[name]
    messages = jax.random.normal(KEY, (8, 30), jnp.complex64)

    def sample(messages):
        return model.sample(KEY, model.init(4), messages, 4)

    changed, wrong, state = jax.jit(sample)(messages)
    np.testing.assert_array_equal(wrong, [False, True, False, True])
    differs = np.asarray(changed != messages).any(1)
    # One value may be what it was.
    np.testing.assert_array_equal(differs, np.repeat(wrong, 2))
    assert changed.dtype == np.complex64
    assert jax.eval_shape(sample, messages.real)[0].dtype == np.float32
    assert jax.tree.structure(state) == jax.tree.structure(model.init(4))


def test_corruptions_have_their_documented_size():
    draw = np.random.default_rng(0).normal
    messages = 5 * draw(size=(4, 4000)).astype(np.float32)
    names = (
        "additive_noise",
        "additive_noise, one entry",
        "scaling",
        "same_vector",
    )
    corrupt = jax.jit(
        lambda rows: [EXAMPLES[name].corrupted(KEY, rows) for name in names]
    )
    noisy, entry, scaled, vector = map(np.asarray, corrupt(messages))
    np.testing.assert_allclose(np.std(noisy - messages, axis=1), 2.5, rtol=0.1)
    np.testing.assert_array_equal((entry != messages).sum(1), 1)
    np.testing.assert_array_equal(scaled, 3 * messages)
    errors = vector - messages
    np.testing.assert_allclose(errors, np.tile(errors[:1], (4, 1)), atol=1e-5)


def test_part_of_a_codeword_satisfies_the_checks():
    """The error of all workers has rank one and satisfies the checks."""
    messages = np.random.default_rng(0).normal(size=(8, 30)).astype(np.float32)
    error = jax.jit(EXAMPLES["codeword_part"].corrupted)(KEY, messages) - messages
    error = np.asarray(error)
    matrix = CODE.encoding_matrix
    solution, *_ = np.linalg.lstsq(matrix, error, rcond=None)
    np.testing.assert_allclose(matrix @ solution, error, atol=1e-5)
    assert np.linalg.matrix_rank(error, 1e-5) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bit_flip_flips_one_bit(dtype):
    """Each bit of one entry, by NumPy's view of it."""
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    with jax.enable_x64(dtype == np.float64):
        messages = jnp.linspace(1, 2, 21, dtype=dtype).reshape(3, 7)
        flip = jax.jit(
            lambda bit: corruptions.bit_flip(WHO, bit).corrupted(KEY, messages)
        )
        for bit in range(8 * unsigned.itemsize):
            before, after = (
                np.asarray(array).view(unsigned) for array in (messages, flip(bit))
            )
            differences = before ^ after
            assert sorted(set(differences.ravel().tolist())) == [0, 1 << bit]
            np.testing.assert_array_equal((differences != 0).sum(1), 1)


WIDE = np.ones((6, 2), np.float32)


@pytest.mark.parametrize(
    ("bit", "messages", "message"),
    [
        (-1, WIDE, "bit must be from 0 to 31 .* float32; got -1"),
        (16, WIDE.astype(jnp.bfloat16), "bit must be from 0 to 15 .*; got 16"),
    ],
)
def test_bits_that_the_dtype_does_not_have(bit, messages, message):
    corrupt = corruptions.bit_flip(stragglers.uniform(2), bit).corrupted
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda messages: corrupt(KEY, messages), messages)


def test_bits_are_checked_when_messages_are_drawn():
    model = corruptions.bit_flip(stragglers.uniform(2), 32)
    with pytest.raises(ValueError, match="bit.*got 32"):
        model.sample(KEY, (), WIDE, 6)


def test_bits_that_are_no_integers():
    with pytest.raises(TypeError, match="bit must be integers"):
        corruptions.bit_flip(stragglers.uniform(2), 1.5)
