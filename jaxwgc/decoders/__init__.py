"""Decoders: algorithms that compute decoding weights.

Each code names its decoders. The first of them is used unless you choose another one:
`jaxwgc.decode(code, messages, received, params, decoder=...)` takes an instance of
`Decoder`, or a class, which stands for the code's own decoder of that class.
"""

from jaxwgc._common.pytrees import Static
from jaxwgc.decoders._bisection import first_time as first_time
from jaxwgc.decoders._clustered import Clustered
from jaxwgc.decoders._components import Components
from jaxwgc.decoders._decoder import Decoder, DecoderLike
from jaxwgc.decoders._decoder import Interpolation as Interpolation
from jaxwgc.decoders._dual import Dual
from jaxwgc.decoders._lagrange import Lagrange
from jaxwgc.decoders._least_squares import LeastSquares
from jaxwgc.decoders._peeling import Peeling
from jaxwgc.decoders._ridge import Ridge
from jaxwgc.decoders._selection import Group, OneCopy, OneStep
from jaxwgc.decoders._some_masks import any_under_vmap as any_under_vmap
from jaxwgc.decoders._some_masks import compute_if as compute_if
from jaxwgc.decoders._some_masks import in_batches as in_batches
from jaxwgc.decoders._some_masks import masked_map as masked_map
from jaxwgc.decoders._targets import APPROXIMATES as APPROXIMATES
from jaxwgc.decoders._targets import DECODES as DECODES
from jaxwgc.decoders._targets import ROUNDING as ROUNDING

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
    "Ridge",
    "Static",
]
