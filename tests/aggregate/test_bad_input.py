"""Arguments that the aggregator refuses, and what newcomers ran into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers
from tests.aggregate.problems import aggregate
from tests.zoo import CODES


class TestBadInput:
    code = CODES["reed_solomon"]
    gradients = np.ones((6, 2), np.float32)

    def update(self, updates=gradients, **extra):
        transform = aggregate(self.code)
        return transform.update(updates, transform.init(None), None, **extra)

    def test_code_and_model(self):
        key, model = jax.random.key(0), stragglers.uniform(2)
        with pytest.raises(TypeError, match="code must be a GradientCode; got array"):
            jaxwgc.coded_aggregate(self.code.encoding_matrix, model, key)
        with pytest.raises(TypeError, match="model must be a StragglerModel; got 2"):
            jaxwgc.coded_aggregate(self.code, 2, key)
        with pytest.raises(TypeError, match="model must be a StragglerModel"):
            jaxwgc.coded_aggregate(self.code, stragglers.pareto(1.0, 2.0), key)

    @pytest.mark.parametrize("key", [0, None, "key", np.zeros(2, np.int32), 1.5])
    def test_key_of_the_wrong_type(self, key):
        with pytest.raises(TypeError, match="key must be a PRNG key from jax"):
            jaxwgc.coded_aggregate(self.code, stragglers.uniform(2), key)

    def test_choices(self):
        with pytest.raises(ValueError, match="method must be one of 'partials', 'mess"):
            aggregate(self.code, method="message")
        with pytest.raises(ValueError, match="undecodable must be one of 'least_squ"):
            aggregate(self.code, undecodable=None)

    def test_tolerance(self):
        for tolerance in (-1e-3, float("nan")):
            with pytest.raises(ValueError, match=f"tolerance must be .*{tolerance}"):
                aggregate(self.code, tolerance=tolerance)
        with pytest.raises(TypeError, match="tolerance must be a real scalar"):
            aggregate(self.code, tolerance="small")

    def test_as_many_stragglers_as_workers(self):
        with pytest.raises(ValueError, match="num_stragglers must be less than num"):
            aggregate(self.code, lost=6).init(None)

    @pytest.mark.parametrize("shape", [(), (5, 2), (7, 2), (1, 6)])
    def test_updates_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"updates\['w'\] .* num_parts = 6; got"):
            self.update({"w": np.ones(shape), "b": np.ones(6)})
        with pytest.raises(ValueError, match="updates must have at least one array"):
            self.update({})

    def test_elapsed_without_received(self):
        with pytest.raises(ValueError, match="elapsed goes with received.*2.0"):
            self.update(elapsed=2.0)

    def test_elapsed_that_is_not_a_scalar(self):
        mask = np.ones(6, bool)
        with pytest.raises(TypeError, match="elapsed must be a real scalar"):
            self.update(received=mask, elapsed=np.ones(6))


class TestNewcomers:
    """What a first user ran into."""

    code = jaxwgc.codes.binary(3, num_stragglers=1)

    def test_donating_the_state_leaves_the_key_alone(self, make_key):
        key = make_key(0)
        aggregate = jaxwgc.coded_aggregate(self.code, jaxwgc.stragglers.uniform(1), key)
        step = jax.jit(
            lambda state: aggregate.update(jnp.ones((3, 2)), state)[1],
            donate_argnums=0,
        )
        first = step(aggregate.init(None))
        again = step(aggregate.init(None))
        np.testing.assert_array_equal(first.received, again.received)
        jax.random.uniform(key)

    def test_integer_updates_are_refused(self):
        aggregate = jaxwgc.coded_aggregate(
            self.code, jaxwgc.stragglers.uniform(1), jax.random.key(0)
        )
        with pytest.raises(TypeError, match=r"updates\['w'\] must be real or complex"):
            aggregate.update({"w": jnp.ones((3, 2), int)}, aggregate.init(None))
