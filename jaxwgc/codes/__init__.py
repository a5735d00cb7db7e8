"""Gradient codes: who holds which parts, and how a worker mixes their gradients.

Each constructor returns a `GradientCode`, to be used with `jaxwgc.encode`,
`jaxwgc.decode` and the other functions of `jaxwgc.coding`.
"""

from jaxwgc.codes._cyclic_repetition import cyclic_repetition
from jaxwgc.codes._fractional_repetition import fractional_repetition
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._reed_solomon import reed_solomon
from jaxwgc.codes._uncoded import uncoded

__all__ = [
    "GradientCode",
    "cyclic_repetition",
    "fractional_repetition",
    "reed_solomon",
    "uncoded",
]
