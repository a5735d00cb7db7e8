"""Parity checks find corrupted messages, and blame no other worker."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from tests.catalogue.codes import CODES as CATALOGUE
from tests.oracles import packed
from tests.zoo import patterns

KEY = jax.random.key(3)
LENGTH = 40
# With three checks or four; the last two have no points, and their errors of low rank
# are guessed.
CODES = {
    "reed_solomon": codes.reed_solomon(8, 8, 5),
    "cyclic_mds": codes.cyclic_mds(8, 4),
    "cyclic_repetition": codes.cyclic_repetition(KEY, 8, 4),
    "communication_efficient": codes.communication_efficient(8, 4, 1),
}
COPIES = codes.fractional_repetition(9, num_stragglers=2)
NUM_CHECKS = 4
BATCH = 128


@jax.jit
def of_rounds(locator, messages, received, keys, noise):
    def of_round(messages, received, key):
        return locator.locate(messages, received, key, noise)

    return jax.vmap(of_round)(messages, received, keys)


def find_all(code, messages, received, noise=0.0):
    """Locations of errors in rounds as NumPy arrays; batches have one size.

    Gradients have `LENGTH` entries: codes of one shape and decoder share a program.
    """
    locator = jaxwgc.coding.ErrorLocator.of(code)
    keys = jax.random.split(KEY, BATCH)
    received = received.repeat(code.messages_per_worker, axis=1)
    batches = []
    for start in range(0, len(messages), BATCH):
        rows = np.arange(start, start + BATCH) % len(messages)
        batches.append(of_rounds(locator, messages[rows], received[rows], keys, noise))
    return jax.tree.map(
        lambda *arrays: np.concatenate(arrays)[: len(messages)], *batches
    )


def find(code, messages, received=True, noise=0.0):
    """Location of errors in one round."""
    received = np.broadcast_to(received, (1, code.num_workers))
    result = find_all(code, np.asarray(messages)[None], received, noise)
    return jax.tree.map(lambda leaf: leaf[0], result)


def sent(code, gradients):
    """Messages of rounds, in the precision of the gradients."""
    blocks = np.array([packed(code, gradient) for gradient in gradients])
    dtype = np.result_type(gradients, np.complex64 if code.is_complex else np.float32)
    return code.encoding_matrix.astype(dtype) @ blocks.astype(dtype)


def first_part(size, num_parts):
    return np.where(np.arange(num_parts) == 0, size, 1.0)[:, None]


def locate(
    code, is_wrong, received=True, sizes=3.0, heavy=1.0, agree=False, factor=None
):
    """Locations for random gradients times `heavy`; missing messages are NaN.

    Wrong ones are off by random vectors, or by `factor` times what they should be.
    """
    draw = np.random.default_rng(3)
    received = np.broadcast_to(received, is_wrong.shape)
    sizes = np.broadcast_to(sizes, is_wrong.shape)
    gradients = heavy * draw.normal(size=(len(is_wrong), code.num_parts, LENGTH))
    messages = sent(code, gradients.astype(np.float32))
    errors = draw.normal(size=(2, *messages.shape))
    errors = errors[0] + 1j * errors[1] if code.is_complex else errors[0]
    errors = sizes[..., None] * (errors[:, :1] if agree else errors)
    errors = errors.astype(messages.dtype) if factor is None else factor * messages
    messages = np.where(is_wrong[..., None], messages + errors, messages)
    messages[~received] = np.nan
    return find_all(code, messages, received)


@pytest.mark.parametrize("name", CODES)
def test_independent_errors_up_to_one_less_than_checks(name):
    """Every set of up to three wrong workers; up to one beside every missing one."""
    wrong = ~patterns(8, range(NUM_CHECKS))
    pairs = [(is_wrong, np.ones(8, bool)) for is_wrong in wrong]
    pairs += [
        (is_wrong, np.arange(8) != lost)
        for is_wrong in wrong
        for lost in range(8)
        if is_wrong.sum() < 2 and not is_wrong[lost]
    ]
    is_wrong, received = map(np.array, zip(*pairs))
    location = locate(CODES[name], is_wrong, received)
    np.testing.assert_array_equal(location.wrong, is_wrong)
    assert not np.any(location.rejected)
    np.testing.assert_array_equal(location.mask, received & ~is_wrong)
    np.testing.assert_array_equal(location.checks, received.sum(1) - 4)


@pytest.mark.parametrize("name", CODES)
def test_errors_that_agree_up_to_half_of_the_checks(name):
    """Every pair that adds one and the same vector; three are never mistaken."""
    is_wrong = ~patterns(8, [2, 3])
    location = locate(CODES[name], is_wrong, agree=True)
    are_two = is_wrong.sum(1) == 2
    np.testing.assert_array_equal(location.wrong[are_two], is_wrong[are_two])
    assert not np.any(location.rejected[are_two])
    assert np.all(location.rejected | (np.asarray(location.wrong) == is_wrong).all(1))


@pytest.mark.parametrize("heavy", [1.0, 1e3])
@pytest.mark.parametrize("name", CODES)
def test_moderate_errors_are_found_beside_huge_ones(name, heavy):
    """Every pair and triple, errors of 1e3 to 1e30 of a typical entry."""
    is_wrong = ~patterns(8, [2, 3])
    draw = np.random.default_rng(0)
    sizes = 10 ** draw.uniform(3, 30, is_wrong.shape)
    location = locate(CODES[name], is_wrong, sizes=sizes, heavy=first_part(heavy, 8))
    is_right = (np.asarray(location.wrong) == is_wrong).all(1)
    assert np.all(is_right | location.rejected)
    assert np.mean(is_right) > 0.9


@pytest.mark.parametrize(
    ("sizes", "num_missing", "heavy", "options"),
    [
        ([1e12, 1e3], 2, 30.0, {}),
        ([1.0], 2, 30.0, {"factor": -2}),
        ([0.1, 0.1], 1, 30.0, {"agree": True}),
        ([1.0, 1.0], 1, 30.0, {"agree": True}),
        ([1e12, 1e12, 1e12, 1e12, 1e4], 0, 1.0, {}),
    ],
)
def test_errors_of_unequal_sizes(sizes, num_missing, heavy, options):
    """Found, or rejected if there are as many as checks."""
    code = codes.cyclic_mds(12, 5)
    places = np.random.default_rng(0).random((BATCH, 12)).argsort(axis=1)
    is_wrong = places < len(sizes)
    received = places < 12 - num_missing
    sizes = np.asarray([*sizes, *[0] * (12 - len(sizes))])[places]
    location = locate(code, is_wrong, received, sizes, first_part(heavy, 12), **options)
    is_right = (np.asarray(location.wrong) == is_wrong).all(1) & ~np.asarray(
        location.rejected
    )
    if is_wrong[0].sum() < code.num_stragglers - num_missing:
        assert np.all(is_right)
    assert np.all(is_right | location.rejected)


@pytest.mark.parametrize("name", CODES)
def test_more_errors_than_can_be_explained_are_rejected(name):
    """Four independent errors leave no check: no worker is blamed, none is used."""
    is_wrong = ~patterns(8, [4])
    location = locate(CODES[name], is_wrong)
    assert np.all(location.rejected)
    assert np.all(location.disputed)
    assert not np.any(location.wrong | location.mask)


def test_decoded_gradients_have_derivatives_beside_a_located_error():
    """The decoded gradient is linear in messages of one scale."""
    code = CODES["cyclic_mds"]
    gradients = np.random.default_rng(0).normal(size=(8, LENGTH)).astype(np.float32)
    messages = np.array(jaxwgc.encode(code, gradients))
    messages[4] *= -1
    received = np.ones(8, bool)

    def total(scale):
        scaled = scale * messages
        location = jaxwgc.locate_errors(code, scaled, received, KEY)
        return jaxwgc.decode(code, scaled, location, params=jnp.zeros(LENGTH)).sum()

    expected = gradients.sum(dtype=np.float64)
    np.testing.assert_allclose(jax.grad(total)(1.0), expected, rtol=1e-3)


def test_a_round_without_a_check_is_rejected():
    four = np.arange(8)[None] < 4
    location = locate(CODES["cyclic_mds"], np.zeros((1, 8), bool), four)
    assert location.rejected[0]
    assert location.checks[0] == 0
    assert not location.mask.any()


class TestCopies:
    @pytest.mark.parametrize("agree", [False, True])
    def test_majority(self, agree):
        """Against counting: every pattern of up to three wrong workers."""
        is_wrong = ~patterns(9, range(4))
        location = locate(COPIES, is_wrong, agree=agree)
        groups = COPIES.assignment @ 2 ** np.arange(9)
        _, labels = np.unique(groups, return_inverse=True)
        wrong = np.array([is_wrong[:, labels == g].sum(1) for g in range(3)]).T
        # Of three copies, one error is outvoted; two that agree win, two that do not
        # leave three parties of one.
        blamed = np.where((wrong == 2)[:, labels], ~is_wrong, is_wrong)
        blamed = np.where((wrong == 3)[:, labels], False, blamed)
        expected = blamed if agree else is_wrong
        rejected = np.zeros(len(is_wrong), bool) if agree else (wrong >= 2).any(1)
        np.testing.assert_array_equal(location.rejected, rejected)
        np.testing.assert_array_equal(
            location.wrong[~rejected], np.asarray(expected)[~rejected]
        )
        disputed = (wrong >= 2)[:, labels] & rejected[:, None]
        np.testing.assert_array_equal(location.disputed, disputed)

    def test_one_of_three_rounded_to_bfloat16(self):
        """Off by 20%, which is 5 times what counts as rounding."""

        def is_found(key):
            messages = jaxwgc.encode(COPIES, jax.random.normal(key, (9, LENGTH)))
            error = 0.2 * jnp.roll(messages[1], 1)
            rounded = messages.at[1].add(error).astype(jnp.bfloat16)
            location = jaxwgc.locate_errors(COPIES, rounded, np.ones(9, bool), key)
            return (location.wrong == (np.arange(9) == 1)).all()

        assert jax.jit(jax.vmap(is_found))(jax.random.split(KEY, 1000)).all()

    def test_copies_that_differ_are_disputed_and_single_copies_are_dropped(self):
        code = codes.fractional_repetition(4, num_stragglers=1)
        messages = np.float32(code.encoding_matrix)
        wrong = messages + np.eye(4, dtype=np.float32)[[1]].T
        location = jaxwgc.locate_errors(code, wrong, np.ones(4, bool), KEY)
        assert bool(location.rejected)
        np.testing.assert_array_equal(location.disputed, [False, True, False, True])
        location = jaxwgc.locate_errors(code, messages, np.arange(4) < 3, KEY)
        assert bool(location.rejected)
        assert not location.disputed.any()

    def test_workers_are_disputed_if_one_of_their_messages_is(self):
        """Each pair of three workers has two parts in common."""
        code = codes.replicated(3, num_parts=6, copies=2)
        for message in range(len(code.encoding_matrix)):
            messages = np.float32(code.encoding_matrix)
            messages[message] += 1
            location = find(code, messages)
            part = np.flatnonzero(code.encoding_matrix[message])
            assert bool(location.rejected)
            np.testing.assert_array_equal(
                location.disputed, code.assignment[:, part].all(axis=1)
            )

    def test_several_messages_a_worker(self):
        """A worker with one wrong message is out with all of them."""
        code = codes.replicated(3, num_parts=6, copies=3)
        messages = np.float32(code.encoding_matrix)
        messages[7] += 1
        location = find(code, messages)
        np.testing.assert_array_equal(location.wrong, [False, True, False])
        np.testing.assert_array_equal(location.mask, np.repeat([True, False, True], 6))
        decoded = jaxwgc.decode(code, messages, location, jnp.zeros(6))
        np.testing.assert_array_equal(decoded, np.ones(6))


def test_parts_of_unequal_size_blame_no_worker():
    """Honest messages may be of any size; a round may be rejected, no more."""
    spreads = np.linspace(0, 10, 256)[:, None, None]
    sizes = np.exp(spreads * np.random.default_rng(0).normal(size=(256, 8, 1)))
    nobody = np.zeros((256, 8), bool)
    assert not np.any(locate(CODES["cyclic_repetition"], nobody, heavy=sizes).wrong)


def test_a_large_part_hides_no_corrupted_worker():
    """The large messages of one cluster are all of its checks."""
    clusters = codes.clustered(codes.cyclic_mds(4, 2), 2)
    # Of this decoder there is a compiled function.
    inner_decoders = CODES["cyclic_mds"].decoders
    clusters = dataclasses.replace(clusters, decoders=inner_decoders)
    zeroed = np.eye(8, dtype=bool)[:4]
    location = locate(clusters, zeroed, heavy=first_part(100.0, 8), factor=-1)
    assert not np.any(location.wrong & ~zeroed)
    assert np.all(location.rejected | location.wrong.any(1))


@pytest.mark.parametrize("code", [COPIES, CODES["cyclic_mds"]], ids=str)
def test_gradients_of_all_sizes(code):
    sizes = np.array([1e-35, 1e-20, 1e20, 1e30])
    is_wrong = np.tile(np.arange(code.num_workers) == 1, (4, 1))
    location = locate(code, is_wrong, heavy=sizes[:, None, None], factor=-2)
    np.testing.assert_array_equal(location.wrong, is_wrong)


def test_different_copies_whose_squares_overflow_do_not_agree():
    messages = np.ones((9, LENGTH), np.float32)
    messages[COPIES.assignment[:, 0], :2] = [[1e24, 0], [0, 2e25], [1, 2]]
    assert bool(find(COPIES, messages).rejected)


class TestKindsOfNumbers:
    code = CODES["reed_solomon"]
    second = np.arange(8) == 2
    gradients = np.random.default_rng(0).normal(size=(8, LENGTH)).astype(np.float32)
    [ones] = sent(code, np.ones((1, 8, LENGTH), np.float32))

    def shifted(self, messages, place, error):
        """Messages with an error of worker 2."""
        messages = messages.copy()
        messages[2, place] += error
        return messages

    def test_messages_that_are_not_finite_count_as_missing(self):
        for value in (np.nan, np.inf, 3e38):
            location = find(self.code, self.shifted(self.ones, 5, value))
            assert not location.mask[2]
            assert not bool(location.rejected)
            assert np.isnan(value) <= (not np.any(location.wrong))
            assert int(location.mask.sum()) == 7

    def test_double_precision_finds_smaller_errors(self, x64):
        dtype = np.float64 if x64 else np.float32
        [messages] = sent(self.code, self.gradients[None].astype(dtype))
        assert not np.any(find(self.code, messages).wrong)
        error = 1e-10 if x64 else 1e-3
        location = find(self.code, self.shifted(messages, 5, error))
        np.testing.assert_array_equal(location.wrong, self.second)

    def test_noise_between_honest_copies(self):
        [messages] = sent(self.code, self.gradients[None])
        draw = np.random.default_rng(1).normal(size=messages.shape)
        noisy = (messages * (1 + 1e-4 * draw)).astype(messages.dtype)
        assert bool(find(self.code, noisy).rejected)
        location = find(self.code, self.shifted(noisy, slice(None), 1.0), noise=3e-4)
        np.testing.assert_array_equal(location.wrong, self.second)

    def test_a_code_that_is_traced(self):
        [messages] = sent(self.code, self.gradients[None])
        messages = self.shifted(messages, slice(None), 1.0)
        result = jax.jit(jaxwgc.locate_errors)(
            jax.tree.map(jnp.asarray, self.code), messages, np.ones(8, bool), KEY
        )
        np.testing.assert_array_equal(result.wrong, self.second)


@pytest.mark.parametrize("num_stragglers", range(2, 7))
def test_errors_of_reed_solomon_codes_with_few_checks(num_stragglers):
    """Windows of few sums have fewer singular vectors than there are sums."""
    code = codes.reed_solomon(8, 8, num_stragglers + 1)
    random = np.random.default_rng(num_stragglers)
    gradients = random.normal(size=(8, 6)).astype(np.float32)
    messages = jaxwgc.encode(code, gradients)
    everyone = np.ones(8, bool)
    for wrong in ([], [2]):
        sent = messages.at[np.array(wrong, int)].add(5)
        location = jaxwgc.locate_errors(code, sent, everyone, jax.random.key(0))
        assert np.flatnonzero(location.wrong).tolist() == wrong


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"messages": np.ones((5, 2))},
            ValueError,
            "messages must have (shape|a leading axis)",
        ),
        (
            {"received": np.ones(5, bool)},
            ValueError,
            "received must have (shape|a leading axis)",
        ),
        ({"messages": np.zeros((1, 6, 4))}, ValueError, "messages must be of one"),
        (
            {"received": np.ones((1, 6), bool)},
            ValueError,
            "received must be of one round",
        ),
        (
            {"code": codes.uncoded(6), "messages": np.ones((6, 2))},
            ValueError,
            "code must have parity checks for all",
        ),
        (
            {"messages": np.zeros((6, 4), complex)},
            TypeError,
            "messages must be real",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    accepted = {
        "code": CATALOGUE["cyclic_mds"],
        "messages": np.zeros((6, 4)),
        "received": np.ones(6, bool),
        "key": KEY,
    }
    with pytest.raises(error, match=message):
        jaxwgc.locate_errors(**{**accepted, **arguments})
