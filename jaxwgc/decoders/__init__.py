"""Decoders: algorithms that compute decoding weights.

Each code names its decoders. The first of them is used unless you choose another one:
`jaxwgc.decode(code, messages, received, params, decoder=...)` takes an instance of
`Decoder`, or a class, which stands for the code's own decoder of that class.
"""

from jaxwgc._common.pytrees import Static
from jaxwgc.decoders._clustered import Clustered
from jaxwgc.decoders._components import Components
from jaxwgc.decoders._decoder import Decoder, Interpolation
from jaxwgc.decoders._decoder import DecoderLike as DecoderLike
from jaxwgc.decoders._dual import Dual
from jaxwgc.decoders._lagrange import Lagrange
from jaxwgc.decoders._least_squares import LeastSquares
from jaxwgc.decoders._peeling import Peeling
from jaxwgc.decoders._ridge import Ridge
from jaxwgc.decoders._selection import Group, OneCopy, OneStep

__all__ = [
    "Clustered",
    "Components",
    "Decoder",
    "Dual",
    "Group",
    "Interpolation",
    "Lagrange",
    "LeastSquares",
    "OneCopy",
    "OneStep",
    "Peeling",
    "Ridge",
    "Static",
]
