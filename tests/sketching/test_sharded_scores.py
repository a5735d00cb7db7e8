"""Leverage scores of rows on four devices, which are threads in another process."""

from tests.conftest import run_on_four_devices

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxwgc.sketching import rank_k_leverage_scores, sharded_leverage_scores

assert "jax.experimental.sparse" not in sys.modules, "imports take a second more"
def leverage_scores(matrix, rank):
    return np.sum(np.linalg.svd(matrix, full_matrices=False)[0][:, :rank] ** 2, axis=1)

assert jax.device_count() == 4
jax.config.update("jax_enable_x64", True)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
random = np.random.default_rng(0)
matrix = random.standard_normal((400, 12)) ** 3
deficient = matrix.copy()
# Well-conditioned on no device, and rank-deficient as a whole.
deficient[:, 6:] = deficient[:, :6]
graded = matrix * np.logspace(0, -8, 12) @ random.standard_normal((12, 12))
traced = jax.jit(lambda x: sharded_leverage_scores(x, mesh, "rows"))
for case, tolerance in ((matrix, 1e-12), (deficient, 1e-11), (graded, 1e-6)):
    expected = leverage_scores(case, 6 if case is deficient else 12)
    shards = jax.device_put(case, NamedSharding(mesh, P("rows")))
    scores = sharded_leverage_scores(shards, mesh, "rows")
    assert scores.sharding.is_equivalent_to(NamedSharding(mesh, P("rows")), 1)
    np.testing.assert_allclose(scores, expected, atol=tolerance)
    np.testing.assert_allclose(traced(shards), expected, atol=tolerance)

# Rows of one group on one device.
grouped = np.kron(np.diag([1.0, 2, 3, 4]), random.standard_normal((100, 3)))
np.testing.assert_allclose(
    traced(jax.device_put(grouped, shards.sharding)),
    leverage_scores(grouped, 12),
    atol=1e-12,
)
# Fewer rows on a device than columns, and no multiple of four.
few = random.standard_normal((13, 12))
np.testing.assert_allclose(
    sharded_leverage_scores(few, mesh, "rows"), leverage_scores(few, 12), atol=1e-11
)
# Over one axis of two, and the meshes that jax.make_mesh makes, with axes of all types;
# also where the rows are not a multiple of the devices.
auto, explicit = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
meshes = [
    jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b")),
    jax.make_mesh((2, 2), ("a", "b")),
    *(
        jax.make_mesh((2, 2), ("a", "b"), axis_types=types)
        for types in [(auto, auto), (explicit, explicit)]
    ),
]
for other in dict.fromkeys(meshes):
    over_b = lambda x: sharded_leverage_scores(x, other, "b")
    everywhere = jax.device_put(few, NamedSharding(other, P()))
    scores = jax.jit(over_b)(everywhere)
    np.testing.assert_allclose(scores, leverage_scores(few, 12), atol=1e-11)
np.testing.assert_allclose(over_b(everywhere), scores, atol=1e-11)
# In the leading directions; of rows that are a multiple of the devices, and not.
key = jax.random.key(0)
for case, axis in ((matrix, "a"), (matrix[:399], "b")):
    found = rank_k_leverage_scores(
        key, case, 3, num_passes=6, mesh=meshes[0], axis_name=axis
    )
    np.testing.assert_allclose(found.scores, leverage_scores(case, 3), atol=1e-9)
change = jax.jvp(
    lambda x: rank_k_leverage_scores(
        key, x, 3, num_passes=6, mesh=mesh, axis_name="rows"
    ).scores, (matrix,), (matrix ** 2,)
)[1]
ends = [leverage_scores(matrix + step * matrix ** 2, 3) for step in (1e-6, -1e-6)]
np.testing.assert_allclose(change, (ends[0] - ends[1]) / 2e-6, atol=1e-7)
bad = jax.device_put(matrix, NamedSharding(mesh, P("rows"))).at[399, 3].set(jnp.nan)
assert jnp.isnan(traced(bad)).all()
try:
    sharded_leverage_scores(bad, mesh, "rows")
except ValueError as error:
    assert "matrix must be finite; got 1 NaN" in str(error)
else:
    raise AssertionError
# Nothing of the size of the matrix travels: no gathering of rows.
text = traced.lower(shards).compile().as_text()
assert "all-reduce" in text and "all-gather" not in text
print("all good")
"""


def test_four_devices():
    assert run_on_four_devices(PROGRAM).strip() == "all good"
