"""How decoding weights are found, one way a file.

Each decoder takes masks `received` (..., num_messages) of the messages that arrived
and the arrays of one cluster of a code, and returns weights
(..., num_segments, num_messages), zero at messages that did not.
"""

from jaxwgc._decoders._accuracy import relative_miss, rounding
from jaxwgc._decoders._group import group
from jaxwgc._decoders._lagrange import lagrange, lagrange_or_least_squares
from jaxwgc._decoders._least_squares import least_squares
from jaxwgc._decoders._one_step import one_step
from jaxwgc._decoders._peeling import peeling
from jaxwgc._decoders._product import product
from jaxwgc._decoders._some_masks import in_any_lane

__all__ = [
    "group",
    "in_any_lane",
    "lagrange",
    "lagrange_or_least_squares",
    "least_squares",
    "one_step",
    "peeling",
    "product",
    "relative_miss",
    "rounding",
]
