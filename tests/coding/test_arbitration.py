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
    """Workers respond with what they claim of parts, except for one that lies.

    Returns the outcome, and the number of queries and of recomputed parts.
    """
    exchanges = []

    def ask(pair, parts):
        exchanges.append(parts)
        sums = claimed[disputed[pair]][:, parts].sum(1)
        lies = np.array([[worker == liar] for worker in disputed[pair]])
        return project(key, np.where(lies, -3 * sums, sums), 8)

    def recompute(part):
        exchanges.append(part)
        return project(key, gradients[part][None], 8)[0]

    outcome = coding.arbitrate(
        project(key, messages, 8)[disputed],
        np.flatnonzero(BLOCKS[disputed[0] % 2]),
        ask,
        recompute,
        NOISE,
    )
    return outcome, len(exchanges)


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
        settled, num_exchanges = settle(
            messages, gradients, claimed, disputed, liar, keys[3]
        )
        assert settled.settled
        np.testing.assert_array_equal(disputed[settled.wrong], [who])
        assert num_exchanges <= np.log2(PARTS_EACH) + 1
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


@pytest.mark.parametrize(
    ("totals", "parts", "noise", "message"),
    [
        (np.ones((2, 3)), [0], np.nan, "noise must be a number"),
        (np.ones((2, 3)), [0], -1.0, "noise must be at least 0"),
        (np.ones((2, 3)), [], 1e-7, "parts at least one part; got .* 0 parts"),
        (np.ones(3), [0], 1e-7, "totals must have shape .*; got totals \\(3,\\)"),
    ],
)
def test_wrong_arguments_are_told(totals, parts, noise, message):
    with pytest.raises(ValueError, match=message):
        coding.arbitrate(totals, parts, None, None, noise)


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


LIES = ("part", "message", "scaled", "colluding", "garbage", "inflated", "zero")


class Dispute:
    """Random copies of a message of eight parts, of which some are corrupted.

    Parts have norms from 0.01 to 100, and corruptions sizes from 0.1 to 1e12. Some
    corrupted workers respond as if the message were right, others with anything.
    """

    def __init__(self, random, num_wrong, noise):
        self.random = random
        self.noise = noise
        scales = 10 ** random.uniform(-2, 2, (PARTS_EACH, 1))
        self.parts = scales * random.standard_normal((PARTS_EACH, 16))
        self.wrong = np.zeros(NUM_WORKERS, bool)
        self.wrong[random.choice(NUM_WORKERS, num_wrong, replace=False)] = True
        self.lies = random.choice(LIES, NUM_WORKERS)
        self.claims = np.repeat(self.parts[None], NUM_WORKERS, 0)
        errors = np.zeros((NUM_WORKERS, 16))
        shared_error = 1e3 * random.standard_normal(16)
        for worker in np.flatnonzero(self.wrong):
            size = 10 ** random.uniform(-1, 12)
            error = size * random.standard_normal(16)
            if self.lies[worker] == "part":
                self.claims[worker, random.integers(PARTS_EACH)] += error
            elif self.lies[worker] == "colluding":
                self.claims[worker, 3] += shared_error
            elif self.lies[worker] == "scaled":
                self.claims[worker] *= random.choice([-size, size])
            else:
                errors[worker] = error
        self.totals = self.rounded(self.claims) + errors

    def rounded(self, terms):
        """Sums terms (workers, parts, length), with errors relative to the largest."""
        sums = terms.sum(axis=1)
        largest = np.linalg.norm(terms, axis=2).max(axis=1)
        largest = np.maximum(largest, np.linalg.norm(sums, axis=1))
        errors = self.random.uniform(-1, 1, sums.shape) / np.sqrt(sums.shape[1])
        return sums + self.noise / 4 * largest[:, None] * errors

    def ask(self, workers, parts):
        sums = self.rounded(self.claims[workers][:, parts])
        for place, worker in enumerate(workers):
            size = 10 ** self.random.uniform(-1, 12)
            lie = size * self.random.standard_normal(sums.shape[1])
            if not self.wrong[worker]:
                continue
            if self.lies[worker] == "garbage":
                sums[place] = lie
            elif self.lies[worker] == "inflated":
                sums[place] += lie
            elif self.lies[worker] == "zero":
                sums[place] = 0
        return sums

    def differs(self):
        """Which totals differ from the right one by more than noise."""
        right = self.parts.sum(axis=0)
        size = max(np.linalg.norm(right), np.linalg.norm(self.parts))
        return np.linalg.norm(self.totals - right, axis=1) > 10 * self.noise * size


@pytest.mark.parametrize("noise", [NOISE, 1e-4, 2.0**-6])
@pytest.mark.parametrize("num_wrong", [1, 2, 3])
def test_no_settled_verdict_is_wrong(num_wrong, noise):
    """1,000 random disputes of four workers; no honest one is accused."""
    random = np.random.default_rng(num_wrong)
    num_settled = 0
    for _ in range(1000):
        dispute = Dispute(random, num_wrong, noise)
        outcome = coding.arbitrate(
            dispute.totals,
            range(PARTS_EACH),
            dispute.ask,
            lambda part, dispute=dispute: dispute.parts[part],
            noise,
        )
        assert not (outcome.wrong & ~dispute.wrong).any()
        if outcome.settled:
            num_settled += 1
            assert not (dispute.differs() & ~outcome.wrong).any()
    # Without it, a function that settles nothing would pass.
    assert num_settled > 950
