"""Rows of the table of all codes in docs/codes.md, by constructor.

`lists.py` makes the table, and `code_pictures.py` draws the matrix of each row.
"""

from typing import NamedTuple

import jax
import numpy as np

import jaxwgc
from jaxwgc import codes

EQUAL = "[equal load](#equal-load)"
DESIGNS = "[block designs](reproduction/kadhe.md#paley-designs)"
NOISE = "[noise](#noise)"
PLACEMENTS = "[placements](#given-placements)"
PEELING = "[peeling](#recovery-by-peeling)"
UNFINISHED = "[unfinished work](#unfinished-work)"
UNEQUAL = "[unequal workers](#workers-of-unequal-reliability)"
SLOW = "[slow workers](slow-workers.md)"
SCALE = "[scale](reproduction/clusters.md#overhead-and-scale)"
APPROXIMATE = "approximate"


class CodeRow(NamedTuple):
    """What the table says of a constructor beside its signature and its paper.

    Attributes:
      example: Code of about twelve workers, for the picture and the decoders.
      tolerates: Number of stragglers with exact decoding, or another promise.
      measured: Links to sections with measurements of the code.
    """

    example: jaxwgc.GradientCode
    tolerates: str
    measured: str


def code_rows() -> dict[str, CodeRow]:
    """Returns the rows in the order of the table: exact codes first."""
    key = jax.random.key(5)
    pairs = codes.fractional_repetition(6, 1)
    ring = codes.cyclic_mds(4, 1)
    held = codes.proportional_placement(np.linspace(1, 4, 12), 12, copies=3)
    block_model = codes.stochastic_block(key, 12, 12, 3, 0.8, 0.1)
    return {
        "uncoded": CodeRow(codes.uncoded(12), "0", EQUAL),
        "fractional_repetition": CodeRow(
            codes.fractional_repetition(12, 2), "s", f"{EQUAL}, {NOISE}"
        ),
        "binary": CodeRow(codes.binary(12, 4), "s", f"{EQUAL}, {NOISE}"),
        "cyclic_mds": CodeRow(codes.cyclic_mds(12, 3), "s", f"{EQUAL}, {NOISE}"),
        "cyclic_repetition": CodeRow(
            codes.cyclic_repetition(key, 12, 3), "s", f"{EQUAL}, {NOISE}"
        ),
        "reed_solomon": CodeRow(
            codes.reed_solomon(12, 12, 4), "d − 1", f"{EQUAL}, {NOISE}"
        ),
        "any_placement": CodeRow(
            codes.any_placement(key, held, 2), "s", f"{EQUAL}, {PLACEMENTS}"
        ),
        "communication_efficient": CodeRow(
            codes.communication_efficient(12, 2, 2), "s", f"{EQUAL}, {NOISE}"
        ),
        "replicated": CodeRow(codes.replicated(6, 12), "copies − 1", SLOW),
        "clustered": CodeRow(
            codes.clustered(ring, 3), "s per cluster", f"{EQUAL}, {UNFINISHED}"
        ),
        "multi_message": CodeRow(codes.multi_message(pairs), "s of `code`", UNFINISHED),
        "partially_coded": CodeRow(
            codes.partially_coded(pairs, 1), "slow workers only", UNFINISHED
        ),
        "edge_graph": CodeRow(
            codes.edge_graph(key, 6, 4), APPROXIMATE, f"{EQUAL}, {SCALE}"
        ),
        "ramanujan_graph": CodeRow(codes.ramanujan_graph(5, 13), APPROXIMATE, SCALE),
        "regular_graph": CodeRow(codes.regular_graph(key, 12, 4), APPROXIMATE, EQUAL),
        "projective_plane": CodeRow(codes.projective_plane(3), APPROXIMATE, EQUAL),
        "paley": CodeRow(codes.paley(11), APPROXIMATE, DESIGNS),
        "bernoulli": CodeRow(
            codes.bernoulli(key, 12, 12, 4), APPROXIMATE, f"{EQUAL}, {NOISE}"
        ),
        "regularized_bernoulli": CodeRow(
            codes.regularized_bernoulli(key, 12, 12, 2), APPROXIMATE, EQUAL
        ),
        "stochastic_block": CodeRow(block_model, APPROXIMATE, EQUAL),
        "stochastic": CodeRow(
            codes.stochastic(key, 12, 12, [2] * 6 + [5] * 6, 0.2), "unbiased", EQUAL
        ),
        "unequal": CodeRow(
            codes.unequal(np.linspace(0.1, 0.8, 12), 12), "unbiased", UNEQUAL
        ),
        "ldgm": CodeRow(codes.ldgm(key, 12, 8, 3), "recovers parts", PEELING),
        "batch_raptor": CodeRow(
            codes.batch_raptor(key, 12, 12, batch_size=2), "recovers parts", PEELING
        ),
    }
