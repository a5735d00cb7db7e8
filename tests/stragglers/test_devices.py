"""Rounds on four devices, which are threads in another process."""

from tests.conftest import run_on_four_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxwgc
from jaxwgc import stragglers, studies

assert jax.device_count() == 4
delays = {
    "shifted_exponential": stragglers.shifted_exponential(1.0, 2.0),
    "pareto": stragglers.pareto(1.0, 2.0),
    "bernoulli_slowdown": stragglers.bernoulli_slowdown(0.3, 5.0),
}
rules = {"fastest": stragglers.fastest(4), "deadline": stragglers.deadline(4.0)}
models = {
    "uniform": stragglers.uniform(2),
    "bernoulli": stragglers.bernoulli(0.3),
    "adversarial": studies.adversarial(
        jaxwgc.codes.fractional_repetition(6, num_stragglers=1), 2
    ),
}
for name, delay in delays.items():
    for rule, wait in rules.items():
        models[name + ", " + rule] = stragglers.delayed(delay, wait)
models["until_decodable"] = stragglers.delayed(
    delays["pareto"],
    stragglers.until_decodable(jaxwgc.codes.fractional_repetition(6, 2)),
)
loads = jnp.array([2.0, 0.0, 3.0, 1.0, 2.0, 2.0])
keys = jax.random.split(jax.random.key(0), 8)


def rounds(key):
    # All models in one program, which draw from the same key.
    return {name: model.sample(key, (), loads)[0] for name, model in models.items()}


rounds = jax.vmap(rounds)
kinds = {
    "auto": jax.sharding.Mesh(np.array(jax.devices()), ("i",)),
    "explicit": jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,)),
}
expected = jax.jit(rounds)(keys)
for kind, mesh in kinds.items():
    with jax.set_mesh(mesh):
        own = jax.device_put(keys, NamedSharding(mesh, P("i")))
        # With the checks that JAX makes by default.
        sharded = jax.shard_map(rounds, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
        found = {"shard_map": jax.jit(sharded)(own), "jit": jax.jit(rounds)(own)}
    for way, every in found.items():
        for name, arrivals in every.items():
            for field, one, other in zip(arrivals._fields, arrivals, expected[name]):
                np.testing.assert_allclose(
                    one, other, rtol=1e-6, err_msg=f"{name}, {kind}, {way}, {field}"
                )
            print("done", name)
"""


def test_every_model_on_every_kind_of_mesh():
    assert run_on_four_devices(PROGRAM).count("done") == 10 * 4
