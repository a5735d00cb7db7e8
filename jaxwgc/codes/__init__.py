"""Gradient codes: assignments of parts to workers, and encoding matrices.

Each constructor returns a `GradientCode` for `jaxwgc.encode`, `jaxwgc.decode` and the
other functions of `jaxwgc.coding`. Some constructors take a code and build on it.
"""

from jaxwgc.codes._block_designs import paley, projective_plane
from jaxwgc.codes._communication_efficient import communication_efficient
from jaxwgc.codes._composed import clustered, multi_message, partially_coded
from jaxwgc.codes._cyclic import cyclic_mds, cyclic_repetition
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._graphs import edge_graph, ramanujan_graph, regular_graph
from jaxwgc.codes._peeling_codes import batch_raptor, ldgm
from jaxwgc.codes._placements import (
    any_placement,
    proportional_placement,
    worst_rounding,
)
from jaxwgc.codes._random_codes import (
    bernoulli,
    regularized_bernoulli,
    stochastic,
    stochastic_block,
)
from jaxwgc.codes._reed_solomon import reed_solomon
from jaxwgc.codes._repetition import binary, fractional_repetition, replicated, uncoded
from jaxwgc.codes._unequal import unequal

__all__ = [
    "GradientCode",
    "any_placement",
    "batch_raptor",
    "bernoulli",
    "binary",
    "clustered",
    "communication_efficient",
    "cyclic_mds",
    "cyclic_repetition",
    "edge_graph",
    "fractional_repetition",
    "ldgm",
    "multi_message",
    "paley",
    "partially_coded",
    "projective_plane",
    "proportional_placement",
    "ramanujan_graph",
    "reed_solomon",
    "regular_graph",
    "regularized_bernoulli",
    "replicated",
    "stochastic",
    "stochastic_block",
    "uncoded",
    "unequal",
    "worst_rounding",
]
