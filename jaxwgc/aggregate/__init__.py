"""Optax transformations that turn partial gradients or messages into a gradient."""

from jaxwgc.aggregate._coded_aggregate import coded_aggregate
from jaxwgc.aggregate._decode_aggregate import (
    aggregator_of_messages as aggregator_of_messages,
)
from jaxwgc.aggregate._decode_aggregate import decode_aggregate
from jaxwgc.aggregate._options import DecodingOptions
from jaxwgc.aggregate._policy import make_aggregator as make_aggregator
from jaxwgc.aggregate._state import CodedAggregateState, ErrorCounts

__all__ = [
    "CodedAggregateState",
    "DecodingOptions",
    "ErrorCounts",
    "coded_aggregate",
    "decode_aggregate",
]
