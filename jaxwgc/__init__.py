"""Gradient coding with importance-weighted data, for JAX and optax.

The everyday names are here; constructors of codes are in `jaxwgc.codes`, straggler
models in `jaxwgc.stragglers`, leverage scores and sampling in `jaxwgc.sketching`.
"""

from jaxwgc import codes, coding, sketching, stragglers
from jaxwgc.aggregate import CodedAggregateState, coded_aggregate
from jaxwgc.codes import GradientCode
from jaxwgc.coding import (
    decode,
    decoding_error,
    decoding_weights,
    effective_weights,
    encode,
    weighted,
)
from jaxwgc.gradients import decoded_value_and_grad, partial_value_and_grad
from jaxwgc.sketching import partition
from jaxwgc.studies import Summary, monte_carlo, summarize

__version__ = "0.1.0"

__all__ = [
    "CodedAggregateState",
    "GradientCode",
    "Summary",
    "coded_aggregate",
    "codes",
    "coding",
    "decode",
    "decoded_value_and_grad",
    "decoding_error",
    "decoding_weights",
    "effective_weights",
    "encode",
    "monte_carlo",
    "partial_value_and_grad",
    "partition",
    "sketching",
    "stragglers",
    "summarize",
    "weighted",
]
