"""Clustered codes: a copy of a code in each cluster."""

import dataclasses

import jax
import numpy as np
import scipy.linalg

import jaxwgc
from jaxwgc.codes import clustered, cyclic_mds, multi_message, partially_coded
from tests.zoo import CODES, every_code


@every_code(
    "uncoded",
    "binary",
    "reed_solomon, slack",
    "communication_efficient, odd",
    "partial",
    "weighted",
)
def test_fields(name):
    inner = CODES[name]
    code = clustered(inner, 3)
    assert code.num_workers == 3 * inner.num_workers
    assert code.num_parts == 3 * inner.num_parts
    assert [own.num_clusters for own in code.decoders] == [3] * len(inner.decoders)
    assert [own.inner for own in code.decoders] == [*inner.decoders]
    for matrix, block in (
        (code.encoding_matrix, inner.encoding_matrix),
        (code.assignment, inner.assignment),
    ):
        assert matrix.dtype == block.dtype
        np.testing.assert_array_equal(matrix, scipy.linalg.block_diag(*[block] * 3))
    np.testing.assert_array_equal(code.target, np.tile(inner.target, 3))
    same = {field.name for field in dataclasses.fields(inner)} - {
        "encoding_matrix",
        "assignment",
        "target",
        "decoders",
        "required_parts",
    }
    for field in same:
        assert getattr(code, field) is getattr(inner, field), field


def test_clusters_of_clusters():
    code = clustered(clustered(cyclic_mds(3, 1), 2), 2)
    flat = clustered(cyclic_mds(3, 1), 4)
    assert code.decoders == flat.decoders
    assert code.decoders[0].num_clusters == 4
    np.testing.assert_array_equal(code.encoding_matrix, flat.encoding_matrix)


def test_several_messages_are_carried_over():
    inner = partially_coded(cyclic_mds(3, 1), 2)
    code = clustered(inner, 2)
    assert code.num_workers == 6
    assert code.messages_per_worker == 2
    np.testing.assert_array_equal(
        code.required_parts, np.concatenate([inner.required_parts] * 2)
    )
    # Clusters first or messages first, it is the same code.
    one = multi_message(clustered(cyclic_mds(4, 1), 3))
    other = clustered(multi_message(cyclic_mds(4, 1)), 3)
    np.testing.assert_array_equal(one.encoding_matrix, other.encoding_matrix)
    np.testing.assert_array_equal(one.required_parts, other.required_parts)
    assert one.decoders == other.decoders
    assert one.decoders[0].num_clusters == 3


def test_of_traced_codes(make_key, x64):
    keys = jax.random.split(make_key(0), 3)

    def of_key(key):
        return clustered(jaxwgc.codes.cyclic_repetition(key, 4, 1), 2)

    codes = jax.jit(jax.vmap(of_key))(keys)
    assert codes.encoding_matrix.shape == (3, 8, 8)
    for key, matrix in zip(keys, codes.encoding_matrix, strict=True):
        np.testing.assert_allclose(
            matrix, of_key(key).encoding_matrix, rtol=1e-9 if x64 else 1e-3
        )
    traced = jax.jit(clustered, static_argnums=1)(cyclic_mds(3, 1), 2)
    assert isinstance(traced.encoding_matrix, jax.Array)
    np.testing.assert_allclose(
        traced.encoding_matrix, clustered(cyclic_mds(3, 1), 2).encoding_matrix, 1e-6
    )


def test_clusters_of_some_equal_weights():
    weights = np.array([1.0, 2.0, 3.0, 1.0, 4.0, 5.0])
    code = jaxwgc.weighted(clustered(cyclic_mds(3, 1), 2), weights)
    received = np.array([True, True, False, False, True, True])
    found = jaxwgc.effective_weights(code, received)
    np.testing.assert_allclose(found, weights, rtol=1e-5)
