"""Diagnosis of codes against brute force in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, simulation
from jaxwgc.simulation import _diagnosis, _worst_pattern
from tests.oracles import best_mixtures, row_scales, targets
from tests.zoo import patterns

KEY = jax.random.key(0)
BERNOULLI = codes.bernoulli(KEY, 8, 6, copies=2)
# Decoded by least squares below: their own decoders where they are the same.
CODES = {
    "bernoulli": BERNOULLI,
    "weighted": jaxwgc.weighted(BERNOULLI, np.array([2.0, 0, 1, 3, 0.5, 1])),
    "complex": codes.reed_solomon(8, 8, 3),
    "segments": codes.communication_efficient(8, 2, 2),
    "messages": codes.partially_coded(codes.cyclic_mds(8, 2), 1),
}


def diagnose(code, num_stragglers=None, key=KEY, **options):
    return simulation.diagnose(code, key, num_stragglers, **options)


def least_errors(code, masks):
    """Errors of least squares, over the squared norm of the target."""
    sent = masks.repeat(code.messages_per_worker, axis=1)
    miss = np.abs(best_mixtures(code, sent) - targets(code)) ** 2
    return miss.sum((1, 2)) / code.num_segments / np.sum(np.asarray(code.target) ** 2)


def decoded_noise(code, masks, length=400):
    """Root mean square of what NumPy decodes from nothing but noise.

    Every message has noise as large as the message itself would be for partial
    gradients of independent standard normal numbers, and so has the plain sum.
    """
    matrix = code.encoding_matrix
    scales = row_scales(code.encoding_matrix)
    sizes = np.linalg.norm(matrix, axis=1)[:, None]
    generator = np.random.default_rng(0)
    squares = []
    for sent in masks.repeat(code.messages_per_worker, axis=1):
        # The weights of least norm, these times the norms of the rows.
        rows = np.where(sent, 1 / scales, 0)[:, None] * matrix
        weights = targets(code) @ np.linalg.pinv(rows, rcond=1e-12) / scales
        draw = generator.normal(size=(2, len(sizes), length))
        noise = sizes * (draw[0] + 1j * draw[1] if code.is_complex else draw[0])
        squares.append(np.mean(np.abs(weights @ noise) ** 2))
    numbers = 2 if code.is_complex else 1
    return math.sqrt(np.mean(squares) / numbers / np.sum(np.asarray(code.target) ** 2))


class TestEveryPattern:
    @pytest.mark.parametrize(
        ("name", "x64"), [(name, name != "segments") for name in CODES]
    )
    def test_errors_of_every_pattern_are_those_of_numpy(self, name, x64):
        with jax.enable_x64(x64):
            self.check(CODES[name], 1e-12 if x64 else 1e-5)

    def check(self, code, tolerance):
        """Of the noise within 3 %: the mean of thousands of squared numbers."""
        levels = [0.5, 0.9, 0.99]
        diagnosis = diagnose(
            code, [0, 2, 3, 6], num_patterns=70, decoder=decoders.LeastSquares
        )
        np.testing.assert_array_equal(diagnosis.num_stragglers, [0, 2, 3, 6])
        np.testing.assert_array_equal(diagnosis.is_exhaustive, True)
        np.testing.assert_array_equal(diagnosis.standard_error, 0)
        for row, number in enumerate(diagnosis.num_stragglers):
            errors = least_errors(code, patterns(8, [number]))
            received = diagnosis.worst_received[row]
            assert received.sum() == 8 - number
            for value, expected in (
                (diagnosis.mean_error[row], errors.mean()),
                (diagnosis.error_quantiles[row], np.quantile(errors, levels)),
                (diagnosis.worst_error[row], errors.max()),
                (least_errors(code, received[None]), errors.max()),
            ):
                np.testing.assert_allclose(value, expected, atol=tolerance)
        expected = decoded_noise(code, patterns(8, [2]))
        np.testing.assert_allclose(
            diagnosis.noise_amplification[1], expected, rtol=0.03
        )
        # In real numbers, for a gradient of twelve.
        messages = jax.eval_shape(
            lambda: jaxwgc.encode(code, jnp.ones((code.num_parts, 12)))
        )
        numbers = messages.size * (2 if code.is_complex else 1)
        assert diagnosis.message_length == numbers / 8 / 12

    def test_fractional_repetition_beyond_its_tolerance_has_a_closed_form(self):
        """E of the error is k C(n - d, r) / C(n, r) for r responses, d = s + 1."""
        code = codes.fractional_repetition(8, 1)
        diagnosis = diagnose(code, range(8), num_patterns=70)
        responses = 8 - diagnosis.num_stragglers
        law = [math.comb(6, r) / math.comb(8, r) for r in responses]
        np.testing.assert_allclose(diagnosis.mean_error, law, atol=1e-6)
        # At worst a block of two parts goes with every second straggler.
        np.testing.assert_allclose(
            diagnosis.worst_error, diagnosis.num_stragglers // 2 * 2 / 8, atol=1e-6
        )

    def test_a_target_of_zeros_has_no_error(self, with_x64):
        """Nothing is asked for, and nothing is missed; no division by zero."""
        code = jaxwgc.weighted(BERNOULLI, np.zeros(6))
        diagnosis = diagnose(code, 2, num_patterns=70)
        assert (
            diagnosis.mean_error
            == diagnosis.worst_error
            == diagnosis.noise_amplification
            == 0
        )


class TestRandomPatterns:
    def test_estimate_the_mean(self, with_x64):
        """Four standard errors at most, and these are of the right size.

        C(8, 4) = 70 patterns are more than 60.
        """
        errors = least_errors(BERNOULLI, patterns(8, [4]))
        keys = jax.random.split(KEY, 20)
        options = {"num_patterns": 60, "decoder": decoders.LeastSquares}
        result = [diagnose(BERNOULLI, 4, key, **options) for key in keys]
        assert not any(diagnosis.is_exhaustive for diagnosis in result)
        means = np.array([diagnosis.mean_error[0] for diagnosis in result])
        expected = errors.std() / np.sqrt(60)
        np.testing.assert_allclose(means.mean(), errors.mean(), atol=expected)
        assert np.all(np.abs(means - errors.mean()) < 4 * expected)
        assert len(np.unique(means)) == 20
        again = diagnose(BERNOULLI, 4, keys[0], **options)
        assert again.mean_error == means[0]
        np.testing.assert_allclose(
            [diagnosis.standard_error[0] for diagnosis in result], expected, rtol=0.35
        )

    def test_worst_is_not_less_than_what_was_drawn(self, monkeypatch):
        """The search finds nothing; the worst pattern is one of those drawn."""
        code = codes.fractional_repetition(8, 1)
        harmless = np.arange(8) >= 4
        assert jaxwgc.decoding(code, harmless).error == 0
        monkeypatch.setattr(_worst_pattern, "worst_pattern", lambda *_, **__: harmless)
        diagnosis = diagnose(code, 4, num_patterns=60)
        np.testing.assert_allclose(diagnosis.worst_error, [4 / 8])
        assert jaxwgc.decoding(code, diagnosis.worst_received[0]).error == 4

    def test_the_worst_pattern_is_not_one_of_them(self):
        """Few patterns, none of which loses a pair of copies, as the worst one does."""
        code = codes.fractional_repetition(20, 1)
        diagnosis = diagnose(code, 2, num_patterns=3)
        assert diagnosis.mean_error == diagnosis.standard_error == 0
        np.testing.assert_array_equal(diagnosis.error_quantiles, [[0, 0, 0]])
        np.testing.assert_allclose(diagnosis.noise_amplification, [1], rtol=1e-6)
        np.testing.assert_allclose(diagnosis.worst_error, [2 / 20], rtol=1e-6)
        np.testing.assert_array_equal(
            diagnosis.worst_received, [simulation.worst_pattern(code, 2)]
        )


class TestCost:
    def test_loads_copies_and_lengths(self, with_x64):
        assignment = np.asarray(BERNOULLI.assignment)
        diagnosis = diagnose(BERNOULLI, 0, num_patterns=2)
        assert diagnosis.parts_per_worker == assignment.sum() / 8
        assert diagnosis.max_parts == assignment.sum(1).max()
        assert diagnosis.copies == assignment.sum() / 6
        assert diagnosis.min_copies == assignment.sum(0).min()
        assert diagnosis.message_length == 1
        named = "some parts are on no worker"
        assert named not in str(diagnosis)
        assert named in str(diagnosis._replace(min_copies=0))

    def test_numbers_of_stragglers_by_default(self):
        """They go from 0 to half of the workers, and to 8 at most."""
        for num_workers, expected in (
            (1, [0]),
            (5, [0, 1, 2]),
            (20, [0, 1, 3, 4, 6, 7, 9, 10]),
        ):
            diagnosis = diagnose(codes.uncoded(num_workers), num_patterns=20)
            np.testing.assert_array_equal(diagnosis.num_stragglers, expected)

    def test_decoder_by_class(self):
        """One-step decoding of uncoded workers: n / r each, so r (n / r - 1)^2 + s."""
        diagnosis = diagnose(
            codes.uncoded(6), [2], num_patterns=15, decoder=decoders.OneStep
        )
        np.testing.assert_allclose(diagnosis.mean_error, [(2 + 4 / 4) / 6], rtol=1e-6)


def test_table_has_a_row_for_each_number(with_x64):
    diagnosis = diagnose(
        CODES["complex"], [0, 3, 4], num_patterns=30, decoder=decoders.LeastSquares
    )
    cost, _, _, header, *rows = str(diagnosis).splitlines()
    assert "parts per worker 3" in cost and "copies per part 3" in cost
    expected = ["stragglers", "mean", "±", "50%", "90%", "99%", "worst", "noise"]
    assert header.split() == expected
    assert len({len(line) for line in [header, *rows]}) == 1
    numbers = [line.replace(" (all)", "").split() for line in rows]
    np.testing.assert_array_equal(
        ["(all)" in line for line in rows], diagnosis.is_exhaustive
    )
    columns = [
        diagnosis.num_stragglers,
        diagnosis.mean_error,
        diagnosis.standard_error,
        *diagnosis.error_quantiles.T,
        diagnosis.worst_error,
        diagnosis.noise_amplification,
    ]
    shown = np.array(numbers, float)
    columns = np.transpose(columns)
    # Four digits, or the magnitude of what is smaller.
    np.testing.assert_allclose(shown[:, :-1], columns[:, :-1], atol=6e-5, rtol=0.6)
    np.testing.assert_allclose(shown[:, -1], columns[:, -1], atol=6e-3)


def test_small_errors_are_not_shown_as_none():
    shown = [_diagnosis._number(value) for value in (0, 3e-6, 1e-4, 0.25)]
    assert shown == ["0.0000", "3e-06", "0.0001", "0.2500"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_stragglers": 6}, "num_stragglers must be less than"),
        ({"num_stragglers": []}, "num_stragglers must have at least one"),
        ({"num_patterns": 1}, "num_patterns must be at least 2; got 1"),
    ],
)
def test_wrong_numbers_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        simulation.diagnose(codes.uncoded(6), KEY, **{"num_stragglers": 1, **options})


def test_traced_codes_and_keys_are_rejected():
    code = codes.uncoded(6)
    with pytest.raises(TypeError, match="code must be concrete"):
        jax.eval_shape(lambda code: simulation.diagnose(code, KEY, 1), code)
    with pytest.raises(TypeError, match="key must be concrete"):
        jax.eval_shape(lambda key: simulation.diagnose(code, key, 1), KEY)
