"""Disputes about copies of one message are settled by halving: without any process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import coding, corruptions, stragglers

NUM_WORKERS = 4
PARTS_EACH = 8
LENGTH = 2000
# Two copies of two messages.
BLOCKS = np.kron(np.eye(2), np.ones(PARTS_EACH))
CODE = jaxwgc.GradientCode.from_matrix(np.tile(BLOCKS, (2, 1)))
ONE = stragglers.uniform(1)
MODELS = {
    "noise": corruptions.additive_noise(ONE, scale=0.01),
    "one entry": corruptions.additive_noise(ONE, scale=100.0, share=1e-6),
    "scaling": corruptions.scaling(ONE, factor=1.01),
    "bit": corruptions.bit_flip(ONE, bit=29),
    "codeword": corruptions.codeword_part(ONE, CODE),
}
NOISE = 2 * float(jnp.finfo(jnp.float32).eps)


@jax.jit
def locate(messages, mask, key):
    return coding.locate_errors(CODE, messages, mask, key)


project = jax.jit(coding.project, static_argnums=2)


def settle(messages, gradients, claimed, disputed, liar, key):
    """Workers respond with what they claim of parts, except for one that lies."""

    def ask(pair, parts):
        sums = claimed[disputed[pair]][:, parts].sum(1)
        lies = np.array([[worker == liar] for worker in disputed[pair]])
        return project(key, np.where(lies, -3 * sums, sums), 8)

    return coding.arbitrate(
        project(key, messages, 8)[disputed],
        np.flatnonzero(BLOCKS[disputed[0] % 2]),
        ask,
        lambda part: project(key, gradients[part][None], 8)[0],
        NOISE,
    )


@pytest.mark.parametrize("name", MODELS)
def test_one_corrupted_worker_is_always_found(name):
    """25 rounds each. Wrong is the message, a part, or every answer."""
    model = MODELS[name]
    key = jax.random.key(0)
    corrupted = jax.jit(model.corrupted)
    for number in range(25):
        keys = jax.random.split(jax.random.fold_in(key, number), 4)
        gradients = np.asarray(jax.random.normal(keys[0], (2 * PARTS_EACH, LENGTH)))
        messages = np.array(coding.encode(CODE, gradients))
        who = number % NUM_WORKERS
        part = number % (2 * PARTS_EACH)
        claimed = np.repeat(gradients[None], NUM_WORKERS, 0)
        kind = number % 3
        if kind == 0:
            messages[who] = corrupted(keys[1], messages)[who]
        else:
            part = np.flatnonzero(BLOCKS[who % 2])[number % PARTS_EACH]
            # In units of the messages, which are what is compared.
            wrong = corrupted(keys[1], jnp.asarray(messages)) - messages
            claimed[who, part] += wrong[who]
            messages[who] += wrong[who]
        location = locate(messages, np.ones(NUM_WORKERS, bool), keys[2])
        assert location.rejected
        disputed = np.flatnonzero(location.disputed)
        assert who in disputed
        assert len(disputed) == 2
        liar = who if kind == 2 else None
        settled = settle(messages, gradients, claimed, disputed, liar, keys[3])
        assert settled.settled
        np.testing.assert_array_equal(disputed[settled.wrong], [who])
        assert settled.num_exchanges <= np.log2(PARTS_EACH) + 1
        right = np.arange(NUM_WORKERS) != who
        decoded = jaxwgc.decode(CODE, messages, right, jnp.zeros(LENGTH))
        expected = gradients.sum(0)
        error = np.linalg.norm(decoded - expected) / np.linalg.norm(expected)
        assert error < 1e-5


@pytest.mark.parametrize(
    ("claims", "wrong", "settled"),
    [
        # Two of three are wrong; both, so that none is left; one is NaN; none.
        ([[1, 2], [1, 5], [9, 2]], [False, True, True], True),
        ([[3, 2], [5, 2]], [True, True], False),
        ([[1, np.nan], [1, 2]], [True, False], True),
        ([[1, 2], [1, 2]], [False, False], True),
    ],
)
def test_disputes_of_several_workers_are_settled(claims, wrong, settled):
    claims = np.array(claims, float)[..., None]
    right = np.array([[1.0], [2.0]])
    result = coding.arbitrate(
        claims.sum(1),
        range(2),
        lambda pair, some: claims[pair][:, some].sum(1),
        lambda part: right[part],
        noise=1e-9,
    )
    np.testing.assert_array_equal(result.wrong, wrong)
    assert result.settled == settled


def test_rounding_of_large_sums_that_cancel_is_no_corruption():
    """Differences of large sums have their rounding errors, not those of the rest."""
    random = np.random.default_rng(0)
    parts = np.float32(random.random((4, 100)) * [[1e8], [5.0], [1e8], [0.25]])
    parts[2] = -parts[0]
    claimed = np.stack([parts, parts])
    # The second worker is corrupted in the last part.
    claimed[1, 3] += 1000

    def sums(workers, chosen):
        return claimed[workers][:, chosen].sum(axis=1, dtype=np.float32)

    settlement = coding.arbitrate(
        # Sums in another order have other rounding errors.
        sums(np.array([0, 1]), [3, 2, 1, 0]),
        [0, 1, 2, 3],
        sums,
        lambda part: parts[part],
        NOISE,
    )
    assert settlement.wrong.tolist() == [False, True]
