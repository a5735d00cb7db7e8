"""Codes made of others, or of a matrix of one's own: checked when made or used."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxwgc
from jaxwgc import codes

# The example of Tandon et al.: any two of three workers are enough.
ROWS = np.array([[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]])
FIELDS = {"encoding_matrix": ROWS, "assignment": ROWS != 0, "target": np.ones(3)}
from_matrix = jaxwgc.GradientCode.from_matrix


class TestClustered:
    def test_clusters_of_clusters(self):
        code = codes.clustered(codes.clustered(codes.cyclic_mds(3, 1), 2), 2)
        flat = codes.clustered(codes.cyclic_mds(3, 1), 4)
        np.testing.assert_array_equal(code.encoding_matrix, flat.encoding_matrix)
        masks = np.random.default_rng(0).random((20, 12)) < 0.7
        result, expected = (
            jaxwgc.decoding(clustered, masks).weights[..., 0, :]
            for clustered in (code, flat)
        )
        np.testing.assert_array_equal(result, expected)

    def test_several_messages_are_carried_over(self):
        inner = codes.partially_coded(codes.cyclic_mds(3, 1), 2)
        code = codes.clustered(inner, 2)
        assert code.num_workers == 6
        assert code.messages_per_worker == 2
        expected = np.concatenate([inner.required_parts] * 2)
        np.testing.assert_array_equal(code.required_parts, expected)
        # Clusters first or messages first, it is the same code.
        one = codes.multi_message(codes.clustered(codes.cyclic_mds(4, 1), 3))
        other = codes.clustered(codes.multi_message(codes.cyclic_mds(4, 1)), 3)
        np.testing.assert_array_equal(one.encoding_matrix, other.encoding_matrix)
        np.testing.assert_array_equal(one.required_parts, other.required_parts)
        assert one.decoders == other.decoders
        assert one.decoders[0].num_clusters == 3

    def test_clusters_of_some_equal_weights(self):
        weights = np.array([1.0, 2.0, 3.0, 1.0, 4.0, 5.0])
        code = jaxwgc.weighted(codes.clustered(codes.cyclic_mds(3, 1), 2), weights)
        received = np.array([True, True, False, False, True, True])
        effective = jaxwgc.decoding(code, received).effective_weights
        np.testing.assert_allclose(effective, weights, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 7))))
def test_multi_message_takes_the_part_that_was_taken_least_often(assignment):
    """Against the rule as the docstring has it, for any assignment."""
    num_workers, num_parts = assignment.shape
    matrix = assignment * np.arange(1.0, assignment.size + 1).reshape(assignment.shape)
    code = codes.multi_message(
        jaxwgc.GradientCode(
            encoding_matrix=matrix,
            assignment=assignment,
            target=np.ones(num_parts),
            num_stragglers=0,
        )
    )
    num_messages = max(1, assignment.sum(1).max())
    assert code.messages_per_worker == num_messages
    turns = np.arange(1, num_messages + 1)
    required = np.minimum(turns, assignment.sum(1)[:, None])
    np.testing.assert_array_equal(code.required_parts, required)
    rows = code.encoding_matrix.reshape(num_workers, num_messages, num_parts)
    taken = [[] for _ in range(num_workers)]
    for turn, worker in itertools.product(range(num_messages), range(num_workers)):
        everything = list(itertools.chain(*taken))
        start = worker * num_parts // num_workers
        ring = np.roll(np.arange(num_parts), -start)
        remaining = [
            part for part in ring[assignment[worker, ring]] if part not in taken[worker]
        ]
        expected = np.zeros(num_parts)
        if remaining:
            taken[worker].append(min(remaining, key=everything.count))
            expected[taken[worker]] = matrix[worker, taken[worker]]
        np.testing.assert_array_equal(rows[worker, turn], expected)


def test_multi_message_of_traced_entries():
    """The order depends on the assignment alone, so the entries may be traced."""
    weights = np.array([1.0, 2.0, 5.0, 3.0])

    def rows(weights):
        code = jaxwgc.weighted(codes.cyclic_mds(4, 1), weights)
        return codes.multi_message(code).encoding_matrix

    np.testing.assert_allclose(jax.jit(rows)(weights), rows(weights), rtol=1e-6)


def test_codes_made_of_traced_codes():
    keys = jax.random.split(jax.random.key(0), 2)

    def of_key(key):
        code = codes.cyclic_repetition(key, 4, 1)
        combined = codes.partially_coded(code, 1), codes.clustered(code, 2)
        return [combined_code.encoding_matrix for combined_code in combined]

    for matrices, alone in zip(jax.jit(jax.vmap(of_key))(keys), of_key(keys[1])):
        assert matrices.shape == (2, 8, 8)
        np.testing.assert_allclose(matrices[1], alone, rtol=1e-3)
    weighted = jax.jit(codes.partially_coded, static_argnums=1)(
        codes.cyclic_mds(4, 2), 2
    )
    assert weighted.encoding_matrix.shape == (8, 12)
    np.testing.assert_array_equal(weighted.required_parts, [[2, 5]] * 4)


class TestFromMatrix:
    @pytest.mark.parametrize("kind", [list, np.array, jnp.array, np.float16])
    def test_the_matrix_may_be_any_array(self, kind):
        code = from_matrix(kind(ROWS.tolist()), num_stragglers=1, check_patterns=3)
        for field, expected in FIELDS.items():
            np.testing.assert_array_equal(getattr(code, field), expected)
        assert code.encoding_matrix.dtype == code.target.dtype == np.float64
        assert code.num_stragglers == 1
        assert isinstance(code.encoding_matrix, np.ndarray)

    def test_complex_matrix_with_an_assignment_and_a_target(self):
        inner = jaxwgc.weighted(codes.reed_solomon(6, 3, 4), [1.0, 2.0, 0.5])
        code = from_matrix(
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
    def test_every_pattern_is_checked(self, scale):
        """Two copies do not survive two stragglers of a kind, and only those."""
        matrix = codes.fractional_repetition(6, 1).encoding_matrix
        matrix = matrix * np.geomspace(1, scale, 6)[:, None]
        from_matrix(matrix, num_stragglers=1, check_patterns=6)
        from_matrix(matrix, num_stragglers=2)
        rule = r"encoding_matrix tolerates; got 2, .* without workers \[0, 3\]"
        with pytest.raises(ValueError, match=rule):
            from_matrix(matrix, num_stragglers=2, check_patterns=15)
        # At random where there are more patterns than are asked for.
        with pytest.raises(ValueError, match="num_stragglers must be a number that"):
            from_matrix(matrix, num_stragglers=3, check_patterns=19)

    def test_codes_may_be_made_inside_transformations(self):
        """Fields may be traced arrays, or placeholders of JAX."""
        code = jaxwgc.GradientCode(**FIELDS, num_stragglers=1)

        def error(scale):
            scaled = dataclasses.replace(code, encoding_matrix=scale * ROWS)
            return jaxwgc.decoding(scaled, np.arange(3) > 0).error

        result = jax.jit(jax.vmap(error))(np.array([1.0, 2.0]))
        np.testing.assert_allclose(result, 0, atol=1e-6)
        leaves, structure = jax.tree.flatten(code)
        again = jax.tree.unflatten(structure, [object() for _ in leaves])
        assert isinstance(again, jaxwgc.GradientCode)


CYCLIC = codes.cyclic_mds(4, 1)
SEGMENTS = codes.communication_efficient(4, 1, 2)
MESSAGES = codes.partially_coded(CYCLIC, 1)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (SEGMENTS, "code.num_segments.*got 2"),
        (MESSAGES, "code.messages_per_worker.*got 2"),
    ],
)
def test_multi_message_rejects_codes_of_segments_and_messages(code, message):
    with pytest.raises(ValueError, match=message):
        codes.multi_message(code)


def test_multi_message_rejects_a_traced_code():
    with pytest.raises(TypeError, match="code.assignment must be concrete"):
        jax.eval_shape(codes.multi_message, CYCLIC)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (SEGMENTS, "code.num_segments must be 1 for"),
        (MESSAGES, "code.messages_per_worker must be 1"),
        (codes.clustered(CYCLIC, 2), "apply clustered to"),
    ],
)
def test_partially_coded_rejects_codes_that_are_combined_already(code, message):
    with pytest.raises(ValueError, match=message):
        codes.partially_coded(code, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"encoding_matrix": np.ones(3)},
            "encoding_matrix must have (shape|a leading axis)",
        ),
        (
            {"encoding_matrix": np.ones((0, 3))},
            "encoding_matrix must have (shape|a leading axis)",
        ),
        ({"encoding_matrix": [[np.nan]]}, "encoding_matrix must be finite"),
        ({"assignment": [[True]]}, r"assignment must .* \(3, 3\)"),
        ({"assignment": np.eye(3) > 0}, "does not hold; got .* worker 0 and part 1"),
        ({"target": [1, 2]}, "target must have (shape|a leading axis)"),
        ({"target": [1, 2, np.inf]}, "target must be finite; got"),
        ({"num_stragglers": 3}, "num_stragglers must be less than num"),
    ],
)
def test_from_matrix_rejects_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_matrix(**{"encoding_matrix": ROWS, **arguments})


@pytest.mark.parametrize(
    ("matrix", "lost"), [(np.zeros((3, 3)), "[0, 1, 2]"), ([[1, 0], [1, 0]], "[1]")]
)
def test_from_matrix_rejects_a_part_that_is_in_no_message(matrix, lost):
    for assignment in (None, np.ones(np.shape(matrix), bool)):
        with pytest.raises(
            ValueError, match="encoding_matrix must .* in the column"
        ) as seen:
            from_matrix(matrix, assignment=assignment)
        assert f"zeros for parts {lost}. Give them to workers" in str(seen.value)


def test_from_matrix_takes_a_part_without_workers_if_its_target_is_zero():
    code = from_matrix(
        [[1, 0], [1, 0]], num_stragglers=1, target=[1, 0], check_patterns=2
    )
    assert code.parts_per_worker.tolist() == [1, 1]


def test_from_matrix_rejects_a_complex_target_of_a_real_matrix():
    with pytest.raises(TypeError, match="target must be real numbers or bools"):
        from_matrix(ROWS, target=[1j, 2, 3])


def test_from_matrix_rejects_a_traced_assignment():
    with pytest.raises(TypeError, match="assignment must be"):
        jax.eval_shape(lambda held: from_matrix(ROWS, assignment=held), ROWS != 0)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"target": np.ones(4)}, ValueError, r"code.target must have shape \(3,\)"),
        (
            {"assignment": np.ones((3, 4), bool)},
            ValueError,
            r"code.assignment.*got \(3, 4\)",
        ),
        (
            {"encoding_matrix": ROWS.tolist()},
            ValueError,
            "code.encoding_matrix must have shape",
        ),
        ({"num_stragglers": -1}, ValueError, "code.num_stragglers must be at least"),
        ({"num_segments": 0}, ValueError, "code.num_segments must be at least 1"),
        ({"num_segments": 2}, ValueError, "code.encoding_matrix must have shape"),
        (
            {"messages_per_worker": 3},
            ValueError,
            r"code.assignment must have shape \(1, 3\)",
        ),
        (
            {"messages_per_worker": 3, "assignment": np.ones((1, 3), bool)},
            ValueError,
            "required",
        ),
        (
            {"target": np.array(["a"] * 3)},
            TypeError,
            "code.target must be real numbers",
        ),
        (
            {"num_stragglers": "1"},
            TypeError,
            "code.num_stragglers must be a Python int",
        ),
        (
            {"decoders": "lagrange"},
            TypeError,
            "code.decoders must be a Decoder; got 'l'",
        ),
    ],
)
def test_fields_of_a_code_are_checked_when_it_is_made_or_used(fields, error, message):
    fields = {**FIELDS, "num_stragglers": 1, **fields}
    with pytest.raises(error, match=message):
        jaxwgc.encode(jaxwgc.GradientCode(**fields), np.ones((3, 2)))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones(5, bool), ValueError, r"mask must have shape .*, 4\); got"),
        (np.ones(4), TypeError, "mask must be bools; got float64"),
    ],
)
def test_decodes_rejects_wrong_masks(mask, error, message):
    with pytest.raises(error, match=message):
        CYCLIC.decodes(mask)
