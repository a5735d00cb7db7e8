"""Codes of one's own matrix: checked when made, or else where they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes

# The example of Tandon et al.: any two of three workers are enough.
ROWS = [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]]
make = jaxwgc.GradientCode.from_matrix


FIELDS = {
    "encoding_matrix": np.array(ROWS),
    "assignment": np.array(ROWS) != 0,
    "target": np.ones(3),
    "num_stragglers": 1,
}


@pytest.mark.parametrize("kind", [list, np.array, jnp.array, np.float16])
def test_any_array(kind):
    code = make(kind(ROWS), num_stragglers=1, check_patterns=3)
    np.testing.assert_array_equal(code.encoding_matrix, ROWS)
    np.testing.assert_array_equal(code.assignment, np.array(ROWS) != 0)
    np.testing.assert_array_equal(code.target, 1)
    assert code.encoding_matrix.dtype == code.target.dtype == np.float64
    assert code.num_stragglers == 1
    assert isinstance(code.encoding_matrix, np.ndarray)


def test_complex_matrix_with_an_assignment_and_a_target():
    inner = jaxwgc.weighted(codes.reed_solomon(6, 3, 4), [1.0, 2.0, 0.5])
    code = make(
        inner.encoding_matrix,
        num_stragglers=3,
        assignment=inner.assignment,
        target=inner.target,
        check_patterns=20,
    )
    assert code.is_complex
    np.testing.assert_array_equal(code.target, [1, 2, 0.5])
    np.testing.assert_array_equal(code.assignment, inner.assignment)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_every_pattern_is_checked(scale):
    """Fractional repetition of 2 does not survive two of a kind, and only those."""
    matrix = codes.fractional_repetition(6, 1).encoding_matrix
    matrix = matrix * np.geomspace(1, scale, 6)[:, None]
    make(matrix, num_stragglers=1, check_patterns=6)
    make(matrix, num_stragglers=2)
    rule = r"num_stragglers must be tolerated; got 2: .* without workers \[0, 3\]"
    with pytest.raises(ValueError, match=rule):
        make(matrix, num_stragglers=2, check_patterns=15)
    # At random where there are more patterns than are asked for.
    with pytest.raises(ValueError, match="num_stragglers must be tolerated"):
        make(matrix, num_stragglers=3, check_patterns=19)


def test_made_inside_transformations():
    """Traced arrays, and whatever else JAX puts in their place."""

    def error(scale):
        fields = FIELDS | {"encoding_matrix": scale * np.array(ROWS)}
        return jaxwgc.decoding_error(jaxwgc.GradientCode(**fields), np.arange(3) > 0)

    found = jax.jit(jax.vmap(error))(np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, 0, atol=1e-6)
    code = jaxwgc.GradientCode(**FIELDS)
    leaves, structure = jax.tree.flatten(code)
    again = jax.tree.unflatten(structure, [object() for _ in leaves])
    assert isinstance(again, jaxwgc.GradientCode)
