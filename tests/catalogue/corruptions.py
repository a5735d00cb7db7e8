"""Corruption models for four workers with two messages each.

A new model needs a row in `ROWS`."""

import numpy as np

from jaxwgc import codes, corruptions, stragglers
from tests.catalogue.row import Row, examples_of

WHO = stragglers.fixed(np.array([True, False, True, False]))
CODE = codes.replicated(4, num_parts=4, copies=2)

ROWS = (
    Row(
        make=corruptions.additive_noise,
        arguments={"who": WHO, "scale": 0.5, "share": 1.0},
        rules={"scale": "at least 0", "share": "positive"},
        variants={"one entry": corruptions.additive_noise(WHO, share=1e-9)},
    ),
    Row(make=corruptions.sign_flip, arguments={"who": WHO}),
    Row(
        make=corruptions.scaling,
        arguments={"who": WHO, "factor": 3.0},
        rules={"factor": ""},
    ),
    Row(
        make=corruptions.bit_flip,
        arguments={"who": WHO, "bit": None},
        variants={"sign": corruptions.bit_flip(WHO, 31)},
    ),
    Row(
        make=corruptions.same_vector,
        arguments={"who": WHO, "scale": 1.0},
        rules={"scale": "at least 0"},
    ),
    Row(
        make=corruptions.codeword_part,
        arguments={"who": WHO, "code": CODE},
    ),
    Row(
        make=corruptions.quantization,
        arguments={"who": WHO, "bits": np.array(4)},
    ),
)
EXAMPLES = examples_of(ROWS)
