"""Decoders by class and as instances, for codes that they fit and for others."""

import re

import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from tests.compositions import KEY


class TestDecoders:
    """By class, for codes that they fit and for others."""

    UNFIT = {
        decoders.Lagrange: (
            "evaluated at roots of unity",
            [
                codes.cyclic_mds(4, 1),
                codes.communication_efficient(4, 1, 2),
                codes.bernoulli(KEY, 4, 4, 2),
                codes.multi_message(codes.reed_solomon(4, 2, 2)),
            ],
        ),
        decoders.OneStep: (
            "whose columns add up to the same",
            [
                codes.reed_solomon(4, 2, 2),
                codes.cyclic_repetition(KEY, 4, 1),
                codes.ldgm(KEY, 5, 3, 2),
                codes.partial(codes.uncoded(3), 1),
            ],
        ),
        decoders.Peeling: (
            "of zeros and ones",
            [
                codes.regular_graph(KEY, 4, 2),
                codes.stochastic(KEY, 4, 4, 2, 0.1),
                codes.multi_message(codes.binary(4, 1)),
            ],
        ),
        decoders.Group: (
            "of groups of workers that send the same",
            [
                codes.bernoulli(KEY, 4, 4, 2),
                codes.cyclic_mds(4, 1),
                codes.multi_message(codes.binary(4, 1)),
                codes.partial(codes.binary(4, 1), 1),
            ],
        ),
    }

    @pytest.mark.parametrize(
        ("decoder", "kind", "code"),
        [(name, kind, code) for name, (kind, own) in UNFIT.items() for code in own],
    )
    def test_that_do_not_fit(self, decoder, kind, code):
        name = decoder.__name__
        rule = f"decoder {name} needs a code {kind}.*got {re.escape(repr(code))}"
        mask = np.ones(code.num_workers, bool)
        for call in (
            lambda: jaxwgc.decoding_weights(code, mask, decoder=decoder),
            lambda: jaxwgc.decoding_error(code, mask, decoder=decoder),
            lambda: jaxwgc.effective_weights(code, mask, decoder=decoder),
            lambda: jaxwgc.decoded_value_and_grad(sum, code, decoder=decoder),
            lambda: jaxwgc.coded_aggregate(
                code, stragglers.uniform(0), KEY, decoder=decoder
            ),
            lambda: jaxwgc.studies.diagnose(code, KEY, 1, decoder=decoder),
        ):
            with pytest.raises(ValueError, match=rule):
                call()

    @pytest.mark.parametrize("decoder", ["", "group", 3, dict])
    def test_that_are_none(self, decoder):
        with pytest.raises(TypeError, match="decoder must be a jaxwgc.decoders.Deco"):
            jaxwgc.decoding_weights(codes.uncoded(3), np.ones(3, bool), decoder)
