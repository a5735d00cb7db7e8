"""Decoding on four devices, which are threads in another process."""

from tests.conftest import run_on_four_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxwgc
from jaxwgc import codes

assert jax.device_count() == 4
key = jax.random.key(0)
all_codes = {
    # Of other weights than ones, which least squares fit where parts are lost.
    "lagrange": jaxwgc.weighted(codes.reed_solomon(6, 6, 3), np.arange(1.0, 7)),
    "peeling": codes.ldgm(key, 8, 6, 2),
    "group": codes.fractional_repetition(6, 2),
    "segments": codes.communication_efficient(6, 2, 2),
    "clusters": codes.clustered(codes.binary(4, 1), 2),
}
kinds = {
    "auto": jax.sharding.Mesh(np.array(jax.devices()), ("i",)),
    "explicit": jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,)),
}
for name, code in all_codes.items():
    number = code.num_workers
    masks = np.random.default_rng(0).random((8, number)) < 0.7
    gradients = jax.random.normal(key, (code.num_parts, 12))
    messages = jaxwgc.encode(code, gradients)
    like = jax.ShapeDtypeStruct((12,), jnp.float32)

    def everything(masks):
        decoding = jaxwgc.decoding(code, masks)
        decoded = decoding.combine(messages, like)
        if name != "segments":
            return (decoded,)
        # What else is made of weights is the same whatever the decoder.
        return decoded, decoding.effective_weights, decoding.error

    expected = jax.jit(everything)(masks)
    specs = [P("i"), P(None, "i")] if name == "peeling" else [P("i")]
    for kind, mesh in kinds.items():
        if kind == "auto" and name != "lagrange":
            continue
        with jax.set_mesh(mesh):
            given = [jax.device_put(masks, NamedSharding(mesh, own)) for own in specs]
            found = [jax.jit(everything)(own) for own in given]
            # Where axes are explicit the library has paths of its own, and all axes are
            # manual in a shard_map: with the checks that JAX makes by default.
            if kind == "explicit":
                mapped = jax.shard_map(
                    everything, mesh=mesh, in_specs=P("i"), out_specs=P("i")
                )
                found.append(jax.jit(mapped)(given[0]))
                if name == "peeling":
                    found.append(everything(given[0]))
        for results in found:
            for one, other in zip(results, expected):
                np.testing.assert_allclose(
                    one, other, rtol=1e-4, atol=1e-4, err_msg=f"{name}, {kind}"
                )
    print("done", name)
"""


def test_every_decoder_on_every_kind_of_mesh():
    assert run_on_four_devices(PROGRAM).count("done") == 5
