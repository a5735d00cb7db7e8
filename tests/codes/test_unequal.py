"""Codes for unequal workers: SciPy's optimum, closed forms and simulated rounds."""

import jax
import numpy as np
import pytest
import scipy.optimize

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.simulation import expected_error
from tests.conftest import bools
from tests.oracles import check_mean

# Ten workers that respond within a time τ with a probability of 1 - exp(-ψ (τ - 1)).
RATES = np.linspace(0.1, 2, 10)
NUM_DRAWS = 100_000


def probabilities_at(tau):
    return np.exp(-RATES * (tau - 1))


def shares_of(code, probabilities):
    """α."""
    return code.encoding_matrix * (1 - probabilities)[:, None]


def least_by_scipy(probabilities, held, gram):
    """The least Σ δ α G αᵀ over α on `held` whose columns add up to 1."""
    scale = probabilities / (1 - probabilities)

    def unraveled(entries):
        shares = np.zeros(held.shape)
        shares[held] = entries
        return shares

    def error(entries):
        shares = unraveled(entries)
        return scale @ np.einsum("ij,jl,il->i", shares, gram, shares)

    constraint = {"type": "eq", "fun": lambda vector: unraveled(vector).sum(0) - 1}
    options = {"constraints": constraint, "options": {"maxiter": 1000, "ftol": 1e-15}}
    start = (held / held.sum(0))[held]
    return scipy.optimize.minimize(error, start, method="SLSQP", **options).fun


class TestFill:
    @pytest.mark.parametrize("tau", [1.1, 1.5, 3.0])
    def test_errors_of_simulated_rounds_match_the_closed_forms(self, tau, with_x64):
        """Unbiased, and the closed forms of both columns, to four standard errors."""
        probabilities = probabilities_at(tau)
        code = codes.unequal(probabilities, 10)
        draws = np.random.default_rng(1).random((NUM_DRAWS, 10))
        weights = np.asarray(
            jaxwgc.decoding(code, draws >= probabilities).effective_weights
        )
        misses = weights - 1
        check_mean(misses, 0)
        for rho, errors in ((0.0, np.sum(misses**2, 1)), (1.0, misses.sum(1) ** 2)):
            expected = expected_error(code, probabilities, correlation=rho)
            np.testing.assert_allclose(expected.bias, 0, atol=1e-12)
            check_mean(errors, expected.squared_error, err_msg=rho)
        minimum = 100 / np.sum((1 - probabilities) / probabilities)
        np.testing.assert_allclose(expected.squared_error, minimum)

    @pytest.mark.parametrize(("num_workers", "num_parts"), [(1, 1), (10, 3), (7, 40)])
    def test_shares_are_nonnegative_with_few_copies(self, num_workers, num_parts):
        generator = np.random.default_rng(num_parts)
        probabilities = generator.uniform(0.01, 0.9, num_workers)
        code = codes.unequal(probabilities, num_parts)
        shares = shares_of(code, probabilities)
        trust = (1 - probabilities) / probabilities
        np.testing.assert_allclose(shares.sum(0), 1)
        np.testing.assert_allclose(shares.sum(1), num_parts * trust / trust.sum())
        assert np.all(shares >= 0)
        np.testing.assert_array_equal(code.assignment, shares > 0)
        assert code.assignment.sum() <= num_workers + num_parts - 1

    def test_equal_workers_have_whole_parts(self):
        code = codes.unequal(np.full(7, 0.3), 21)
        assert np.all(code.parts_per_worker == 3)
        np.testing.assert_allclose(code.encoding_matrix.max(1), 1 / 0.7)

    def test_a_worker_that_never_straggles_does_not_take_all_parts(self):
        """10⁻¹² counts as 10⁻⁶ in the shares; its coefficients stay unbiased."""
        code = codes.unequal([1e-12, 1e-6, 0.5], 3)
        assert code.parts_per_worker[1] == 2
        bias = expected_error(code, [1e-12, 1e-6, 0.5]).bias
        np.testing.assert_allclose(bias, 0, atol=1e-12)

    def test_error_for_equal_parts_is_the_minimum_over_all_codes(self):
        """Parts that are all alike: no other code of these workers does better."""
        probabilities = np.random.default_rng(2).uniform(0.1, 0.8, 4)
        code = codes.unequal(probabilities, 5)
        result = expected_error(code, probabilities, correlation=1.0).squared_error
        minimum = least_by_scipy(probabilities, np.ones((4, 5), bool), np.ones((5, 5)))
        assert result == pytest.approx(minimum, rel=1e-6)


class TestAssignment:
    probabilities = np.array([0.1, 0.6, 0.3, 0.8])
    held = bools("11001 10100 01110 00111")

    def test_error_on_an_assignment_is_the_minimum_by_scipy(self):
        code = codes.unequal(self.probabilities, 5, assignment=self.held)
        np.testing.assert_array_equal(code.assignment, self.held)
        assert np.all(code.encoding_matrix[~self.held] == 0)
        prediction = expected_error(code, self.probabilities, correlation=0.0)
        np.testing.assert_allclose(prediction.bias, 0, atol=1e-12)
        minimum = least_by_scipy(self.probabilities, self.held, np.eye(5))
        assert prediction.squared_error == pytest.approx(minimum, rel=1e-6)

    def test_parts_on_every_worker_are_weighted_by_reliability(self):
        """αᵢⱼ is worker i's share of all 1 / δ, which is the minimum for any G."""
        generator = np.random.default_rng(3)
        gradients = generator.normal(size=(5, 8)) + generator.normal(size=8)
        gram = gradients @ gradients.T
        code = codes.unequal(self.probabilities, 5, assignment=np.ones((4, 5), bool))
        trust = (1 - self.probabilities) / self.probabilities
        shares = np.broadcast_to(trust[:, None] / trust.sum(), (4, 5))
        np.testing.assert_allclose(shares_of(code, self.probabilities), shares)
        prediction = expected_error(code, self.probabilities, correlation=gram)
        assert prediction.squared_error == pytest.approx(gram.sum() / trust.sum())


def test_noisy_messages_count_as_stragglers_do():
    """δ = (p + ω) / (1 - p), in the shares and in the error."""
    probabilities = np.array([0.1, 0.6, 0.3])
    variance = np.array([0.5, 0.0, 2.0])
    trust = (1 - probabilities) / (probabilities + variance)
    code = codes.unequal(probabilities, 4, quantization_variance=variance)
    shares = shares_of(code, probabilities)
    np.testing.assert_allclose(shares.sum(1), 4 * trust / trust.sum())
    prediction = expected_error(
        code, probabilities, correlation=1.0, quantization_variance=variance
    )
    assert prediction.squared_error == pytest.approx(16 / trust.sum())


def test_estimated_probabilities_cause_the_predicted_bias(with_x64):
    """The formula for p̂ in the place of p, against all patterns of responses."""
    probabilities = np.array([0.2, 0.5, 0.7])
    estimates = np.array([0.3, 0.4, 0.7])
    code = codes.unequal(estimates, 4)
    formula = (1 - probabilities) / (1 - estimates) @ shares_of(code, estimates) - 1
    received = ((np.arange(8)[:, None] >> np.arange(3)) & 1).astype(bool)
    chance = np.prod(np.where(received, 1 - probabilities, probabilities), 1)
    weights = np.asarray(jaxwgc.decoding(code, received).effective_weights)
    prediction = expected_error(code, probabilities)
    np.testing.assert_allclose(prediction.bias, formula)
    np.testing.assert_allclose(chance @ weights - 1, formula)
    assert prediction.squared_error == pytest.approx(
        chance @ np.sum((weights - 1) ** 2, 1)
    )


def test_weighted_codes_are_unbiased_too():
    probabilities = np.array([0.2, 0.5, 0.7])
    code = jaxwgc.weighted(codes.unequal(probabilities, 4), np.array([1.0, 0, 3, 2]))
    np.testing.assert_allclose(expected_error(code, probabilities).bias, 0, 0, 1e-6)


def test_steps_of_few_bits_with_stragglers():
    """The mean of simulated steps is the gradient, and their spread that of the form.

    By `coded_aggregate`, with a straggler model that has a probability a worker.
    """
    probabilities = np.array([0.3, 0.6, 0.1])
    bits = np.array([3, 4, 3])
    code = codes.unequal(probabilities, 4)
    gradients = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    model, everyone = map(stragglers.bernoulli, (probabilities, 1.0))
    corrupt = jaxwgc.corruptions.quantization(everyone, bits)
    transform = jaxwgc.coded_aggregate(
        code, model, jax.random.key(0), method="messages", corrupt=corrupt
    )

    def step(state, _):
        update, state = transform.update(gradients, state)
        return state, update

    number = 20_000
    steps = jax.jit(lambda state: jax.lax.scan(step, state, length=number)[1])
    misses = np.asarray(steps(transform.init(None)), np.float64) - gradients.sum(0)
    messages = code.encoding_matrix @ gradients
    sizes = np.linalg.norm(messages, axis=1, keepdims=True)
    levels = 2.0 ** (bits[:, None] - 1) - 1
    fractions = np.abs(messages) / sizes * levels % 1
    rounding = fractions * (1 - fractions) * (sizes / levels) ** 2
    noise = {"quantization_variance": rounding.sum(1) / sizes[:, 0] ** 2}
    gram = gradients @ gradients.T
    expected = expected_error(code, probabilities, correlation=gram, **noise)
    check_mean(misses, 0)
    check_mean(np.sum(misses**2, 1), expected.squared_error)


@pytest.mark.parametrize(
    ("straggler_probabilities", "message"),
    [
        ([0.5, 0.0], "between.*= 0"),
        ([1.0, 0.5], "between.*= 1"),
        ([0.5, np.nan], "straggler_probabilities must be finite"),
        ([], "probabilities must have (shape|a leading axis)"),
        (0.5, "probabilities must have (shape|a leading axis)"),
    ],
)
def test_wrong_probabilities_are_rejected(straggler_probabilities, message):
    with pytest.raises(ValueError, match=message):
        codes.unequal(straggler_probabilities, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"assignment": np.ones((2, 2), bool)}, r"assignment.*= \(2, 3\); got"),
        ({"assignment": np.eye(2, 3) > 0}, "every.*got none for part 2"),
        ({"quantization_variance": [0, -1.0]}, r"quantization_variance\[1\]"),
        ({"quantization_variance": np.inf}, "quantization_variance must be"),
        (
            {"quantization_variance": [0.1]},
            "quantization_variance must have (shape|a leading axis)",
        ),
    ],
)
def test_options_that_do_not_fit_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        codes.unequal([0.5, 0.2], 3, **arguments)


def test_text_and_traced_arguments_are_rejected():
    code = codes.unequal([0.5, 0.2], 3)
    with pytest.raises(TypeError, match="correlation must be real numbers"):
        expected_error(code, 0.1, correlation="high")
    with pytest.raises(TypeError, match="_probabilities must be"):
        jax.eval_shape(lambda probabilities: codes.unequal(probabilities, 2), [0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"straggler_probabilities": [0.1, 1.1, 0]}, r"\[1\] = 1.1"),
        (
            {"straggler_probabilities": [0.1]},
            "probabilities must have (shape|a leading axis)",
        ),
        ({"correlation": 1.5}, "correlation must be from -1 / "),
        ({"correlation": -1.1}, "correlation.* to 1; got -1.1"),
        ({"correlation": np.nan}, "correlation must be from"),
        ({"correlation": -np.eye(2)}, "correlation must be positive"),
        ({"correlation": np.tri(2)}, "correlation must be a finite and"),
        ({"correlation": np.eye(3)}, "correlation must have (shape|a leading axis)"),
        ({"quantization_variance": -1.0}, "quantization_variance must"),
    ],
)
def test_expected_error_rejects_wrong_numbers(arguments, message):
    code = codes.unequal([0.1, 0.2, 0.5], 2)
    with pytest.raises(ValueError, match=message):
        expected_error(code, **{"straggler_probabilities": 0.1, **arguments})


def test_smallest_correlation_of_partial_gradients_is_allowed():
    """Their sum is then zero, and so is the error without a response."""
    code = codes.unequal([0.1, 0.2, 0.5], 3)
    result = expected_error(code, [1.0, 1.0, 1.0], correlation=-0.5)
    assert result.squared_error == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="correlation must be from -1 / "):
        expected_error(code, [1.0, 1.0, 1.0], correlation=-0.51)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (codes.uncoded(3), "code must be real and have"),
        (codes.cyclic_mds(4, 1), r"a decoder OneStep\("),
        (codes.replicated(3), "messages_per_worker"),
        (
            codes.clustered(codes.unequal([0.1, 0.2], 2), 2),
            r"OneStep\(..., shared=False\), e.g. .*; got .*Clustered",
        ),
    ],
)
def test_expected_error_rejects_codes_without_its_formula(code, message):
    with pytest.raises(ValueError, match=message):
        expected_error(code, 0.1)


def test_expected_error_rejects_a_traced_code():
    code = codes.unequal([0.1, 0.2, 0.5], 2)
    with pytest.raises(TypeError, match="code must be concrete"):
        jax.eval_shape(lambda code: expected_error(code, 0.1), code)
