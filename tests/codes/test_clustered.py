"""Clustered codes: a copy of a code in each cluster."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxwgc
from jaxwgc.codes._binary import binary
from jaxwgc.codes._clustered import clustered
from jaxwgc.codes._communication_efficient import communication_efficient
from jaxwgc.codes._cyclic_mds import cyclic_mds
from jaxwgc.codes._multi_message import multi_message
from jaxwgc.codes._partial import partial
from tests.codes.reference import check_round_trip, patterns_within, worst_miss

INNER = {
    "uncoded": jaxwgc.codes.uncoded(2, 4),
    "fractional": jaxwgc.codes.fractional_repetition(4, 1),
    "binary": binary(4, 2),
    "mds": cyclic_mds(4, 1),
    "complex mds": cyclic_mds(4, 2),
    "reed_solomon": jaxwgc.codes.reed_solomon(4, 2, 2),
    "segments": communication_efficient(4, 1, 2),
    "complex segments": communication_efficient(4, 1, 3),
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("num_clusters", [1, 2, 3])
def test_every_pattern_decodes(name, num_clusters):
    inner = INNER[name]
    code = clustered(inner, num_clusters)
    received = patterns_within(code.num_workers, code.num_stragglers)
    assert worst_miss(code, received).max() < 1e-9
    # Not only s in all, but s in each cluster.
    own = patterns_within(inner.num_workers, inner.num_stragglers)
    draws = np.random.default_rng(0).integers(len(own), size=(30, num_clusters))
    assert worst_miss(code, own[draws].reshape(30, -1)).max() < 1e-9


@pytest.mark.parametrize("name", INNER)
def test_fields(name):
    inner = INNER[name]
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
    np.testing.assert_array_equal(code.target, np.ones(code.num_parts))
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


def test_of_a_weighted_code():
    weights = np.array([1.0, 2.0, 3.0])
    code = clustered(jaxwgc.weighted(cyclic_mds(3, 1), weights), 2)
    np.testing.assert_array_equal(code.target, np.tile(weights, 2))
    assert worst_miss(code, patterns_within(6, 1)).max() < 1e-9


def test_several_messages_are_carried_over():
    inner = partial(cyclic_mds(3, 1), 2)
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


@pytest.mark.parametrize("name", ["binary", "mds", "reed_solomon", "segments"])
def test_weighted_round_trip(name, x64):
    """Other weights in each cluster, and s stragglers in each."""
    inner = INNER[name]
    own = patterns_within(inner.num_workers, inner.num_stragglers)
    draws = np.random.default_rng(1).integers(len(own), size=(20, 2))
    received = own[draws].reshape(20, -1)
    check_round_trip(clustered(inner, 2), received, 1e-9 if x64 else 1e-3)


def test_a_lost_cluster_loses_its_parts_alone():
    code = clustered(cyclic_mds(3, 1), 2)
    received = np.array([False, False, False, True, True, False])
    np.testing.assert_allclose(
        jaxwgc.effective_weights(code, received), [0, 0, 0, 1, 1, 1], atol=1e-5
    )


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


def test_bad_arguments():
    code = cyclic_mds(3, 1)
    with pytest.raises(ValueError, match="num_clusters must be at least 1; got 0"):
        clustered(code, 0)
    with pytest.raises(TypeError, match="num_clusters must be"):
        clustered(code, 2.0)
    with pytest.raises(TypeError, match="code must be a GradientCode"):
        clustered(np.eye(3), 2)
    batch = dataclasses.replace(code, encoding_matrix=jnp.zeros((5, 3, 3)))
    with pytest.raises(ValueError, match="code must be one code"):
        clustered(batch, 2)


def test_clusters_of_some_equal_weights():
    weights = np.array([1.0, 2.0, 3.0, 1.0, 4.0, 5.0])
    code = jaxwgc.weighted(clustered(cyclic_mds(3, 1), 2), weights)
    received = np.array([True, True, False, False, True, True])
    found = jaxwgc.effective_weights(code, received)
    np.testing.assert_allclose(found, weights, rtol=1e-5)
