"""The step on a mesh of devices, against the one on a single device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import jaxwgc
from jaxwgc import codes, distributed
from tests.conftest import run_on_four_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import jaxwgc
from jaxwgc import codes, distributed

assert jax.device_count() == 4
draw = np.random.default_rng(0).normal
params = {"w": np.float32(draw(size=(3, 4))), "v": np.float32(draw(size=4))}


def loss(params, part):
    x, y = part
    return jnp.sum((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def compare(name, code, mesh, methods, params, rounds):
    parts = [np.float32(draw(size=(code.num_parts, *own))) for own in ((4, 3), (4,))]
    reference = jax.jit(jaxwgc.decoded_value_and_grad(loss, code))
    for method in methods:
        placed = distributed.place_parts(parts, code, mesh, method=method)
        step = distributed.mesh_value_and_grad(loss, code, mesh, method=method)
        optimizer = optax.adam(0.1)

        @jax.jit
        def train(params, state, placed, arrivals):
            value, gradient = step(params, placed, **arrivals)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value, gradient

        for arrivals in rounds:
            *_, value, gradient = train(
                params, optimizer.init(params), placed, arrivals
            )
            expected = reference(jax.device_get(params), parts, **arrivals)
            np.testing.assert_allclose(value, expected[0], rtol=1e-4, atol=1e-4)
            for leaf in params:
                np.testing.assert_allclose(
                    gradient[leaf], expected[1][leaf], rtol=1e-4, atol=1e-4
                )
        assert gradient["w"].dtype == jnp.float32
        print("done", name, method, gradient["w"].sharding.spec)


both = ("collapsed", "redundant")
masks = [{"received": np.arange(5) >= lost} for lost in (2, 4)]
auto = Mesh(np.array(jax.devices()), ("workers",))
default = jax.make_mesh((3,), ("workers",), devices=jax.devices()[:3])
compare("complex", codes.cyclic_mds(5, 2), default, both, params, masks)
several = codes.multi_message(codes.fractional_repetition(4, 1))
finished = [{"finished": np.array(own)} for own in ([2, 1, 0, 2], [1, 0, 1, 1])]
compare("several messages", several, auto, both[1:], params, finished)
axes = dict(axis_types=(AxisType.Auto,) * 2)
square = jax.make_mesh((2, 2), ("workers", "model"), **axes)
sharded = {
    "w": jax.device_put(params["w"], NamedSharding(square, P(None, "model"))),
    "v": jax.device_put(params["v"], NamedSharding(square, P("model"))),
}
compare("two axes", codes.binary(5, 2), square, both, sharded, masks)

# 1,000 workers and 10 million parameters: what is compiled needs the memory of a few
# gradients on each device, where all messages would be a thousand.
code = codes.fractional_repetition(1000, num_stragglers=1)
like = {"w": jax.ShapeDtypeStruct((10_000, 1_000), jnp.float32)}
parts = distributed.place_parts(np.zeros((1000, 1)), code, auto, method="redundant")
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
    method="redundant",
)
mask = jax.ShapeDtypeStruct((1000,), bool)
needed = jax.jit(step).lower(like, parts, mask).compile().memory_analysis()
gradients = needed.temp_size_in_bytes / (4 * 10_000_000)
assert 1 < gradients < 6, gradients
print("done, of gradients:", gradients)


def trial(key):
    times = jax.random.uniform(key, (4,))
    error = jaxwgc.decoding_error(codes.fractional_repetition(4, 1), times > 0.4)
    return {"times": times, "error": error}


key = jax.random.key(0)
seen = []
one = jaxwgc.monte_carlo(trial, key, 37, 3)
many = jaxwgc.monte_carlo(
    trial, key, 37, 3, lambda *own: seen.append(own), devices=jax.devices()[1:]
)
jax.tree.map(np.testing.assert_array_equal, one, many)
assert seen[-1] == (37, 37)
print("done, studies")
"""


def test_four_devices():
    printed = run_on_four_devices(PROGRAM)
    assert printed.count("done") == 7
    assert printed.count("'model'") == 2


CODE = codes.cyclic_mds(4, 1)
MESH = Mesh(np.array(jax.devices()[:1]), ("workers",))
PARTS = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
PARAMS = {"w": np.ones(3, np.float32)}
MASK = np.array([True, False, True, True])


def loss(params, part):
    return jnp.sum((part @ params["w"]) ** 2)


def step(code=CODE, parts=PARTS, method="redundant", **options):
    placed = distributed.place_parts(parts, code, MESH, method=method)
    compute = distributed.mesh_value_and_grad(
        loss, code, MESH, method=method, **options
    )
    return compute, placed


class TestPlacement:
    def test_of_its_own_workers(self):
        """Held by hand: a device of two workers has the parts of either, once."""
        code = codes.cyclic_mds(5, 1)
        held = distributed._placement.held_parts(code, 3, "redundant")
        np.testing.assert_array_equal(held, [[0, 1, 2], [2, 3, 4], [0, 4, 4]])
        held = distributed._placement.held_parts(code, 3, "collapsed")
        np.testing.assert_array_equal(held, [[0, 1], [2, 3], [4, 4]])
        few = distributed._placement.held_parts(codes.uncoded(2), 3, "redundant")
        np.testing.assert_array_equal(few, [[0], [1], [0]])

    @pytest.mark.parametrize("method", ["collapsed", "redundant"])
    def test_parts_that_are_loaded(self, method):
        seen = []

        def load(index):
            seen.append(index)
            return {"x": PARTS[index], "key": jax.random.key(index)}

        placed = distributed.place_parts(load, CODE, MESH, method=method)
        assert seen == [0, 1, 2, 3]
        np.testing.assert_array_equal(placed.arrays["x"], PARTS)
        whole = {"x": PARTS, "key": jax.vmap(jax.random.key)(np.arange(4))}
        again = distributed.place_parts(whole, CODE, MESH, method=method)
        assert np.all(again.arrays["key"] == placed.arrays["key"])

    def test_loaders_that_fail(self):
        def unequal(index):
            return PARTS[index][: 1 + (index < 3)]

        rule = r"parts must be alike; got one of float32\[2, 3\] and one of float32\[1"
        with pytest.raises(ValueError, match=rule):
            distributed.place_parts(unequal, CODE, MESH)
        with pytest.raises(OSError, match="gone"):
            distributed.place_parts(gone, CODE, MESH)


@pytest.mark.parametrize("method", ["collapsed", "redundant"])
def test_one_device(method):
    compute, placed = step(method=method)
    value, gradient = compute(PARAMS, placed, MASK)
    expected = jax.value_and_grad(loss)(PARAMS, PARTS.reshape(-1, 3))
    np.testing.assert_allclose(value, expected[0], rtol=1e-4)
    np.testing.assert_allclose(gradient["w"], expected[1]["w"], rtol=1e-4)


def gone(index):
    raise OSError("gone")


@pytest.mark.parametrize("method", ["collapsed", "redundant"])
def test_what_is_not_used_may_hold_anything(method):
    """A part that only a straggler holds is NaN; so are its loss and its message."""
    parts = PARTS.copy()
    parts[2] = np.nan
    compute, placed = step(codes.uncoded(4), parts, method=method)
    value, gradient = compute(PARAMS, placed, np.arange(4) != 2)
    expected = jax.value_and_grad(loss)(PARAMS, parts[[0, 1, 3]].reshape(-1, 3))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], expected[1]["w"], rtol=1e-5)


def test_half_precision_is_kept():
    compute, placed = step(method="redundant")
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    placed = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), placed)
    value, gradient = compute(params, placed, MASK)
    assert value.dtype == gradient["w"].dtype == jnp.bfloat16
    expected = jax.grad(loss)(PARAMS, PARTS.reshape(-1, 3))["w"]
    np.testing.assert_allclose(np.float32(gradient["w"]), expected, rtol=0.1)


class TestBadInput:
    def test_arguments(self):
        for make in (
            lambda *own, **more: distributed.place_parts(PARTS, *own, **more),
            lambda *own, **more: distributed.mesh_value_and_grad(loss, *own, **more),
        ):
            with pytest.raises(TypeError, match="code must be a GradientCode; got 3"):
                make(3, MESH)
            with pytest.raises(TypeError, match="mesh must be a jax.sharding.Mesh"):
                make(CODE, jax.devices())
            with pytest.raises(ValueError, match="axis must be one of 'workers'"):
                make(CODE, MESH, axis="rows")
            with pytest.raises(ValueError, match="method must be one of 'collapsed'"):
                make(CODE, MESH, method="partials")
            with pytest.raises(TypeError, match="code must be concrete"):
                jax.eval_shape(lambda code, make=make: make(code, MESH), CODE)
            types = (AxisType.Auto, AxisType.Explicit)
            mesh = jax.make_mesh((1, 1), ("workers", "model"), axis_types=types)
            with pytest.raises(ValueError, match="the type Auto for axes other than"):
                make(CODE, mesh)
        with pytest.raises(TypeError, match="decoder must be"):
            distributed.mesh_value_and_grad(loss, CODE, MESH, decoder="guess")
        with pytest.raises(TypeError, match="loss must be a function"):
            distributed.mesh_value_and_grad(3, CODE, MESH)

    def test_parts(self):
        with pytest.raises(ValueError, match="leading axis of num_parts = 4"):
            distributed.place_parts(PARTS[1:], CODE, MESH)
        compute, placed = step()
        with pytest.raises(TypeError, match="parts must be PlacedParts, from place"):
            compute(PARAMS, PARTS, MASK)
        other = distributed.PlacedParts(placed.arrays, ((0, 1), (2, 3)))
        with pytest.raises(ValueError, match="parts must be placed for the same code"):
            compute(PARAMS, other, MASK)

    @pytest.mark.parametrize("method", ["collapsed", "redundant"])
    def test_of_a_step(self, method):
        compute, placed = step(method=method)
        with pytest.raises(ValueError, match="received must have shape"):
            compute(PARAMS, placed, np.ones((2, 4), bool))
        with pytest.raises(ValueError, match="received must have shape"):
            compute(PARAMS, placed, np.ones(5, bool))
        with pytest.raises(TypeError, match="received must be a bool mask"):
            compute(PARAMS, placed, np.ones(4))
        with pytest.raises(ValueError, match="received or finished must be given"):
            compute(PARAMS, placed)
        with pytest.raises(TypeError, match="params.* must be real or complex floats"):
            compute({"w": np.ones(3, int)}, placed, MASK)
        wrong = distributed.mesh_value_and_grad(
            lambda params, part: part @ params["w"], CODE, MESH, method=method
        )
        with pytest.raises(TypeError, match="loss must return a scalar; got an array"):
            wrong(PARAMS, placed, MASK)
        with_aux = distributed.mesh_value_and_grad(
            lambda params, part: (loss(params, part), 0), CODE, MESH, method=method
        )
        with pytest.raises(TypeError, match="a scalar; got PyTreeDef"):
            with_aux(PARAMS, placed, MASK)

    def test_devices_of_a_study(self):
        run = jaxwgc.monte_carlo
        key, device = jax.random.key(0), jax.devices()[0]
        draws = run(jax.random.normal, key, 5, devices=[device])
        np.testing.assert_array_equal(draws, run(jax.random.normal, key, 5))
        with pytest.raises(TypeError, match="devices must be those of jax.devices"):
            run(jax.random.normal, key, 5, devices=[0])
        for devices in ([], [device, device]):
            with pytest.raises(ValueError, match="devices must be different ones"):
                run(jax.random.normal, key, 5, devices=devices)
