"""Rows on four devices, which are threads in another process."""

from tests.conftest import printed_by, start_on_devices

PROGRAM = """
import sys
from functools import partial
import jax, jax.numpy as jnp, numpy as np, pytest
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxwgc import sketching

assert "jax.experimental.sparse" not in sys.modules, "imports take a second more"
from tests.oracles import leverage_scores, ridge_solution

assert jax.device_count() == 4
jax.config.update("jax_enable_x64", True)
random = np.random.default_rng(0)
matrix = random.standard_normal((400, 12)) ** 3
# Well-conditioned on no device, and rank-deficient as a whole.
deficient = matrix[:, np.arange(12) % 6]
graded = matrix * np.logspace(0, -8, 12) @ random.standard_normal((12, 12))
# Rows of one group on one device.
grouped = np.kron(np.diag([1.0, 2, 3, 4]), random.standard_normal((100, 3)))
types = (jax.sharding.AxisType.Explicit,) * 2
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
square = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
explicit = jax.make_mesh((2, 2), ("a", "b"), axis_types=types)
layouts = [NamedSharding(mesh, P("rows")), NamedSharding(square, P("b"))]
layouts += [NamedSharding(explicit, P(("a", "b")))]
cases = ((matrix, 1e-12), (deficient, 1e-11), (graded, 1e-6), (grouped, 1e-12))
for layout in layouts:
    for case, tolerance in cases:
        scores = sketching.leverage_scores(jax.device_put(case, layout))
        assert scores.sharding.is_equivalent_to(layout, 1)
        np.testing.assert_allclose(scores, leverage_scores(case), atol=tolerance)

# Fewer rows on a device than columns.
few = jax.device_put(matrix[:16], layouts[0])
scores = sketching.leverage_scores(few)
np.testing.assert_allclose(scores, leverage_scores(matrix[:16]), atol=1e-11)
assert tuple(sketching.numerical_rank(few)) == (12, False)
key, target = jax.random.key(0), random.standard_normal((400, 2))
shards = jax.device_put(matrix, layouts[0])
check_close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
rank_k = lambda x: sketching.rank_k_leverage_scores(key, x, 3, num_passes=6).scores
sketched = lambda x: sketching.sketch_and_solve(key, x, target, 60)
for function in (
    rank_k,
    lambda x: sketching.approximate_leverage_scores(key, x, 0.9),
    lambda x: sketched(x)[::3],
):
    jax.tree.map(check_close, function(shards), jax.device_get(function(matrix)))
scores = sketching.ridge_leverage_scores(shards, 2.0)
check_close(scores, leverage_scores(matrix, 0, 2.0))
for options, ridge in (({"ridge": 0.1}, 0.1), ({"method": "sketch"}, 0.0)):
    found = sketching.preconditioned(key, shards, target, **options)
    check_close(found.solution, ridge_solution(matrix, target, ridge))
hat = matrix @ ridge_solution(matrix, np.eye(400), 0.1)
errors = np.mean(((target - hat @ target) / (1 - np.diag(hat))[:, None]) ** 2)
check_close(sketching.choose_ridge(shards, target, [0.1]).errors, errors)
weights = random.random(400)
influence = lambda x: sketching.influence(x, target, weights, ridge=0.1)
found = jax.jit(influence)(jax.device_put(matrix, layouts[2]))
assert found.cooks_distance.sharding.is_equivalent_to(layouts[2], 2)
jax.tree.map(check_close, found, jax.device_get(influence(matrix)))
for function, own in ((sketching.leverage_scores, leverage_scores), (rank_k, rank_k)):
    change = jax.jvp(function, (shards,), (shards**2,))[1]
    ends = [own(matrix + step * matrix**2) for step in (1e-6, -1e-6)]
    np.testing.assert_allclose(change, (ends[0] - ends[1]) / 2e-6, atol=1e-7)

with pytest.raises(ValueError, match="must be finite; got 1 NaN"):
    sketching.leverage_scores(shards.at[399, 3].set(jnp.nan))
# In a traced function, on a mesh of explicit axes; nothing of the size of X travels.
on_explicit = jax.device_put(matrix, layouts[2])
traced = jax.jit(sketching.leverage_scores).lower(on_explicit).compile()
text = traced.as_text()
assert "all-reduce" in text and "all-gather" not in text
scores = traced(on_explicit)
np.testing.assert_allclose(scores, leverage_scores(matrix), atol=1e-12)
# Functions of one device gather rows and scores.
samples = [sketching.sample_rows(key, own, 20) for own in (scores, np.asarray(scores))]
np.testing.assert_array_equal(samples[0].indices, samples[1].indices)
# Lewis weights are the leverage scores of rows that are scaled by them.
weights = np.asarray(sketching.lewis_weights(on_explicit, 1.0).weights)
scaled_rows = matrix / np.sqrt(weights)[:, None]
np.testing.assert_allclose(leverage_scores(scaled_rows), weights, rtol=1e-9)
matrix[399, 3] = np.nan
assert np.isnan(traced(jax.device_put(matrix, layouts[2]))).all()
print("all good")
"""


def test_four_devices():
    assert printed_by(start_on_devices(4, PROGRAM)).strip() == "all good"
