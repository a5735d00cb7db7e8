"""Codes of one's own matrix: checked when made, or else where they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers

# The example of Tandon et al.: any two of three workers are enough.
ROWS = [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]]
make = jaxwgc.GradientCode.from_matrix


WRONG_VALUES = [
    ({"encoding_matrix": [[1, 2], [3]]}, "matrix must be an array"),
    ({"encoding_matrix": [1, 2]}, r"must have 2 axes; .* \(2,\)"),
    ({"encoding_matrix": []}, r"encoding_matrix must have 2 axes"),
    ({"encoding_matrix": np.ones((0, 3))}, r"workers and parts; .* \(0, 3\)"),
    ({"encoding_matrix": [[np.nan]]}, "matrix must be finite; got"),
    ({"encoding_matrix": [[1j * np.inf]]}, "must be finite; got"),
    ({"assignment": [[True]]}, r"code.assignment must .* \(3, 3\)"),
    ({"assignment": np.eye(3) > 0}, "is False; got 1.0 for worker 0 and part 1"),
    ({"target": [1, 2]}, r"code.target must have shape \(3,\)"),
    ({"target": [1, 2, np.inf]}, "target must be finite; got"),
    ({"num_stragglers": 3}, "num_stragglers must be less than num"),
    ({"num_stragglers": -1}, "num_stragglers must be at least 0"),
    ({"check_patterns": -1}, "check_patterns must be at least 0"),
]
WRONG_TYPES = [
    ({"encoding_matrix": [["a"]]}, "must be numbers or bools; got <"),
    ({"encoding_matrix": None}, "must be numbers or bools; got obj"),
    ({"assignment": np.ones((3, 3))}, "assignment must be bools; got"),
    ({"target": [1j, 2, 3]}, "target must be real numbers or bools"),
    ({"num_stragglers": 1.0}, "num_stragglers must be a Python int"),
    ({"check_patterns": True}, "check_patterns must be an int; got"),
]
# Of `GradientCode` itself, which checks nothing, what uses it does.
FIELDS = {
    "encoding_matrix": np.array(ROWS),
    "assignment": np.array(ROWS) != 0,
    "target": np.ones(3),
    "num_stragglers": 1,
}
ONE_WORKER = {"messages_per_worker": 3, "assignment": np.ones((1, 3), bool)}
FIELDS_THAT_DO_NOT_FIT = [
    ({"target": np.ones(4)}, r"target must have shape \(3,\)"),
    ({"assignment": np.ones((3, 4), bool)}, r"assignment .* \(3, 3\) for .* \(3, 4\)"),
    ({"num_stragglers": -1}, "num_stragglers must be at least"),
    ({"num_segments": 0}, "num_segments must be at least 1"),
    ({"num_segments": 2}, "encoding_matrix must have shape"),
    ({"messages_per_worker": 3}, r"assignment must have shape \(1, 3\)"),
    (ONE_WORKER, r"required_parts must have shape \(1, 3\) .*; got None"),
]
FIELDS_OF_THE_WRONG_TYPE = [
    ({"encoding_matrix": ROWS}, "encoding_matrix must be an ar"),
    ({"target": [1.0] * 3}, "target must be an array; got list"),
    ({"assignment": None}, "assignment must be an array; got N"),
    ({"target": np.array(["a"] * 3)}, "target must be real numbers"),
    ({"num_stragglers": "1"}, "num_stragglers must be a Python"),
]


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
    rule = (
        r"num_stragglers must be survived; got num_stragglers = 2, and without the "
        r"workers \[0, 3\] the nearest .* misses it by 1.4"
    )
    with pytest.raises(ValueError, match=rule):
        make(matrix, num_stragglers=2, check_patterns=15)
    # At random where there are more patterns than are asked for.
    with pytest.raises(ValueError, match="num_stragglers must be survived"):
        make(matrix, num_stragglers=3, check_patterns=19)


def test_bad_input():
    for error, cases in ((ValueError, WRONG_VALUES), (TypeError, WRONG_TYPES)):
        for arguments, rule in cases:
            with pytest.raises(error, match=rule):
                make(**{"encoding_matrix": ROWS, **arguments})
    with pytest.raises(TypeError, match="encoding_matrix must be concrete, since"):
        jax.jit(lambda matrix: make(matrix).encoding_matrix)(np.eye(3))


def test_fields_that_do_not_fit():
    for error, cases in (
        (ValueError, FIELDS_THAT_DO_NOT_FIT),
        (TypeError, FIELDS_OF_THE_WRONG_TYPE),
    ):
        for fields, rule in cases:
            code = jaxwgc.GradientCode(**{**FIELDS, **fields})
            with pytest.raises(error, match="code." + rule):
                jaxwgc.GradientCode.check(code)
            with pytest.raises(error, match="code." + rule):
                jaxwgc.coded_aggregate(code, stragglers.uniform(1), jax.random.key(0))


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
