"""Embeddings refuse arguments that do not fit together.

Refusals of one argument alone are tested for each row of `tests/catalogue`.
"""

import jax
import numpy as np
import pytest

from jaxwgc import sketching
from jaxwgc.sketching import embedding_distortion, recommended_sketch_size
from tests.sketching.refusals import check_refusal

KEY = jax.random.key(0)


def test_more_entries_per_column_than_rows():
    message = "got num_nonzeros = 4 and sketch_size = 3"
    check_refusal(sketching.sparse_sign, {"num_nonzeros": 4}, ValueError, message)


def test_more_blocks_than_rows():
    message = "got num_nonzeros = 4 and sketch_size = 3"
    check_refusal(sketching.sparse_stack, {"num_nonzeros": 4}, ValueError, message)


def test_number_of_a_row_is_no_array():
    changes = {"first_row": np.arange(2)}
    message = "first_row must be an int; got array"
    check_refusal(sketching.sparse_stack, changes, TypeError, message)


@pytest.mark.parametrize("name", ["first_row", "first_block"])
@pytest.mark.parametrize("convert", [int, np.int64])
def test_number_of_a_row_beyond_int32(name, convert):
    message = f"{name} must be at most 2147483647; got 2147483648"
    changes = {name: convert(2**31)}
    check_refusal(sketching.sparse_stack, changes, ValueError, message)


def test_probabilities_of_other_rows():
    changes = {"probabilities": np.ones(5)}
    message = r"probabilities must have shape \(num_rows,\) = \(4,\)"
    check_refusal(sketching.row_sampling, changes, ValueError, message)


@pytest.mark.parametrize(
    ("basis", "error", "message"),
    [
        (np.ones((4, 1)), ValueError, "basis must have orthonormal columns"),
        (np.ones((5, 1)), ValueError, r"= \(4, any\) .*; got \(5, 1\)"),
        (np.ones((4, 0)), ValueError, "basis must have shape"),
        (1j * np.ones((4, 1)), TypeError, "basis must be real"),
    ],
)
def test_basis_of_embedding_distortion(basis, error, message):
    check_refusal(embedding_distortion, {"basis": basis}, error, message)


def test_sketch_size_of_srht_without_the_number_of_rows():
    changes = {"embedding": sketching.srht, "num_rows": None}
    message = "num_rows must be given for srht"
    check_refusal(recommended_sketch_size, changes, ValueError, message)


def test_traced_epsilon_of_a_sketch_size():
    with pytest.raises(TypeError, match="epsilon must be concrete"):
        jax.make_jaxpr(
            lambda epsilon: recommended_sketch_size(sketching.gaussian, 3, epsilon)
        )(0.5)


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"x": np.ones((4, 2))}, ValueError, r"tree\['x'\] must have a leading axis"),
        ({}, ValueError, "tree must have at least one array"),
        (np.array(["a"] * 5), TypeError, "tree must be"),
    ],
)
def test_products_with_trees_that_do_not_fit(tree, error, message):
    embedding = sketching.count_sketch(KEY, sketch_size=3, num_rows=5)
    with pytest.raises(error, match=message):
        embedding @ tree


def test_matrix_of_integers():
    embedding = sketching.count_sketch(KEY, sketch_size=3, num_rows=5)
    with pytest.raises(ValueError, match="dtype must be real or complex; got"):
        embedding.matrix(np.int32)


def test_product_with_a_batch_of_embeddings():
    keys = jax.random.split(KEY)
    batch = jax.vmap(lambda key: sketching.gaussian(key, 3, 5))(keys)
    with pytest.raises(ValueError, match="embedding.key must be one key"):
        batch.apply(np.ones(5))
