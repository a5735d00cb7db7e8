"""Optax transformations that turn partial gradients or messages into a gradient."""

from jaxwgc.aggregate._block_leverage import (
    block_leverage_aggregate,
    sampled_value_and_grad,
)
from jaxwgc.aggregate._coded_aggregate import coded_aggregate
from jaxwgc.aggregate._decode_aggregate import decode_aggregate
from jaxwgc.aggregate._options import DecodingOptions
from jaxwgc.aggregate._state import CodedAggregateState, ErrorCounts

__all__ = [
    "CodedAggregateState",
    "DecodingOptions",
    "ErrorCounts",
    "block_leverage_aggregate",
    "coded_aggregate",
    "decode_aggregate",
    "sampled_value_and_grad",
]
