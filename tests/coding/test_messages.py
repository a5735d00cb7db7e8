"""Messages and requested sums: arguments that are rejected."""

import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, coding


@pytest.mark.parametrize(
    ("partial_gradients", "message"),
    [
        ({"w": np.ones((4, 2))}, r"partial_gradients\['w'\]"),
        ({}, "partial_gradients must have at least one array"),
    ],
)
def test_encode_rejects_gradients_of_other_parts(partial_gradients, message):
    with pytest.raises(ValueError, match=message):
        jaxwgc.encode(codes.uncoded(6), partial_gradients)


@pytest.mark.parametrize(
    ("matrix_rows", "partial_gradients", "message"),
    [
        (np.ones(3), np.ones((2, 3)), "matrix_rows must have (shape|a leading axis)"),
        (np.eye(3), np.ones((2, 3)), "matrix_rows must have (shape|a leading axis)"),
        ([np.eye(3)], np.ones((2, 3)), "matrix_rows must have (shape|a leading axis)"),
        (np.ones((1, 2)), np.float32(1), "partial_gradients"),
        (np.ones((1, 2)), [np.ones(2), np.ones(3)], "num_held = 2; got"),
    ],
)
def test_form_messages_rejects_wrong_shapes(matrix_rows, partial_gradients, message):
    with pytest.raises(ValueError, match=message):
        coding.form_messages(matrix_rows, partial_gradients)


@pytest.mark.parametrize(
    ("request_row", "messages", "error", "rule"),
    [
        (np.ones(3), np.ones((2, 5)), ValueError, "messages must have"),
        (["a"] * 6, np.ones((6, 2)), TypeError, "request must be real numbers"),
        (np.ones(6), 1j * np.ones((6, 2)), TypeError, "messages must be real numbers"),
    ],
)
def test_answer_request_rejects_wrong_arrays(request_row, messages, error, rule):
    with pytest.raises(error, match=rule):
        coding.requested_sum(request_row, messages)


@pytest.mark.parametrize(
    ("sums", "params", "error", "message"),
    [
        (np.ones((2, 5)), np.ones(4), ValueError, "sums.* 4"),
        (
            np.ones((6, 2)),
            np.ones(6, bool),
            TypeError,
            "params must be real or complex",
        ),
    ],
)
def test_decode_answers_rejects_wrong_arrays(sums, params, error, message):
    with pytest.raises(error, match=message):
        coding.decode_sums(sums, params)
