"""Clustered codes: a copy of a code in each cluster."""

import numpy as np

import jaxwgc
from jaxwgc.codes import clustered, cyclic_mds, multi_message, partially_coded


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


def test_clusters_of_some_equal_weights():
    weights = np.array([1.0, 2.0, 3.0, 1.0, 4.0, 5.0])
    code = jaxwgc.weighted(clustered(cyclic_mds(3, 1), 2), weights)
    received = np.array([True, True, False, False, True, True])
    found = jaxwgc.effective_weights(code, received)
    np.testing.assert_allclose(found, weights, rtol=1e-5)
