"""Rounds with wrong messages, and what others make of them, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import bits, learning, wrong_answers
from experiments.errors.rounds import WORST, Rounds
from experiments.runner.results import ExperimentError
from jaxwgc import codes, stragglers

KEY = jax.random.key(0)


def test_rounds():
    """Every kind of errors that the code can tell is told; one more, and none is."""
    rounds = Rounds(codes.reed_solomon(8, 8, 5), 3, KEY)
    for kind in rounds.kinds:
        played = rounds.play(kind, 2, 0)
        assert played.is_right.all(), kind
        assert played.error.max() < 1e-5
    beyond = rounds.play("part of the lightest codeword", 3, 0)
    assert not beyond.is_right.any()
    different = rounds.play("noise", 1, 1, batch=1)
    assert not np.array_equal(different.error, rounds.play("noise", 1, 1).error)


def test_the_lightest_codeword_is_one_and_light():
    code = codes.cyclic_repetition(KEY, 6, 2)
    is_wrong = np.arange(6) < 2
    model = WORST["part of the lightest codeword"](stragglers.fixed(~is_wrong), code)
    word = model.corrupted(KEY, jnp.ones((6, 1))) - 1
    solution, *_ = np.linalg.lstsq(code.encoding_matrix, np.asarray(word))
    np.testing.assert_allclose(code.encoding_matrix @ solution, word, atol=1e-4)
    # Three zeros, of rank minus one, among those who are right.
    assert np.sum(np.abs(word[~is_wrong]) < 1e-5) == 3


def test_others_against_numpy():
    messages = np.random.default_rng(0).normal(size=(20, 5))
    messages[3] = 100
    np.testing.assert_allclose(
        learning.coordinate_median(jnp.asarray(messages)),
        np.median(messages, 0),
        rtol=1e-5,
    )
    ordered = np.sort(messages, 0)[2:18]
    np.testing.assert_allclose(
        learning.trimmed_mean(jnp.asarray(messages)), ordered.mean(0), rtol=1e-4
    )
    squares = ((messages[:, None] - messages) ** 2).sum(2)
    scores = [np.sort(np.delete(row, i))[:16].sum() for i, row in enumerate(squares)]
    np.testing.assert_allclose(
        learning.krum(jnp.asarray(messages)), messages[np.argmin(scores)], rtol=1e-5
    )


def test_bits_are_detected_or_harmless():
    cells = bits.flipped(codes.fractional_repetition(6, 2), 4, KEY)
    assert [cell["detected"] for cell in cells[23:]] == 9 * [4]
    assert all(cell["harmful"] == 0 for cell in cells)


def test_no_runs(tmp_path):
    with pytest.raises(ExperimentError, match="--runs must be at least 1; got 0"):
        wrong_answers.wrong_answers(runs=0, out=tmp_path)
