"""Decoders of one's own, in every place that takes one, and those that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from tests.conftest import every_pattern

KEY = jax.random.key(0)
CODE = codes.regular_graph(KEY, 6, replication=3)
MASKS = every_pattern(6, 6)


class Clipped(decoders.Decoder):
    """No weight above a limit."""

    inner: decoders.Decoder
    limit: float

    def weights(self, matrix, target, mask):
        return jnp.clip(self.inner.weights(matrix, target, mask), max=self.limit)


class Garbled(decoders.Decoder):
    """Weights at stragglers, too, and integers at that."""

    def weights(self, matrix, target, mask):
        return jnp.ones((*mask.shape[:-1], 1, len(matrix)), int)


def peeling(num_messages, num_batches):
    return decoders.Peeling(np.ones((num_messages, num_batches), bool))


CLIPPED = Clipped(decoders.LeastSquares(), 0.25)


def by_hand(masks):
    weights = jaxwgc.decoding_weights(CODE, masks, decoders.LeastSquares)
    return np.minimum(weights, 0.25)


class TestOneFromOutside:
    def test_weights_and_error(self, x64):
        found = jaxwgc.decoding_weights(CODE, MASKS, CLIPPED)
        np.testing.assert_array_equal(found, by_hand(MASKS))
        under_jit = jax.jit(jaxwgc.decoding_weights)(CODE, MASKS, CLIPPED)
        np.testing.assert_allclose(under_jit, found, atol=1e-6)
        mapped = jax.vmap(lambda mask: jaxwgc.decoding_weights(CODE, mask, CLIPPED))
        np.testing.assert_allclose(mapped(MASKS), found, atol=1e-6)
        effective = np.asarray(found, np.float64) @ CODE.encoding_matrix
        np.testing.assert_allclose(
            jaxwgc.effective_weights(CODE, MASKS, CLIPPED), effective, atol=1e-6
        )
        error = ((effective - 1) ** 2).sum(1)
        np.testing.assert_allclose(
            jaxwgc.decoding_error(CODE, MASKS, CLIPPED), error, atol=1e-5
        )

    def test_map_over_limits(self):
        """Its arrays are traced as others are."""
        limits = jnp.array([0.1, 0.25, 9.0])

        def weights(limit):
            own = Clipped(decoders.LeastSquares(), limit)
            return jaxwgc.decoding_weights(CODE, MASKS, own)

        found = jax.jit(jax.vmap(weights))(limits)
        matrix = np.asarray(CODE.encoding_matrix, np.float64)
        for mask, *own in zip(MASKS, *np.asarray(found), strict=True):
            # All rows have one norm, so that least norm is what it says.
            weights = np.ones(6) @ np.linalg.pinv(np.where(mask[:, None], matrix, 0))
            for limit, clipped in zip(limits, own, strict=True):
                expected = np.minimum(weights, limit)
                np.testing.assert_allclose(clipped, expected, atol=1e-5)

    def test_every_step(self):
        mask = MASKS[-2]
        gradients = {"w": np.arange(12.0, dtype=np.float32).reshape(6, 2)}
        expected = by_hand(mask) @ CODE.encoding_matrix @ gradients["w"]
        params = {"w": jnp.zeros(2)}
        messages = jaxwgc.encode(CODE, gradients)
        decoded = jaxwgc.decode(CODE, messages, mask, params, CLIPPED)
        np.testing.assert_allclose(decoded["w"], expected, rtol=1e-5)
        for method in ("partials", "messages"):
            aggregate = jaxwgc.coded_aggregate(
                CODE, stragglers.uniform(1), KEY, method=method, decoder=CLIPPED
            )
            updates, _ = aggregate.update(
                gradients, aggregate.init(params), params, received=mask
            )
            np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)
        step = jaxwgc.decoded_value_and_grad(
            lambda params, part: jnp.sum(params["w"] * part), CODE, decoder=CLIPPED
        )
        _, gradient = step(params, gradients["w"], mask)
        np.testing.assert_allclose(gradient["w"], expected, rtol=1e-5)

    def test_diagnosis_and_the_worst_pattern(self):
        found = jaxwgc.studies.diagnose(CODE, KEY, [2], decoder=CLIPPED)
        errors = jaxwgc.decoding_error(CODE, MASKS[MASKS.sum(1) == 4], CLIPPED)
        np.testing.assert_allclose(found.mean_error, errors.mean() / 6, rtol=1e-5)
        worst = jaxwgc.studies.worst_pattern(CODE, 2, CLIPPED)
        error = jaxwgc.decoding_error(CODE, worst, CLIPPED)
        np.testing.assert_allclose(error, errors.max(), rtol=1e-5)

    def test_among_the_decoders_of_a_code(self):
        code = dataclasses.replace(CODE, decoders=(CLIPPED,))
        found = jaxwgc.decoding_weights(code, MASKS)
        np.testing.assert_array_equal(found, by_hand(MASKS))
        same = jaxwgc.decoding_weights(code, MASKS, Clipped)
        np.testing.assert_array_equal(same, found)
        clusters = codes.clustered(code, 2)
        both = jaxwgc.decoding_weights(clusters, np.tile(MASKS, 2), Clipped)
        np.testing.assert_allclose(both, np.tile(found, 2), atol=1e-6)

    def test_what_stands_at_stragglers_does_not_count(self):
        found = jaxwgc.decoding_weights(CODE, MASKS, Garbled)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, MASKS)


class Doubled(decoders.LeastSquares):
    """No longer those of least error, though it inherits from one that has them."""

    def weights(self, matrix, target, mask):
        return 2 * super().weights(matrix, target, mask)


class Named(decoders.Decoder):
    """As under `from __future__ import annotations`."""

    scale: "decoders.Static[float]"

    def weights(self, matrix, target, mask):
        assert isinstance(self.scale, float)
        return jnp.where(mask, self.scale, 0)[..., None, :]


def test_optimal_weights_are_not_inherited():
    assert decoders.LeastSquares.is_optimal and decoders.Lagrange.is_optimal
    assert not Doubled.is_optimal
    errors = jaxwgc.decoding_error(CODE, MASKS[MASKS.sum(1) == 4], Doubled)
    worst = jaxwgc.studies.worst_pattern(CODE, 2, Doubled(), max_patterns=0)
    error = jaxwgc.decoding_error(CODE, worst, Doubled)
    np.testing.assert_allclose(error, errors.max(), rtol=1e-5)


def test_static_fields_by_strings():
    found = jax.jit(jaxwgc.decoding_weights)(CODE, MASKS, Named(2.0))
    np.testing.assert_array_equal(found, 2 * MASKS)


class TestStructures:
    """The class is part of the structure, so that no cache takes one for another."""

    def test_classes_differ(self):
        class Other(decoders.Decoder):
            def weights(self, matrix, target, mask):
                return 2 * Garbled().weights(matrix, target, mask)

        structures = {
            jax.tree.structure(own)
            for own in (Other(), Garbled(), decoders.LeastSquares())
        }
        assert len(structures) == 3
        weights = jax.jit(jaxwgc.decoding_weights)
        np.testing.assert_array_equal(
            weights(CODE, MASKS, Other()), 2 * weights(CODE, MASKS, Garbled())
        )

    def test_there_and_back(self):
        for own in (
            CLIPPED,
            *codes.binary(5, 1).decoders,
            decoders.Clustered(CLIPPED, 3),
        ):
            leaves, structure = jax.tree.flatten(own)
            again = jax.tree.unflatten(structure, leaves)
            assert type(again) is type(own)
            assert str(again) == str(own)

    def test_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            CLIPPED.limit = 1.0


class WrongShape(decoders.Decoder):
    def weights(self, matrix, target, mask):
        return jnp.ones(mask.shape)


class TestBadInput:
    def test_weights_of_the_wrong_shape(self):
        rule = r"num_messages\) = \(64, 1, 6\); got \(64, 6\) from WrongShape"
        with pytest.raises(ValueError, match=rule):
            jaxwgc.decoding_weights(CODE, MASKS, WrongShape)
        with pytest.raises(ValueError, match=r"= \(1, 6\); got \(6,\) from WrongShape"):
            jax.jit(jaxwgc.decoding_error)(CODE, MASKS[0], WrongShape())

    def test_weights_of_the_wrong_type(self):
        class Complex(decoders.Decoder):
            def weights(self, matrix, target, mask):
                return 1j * jnp.ones((*mask.shape[:-1], 1, len(matrix)))

        class Nothing(decoders.Decoder):
            def weights(self, matrix, target, mask):
                return None

        with pytest.raises(TypeError, match="must be real for .* from Complex"):
            jaxwgc.decoding_weights(CODE, MASKS, Complex)
        with pytest.raises(TypeError, match="weights of Nothing must be numbers"):
            jaxwgc.decoding_weights(CODE, MASKS, Nothing)

    @pytest.mark.parametrize(
        ("code", "decoder", "rule"),
        [
            (codes.cyclic_mds(5, 2), peeling(5, 5), "Peeling needs a code of zeros"),
            (codes.uncoded(3, 6), peeling(3, 2), "Peeling needs a code of zeros"),
            (
                codes.reed_solomon(5, 5, 2),
                decoders.Lagrange(3 * np.arange(5) % 5, 1),
                "evaluated at roots",
            ),
            (CODE, decoders.Lagrange(np.arange(6), 2), "evaluated at roots"),
            (
                codes.cyclic_mds(4, 1),
                decoders.Clustered(decoders.LeastSquares(), 2),
                "Clustered needs a code that is block-diagonal",
            ),
            (
                codes.uncoded(4),
                decoders.Group(np.zeros((1, 4), int)),
                "Group needs a code of groups",
            ),
        ],
    )
    def test_entries_that_do_not_fit(self, code, decoder, rule):
        with pytest.raises(ValueError, match=rule):
            jaxwgc.decoding_weights(code, np.ones(code.num_workers, bool), decoder)

    @pytest.mark.parametrize("inner", ["x", decoders.LeastSquares, None])
    def test_inner_decoders_that_are_none(self, inner):
        with pytest.raises(TypeError, match="inner must be a Decoder; got"):
            jaxwgc.decoding_weights(CODE, MASKS, decoders.Clustered(inner, 2))

    def test_inner_weights_of_the_wrong_shape(self):
        code = codes.clustered(codes.uncoded(2), 2)
        with pytest.raises(ValueError, match=r"\(1, 2\); got \(2,\) from WrongShape"):
            jaxwgc.decoding_weights(
                code, np.ones(4, bool), decoders.Clustered(WrongShape(), 2)
            )

    def test_a_code_without_decoders(self):
        code = dataclasses.replace(CODE, decoders=())
        with pytest.raises(ValueError, match="decoder must be given, since the code"):
            jaxwgc.decoding_weights(code, MASKS)
        found = jaxwgc.decoding_weights(code, MASKS, decoders.LeastSquares)
        expected = jaxwgc.decoding_weights(CODE, MASKS)
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize(
        "own", [["least_squares"], "least_squares", (decoders.LeastSquares,), None]
    )
    def test_decoders_that_are_none(self, own):
        code = dataclasses.replace(CODE, decoders=own)
        with pytest.raises(TypeError, match="code.decoders must be a tuple of"):
            jaxwgc.decoding_weights(code, MASKS)

    @pytest.mark.parametrize(
        ("decoder", "rule"),
        [
            (decoders.Group(np.zeros((1, 5), int)), r"num_workers\) = \(any, 6\); got"),
            (peeling(6, 4), "assignment must have shape .*; got \\(6, 4\\)"),
            (peeling(5, 6), "assignment must have shape .* num_messages = 6"),
            (decoders.Lagrange(np.arange(5), 2), "positions must be a permutation"),
            (decoders.Lagrange(np.zeros(6, int), 2), "positions must be a permutation"),
            (decoders.Lagrange(np.arange(6), 6), "num_stragglers must be less than"),
            (decoders.LeastSquares(-1), "num_missing must be at least 0; got -1"),
            (
                decoders.Clustered(decoders.LeastSquares(), 4),
                "num_clusters must divide the messages .* got num_clusters = 4",
            ),
        ],
    )
    def test_that_do_not_fit(self, decoder, rule):
        with pytest.raises(ValueError, match=rule):
            jaxwgc.decoding_weights(CODE, MASKS, decoder)

    @pytest.mark.parametrize(
        "decoder",
        [
            decoders.Peeling(np.ones((6, 6))),
            decoders.OneStep("1"),
            decoders.Lagrange(np.ones(6), 2),
            decoders.LeastSquares(0.5),
        ],
    )
    def test_fields_of_the_wrong_type(self, decoder):
        with pytest.raises(TypeError, match="must be"):
            jaxwgc.decoding_weights(CODE, MASKS, decoder)
