"""The search for the response that makes a round decodable."""

import jax

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.simulation import _rounds
from jaxwgc.simulation._masks import decode_packed


def test_masks_of_padding_are_not_decoded(monkeypatch):
    decoded = []

    def decode(code, masks):
        decoded.append(len(masks))
        return decode_packed(code, masks)

    monkeypatch.setattr(_rounds, "decode_packed", decode)
    jaxwgc.compare(
        codes=[codes.cyclic_mds(6, num_stragglers=2)],
        delays=[stragglers.bernoulli_slowdown(probability=0.3, slowdown=4.0)],
        waiting=[stragglers.until_decodable],
        key=jax.random.key(7),
        num_trials=3,
    )
    assert decoded and max(decoded) <= 3
