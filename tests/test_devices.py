"""Decoders and straggler models on four devices, threads in another process."""

from tests.conftest import printed_by, start_on_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxwgc
from jaxwgc import codes, simulation, stragglers

assert jax.device_count() == 4
key = jax.random.key(0)
auto = jax.sharding.Mesh(np.array(jax.devices()), ("i",))
explicit = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,))


def on_mesh(function, lanes, mesh, specs):
    with jax.set_mesh(mesh):
        given = [jax.device_put(lanes, NamedSharding(mesh, own)) for own in specs]
        yield from (jax.jit(function)(own) for own in given)
        # Where axes are explicit the library has paths of its own, and all axes are
        # manual in a shard_map: with the checks that JAX makes by default.
        if mesh is explicit:
            spec = dict(in_specs=P("i"), out_specs=P("i"))
            yield jax.jit(jax.shard_map(function, mesh=mesh, **spec))(given[0])
        if len(specs) > 1:
            yield function(given[0])


def check(name, function, lanes, mesh=explicit, specs=(P("i"),), tolerance=1e-4):
    expected = jax.jit(function)(lanes)
    for found in on_mesh(function, lanes, mesh, specs):
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(one, other, tolerance, tolerance, err_msg=name)
    print("done", name)


all_codes = {
    # Of other weights than ones, which least squares fit where parts are lost.
    "lagrange": jaxwgc.weighted(codes.reed_solomon(6, 6, 3), np.arange(1.0, 7)),
    "peeling": codes.ldgm(key, 8, 6, 2),
    "group": codes.fractional_repetition(8, 3),
    "segments": codes.communication_efficient(6, 2, 2),
    "clusters": codes.clustered(codes.binary(4, 1), 2),
}
for name, code in all_codes.items():
    masks = np.random.default_rng(0).random((8, code.num_workers)) < 0.7
    messages = jaxwgc.encode(code, jax.random.normal(key, (code.num_parts, 12)))

    def decoded(masks):
        decoding = jaxwgc.decoding(code, masks)
        sums = decoding.combine(messages, jax.ShapeDtypeStruct((12,), jnp.float32))
        if name != "segments":
            return sums
        # Other results of weights do not depend on the decoder.
        return sums, decoding.effective_weights, decoding.error

    specs = [P("i"), P(None, "i")] if name == "group" else [P("i")]
    check(name, decoded, masks, specs=specs)
    if name == "group":
        check(name, decoded, masks, mesh=auto)

pareto = stragglers.pareto(1.0, 2.0)
slowed = stragglers.bernoulli_slowdown(0.3, 5.0)
code = codes.fractional_repetition(6, 2)
models = {
    "uniform": stragglers.uniform(2),
    "bernoulli": stragglers.bernoulli(0.3),
    "adversarial": simulation.adversarial(code, 2),
    "fastest": stragglers.delayed(pareto, stragglers.fastest(4)),
    "deadline": stragglers.delayed(slowed, stragglers.deadline(4.0)),
    "until_decodable": stragglers.delayed(pareto, stragglers.until_decodable(code)),
}
loads = jnp.array([2.0, 0.0, 3.0, 1.0, 2.0, 2.0])


def rounds(key):
    # All models in one program, which draw from the same key.
    return {name: model.sample(key, (), loads)[0] for name, model in models.items()}


check("models", jax.vmap(rounds), jax.random.split(key, 8), tolerance=1e-6)
"""


def test_every_decoder_and_model_on_every_kind_of_mesh():
    assert printed_by(start_on_devices(4, PROGRAM)).count("done") == 7
