"""Arguments that an aggregator rejects, and silent mistakes that cause a warning."""

import functools
import pickle

import flax.serialization
import jax
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from tests.catalogue.codes import CODES

KEY = jax.random.key(0)
CODE = codes.fractional_repetition(6, 2)
# As many rows as there are parts, as a summed gradient may have.
PARAMS = {"w": np.zeros((6, 2), np.float32), "b": [np.zeros(6, np.float32)]}
GRADIENTS = jax.tree.map(lambda leaf: np.stack([leaf + i for i in range(6)]), PARAMS)
SUMMED = jax.tree.map(lambda leaf: leaf.sum(0), GRADIENTS)


@functools.cache
def coded():
    """The aggregator of all tests, so that its update is compiled once."""
    return jaxwgc.coded_aggregate(CODE, stragglers.uniform(2), KEY)


def block_leverage():
    code = codes.fractional_repetition(4, 1)
    return jaxwgc.block_leverage_aggregate(
        code, stragglers.uniform(1), KEY, np.full(6, 1 / 6)
    )


class TestUpdatesUnlikeParams:
    @pytest.mark.parametrize(
        ("make", "with_params"),
        [(coded, True), (coded, False), (block_leverage, False)],
    )
    def test_summed_gradients(self, make, with_params):
        """`init` has seen the shapes where `update` gets no params."""
        aggregate = make()
        state = aggregate.init(PARAMS)
        extra = (PARAMS,) if with_params else ()
        updates, _ = jax.eval_shape(aggregate.update, GRADIENTS, state, *extra)
        assert jax.tree.map(np.shape, updates) == jax.tree.map(np.shape, PARAMS)
        rule = (
            r"updates\['b'\]\[0\] must be like params with a leading axis of (num_parts"
            r"|K) = 6 in front; got the shape \(\) after this axis, but params have "
            r"the shape \(6,\) \(an "
            "aggregator must be the first transformation in optax.chain"
        )
        with pytest.raises(ValueError, match=rule):
            aggregate.update(SUMMED, state, *extra)

    @pytest.mark.parametrize(
        "updates",
        [
            {"w": GRADIENTS["w"]},
            {**GRADIENTS, "c": GRADIENTS["w"]},
            {"w": GRADIENTS["w"], "b": GRADIENTS["b"][0]},
            {"w": GRADIENTS["w"][..., None], "b": GRADIENTS["b"]},
        ],
    )
    def test_other_structures(self, updates):
        aggregate = coded()
        state = aggregate.init(PARAMS)
        for extra in ((), (PARAMS,)):
            with pytest.raises(ValueError, match="must be like params"):
                aggregate.update(updates, state, *extra)

    def test_params_of_the_call_come_first(self):
        """Inside `jax.shard_map` they are a piece of what `init` has seen."""
        aggregate = coded()
        piece = jax.tree.map(lambda leaf: leaf[:3], PARAMS)
        gradients = jax.tree.map(lambda leaf: leaf[:, :3], GRADIENTS)
        state = aggregate.init(PARAMS)
        updates, _ = jax.eval_shape(aggregate.update, gradients, state, piece)
        assert jax.tree.map(np.shape, updates) == jax.tree.map(np.shape, piece)
        with pytest.raises(ValueError, match="must be like params"):
            aggregate.update(gradients, state)

    @pytest.mark.parametrize("state", [None, (), {}, np.ones(6)])
    def test_states_of_another_transformation_are_rejected(self, state):
        with pytest.raises(
            TypeError, match="state must be a CodedAggregateState, from"
        ):
            coded().update(GRADIENTS, state, PARAMS)

    def test_updates_are_not_checked_without_params(self):
        aggregate = coded()
        updates, _ = aggregate.update(SUMMED, aggregate.init(None))
        np.testing.assert_allclose(updates["w"], SUMMED["w"].sum(0), rtol=1e-6)


class TestOrder:
    inner = [
        lambda: optax.MultiSteps(optax.sgd(1.0), 2),
        lambda: optax.apply_if_finite(optax.sgd(1.0), 3),
        lambda: optax.flatten(optax.sgd(1.0)),
    ]

    @pytest.mark.parametrize("wrapped", inner, ids=["steps", "finite", "flatten"])
    def test_an_aggregator_before_the_wrapped_transformation_works(self, wrapped):
        """An aggregator first, and the wrapper around what follows."""
        optimizer = optax.chain(coded(), wrapped())
        params = PARAMS
        state = optimizer.init(PARAMS)
        update = jax.jit(optimizer.update)
        for _ in range(2):
            updates, state = update(GRADIENTS, state, params)
            params = optax.apply_updates(params, updates)
        rounds = 1 if wrapped is self.inner[0] else 2
        np.testing.assert_allclose(params["w"], -15.0 * rounds, rtol=1e-5)

    @pytest.mark.parametrize("make", [coded, block_leverage])
    @pytest.mark.parametrize("with_params", [True, False])
    def test_two_aggregators(self, make, with_params):
        optimizer = optax.chain(make(), make(), optax.sgd(1.0))
        state = optimizer.init(PARAMS)
        with pytest.raises(
            ValueError, match="first transformation in optax.chain, and the only"
        ):
            jax.eval_shape(
                optimizer.update, GRADIENTS, state, *([PARAMS] if with_params else [])
            )

    @pytest.mark.parametrize(
        "wrap", [lambda optimizer: optax.MultiSteps(optimizer, 2), optax.flatten]
    )
    def test_wrappers_around_an_aggregator(self, wrap):
        """Refused though the leading axis of params is the number of parts."""
        optimizer = wrap(optax.chain(coded(), optax.sgd(1.0)))
        state = optimizer.init(PARAMS)
        with pytest.raises(ValueError, match="go around the transformations after"):
            jax.eval_shape(optimizer.update, GRADIENTS, state, PARAMS)

    @pytest.mark.parametrize("make", [coded, lambda: jaxwgc.decode_aggregate(CODE)])
    def test_masks_around_an_aggregator(self, make):
        """It would sum what it sees, and the rest would pass unsummed."""
        chain = optax.chain(make(), optax.sgd(1.0))
        groups = {"learned": chain, "frozen": optax.set_to_zero()}
        for optimizer in (
            optax.masked(chain, {"w": True, "b": False}),
            optax.multi_transform(groups, {"w": "learned", "b": "frozen"}),
        ):
            with pytest.raises(ValueError, match="around transformations after"):
                optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)


class TestShapesInTheState:
    """They are no arrays, and any library that saves pytrees saves them."""

    def state(self, aggregate=None):
        optimizer = optax.chain(aggregate or coded(), optax.adam(0.1))
        return optimizer, optimizer.init(PARAMS)

    def test_recorded_shapes_have_no_leaves(self):
        _, state = self.state()
        assert jax.tree.leaves(state[0].shapes) == []
        assert state[0].shapes == {"w": {"(6, 2)": ()}, "b": [{"(6,)": ()}]}

    def test_saved_and_restored(self):
        key = jax.random.PRNGKey(0)
        model = stragglers.uniform(2)
        _, state = self.state(jaxwgc.coded_aggregate(CODE, model, key))
        saved = flax.serialization.to_bytes(state)
        restored = flax.serialization.from_bytes(state, saved)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        restored = pickle.loads(pickle.dumps(state))
        assert jax.tree.structure(restored) == jax.tree.structure(state)

    def test_map_over_what_is_like_params(self):
        """Such as for the sharding of an optimizer's state."""
        optimizer, state = self.state()
        marked = optax.tree_map_params(optimizer, lambda leaf: leaf + 1, state)
        assert jax.tree.structure(marked) == jax.tree.structure(state)
        np.testing.assert_array_equal(marked[1][0].mu["w"], 1)

    def test_vmap_scan_and_donation(self):
        optimizer, _ = self.state()
        many = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1]), PARAMS)
        states = jax.jit(jax.vmap(optimizer.init))(many)

        def step(carry, _):
            params, states = carry
            updates, states = jax.vmap(optimizer.update, (None, 0, 0))(
                GRADIENTS, states, params
            )
            return (optax.apply_updates(params, updates), states), None

        run = jax.jit(
            lambda *carry: jax.lax.scan(step, carry, None, 3)[0], donate_argnums=1
        )
        params, states = run(many, states)
        assert states[0].shapes == optimizer.init(PARAMS)[0].shapes
        np.testing.assert_allclose(params["w"][1] - params["w"][0], 1, rtol=1e-5)


@pytest.mark.parametrize(("elapsed", "total"), [(-1.0, np.nan), (0.5, 0.5)])
def test_wrong_traced_times_show_in_the_state(elapsed, total):
    aggregate = coded()
    _, state = jax.jit(aggregate.update)(
        GRADIENTS, aggregate.init(PARAMS), received=np.ones(6, bool), elapsed=elapsed
    )
    np.testing.assert_array_equal(state.elapsed, total)


@pytest.mark.filterwarnings("error")
class TestExtraArguments:
    def test_misspelt_arguments_warn(self):
        """Other transformations of a chain ignore them."""
        optimizer = optax.chain(coded(), optax.sgd(1.0))
        state = optimizer.init(PARAMS)
        match = "unknown extra arguments recieved: .*spelling"
        with pytest.warns(UserWarning, match=match) as caught:
            optimizer.update(GRADIENTS, state, recieved=np.ones(6, bool))
        assert caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("misspelt", "meant"),
        [
            ("recieved", "received"),
            ("Received", "received"),
            ("finish", "finished"),
            ("lates", "late"),
            ("lste", "late"),
            ("elapsed_time", "elapsed"),
        ],
    )
    def test_names_near_those_of_the_aggregator(self, misspelt, meant):
        aggregate = coded()
        with pytest.warns(UserWarning, match=f"arguments {misspelt}: .*{meant}"):
            aggregate.update(GRADIENTS, aggregate.init(PARAMS), **{misspelt: None})

    def test_those_of_optax_itself(self):
        optimizer = optax.chain(coded(), optax.polyak_sgd())
        state = optimizer.init(PARAMS)
        optimizer.update(GRADIENTS, state, PARAMS, value=1.0)

    @pytest.mark.parametrize(
        "name",
        [
            "value",
            "grad",
            "value_fn",
            "grad_fn",
            "obj_fn",
            "loss",
            "hessian",
            "batch",
            "step",
            "key",
        ],
    )
    def test_those_of_any_transformation(self, name):
        """Optax passes them through the chain to any transformation."""
        aggregate = coded()
        aggregate.update(GRADIENTS, aggregate.init(PARAMS), **{name: None})


RECEIVED = np.ones(6, bool)


class TestArgumentsWithoutEffect:
    @pytest.mark.parametrize("make", [coded, lambda: jaxwgc.decode_aggregate(CODE)])
    def test_late_messages_without_memory(self, make):
        aggregate = make()
        state = aggregate.init(PARAMS)
        with pytest.raises(ValueError, match="late= is used only with memory=True"):
            aggregate.update(GRADIENTS, state, PARAMS, received=RECEIVED, late=RECEIVED)

    def test_late_messages_of_a_simulated_round(self):
        aggregate = simulated(memory=True)
        state = aggregate.init(PARAMS)
        with pytest.raises(ValueError, match="late= needs received= or finished="):
            aggregate.update(GRADIENTS, state, PARAMS, late=RECEIVED)

    def test_noise_of_messages_that_are_not_corrected(self):
        with pytest.raises(
            ValueError, match="noise= is used only with correct_errors=True"
        ):
            jaxwgc.decode_aggregate(CODE, noise=0.1)
        with pytest.raises(
            ValueError, match="noise= is used only with correct_errors=True"
        ):
            simulated(noise=0.1)


@pytest.mark.parametrize("undecodable", ["raise", "zero"])
def test_choices_of_an_aggregator_are_not_those_of_a_cluster(undecodable):
    message = "undecodable must be .*'least_squares'[ or,]* 'skip'; got"
    with pytest.raises(ValueError, match=message):
        jaxwgc.decode_aggregate(CODE, undecodable=undecodable)
    with pytest.raises(ValueError, match=message):
        simulated(undecodable=undecodable)


@pytest.mark.filterwarnings("error")
class TestModelsThatNeverDecode:
    def make(self, code, wait):
        model = stragglers.delayed(stragglers.pareto(1.0, 2.0), wait)
        return jaxwgc.coded_aggregate(code, model, KEY)

    def test_waiting_for_too_few_workers_warns(self):
        code = codes.cyclic_mds(6, num_stragglers=2)
        match = (
            r"fastest\(num_required=3\), code decodes in [0-6] of 64 .* Any 4 "
            r"responses are enough: use stragglers.fastest\(4\)"
        )
        with pytest.warns(UserWarning, match=match) as caught:
            self.make(code, stragglers.fastest(3))
        assert caught[0].filename == __file__

    def test_a_waiting_rule_of_another_code_warns(self):
        """The aggregator may be made inside of a traced function."""
        rule = stragglers.until_decodable(CODE)
        for wrap in (lambda function: function, jax.jit):
            with pytest.warns(UserWarning, match="UntilDecodable.code=Gradie"):
                wrap(lambda: self.make(codes.uncoded(6), rule).init(None))()

    @pytest.mark.parametrize(
        ("code", "wait"),
        [
            (CODE, stragglers.fastest(4)),
            # Two responses are enough where they hold both halves.
            (CODE, stragglers.fastest(2)),
            (codes.stochastic(KEY, 6, 6, 2, 0.1), stragglers.fastest(3)),
            (CODE, stragglers.until_decodable(CODE)),
            (jaxwgc.weighted(CODE, np.arange(6.0)), stragglers.until_decodable(CODE)),
            # It waits for more than is needed.
            (CODE, stragglers.until_decodable(codes.uncoded(6))),
            (codes.multi_message(CODE), stragglers.fastest(1)),
            (CODE, stragglers.deadline(1e-3)),
        ],
    )
    def test_models_that_may_decode(self, code, wait):
        self.make(code, wait)


def simulated(model=None, **options):
    """An aggregator of a complex code of six workers."""
    model = stragglers.uniform(2) if model is None else model
    return jaxwgc.coded_aggregate(CODES["reed_solomon"], model, KEY, **options)


class NoArrays(stragglers.StragglerModel):
    """Returns a mask instead of `Arrivals`."""

    def sample(self, key, state, loads):
        return loads > 0, state


class NoArrivals(stragglers.WaitingRule):
    """Returns times instead of `Arrivals`."""

    def arrivals(self, key, times):
        return times


class ManyBools(stragglers.WaitingRule):
    """Returns a bool per worker."""

    def is_over(self, times, now):
        return times <= now


class Short(stragglers.DelayModel):
    """Returns the times of all workers but the first."""

    def sample(self, key, state, loads):
        return loads[1:], state


PARETO = stragglers.pareto(1.0, 2.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (stragglers.uniform(6), "num_stragglers must be"),
        (
            stragglers.delayed(PARETO, stragglers.fastest(7)),
            "num_required.*num_workers = 6",
        ),
        (stragglers.delayed(Short(), stragglers.fastest(2)), "times of Short"),
    ],
)
def test_models_that_do_not_fit_the_code(model, message):
    with pytest.raises(ValueError, match=message):
        simulated(model)


@pytest.mark.parametrize(
    ("wait", "message"),
    [
        (stragglers.relative_deadline(2, 4), "quorum.*3"),
        (stragglers.until_decodable(codes.cyclic_mds(4, 1)), "times must"),
    ],
)
def test_waiting_rules_for_more_workers(wait, message):
    with pytest.raises(ValueError, match=message):
        jaxwgc.coded_aggregate(codes.uncoded(3), stragglers.delayed(PARETO, wait), KEY)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NoArrays(), r"model.sample must return \(arrivals, state\)"),
        (
            stragglers.delayed(PARETO, NoArrivals()),
            r"NoArrivals.arrivals must return \(arrivals, state\)",
        ),
        (
            stragglers.delayed(PARETO, ManyBools()),
            "is_over of .*ManyBools.* must return one",
        ),
    ],
)
def test_models_that_return_something_else(model, message):
    with pytest.raises(TypeError, match=message):
        simulated(model)


def test_errors_are_corrected_in_messages_alone():
    with pytest.raises(ValueError, match="needs method='messages', which"):
        simulated(correct_errors=True)


def test_corruption_that_is_a_number():
    with pytest.raises(TypeError, match="corrupt must be a"):
        simulated(corrupt=0.1, method="messages")


SIX_ROWS = np.ones((6, 2), np.float32)


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"w": np.ones(())}, ValueError, r"updates\['w'\].*num_parts = 6; got"),
        ({"w": SIX_ROWS[1:]}, ValueError, r"updates\['w'\].*= 6; got .*5"),
        ({}, ValueError, "updates must have at least one array"),
        ({"w": SIX_ROWS.astype(int)}, TypeError, r"updates\['w'\] must be real"),
    ],
)
def test_updates_that_are_not_partial_gradients(updates, error, message):
    aggregate = simulated()
    with pytest.raises(error, match=message):
        aggregate.update(updates, aggregate.init(None))


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (
            {"elapsed": 2.0},
            ValueError,
            "elapsed= needs received= or finished= of the same round; got elapsed=2.0",
        ),
        (
            {"received": np.ones(6, bool), "elapsed": -1.0},
            ValueError,
            "elapsed must be at least 0; got -1",
        ),
        (
            {"received": np.ones((1, 6), bool)},
            ValueError,
            r"received must have shape \(num_workers,\)",
        ),
        (
            {"received": np.ones(6, bool), "elapsed": np.ones(6)},
            TypeError,
            "elapsed must be a real scalar",
        ),
    ],
)
def test_wrong_masks_and_times_of_a_round(extra, error, message):
    aggregate = simulated()
    with pytest.raises(error, match=message):
        aggregate.update(SIX_ROWS, aggregate.init(None), None, **extra)
