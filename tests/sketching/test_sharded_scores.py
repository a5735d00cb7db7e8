"""Rows on four devices, which are threads in another process."""

from tests.conftest import run_on_four_devices

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxwgc import sketching

assert "jax.experimental.sparse" not in sys.modules, "imports take a second more"
def leverage_scores(matrix, rank):
    return np.sum(np.linalg.svd(matrix, full_matrices=False)[0][:, :rank] ** 2, axis=1)

assert jax.device_count() == 4
jax.config.update("jax_enable_x64", True)
random = np.random.default_rng(0)
matrix = random.standard_normal((400, 12)) ** 3
deficient = matrix.copy()
# Well-conditioned on no device, and rank-deficient as a whole.
deficient[:, 6:] = deficient[:, :6]
graded = matrix * np.logspace(0, -8, 12) @ random.standard_normal((12, 12))
# Rows of one group on one device.
grouped = np.kron(np.diag([1.0, 2, 3, 4]), random.standard_normal((100, 3)))
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
types = (jax.sharding.AxisType.Explicit,) * 2
explicit = jax.make_mesh((2, 2), ("a", "b"), axis_types=types)
square = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
layouts = [
    NamedSharding(mesh, P("rows")),
    NamedSharding(square, P("b")),
    NamedSharding(explicit, P(("a", "b"))),
    NamedSharding(explicit, P("b")),
]
cases = ((matrix, 1e-12), (deficient, 1e-11), (graded, 1e-6), (grouped, 1e-12))
for layout in layouts:
    for case, tolerance in cases:
        expected = leverage_scores(case, 6 if case is deficient else 12)
        shards = jax.device_put(case, layout)
        scores = sketching.leverage_scores(shards)
        assert scores.sharding.is_equivalent_to(layout, 1)
        np.testing.assert_allclose(scores, expected, atol=tolerance)

# Fewer rows on a device than columns.
few = jax.device_put(matrix[:16], layouts[0])
scores = sketching.leverage_scores(few)
np.testing.assert_allclose(scores, leverage_scores(matrix[:16], 12), atol=1e-11)
assert tuple(sketching.numerical_rank(few)) == (12, False)
key, target = jax.random.key(0), random.standard_normal((400, 2))
shards = jax.device_put(matrix, layouts[0])
for function in (
    lambda x: sketching.ridge_leverage_scores(x, 2.0),
    lambda x: sketching.rank_k_leverage_scores(key, x, 3, num_passes=6).scores,
    lambda x: sketching.approximate_leverage_scores(key, x, 0.9),
    lambda x: sketching.preconditioned(key, x, target, ridge=0.1).solution,
    lambda x: sketching.preconditioned(key, x, target, method="sketch").solution,
    lambda x: sketching.sketch_and_solve(key, x, target, 60).solution,
    lambda x: sketching.sketch_and_solve(key, x, target, 60).residual_history,
    lambda x: sketching.choose_ridge(x, target, [0.1, 1.0]).errors,
    lambda x: sketching.numerical_rank(x).rank,
):
    expected = np.asarray(function(matrix))
    np.testing.assert_allclose(function(shards), expected, rtol=1e-10, atol=1e-10)
for function in (
    sketching.leverage_scores,
    lambda x: sketching.rank_k_leverage_scores(key, x, 3, num_passes=6).scores,
):
    change = jax.jvp(function, (shards,), (shards**2,))[1]
    ends = [function(matrix + step * matrix**2) for step in (1e-6, -1e-6)]
    np.testing.assert_allclose(change, (ends[0] - ends[1]) / 2e-6, atol=1e-7)

bad = shards.at[399, 3].set(jnp.nan)
try:
    sketching.leverage_scores(bad)
except ValueError as error:
    assert "matrix must be finite; got 1 NaN" in str(error)
else:
    raise AssertionError
# In a traced function, on a mesh of explicit axes; nothing of the size of X travels.
traced = jax.jit(sketching.leverage_scores)
on_explicit = jax.device_put(matrix, layouts[2])
text = traced.lower(on_explicit).compile().as_text()
assert "all-reduce" in text and "all-gather" not in text
np.testing.assert_allclose(traced(on_explicit), leverage_scores(matrix, 12), atol=1e-12)
# Functions of one device gather rows and scores.
np.testing.assert_array_equal(
    sketching.sample_rows(key, traced(on_explicit), 20).indices,
    sketching.sample_rows(key, np.asarray(traced(on_explicit)), 20).indices,
)
np.testing.assert_allclose(
    sketching.lewis_weights(on_explicit, 1.0).weights,
    sketching.lewis_weights(matrix, 1.0).weights,
)
matrix[399, 3] = np.nan
assert np.isnan(traced(jax.device_put(matrix, layouts[2]))).all()
print("all good")
"""


def test_four_devices():
    assert run_on_four_devices(PROGRAM).strip() == "all good"
