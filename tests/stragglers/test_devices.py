"""Rounds on four devices, which are threads in another process."""

from tests.conftest import run_on_four_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxwgc
from jaxwgc import stragglers, studies

assert jax.device_count() == 4
pareto = stragglers.pareto(1.0, 2.0)
slowed = stragglers.bernoulli_slowdown(0.3, 5.0)
code = jaxwgc.codes.fractional_repetition(6, 2)
models = {
    "uniform": stragglers.uniform(2),
    "bernoulli": stragglers.bernoulli(0.3),
    "adversarial": studies.adversarial(code, 2),
    "fastest": stragglers.delayed(pareto, stragglers.fastest(4)),
    "deadline": stragglers.delayed(slowed, stragglers.deadline(4.0)),
    "until_decodable": stragglers.delayed(pareto, stragglers.until_decodable(code)),
}
loads = jnp.array([2.0, 0.0, 3.0, 1.0, 2.0, 2.0])
keys = jax.random.split(jax.random.key(0), 8)


def rounds(key):
    # All models in one program, which draw from the same key.
    return {name: model.sample(key, (), loads)[0] for name, model in models.items()}


rounds = jax.vmap(rounds)
expected = jax.jit(rounds)(keys)
mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(mesh):
    placed = jax.device_put(keys, NamedSharding(mesh, P("i")))
    # With the checks that JAX makes by default.
    sharded = jax.shard_map(rounds, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    ways = [jax.jit(way)(placed) for way in (sharded, rounds)]
for arrivals in ways:
    for name, sampled in arrivals.items():
        for one, other in zip(sampled, expected[name]):
            if one is not None:
                np.testing.assert_allclose(one, other, 1e-6, err_msg=name)
        print("done", name)
"""


def test_every_model_on_a_mesh():
    """Whose axis is explicit: one that is not allows whatever that does."""
    assert run_on_four_devices(PROGRAM).count("done") == 6 * 2
