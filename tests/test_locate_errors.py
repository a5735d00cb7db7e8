"""Wrong messages are found by what a code has to spare, and nobody else is blamed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import codes
from jaxwgc.coding._errors._evidence import parity_checks
from jaxwgc.coding._errors._majority import find_copies
from jaxwgc.coding._errors._projection import key_from, project
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
NUM_CHECKS = 4
BATCH = 128


@jax.jit
def of_rounds(locator, keys, is_wrong, received, sizes, heavy, agree, flipped):
    """Messages of random gradients, some of them wrong, all of the missing ones NaN."""

    def of_round(key, is_wrong, received, sizes):
        keys = jax.random.split(key, 4)
        gradients = jax.random.normal(keys[0], (locator.code.num_parts, LENGTH))
        messages = jaxwgc.encode(locator.code, gradients.at[0].multiply(heavy))
        errors = jax.random.normal(keys[1], messages.shape, messages.dtype)
        errors = sizes[:, None] * jnp.where(agree, errors[:1], errors)
        errors = jnp.where(flipped, -2 * messages, errors)
        messages = jnp.where(is_wrong[:, None], messages + errors, messages)
        messages = jnp.where(received[:, None], messages, jnp.nan)
        return locator.locate(messages, received, keys[2])

    return jax.vmap(of_round)(keys, is_wrong, received, sizes)


def locate(code, is_wrong, received=True, sizes=3.0, **options):
    """What is found of rounds, in NumPy."""
    number = len(is_wrong)
    received = np.broadcast_to(received, is_wrong.shape)
    sizes = np.broadcast_to(sizes, is_wrong.shape).astype(np.float32)
    options = {"heavy": 1.0, "agree": False, "flipped": False, **options}
    # Always as many side by side: codes of one shape are compiled once.
    padded = np.arange(-(-number // BATCH) * BATCH) % number
    keys = jax.random.split(KEY, len(padded))
    locator = jaxwgc.coding.ErrorLocator.of(code)
    batches = []
    for start in range(0, len(padded), BATCH):
        own = padded[start : start + BATCH]
        drawn = keys[start : start + BATCH], is_wrong[own], received[own], sizes[own]
        batches.append(of_rounds(locator, *drawn, **options))
    return jax.tree.map(lambda *own: np.concatenate(own)[:number], *batches)


@functools.cache
def finder(code):
    """Compiled once for each code, whose checks are computed on the host."""
    return jax.jit(functools.partial(jaxwgc.locate_errors, code))


def find(code, messages, received=True, noise=0.0):
    """What is found of one round."""
    received = np.broadcast_to(received, code.num_workers)
    return finder(code)(messages, received, KEY, noise=noise)


@pytest.mark.parametrize("name", CODES)
def test_independent_errors_up_to_one_less_than_checks(name):
    """Every set of up to three wrong workers; up to one beside every missing one."""
    wrong = ~patterns(8, range(NUM_CHECKS))
    pairs = [(own, np.ones(8, bool)) for own in wrong]
    pairs += [
        (own, np.arange(8) != lost)
        for own in wrong
        for lost in range(8)
        if own.sum() < 2 and not own[lost]
    ]
    is_wrong, received = map(np.array, zip(*pairs))
    found = locate(CODES[name], is_wrong, received)
    np.testing.assert_array_equal(found.wrong, is_wrong)
    assert not np.any(found.refused)
    assert np.all(found.unique)
    np.testing.assert_array_equal(found.mask, received & ~is_wrong)
    np.testing.assert_array_equal(found.checks, received.sum(1) - 4)


@pytest.mark.parametrize("name", CODES)
def test_errors_that_agree_up_to_half_of_the_checks(name):
    """Every pair that adds one and the same vector; three are never mistaken."""
    is_wrong = ~patterns(8, [2, 3])
    found = locate(CODES[name], is_wrong, agree=True)
    are_two = is_wrong.sum(1) == 2
    np.testing.assert_array_equal(found.wrong[are_two], is_wrong[are_two])
    assert not np.any(found.refused[are_two])
    assert np.all(found.refused | (np.asarray(found.wrong) == is_wrong).all(1))


@pytest.mark.parametrize("heavy", [1.0, 1e3])
@pytest.mark.parametrize("name", CODES)
def test_huge_errors_hide_no_moderate_ones(name, heavy):
    """Every pair and triple, errors of 1e3 to 1e30 of a typical entry."""
    is_wrong = ~patterns(8, [2, 3])
    draw = np.random.default_rng(0)
    sizes = 10 ** draw.uniform(3, 30, is_wrong.shape)
    found = locate(CODES[name], is_wrong, sizes=sizes, heavy=heavy)
    is_right = (np.asarray(found.wrong) == is_wrong).all(1)
    assert np.all(is_right | found.refused)
    assert np.mean(is_right) > 0.9


@pytest.mark.parametrize(
    ("num_stragglers", "sizes", "num_missing", "options"),
    [
        (3, [1e12, 1e3], 0, {"heavy": 30.0}),
        (3, [1.0], 0, {"heavy": 30.0, "flipped": True}),
        (5, [0.1, 0.1], 1, {"heavy": 30.0, "agree": True}),
        (5, [1.0, 1.0], 1, {"heavy": 30.0, "agree": True}),
        (5, [1e12, 1e12, 1e12, 1e12, 1e4], 0, {}),
    ],
)
def test_errors_of_unequal_sizes(num_stragglers, sizes, num_missing, options):
    """Found, or rejected if there are as many as checks."""
    code = codes.cyclic_mds(12, num_stragglers)
    places = np.random.default_rng(0).random((BATCH, 12)).argsort(axis=1)
    is_wrong = places < len(sizes)
    received = places < 12 - num_missing
    sizes = np.asarray([*sizes, *[0] * (12 - len(sizes))])[places]
    found = locate(code, is_wrong, received, sizes, **options)
    is_right = (np.asarray(found.wrong) == is_wrong).all(1) & ~np.asarray(found.refused)
    if is_wrong[0].sum() < num_stragglers:
        assert np.all(is_right)
    assert np.all(is_right | found.refused)


@pytest.mark.parametrize("name", CODES)
def test_more_than_can_be_explained_is_refused(name):
    """Four independent errors leave no check: nobody is blamed, nothing believed."""
    is_wrong = ~patterns(8, [4])
    found = locate(CODES[name], is_wrong)
    assert np.all(found.refused)
    assert np.all(found.disputed)
    assert not np.any(found.wrong | found.mask | found.unique[:, None])


def test_a_round_without_a_spare_answer_is_refused():
    nobody, four = np.zeros((1, 8), bool), np.arange(8)[None] < 4
    found = locate(CODES["cyclic_mds"], nobody, four)
    assert found.refused[0]
    assert found.checks[0] == 0
    assert not found.mask.any()


class TestCopies:
    code = codes.fractional_repetition(9, num_stragglers=2)

    @pytest.mark.parametrize("agree", [False, True])
    def test_majority(self, agree):
        """Against counting: every pattern of up to three wrong workers."""
        is_wrong = ~patterns(9, range(4))
        found = locate(self.code, is_wrong, agree=agree)
        groups = self.code.assignment @ 2 ** np.arange(9)
        _, labels = np.unique(groups, return_inverse=True)
        wrong = np.array([is_wrong[:, labels == g].sum(1) for g in range(3)]).T
        # Of three copies, one error is outvoted; two that agree win, two that do not
        # leave three parties of one.
        blamed = np.where((wrong == 2)[:, labels], ~is_wrong, is_wrong)
        blamed = np.where((wrong == 3)[:, labels], False, blamed)
        expected = blamed if agree else is_wrong
        refused = np.zeros(len(is_wrong), bool) if agree else (wrong >= 2).any(1)
        np.testing.assert_array_equal(found.refused, refused)
        np.testing.assert_array_equal(
            found.wrong[~refused], np.asarray(expected)[~refused]
        )
        disputed = (wrong >= 2)[:, labels] & refused[:, None]
        np.testing.assert_array_equal(found.disputed, disputed)

    def test_one_of_three_rounded_to_bfloat16(self):
        """Off by 20%, which is 5 times what counts as rounding."""

        def is_found(key):
            messages = jaxwgc.encode(self.code, jax.random.normal(key, (9, LENGTH)))
            error = 0.2 * jnp.roll(messages[1], 1)
            rounded = messages.at[1].add(error).astype(jnp.bfloat16)
            found = jaxwgc.locate_errors(self.code, rounded, np.ones(9, bool), key)
            return (found.wrong == (np.arange(9) == 1)).all()

        assert jax.jit(jax.vmap(is_found))(jax.random.split(KEY, 1000)).all()

    def test_two_of_two_is_a_dispute_and_one_alone_is_not_believed(self):
        code = codes.fractional_repetition(4, num_stragglers=1)
        messages = jaxwgc.encode(code, jnp.eye(4))
        wrong = messages.at[1].add(1.0)
        # Compiled, and not.
        for found in (
            find(code, wrong),
            jaxwgc.locate_errors(code, wrong, np.ones(4, bool), KEY),
        ):
            assert bool(found.refused)
            np.testing.assert_array_equal(found.disputed, [False, True, False, True])
        found = find(code, messages, np.arange(4) < 3)
        assert bool(found.refused)
        assert not found.disputed.any()

    def test_several_messages_a_worker(self):
        """A worker with one wrong message is out with all of them."""
        code = codes.replicated(3, num_parts=6, copies=3)
        messages = jaxwgc.encode(code, jnp.eye(6)).at[7].add(1.0)
        found = find(code, messages)
        np.testing.assert_array_equal(found.wrong, [False, True, False])
        np.testing.assert_array_equal(found.mask, np.repeat([True, False, True], 6))
        decoded = jaxwgc.decode(code, messages, found, jnp.zeros(6))
        np.testing.assert_array_equal(decoded, np.ones(6))

    def test_are_known_by_their_rows(self):
        matrix = np.array([[1, 2, 0], [0, 0, 3], [-2, -4, 0], [0, 0, 1.5]])
        labels, signs = find_copies(matrix)
        assert labels[0] == labels[2] != labels[1] == labels[3]
        np.testing.assert_array_equal(signs, [1, 1, -1, 1])
        assert find_copies(np.array([[1.0, 0], [0, 1], [1, 1]])) is None


@pytest.mark.parametrize("name", CODES)
def test_checks_span_the_null_space(name):
    """Against SciPy, also where the matrix is traced."""
    matrix = CODES[name].encoding_matrix
    checks, norms = parity_checks(matrix)
    np.testing.assert_allclose(norms, np.linalg.norm(matrix, axis=1))
    expected = scipy.linalg.null_space((matrix / norms[:, None]).T.conj()).T.conj()
    np.testing.assert_allclose(
        checks.T.conj() @ checks, expected.T.conj() @ expected, atol=1e-12
    )
    traced, _ = jax.jit(parity_checks)(jnp.asarray(matrix))
    np.testing.assert_allclose(
        np.asarray(traced).T.conj() @ traced, expected.T.conj() @ expected, atol=1e-4
    )


class TestProjection:
    @pytest.mark.parametrize("length", [3, 1024, 1500, 40_000])
    def test_keeps_norms_and_relations(self, length):
        generator = np.random.default_rng(length)
        rows = generator.normal(size=(6, length))
        rows[5] = rows[:5].sum(0)
        drawn = project(KEY, jnp.asarray(rows, jnp.float32), 400)
        ratios = np.linalg.norm(drawn, axis=1) / np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(ratios, 1, atol=0.2)
        # A few roundings, however many entries are added up.
        miss = np.linalg.norm([1, 1, 1, 1, 1, -1] @ np.asarray(drawn, np.float64))
        assert miss < 8 * 2**-24 * np.linalg.norm(drawn[5])

    def test_notices_every_entry(self):
        """An error anywhere shows with its size."""
        rows = 1.0 * jnp.eye(2, 5000)
        base = project(KEY, rows, 8)
        for place in (0, 1023, 1024, 2047, 4096, 4999):
            moved = project(KEY, rows.at[1, place].add(5.0), 8)
            assert 1 < np.linalg.norm(moved - base) < 15

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.bfloat16])
    def test_key_depends_on_every_message(self, dtype):
        messages = jnp.ones((4, 5000), dtype)
        keys = {
            bytes(np.asarray(jax.random.key_data(key_from(own))))
            for own in (messages, *(messages.at[i, 3].add(1) for i in range(4)))
        }
        assert len(keys) == 5


@given(spread=st.floats(0, 10), seed=st.integers(0, 2**31 - 1))
def test_nobody_is_blamed_for_parts_of_unequal_size(spread, seed):
    """Honest messages may be of any size; a round may be refused, no more."""
    found, sizes = _unequal(spread, seed)
    assert not np.any(found.wrong)
    assert sizes.shape == (8,)


@jax.jit
def _unequal(spread, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = jnp.exp(spread * jax.random.normal(keys[0], (8, 1)))
    gradients = sizes * jax.random.normal(keys[1], (8, LENGTH))
    code = CODES["cyclic_repetition"]
    messages = jaxwgc.encode(code, gradients)
    found = jaxwgc.locate_errors(code, messages, jnp.ones(8, bool), keys[2])
    return found, sizes[:, 0]


CLUSTERS = codes.clustered(codes.cyclic_mds(4, 2), 2)


@pytest.mark.parametrize("zeroed", range(4))
def test_a_large_part_hides_nobody(zeroed):
    """The large messages of one cluster are all of its checks."""
    gradients = jax.random.normal(KEY, (8, 3)).at[0].multiply(100.0)
    right = jaxwgc.encode(CLUSTERS, gradients)
    found = find(CLUSTERS, right.at[zeroed].set(0))
    others = np.asarray(found.wrong) & (np.arange(8) != zeroed)
    assert not others.any()
    assert bool(found.refused) or bool(found.wrong[zeroed])


@pytest.mark.parametrize(
    "code", [codes.fractional_repetition(4, 3), CODES["cyclic_mds"]], ids=str
)
def test_gradients_of_all_sizes(code):
    for size in (1e-35, 1e-20, 1e20, 1e30):
        gradients = size * jax.random.normal(KEY, (code.num_parts, 3))
        found = find(code, jaxwgc.encode(code, gradients).at[1].multiply(-1))
        np.testing.assert_array_equal(found.wrong, np.arange(code.num_workers) == 1)


def test_huge_copies_never_agree():
    code = codes.fractional_repetition(3, 2)
    messages = np.array([[1e24, 0, 0], [0, 2e25, 0], [1, 2, 3]], np.float32)
    assert bool(find(code, messages).refused)


class TestKindsOfNumbers:
    code = CODES["reed_solomon"]
    second = np.arange(8) == 2
    ones = jaxwgc.encode(code, np.ones((8, LENGTH), np.float32))
    gradients = np.random.default_rng(0).normal(size=(8, LENGTH))

    def test_what_is_not_finite_is_missing(self):
        for value in (np.nan, np.inf, 3e38):
            found = find(self.code, self.ones.at[2, 5].set(value))
            assert not found.mask[2]
            assert not bool(found.refused)
            assert np.isnan(value) <= (not np.any(found.wrong))
            assert int(found.mask.sum()) == 7

    def test_errors_of_all_sizes(self):
        for size in (1e-3, 1.0, 1e6, 1e18, 1e30):
            found = find(self.code, self.ones.at[2, 5].add(size))
            np.testing.assert_array_equal(found.wrong, self.second)

    def test_double_precision_finds_less(self, x64):
        messages = jaxwgc.encode(self.code, self.gradients.astype(float))
        assert not np.any(find(self.code, messages).wrong)
        found = find(self.code, messages.at[2, 5].add(1e-10 if x64 else 1e-3))
        np.testing.assert_array_equal(found.wrong, self.second)

    def test_noise_between_honest_copies(self):
        messages = jaxwgc.encode(self.code, self.gradients)
        noisy = messages * (1 + 1e-4 * jax.random.normal(KEY, messages.shape))
        assert bool(find(self.code, noisy).refused)
        found = find(self.code, noisy.at[2].add(1.0), noise=3e-4)
        np.testing.assert_array_equal(found.wrong, self.second)

    def test_a_code_that_is_traced(self):
        messages = jaxwgc.encode(self.code, self.gradients).at[2].add(1.0)
        code, received = jax.tree.map(jnp.asarray, self.code), np.ones(8, bool)
        found = jax.jit(jaxwgc.locate_errors)(code, messages, received, KEY)
        np.testing.assert_array_equal(found.wrong, self.second)
