"""Every mistake that stays silent in training is named, and nothing else is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from tests.checks.regression import (
    CODE,
    DATA,
    ONES,
    PARAMS,
    PARTS,
    X,
    Y,
    chain,
    errors,
    loss,
)

# Fewer than three of six workers are never enough.
PAIRS = codes.fractional_repetition(6, 1)
DELAY = stragglers.pareto(1.0, 2.0)
# Of one of the two groups of CODE, so that all others are enough.
LOST = np.array([True, False, True, False, False, False])


def check(loss=loss, parts=PARTS, data=DATA, code=CODE, params=PARAMS, **options):
    return jaxwgc.check_step(loss, code, params, parts, data=data, **options)


def problem_of(report=None, **options):
    """The only problem of a report, which its text shows."""
    report = report or check(**options)
    assert not report.ok
    [problem] = report.problems
    assert problem in str(report)
    return problem


class TestNothingIsWrong:
    def test_losses_in_bfloat16_are_no_problem(self):
        trees = PARAMS, DATA
        params, data = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), trees)
        report = check(params=params, data=data, parts=jaxwgc.partition(data, 6))
        assert report.ok
        assert str(report).startswith("no problems found")
        assert report.gradient_error < 0.02
        np.testing.assert_allclose(report.gradient_ratio, 1, atol=0.01)
        assert report.num_responses.shape == (0,)

    def test_parts_with_the_structure_of_the_data(self):
        """Weights may be among the rows, and no row has to be padding."""
        weights = np.linspace(1, 2, 20, dtype=np.float32)
        trees = {"rows": DATA, "weights": weights}
        assert check(
            lambda params, part: loss(params, (part["rows"], part["weights"])),
            parts=jaxwgc.partition(trees, 6)[0],
            data=trees,
        ).ok
        few = jax.tree.map(lambda leaf: leaf[:18], DATA)
        plain = lambda params, part: jnp.sum(errors(params, part))  # noqa: E731
        assert check(plain, parts=jaxwgc.partition(few, 6)[0], data=few).ok

    def test_weights_of_rows_and_parts_are_no_problem(self):
        """The weights are the user's own and not those of a sample."""
        parts, row_weights = PARTS
        row_weights = row_weights * np.linspace(1, 3, 24).reshape(6, 4)
        code = jaxwgc.weighted(CODE, np.arange(6.0))
        assert check(parts=(parts, row_weights), code=code).ok

    def test_optimizers_and_steps_are_no_problem(self):
        """Decay behind the aggregator, and a schedule that starts at zero."""
        optimizer = chain(
            optax.add_decayed_weights(0.1),
            optax.adam(optax.linear_schedule(0.0, 0.1, 5)),
        )

        @jax.jit
        def step(params, state):
            gradients = jaxwgc.partial_value_and_grad(loss)(params, PARTS)[1]
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, 0.0

        report = check(optimizer=optimizer, step=jax.jit(step, donate_argnums=(0, 1)))
        assert report.ok
        np.testing.assert_array_equal(report.num_responses, [4] * 8)
        assert report.num_undecodable == 0
        # What was given is not donated.
        assert float(PARAMS["b"]) == 0

    def test_messages_from_workers_are_no_problem(self):
        optimizer = optax.chain(jaxwgc.decode_aggregate(CODE), optax.adam(0.1))
        report = check(optimizer=optimizer, received=~LOST)
        assert report.ok
        assert report.gradient_error < 1e-5
        np.testing.assert_array_equal(report.num_responses, [4])


def mean(params, part):
    return loss(params, part) / part[1].sum()


def regularised(params, part):
    return loss(params, part) + 20 * params["b"] ** 2


def centred(params, part):
    (x, y), row_weights = part
    return loss(params, ((x - x.mean(0), y), row_weights))


class TestTheGradientOfTheDataIsNoProblem:
    """A loss of any form is right if its decoded gradient is that on the data."""

    data = tuple(leaf[:18] for leaf in DATA)
    parts = jaxwgc.partition(data, 6)
    averaged = jaxwgc.weighted(CODE, np.full(6, 1 / 6))

    def assert_ok(self, report):
        assert report.ok, report
        np.testing.assert_allclose(report.gradient_ratio, 1, rtol=1e-4)
        assert report.gradient_error < 1e-4

    @pytest.mark.parametrize("penalty", [0, 20])
    def test_with_weights_that_average_the_parts(self, penalty):
        def penalised(params, part):
            return mean(params, part) + penalty * params["b"] ** 2

        def without_row_weights(params, rows):
            return jnp.mean(errors(params, rows)) + penalty * params["b"] ** 2

        for loss_of_part, parts in (
            (penalised, self.parts),
            (without_row_weights, self.parts[0]),
        ):
            self.assert_ok(check(loss_of_part, parts, self.data, self.averaged, ONES))

    @pytest.mark.parametrize("loss_of_part", [mean, regularised, centred])
    def test_with_one_part(self, loss_of_part):
        parts = jaxwgc.partition(self.data, 1)
        code = codes.uncoded(1, 1)
        self.assert_ok(check(loss_of_part, parts, self.data, code, ONES))

    def test_of_the_loss_that_training_should_minimise(self):
        def divided(params, part):
            return mean(params, part) / 6 + 20 * params["b"] ** 2 / 6

        def minimised(params, rows):
            return mean(params, rows) + 20 * params["b"] ** 2

        options = {"parts": self.parts, "data": self.data, "params": ONES}
        self.assert_ok(check(divided, whole_loss=minimised, **options))
        # The loss for the whole data says what is meant: weights average no rows of it.
        gradients = check(loss, whole_loss=loss, code=self.averaged, **options)
        assert not gradients.ok
        np.testing.assert_allclose(gradients.gradient_ratio, 1 / 6, rtol=1e-4)
        # The mean is not divided by the number of parts here.
        problem = problem_of(check(mean, whole_loss=mean, **options))
        assert "a mean over the rows of a part" in problem


class TestLosses:
    def test_a_mean_over_the_rows_of_a_part(self):
        report = check(mean)
        assert "a mean over the rows of a part (6 times as long" in problem_of(report)
        # 6 parts, up to what padding does.
        np.testing.assert_allclose(report.gradient_ratio, 6, rtol=0.1)

    def test_padding_that_is_not_weighted(self):
        plain = lambda params, part: jnp.sum(errors(params, part[0]))  # noqa: E731
        rows = lambda params, rows: jnp.sum(errors(params, rows))  # noqa: E731
        for options in ({"loss": plain}, {"loss": rows, "parts": PARTS[0]}):
            problem = problem_of(**options)
            assert "weights are not used: rows of weight 0, such as padding" in problem

    def test_padding_without_a_finite_gradient(self):
        problem = problem_of(
            loss=lambda params, part: jnp.sum(
                part[1] * params["b"] * jnp.log(jnp.abs(part[0][1]))
            )
        )
        assert problem.startswith("the gradient is NaN or infinite for 4 of 6 parts")
        assert "rows of weight 0, select before you compute" in problem

    def test_a_regulariser_inside(self):
        problem = problem_of(loss=regularised, params=ONES)
        assert "a regulariser, which counts once per part" in problem

    @pytest.mark.parametrize("place", ["a part", "the data"])
    def test_gradients_that_are_not_finite(self, place):
        def divided(params, part):
            is_data = len(part[1]) > 4
            zero = 0.0 * params["b"]
            is_wrong = is_data == (place == "the data")
            return loss(params, part) + (zero / zero if is_wrong else zero)

        problem = problem_of(loss=divided)
        where = "the whole data" if place == "the data" else "6 of 6 parts"
        assert problem.startswith(f"the gradient is NaN or infinite for {where}")

    def test_rows_that_see_each_other(self):
        # Twice the same rows have the same mean.
        assert "Rows must not interact" in problem_of(loss=centred)

    def test_a_loss_without_its_params(self):
        frozen = lambda params, part: loss(jax.lax.stop_gradient(params), part)  # noqa: E731
        assert "gradient of every part is zero" in problem_of(loss=frozen)

    def test_parts_of_other_data(self):
        problem = problem_of(parts=jaxwgc.partition((X, -Y), 6))
        assert "Are these the parts of these data" in problem

    def test_a_code_that_tolerates_fewer_stragglers_than_it_says(self):
        code = jaxwgc.GradientCode.from_matrix(np.eye(6), num_stragglers=1)
        assert "with at most 1 stragglers" in problem_of(code=code)


class TestSamples:
    data = tuple(np.concatenate([leaf] * 4)[:72] for leaf in DATA)
    parts, row_weights = jaxwgc.partition(data, 18)
    sample = jaxwgc.parts.sample_partitions(
        jax.random.key(2), np.ones(18), num_distinct=6
    )
    small = jaxwgc.parts.weighted_parts(sample, parts, row_weights)
    code = jaxwgc.weighted(CODE, small.weights)

    def report(self, weights, code=code, loss=loss):
        return check(loss, (self.small.parts, weights), self.data, code)

    def test_a_sample_with_its_weights_is_no_problem(self):
        assert self.small.weights.max() > 1
        assert self.report(self.small.row_weights).ok
        scaled = jaxwgc.parts.weighted_parts(
            self.sample, self.parts, self.row_weights, scale="rows"
        )

        def without_intercept(params, part):
            (x, y), row_weights = part
            return jnp.sum(row_weights * (x @ params["w"] - y) ** 2)

        parts = scaled.parts, scaled.row_weights
        assert check(without_intercept, parts, self.data, self.code).ok

    def test_a_mean_over_the_rows_of_a_sampled_part(self):
        problem = problem_of(self.report(self.small.row_weights, loss=mean))
        assert "a mean over the rows of a part" in problem

    def test_a_sample_without_its_weights_is_reported(self):
        reports = {
            "no row weights": self.report(jnp.ones((6, 4))),
            "not those of the code": self.report(self.small.row_weights, CODE),
            "not used": self.report(
                self.small.row_weights,
                loss=lambda params, part: jnp.sum(errors(params, part[0])),
            ),
        }
        for name, report in reports.items():
            [problem] = report.problems
            used = "row weights are not used" in problem
            assert used == (name == "not used")
            assert used or "a sample without its weights" in problem


class TestOptimizers:
    """Mistakes are found for any optimizer."""

    def test_before_the_aggregator(self):
        optimizer = chain(optax.identity(), before=[optax.adamw(0.1)])
        report = check(optimizer=optimizer, received=~LOST)
        assert problem_of(report).startswith("a transformation before the aggregator")
        # Rounds are given, so the optimizer simulates none.
        np.testing.assert_array_equal(report.num_responses, [4])


class TestRounds:
    def test_an_inverted_mask(self):
        optimizer = chain(model=stragglers.fixed(LOST))
        for options in ({"received": LOST}, {"optimizer": optimizer}):
            assert "Is the mask inverted?" in problem_of(**options)

    @pytest.mark.parametrize(
        ("code", "wait", "words"),
        [
            (PAIRS, stragglers.until_decodable(CODE), "2 to [34] of 6 workers respond"),
            (CODE, stragglers.deadline(0.5), "0 of 6 workers respond"),
        ],
        ids=["early", "no response"],
    )
    def test_waiting_rules_that_end_too_early_are_reported(self, code, wait, words):
        optimizer = chain(model=stragglers.delayed(DELAY, wait), code=code)
        problem = problem_of(optimizer=optimizer, code=code)
        assert re.match(f"[4-8] of 8 rounds cannot be decoded: {words}", problem)

    def test_an_approximate_code(self):
        """It does not say how many responses are enough, so nothing is expected."""
        code = codes.bernoulli(jax.random.key(0), 6, 6, copies=2)
        report = check(code=code, optimizer=chain(code=code))
        assert report.ok
        assert report.num_undecodable == 8

    def test_a_code_whose_decoder_is_inexact_on_purpose(self):
        code = codes.stochastic(jax.random.key(0), 6, 6, 2, 0)
        report = check(code=code, optimizer=chain(code=code))
        assert report.ok
        assert report.num_undecodable == 0


class TestState:
    @pytest.mark.parametrize("simulates", [True, False])
    def test_a_state_that_is_not_carried_over_is_reported(self, simulates):
        """The moments of Adam reveal it for decode_aggregate."""
        if simulates:
            optimizer = chain(optax.sgd(0.01))
            extra = {}
        else:
            optimizer = optax.chain(jaxwgc.decode_aggregate(CODE), optax.adam(0.1))
            extra = {"received": np.ones(6, bool)}

        @jax.jit
        def step(params, state):
            updates = jaxwgc.partial_value_and_grad(loss)(params, PARTS)[1]
            if not simulates:
                updates = jaxwgc.encode(CODE, updates)
            updates, state = optimizer.update(updates, state, params, **extra)
            return optax.apply_updates(params, updates), state

        def not_carried(params, state):
            return step(params, state)[0], state

        problem = problem_of(optimizer=optimizer, step=not_carried)
        assert problem.startswith("the state is not passed on")
        # `test_optimizers_and_steps_are_no_problem` carries that of coded_aggregate.
        assert simulates or check(optimizer=optimizer, step=step).ok

    def test_an_optimizer_without_state_is_no_problem(self):
        """All workers respond in every round, and the optimizer counts nothing."""
        code = codes.uncoded(6)
        optimizer = optax.chain(jaxwgc.decode_aggregate(code), optax.sgd(0.1))
        step = lambda params, state: (params, state)  # noqa: E731
        assert check(code=code, optimizer=optimizer, step=step).ok


class TestBadInput:
    def test_traced_arguments_are_rejected(self):
        with pytest.raises(TypeError, match="arguments must be concrete"):
            jax.jit(lambda params: check(params=params).gradient_ratio)(PARAMS)

    def test_wrong_structures_are_rejected(self):
        for parts in (PARTS[0][0], (PARTS[0], PARTS[1][:, 0])):
            with pytest.raises(ValueError, match="parts must be .parts, row_weights. "):
                check(parts=parts)
        with pytest.raises(ValueError, match=r"data\[1\] must have a leading axis"):
            check(data=(X, Y[1:]))
        with pytest.raises(ValueError, match="leading axis of num_parts = 6"):
            check(parts=jaxwgc.partition(DATA, 5))

    def test_optimizers_without_an_aggregator_are_rejected(self):
        with pytest.raises(ValueError, match="optimizer must have exactly one jaxwgc"):
            check(optimizer=optax.adam(0.1))
        other = chain(code=codes.uncoded(5), model=stragglers.uniform(1))
        with pytest.raises(ValueError, match="an aggregator for code; got one for 5"):
            check(optimizer=other)

    def test_wrong_steps_are_rejected(self):
        with pytest.raises(ValueError, match="step= needs optimizer="):
            check(step=lambda params, state: (params, state))
        with pytest.raises(TypeError, match="step must return .params, state, ...."):
            check(optimizer=chain(), step=lambda params, state: [params, state])


def rows_of_step(step, part):
    """Four rows of the data for each part."""
    order = np.random.default_rng([step, part]).choice(20, 4, replace=False)
    return X[order], Y[order]


def sum_of_errors(params, rows):
    return jnp.sum(errors(params, rows))


def check_batches(loss=sum_of_errors, batches=rows_of_step, **options):
    return jaxwgc.check_step(loss, CODE, PARAMS, batches=batches, **options)


def test_batches_of_a_cluster_are_right():
    report = check_batches()
    assert report.ok, report
    assert abs(report.gradient_ratio - 1) < 1e-4


def test_mean_over_the_rows_of_a_batch_may_have_any_factor():
    """It may be divided by the number of parts, or not: only `whole_loss` tells."""
    mean_of_batch = lambda params, rows: jnp.mean(errors(params, rows))  # noqa: E731
    divided = lambda params, rows: mean_of_batch(params, rows) / 6  # noqa: E731
    for loss_of_part, ratio in ((divided, 1), (mean_of_batch, 6)):
        report = check_batches(loss_of_part)
        assert report.ok, report
        assert report.gradient_error < 1e-4
        np.testing.assert_allclose(report.gradient_ratio, 6, rtol=1e-4)
        report = check_batches(loss_of_part, whole_loss=mean_of_batch)
        assert report.ok == (ratio == 1)
        np.testing.assert_allclose(report.gradient_ratio, ratio, rtol=1e-4)
    assert "it is 6 times as long, relative error 5" in problem_of(report)


def test_batches_that_change_from_call_to_call_are_named():
    random = np.random.default_rng(0)

    def batches(step, part):
        order = random.permutation(20)[:4]
        return X[order], Y[order]

    problem = problem_of(check_batches(batches=batches))
    assert "batches(step=0, part=0) returns other arrays" in problem


def test_equal_batches_of_all_parts_are_named():
    problem = problem_of(
        check_batches(batches=lambda step, part: rows_of_step(step, 0))
    )
    assert "batches(step=0, part) returns the same arrays for all parts" in problem


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda step, part: X[: 3 + part], "equal structure and shapes; got .* of par"),
        (lambda step, part: X[0, 0], "a leading axis of rows"),
        (lambda step, part: None, "batches must return arrays; got None of part 0"),
    ],
)
def test_batches_that_are_no_parts_are_rejected(batches, message):
    with pytest.raises(ValueError, match=message):
        check_batches(batches=batches)


def test_batches_stand_for_parts_and_data():
    with pytest.raises(ValueError, match="batches= returns all data"):
        check(batches=rows_of_step)
    with pytest.raises(ValueError, match="needs parts and data=, or batches="):
        check(data=None)
