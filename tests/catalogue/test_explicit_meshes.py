"""All functions of sketching with rows on a mesh of explicit axes, two devices."""

import pytest

from tests.conftest import printed_by, start_on_devices, weekly

PROGRAM = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxwgc import sketching
from tests.catalogue import embeddings
from tests.catalogue.problems import MATRIX
from tests.catalogue.rows import SKETCHING

are_computed = sys.argv[1] == "computed"
assert jax.device_count() == 2
mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Explicit,))
by_rows = NamedSharding(mesh, P("i"))


def sharded(value):
    if isinstance(value, np.ndarray) and value.ndim and len(value) % 2 == 0:
        return jax.device_put(value, by_rows)
    return value


def check_equal(name, result, expected):
    leaves = jax.device_get(jax.tree.leaves(expected))
    for found, leaf in zip(jax.tree.leaves(result), leaves, strict=True):
        np.testing.assert_allclose(found, leaf, 1e-4, 1e-5, err_msg=name)


for row in SKETCHING:
    # Embeddings take no array with rows before they are applied.
    if row in embeddings.ROWS:
        continue
    options = dict(row.arguments)
    if "embedding" in options:
        # The embedding must be sparse for sharded rows.
        options["embedding"] = sketching.sparse_sign
    on_mesh = dict(options)
    # Samples are results of the library, on all devices.
    for name in {"data", *row.traceable} & options.keys() - {"sample"}:
        on_mesh[name] = jax.tree.map(sharded, options[name])
    if are_computed or not row.traceable:
        check_equal(row.name, row.make(**on_mesh), row.make(**options))
        continue
    traced = {name: on_mesh.pop(name) for name in row.traceable}
    jax.eval_shape(lambda traced: row.make(**on_mesh, **traced), traced)

for row in embeddings.ROWS:
    # The others are functions of an embedding.
    if "num_rows" not in row.arguments or "key" not in row.arguments:
        continue
    options = {**row.arguments, "sketch_size": 8, "num_rows": 20}
    if "probabilities" in options:
        options["probabilities"] = sharded(np.arange(1.0, 21))
    embedding = row.make(**options)
    arrays = (MATRIX, MATRIX + 1j)
    on_mesh = jax.tree.map(sharded, arrays)
    expected = embedding @ arrays
    check_equal(row.name, embedding @ on_mesh, expected)
    with jax.set_mesh(mesh):
        check_equal(row.name, jax.jit(embedding.apply)(on_mesh), expected)
print("all good")
"""


@pytest.mark.parametrize("how", ["traced", weekly("computed")])
def test_rows_on_an_explicit_mesh_give_the_same_results(how):
    """Axes that do not fit are errors when a function is traced.

    Values on such a mesh are in test_sharded_scores.py, and of embeddings here.
    """
    assert printed_by(start_on_devices(2, PROGRAM, how)).strip() == "all good"
