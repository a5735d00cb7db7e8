"""Rounds with corrupted messages, on few rounds."""

import jax
import numpy as np

from experiments.errors import wrong_answers
from experiments.errors.rounds import Rounds
from jaxwgc import codes

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


def test_bits_are_detected_or_harmless():
    cells = wrong_answers.flipped(codes.fractional_repetition(6, 2), 4, KEY)
    assert [cell["detected"] for cell in cells[23:]] == 9 * [4]
    assert all(cell["harmful"] == 0 for cell in cells)
