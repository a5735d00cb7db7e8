"""The step on a mesh: of devices, of processes, and what it rejects."""

import socket
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxwgc import codes, distributed
from jaxwgc.distributed._placement import PlacedParts
from tests.conftest import printed_by, start_on_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import jaxwgc
from jaxwgc import codes, distributed

assert jax.device_count() == 4
draw = np.random.default_rng(0).normal
params = {"w": np.float32(draw(size=(3, 4))), "v": np.float32(draw(size=4))}


def loss(params, part):
    x, y = part
    return jnp.sum((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def compare(name, code, mesh, params, rounds):
    parts = [np.float32(draw(size=(code.num_parts, *own))) for own in ((4, 3), (4,))]
    parts[0][..., 1] = 0  # A feature that is always zero.
    reference = jax.jit(jaxwgc.decoded_value_and_grad(loss, code))
    placed = distributed.place_parts(parts, code, mesh)
    step = jax.jit(distributed.mesh_value_and_grad(loss, code, mesh))
    for arrivals in rounds:
        value, gradient = step(params, placed, **arrivals)
        expected = reference(jax.device_get(params), parts, **arrivals)
        np.testing.assert_allclose(value, expected[0], rtol=1e-4, atol=1e-4)
        for leaf in params:
            np.testing.assert_allclose(
                gradient[leaf], expected[1][leaf], rtol=1e-4, atol=1e-4
            )
        if np.sum(~arrivals.get("received", np.ones(1, bool))) <= code.num_stragglers:
            assert np.all(gradient["w"][1] == 0)
    assert gradient["w"].dtype == jnp.float32
    print("done", name, gradient["w"].sharding.spec)


masks = [{"received": np.arange(5) >= lost} for lost in (2, 4)]
auto = Mesh(np.array(jax.devices()), ("workers",))
several = codes.multi_message(codes.fractional_repetition(4, 1))
finished = [{"finished": np.array(own)} for own in ([2, 1, 0, 2], [1, 0, 1, 1])]
compare("several messages", several, auto, params, finished)
axes = dict(axis_types=(AxisType.Auto,) * 2)
square = jax.make_mesh((2, 2), ("workers", "model"), **axes)
sharded = {
    "w": jax.device_put(params["w"], NamedSharding(square, P(None, "model"))),
    "v": jax.device_put(params["v"], NamedSharding(square, P("model"))),
}
compare("two axes", codes.cyclic_mds(5, 2), square, sharded, masks)

# 1,000 workers and 10 million parameters: what is compiled needs the memory of a few
# gradients on each device, where all messages would be a thousand.
code = codes.fractional_repetition(1000, num_stragglers=1)
like = {"w": jax.ShapeDtypeStruct((10_000, 1_000), jnp.float32)}
parts = distributed.place_parts(np.zeros((1000, 1)), code, auto)
parts = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
        (len(leaf), 1, 10_000), jnp.float32, sharding=leaf.sharding
    ),
    parts,
)
step = distributed.mesh_value_and_grad(
    lambda params, part: jnp.sum((part @ params["w"]) ** 2),
    code,
    auto,
)
mask = jax.ShapeDtypeStruct((1000,), bool)
needed = jax.jit(step).lower(like, parts, mask).compile().memory_analysis()
gradients = needed.temp_size_in_bytes / (4 * 10_000_000)
assert 0.1 < gradients < 6, gradients
print("done, of gradients:", gradients)
"""


def test_four_devices():
    printed = printed_by(start_on_devices(4, PROGRAM))
    assert printed.count("done") == 3
    assert printed.count("'model'") == 1


# Joined by `jax.distributed` over loopback.
TWO_PROCESSES = """
import sys
import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank, address = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(
    address, 2, rank, initialization_timeout=60, coordinator_bind_address=address
)
import jax.numpy as jnp, numpy as np
import jaxwgc
from jaxwgc import distributed

assert (jax.device_count(), jax.local_device_count()) == (4, 2)
mesh = jax.make_mesh((4,), ("workers",))
code = jaxwgc.codes.cyclic_mds(5, 2)
data = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
loaded = set()


def loss(params, part):
    return jnp.sum((part @ params["w"] - 1) ** 2)


def load(index):
    loaded.add(index)
    return data[index]


placed = distributed.place_parts(load, code, mesh)
step = distributed.mesh_value_and_grad(loss, code, mesh)


@jax.jit
def train(params, placed, mask):
    value, gradient = step(params, placed, mask)
    return {"w": params["w"] - 0.01 * gradient["w"]}, value


params, expected = {"w": np.zeros(3, np.float32)}, np.zeros(3)
rows = data.reshape(-1, 3)
for lost in range(3):
    params, value = train(params, placed, np.arange(5) != lost)
    misses = rows @ expected - 1
    expected -= 0.02 * misses @ rows
    np.testing.assert_allclose(value, misses @ misses, rtol=1e-4)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-4)
print("done", sorted(loaded))
"""
# Two parts a device, two devices a process; the last part fills up.
LOADED = ["done [0, 1, 2, 3]", "done [4]"]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo is built for Linux")
def test_training_over_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        start_on_devices(2, TWO_PROCESSES, str(rank), address) for rank in range(2)
    ]
    try:
        # One that fails would leave the other one waiting.
        for process, expected in zip(processes, LOADED, strict=True):
            printed = printed_by(process, timeout=300)
            assert [line for line in printed.splitlines() if "done" in line] == [
                expected
            ]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


CODE = codes.cyclic_mds(4, 1)
MESH = Mesh(np.array(jax.devices()[:1]), ("workers",))
PARTS = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
PARAMS = {"w": np.ones(3, np.float32)}
MASK = np.array([True, False, True, True])


def loss(params, part):
    return jnp.sum((part @ params["w"]) ** 2)


def place(parts=PARTS, code=CODE, mesh=MESH, **options):
    return distributed.place_parts(parts, code, mesh, **options)


def make(loss=loss, code=CODE, mesh=MESH, **options):
    return distributed.mesh_value_and_grad(loss, code, mesh, **options)


def compute(loss=loss, params=PARAMS, placed=None, **received):
    return make(loss)(params, place() if placed is None else placed, **received)


def test_parts_that_are_loaded():
    seen = []

    def load(index):
        seen.append(index)
        return {"x": PARTS[index], "key": jax.random.key(index)}

    placed = place(load)
    assert seen == [0, 1, 2, 3]
    np.testing.assert_array_equal(placed.arrays["x"], PARTS)
    again = place({"x": PARTS, "key": jax.vmap(jax.random.key)(np.arange(4))})
    assert np.all(again.arrays["key"] == placed.arrays["key"])
    rule = r"dtypes; got a part of float32\[2, 3\] and a part of float32\[1"
    with pytest.raises(ValueError, match=rule):
        place(lambda index: PARTS[index][: 1 + (index < 3)])
    with pytest.raises(ValueError, match=r"part of float32\[1, 3\] and a part of fl"):
        place(lambda index: PARTS[index][: 1 + (index > 0)])
    with pytest.raises(ZeroDivisionError):
        place(lambda index: 1 / 0)


def test_parts_that_are_not_used_may_hold_anything():
    """A part that only a straggler holds is NaN, and so is its loss."""
    parts = PARTS.copy()
    parts[2] = np.nan
    code = codes.uncoded(4)
    value, gradient = make(code=code)(PARAMS, place(parts, code), np.arange(4) != 2)
    expected = jax.value_and_grad(loss)(PARAMS, parts[[0, 1, 3]].reshape(-1, 3))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], expected[1]["w"], rtol=1e-5)


def test_half_precision_is_kept():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    placed = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), place())
    value, gradient = compute(params=params, placed=placed, received=MASK)
    assert value.dtype == gradient["w"].dtype == jnp.bfloat16
    expected = jax.grad(loss)(PARAMS, PARTS.reshape(-1, 3))["w"]
    np.testing.assert_allclose(np.float32(gradient["w"]), expected, rtol=0.1)


DEVICE = jax.devices()[0]
TYPES = {"axis_types": (AxisType.Auto, AxisType.Explicit)}
EXPLICIT = jax.make_mesh((1, 1), ("workers", "model"), **TYPES)
LARGE = {"ids": np.full((4, 2), 2**32, np.uint64)}
OTHER = PlacedParts(PARTS, ((0, 1), (2, 3)))
INTS = {"params": {"w": np.ones(3, int)}, "received": MASK}
VECTOR = {"loss": lambda params, part: part @ params["w"], "received": MASK}


@pytest.mark.parametrize(
    ("call", "error", "options", "rule"),
    [
        (place, TypeError, {"code": 3}, "code must be a GradientCode; got 3"),
        (place, TypeError, {"mesh": [DEVICE]}, "mesh must be a Mesh of jax.sharding"),
        (make, TypeError, {"decoder": "guess"}, "decoder must be"),
        (make, TypeError, {"loss": 3}, "loss must be a function"),
        (compute, TypeError, {"placed": PARTS}, "parts must be a PlacedParts, from"),
        (compute, TypeError, {"received": np.ones(4)}, "received must be a bool mask"),
        (compute, TypeError, INTS, "params.* must be real or complex floats"),
        (compute, TypeError, VECTOR, "loss must return a scalar; got an array"),
        (place, ValueError, {"axis": "rows"}, "axis must be one of 'workers'"),
        (place, ValueError, {"mesh": EXPLICIT}, "type Auto for all axes except"),
        (make, ValueError, {"mesh": EXPLICIT}, "type Auto for all axes except"),
        (place, ValueError, {"parts": PARTS[1:]}, "leading axis of num_parts = 4"),
        (place, ValueError, {"parts": LARGE}, r"part 0\[.ids.\] must fit uint32"),
        (compute, ValueError, {"placed": OTHER}, "parts must be placed by place_parts"),
        (compute, ValueError, {"received": MASK[None]}, "received must have shape"),
        (compute, ValueError, {"received": MASK[1:]}, "received must have shape"),
        (compute, ValueError, {}, "received or finished= must be given"),
    ],
)
def test_bad_arguments(call, error, options, rule):
    with pytest.raises(error, match=rule):
        call(**options)


def test_traced_codes():
    with pytest.raises(TypeError, match="code must be concrete"):
        jax.eval_shape(lambda code: place(code=code), CODE)
