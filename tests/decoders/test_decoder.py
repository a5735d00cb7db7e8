"""Decoders of one's own, in every place that takes one, and those that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.decoders import (
    Clustered,
    Components,
    Dual,
    Group,
    Lagrange,
    LeastSquares,
    OneCopy,
    OneStep,
    Peeling,
)
from tests.catalogue.codes import CODES
from tests.conftest import every_pattern

KEY = jax.random.key(0)
CODE = codes.regular_graph(KEY, 6, copies=3)
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


CLIPPED = Clipped(decoders.LeastSquares(), 0.25)


def by_hand(masks, limit=0.25):
    """All rows have one norm, so that least norm is what it says."""
    rows = np.where(masks[..., None], CODE.encoding_matrix, 0)
    return np.minimum(np.linalg.pinv(rows, rcond=1e-10).sum(-2), limit)


class TestOneFromOutside:
    def test_weights_and_error(self):
        result = jax.jit(jaxwgc.decoding)(CODE, MASKS, CLIPPED)
        weights = result.weights[:, 0]
        np.testing.assert_allclose(weights, by_hand(MASKS), atol=3e-5)
        effective = np.asarray(weights, np.float64) @ CODE.encoding_matrix
        np.testing.assert_allclose(result.effective_weights, effective, atol=1e-6)
        error = ((effective - 1) ** 2).sum(1)
        np.testing.assert_allclose(result.error, error, atol=1e-5)

    def test_map_over_limits_and_masks(self):
        """Its arrays are traced as others are."""
        limits = np.array([0.1, 0.25, 9.0], np.float32)

        def weights(limit, mask):
            decoder = Clipped(decoders.LeastSquares(), limit)
            return jaxwgc.decoding(CODE, mask, decoder).weights[..., 0, :]

        over_masks = jax.vmap(weights, (None, 0))
        result = jax.jit(jax.vmap(over_masks, (0, None)))(limits, MASKS)
        expected = by_hand(MASKS, limits[:, None, None])
        np.testing.assert_allclose(result, expected, atol=1e-5)

    def test_every_step_takes_the_decoder(self):
        mask = MASKS[-2]
        gradients = {"w": np.arange(12.0, dtype=np.float32).reshape(6, 2)}

        @jax.jit
        def every_step(gradients):
            params = {"w": jnp.zeros(2)}
            messages = jaxwgc.encode(CODE, gradients)
            steps = [jaxwgc.decode(CODE, messages, mask, params, CLIPPED)]
            decoding = jaxwgc.aggregate.DecodingOptions(decoder=CLIPPED)
            for method in ("partials", "messages"):
                aggregate = jaxwgc.coded_aggregate(
                    CODE, stragglers.uniform(1), KEY, method=method, decoding=decoding
                )
                state = aggregate.init(params)
                steps += aggregate.update(gradients, state, params, received=mask)[:1]
            step = jaxwgc.decoded_value_and_grad(
                lambda params, part: jnp.sum(params["w"] * part), CODE, decoder=CLIPPED
            )
            return [*steps, step(params, gradients["w"], mask)[1]]

        expected = by_hand(mask) @ CODE.encoding_matrix @ gradients["w"]
        for result in every_step(gradients):
            np.testing.assert_allclose(result["w"], expected, rtol=1e-5)

    def test_among_the_decoders_of_a_code(self):
        code = dataclasses.replace(CODE, decoders=(CLIPPED,))
        for decoder in (None, Clipped):
            result = jaxwgc.decoding(code, MASKS, decoder).weights[..., 0, :]
            np.testing.assert_allclose(result, by_hand(MASKS), atol=3e-5)
        clusters = codes.clustered(code, 2)
        weights = jaxwgc.decoding(clusters, np.tile(MASKS, 2), Clipped).weights[
            ..., 0, :
        ]
        np.testing.assert_allclose(weights, np.tile(result, 2), atol=1e-6)

    def test_weights_of_stragglers_are_set_to_zero(self):
        weights = jaxwgc.decoding(CODE, MASKS, Garbled).weights[..., 0, :]
        assert weights.dtype == jnp.float32
        np.testing.assert_array_equal(weights, MASKS)


class Doubled(decoders.LeastSquares):
    """No longer those of least error, though it inherits from one that has them."""

    def weights(self, matrix, target, mask):
        return 2 * super().weights(matrix, target, mask)


class Named(decoders.Decoder):
    """Annotated by strings, as under `from __future__ import annotations`."""

    scale: "decoders.Static[float]"

    def weights(self, matrix, target, mask):
        assert isinstance(self.scale, float)
        return jnp.where(mask, self.scale, 0)[..., None, :]


def test_optimal_weights_are_not_inherited():
    assert decoders.LeastSquares.is_optimal and decoders.Lagrange.is_optimal
    assert not Doubled.is_optimal
    errors = np.asarray(jaxwgc.decoding(CODE, MASKS, Doubled).error)
    worst = jaxwgc.simulation.worst_pattern(CODE, 2, Doubled(), max_patterns=0)
    [error] = errors[(worst == MASKS).all(1)]
    np.testing.assert_allclose(error, errors[MASKS.sum(1) == 4].max(), rtol=1e-5)


def test_static_fields_may_be_annotated_by_strings():
    result = jax.jit(jaxwgc.decoding)(CODE, MASKS, Named(2.0))
    np.testing.assert_array_equal(result.weights[..., 0, :], 2 * MASKS)


class TestStructures:
    """The class is part of the structure, so that no cache takes one for another."""

    def test_structures_differ_between_classes(self):
        class Other(decoders.Decoder):
            def weights(self, matrix, target, mask):
                return 2 * Garbled().weights(matrix, target, mask)

        kinds = Other(), Garbled(), decoders.LeastSquares()
        assert len({jax.tree.structure(decoder) for decoder in kinds}) == 3
        decode = jax.jit(jaxwgc.decoding)
        doubled = decode(CODE, MASKS, Other())
        np.testing.assert_array_equal(
            doubled.weights, 2 * decode(CODE, MASKS, Garbled()).weights
        )

    def test_decoders_are_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            CLIPPED.limit = 1.0


def test_a_code_without_decoders():
    code = dataclasses.replace(CODE, decoders=())
    weights = jaxwgc.decoding(code, np.ones(6, bool), decoders.LeastSquares()).weights[
        ..., 0, :
    ]
    np.testing.assert_allclose(weights @ CODE.encoding_matrix, 1, rtol=1e-5)


class Returning(decoders.Decoder):
    """Returns weights of a wrong shape or dtype."""

    result: decoders.Static[str]

    def weights(self, matrix, target, mask):
        if self.result == "short":
            return jnp.ones(mask.shape)
        return 1j * jnp.ones((*mask.shape[:-1], 1, len(matrix)))


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("cyclic_mds", Lagrange),
        ("bernoulli", Lagrange),
        ("multi_message", Lagrange),
        ("communication_efficient", Lagrange),
        ("uncoded", Components),
        ("reed_solomon", OneStep),
        ("cyclic_repetition", OneStep),
        ("ldgm", OneStep),
        ("partially_coded", OneStep),
        ("partially_coded", Group),
        ("cyclic_mds", Dual),
        ("stochastic", Peeling),
        ("multi_message", Peeling),
        ("bernoulli", Group),
        ("cyclic_mds", Group),
        ("multi_message", Group),
    ],
)
def test_classes_of_decoders_that_a_code_does_not_have(name, decoder):
    code = CODES[name]
    received = np.ones(code.num_workers, bool)
    with pytest.raises(ValueError, match=f"the class {decoder.__name__} decodes"):
        jaxwgc.decoding(code, received, decoder)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (Group(np.zeros((1, 5), int)), r"groups must .* = \(any, 6\)"),
        (
            Peeling(np.ones((5, 6), bool)),
            r"assignment must have shape .* = \(6, any\)",
        ),
        (Lagrange(np.arange(5), 2), "positions must have shape"),
        (Lagrange(np.arange(6), 6), "num_stragglers must be less than"),
        (Dual(np.ones((2, 5), np.float32), 1), r"rows must .* \(any, 6\)"),
        (Dual(np.ones((2, 6)), 2), r"\+ 1 must be at most"),
        (Clustered(LeastSquares(), 4), "num_clusters.* got 4"),
        (Returning("short"), r"weights.* = \(1, 6\); got \(6,\)"),
    ],
)
def test_decoders_of_other_codes_are_rejected(decoder, message):
    with pytest.raises(ValueError, match=message):
        jaxwgc.decoding(CODE, np.ones(6, bool), decoder)


def test_copies_of_another_code_are_rejected():
    with pytest.raises(ValueError, match="copies must"):
        jaxwgc.decoding(
            codes.uncoded(6), np.ones(6, bool), OneCopy(np.zeros((5, 2), int))
        )


def test_peeling_is_rejected_for_segments():
    code = CODES["communication_efficient"]
    decoder = Peeling(np.ones((6, 6), bool))
    with pytest.raises(ValueError, match="num_segments"):
        jaxwgc.decoding(code, np.ones(code.num_workers, bool), decoder)


def test_a_code_without_decoders_needs_one():
    code = dataclasses.replace(CODE, decoders=())
    with pytest.raises(ValueError, match="be given"):
        jaxwgc.decoding(code, np.ones(6, bool))


def test_weights_of_clusters_are_checked():
    code = codes.clustered(codes.uncoded(3, 9), 2)
    decoder = Clustered(Returning("short"), 2)
    with pytest.raises(ValueError, match=r"Returning .*; got \(3,\)"):
        jaxwgc.decoding(code, np.ones(6, bool), decoder)


@pytest.mark.parametrize(
    ("code", "decoder", "message"),
    [
        (codes.uncoded(6), Components(np.ones((6, 2), np.float32)), "incident must be"),
        (CODES["reed_solomon"], Lagrange(np.ones(6), 2), "integer"),
        (CODE, Returning("complex"), "weights of Returning must be real"),
    ],
)
def test_arrays_of_another_dtype_are_rejected(code, decoder, message):
    with pytest.raises(TypeError, match=message):
        jaxwgc.decoding(code, np.ones(6, bool), decoder)
