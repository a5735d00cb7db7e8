"""How decoding weights are found, one way a file.

A code names its decoders, and the first of them is used unless the caller names
another: `jaxwgc.decode(code, messages, received, params, decoder=...)` takes a class,
for the code's own decoder of that class, or any instance of `Decoder`.
"""

from jaxwgc._pytrees import Static
from jaxwgc.decoders._clustered import Clustered
from jaxwgc.decoders._components import Components
from jaxwgc.decoders._decoder import Decoder, DecoderLike
from jaxwgc.decoders._dual_code import Dual
from jaxwgc.decoders._group import Group
from jaxwgc.decoders._lagrange import Lagrange
from jaxwgc.decoders._least_squares import LeastSquares
from jaxwgc.decoders._one_copy import OneCopy
from jaxwgc.decoders._one_step import OneStep
from jaxwgc.decoders._peeling import Peeling

__all__ = [
    "Clustered",
    "Components",
    "Decoder",
    "DecoderLike",
    "Dual",
    "Group",
    "Lagrange",
    "LeastSquares",
    "OneCopy",
    "OneStep",
    "Peeling",
    "Static",
]
