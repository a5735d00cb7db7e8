"""Gradient codes: assignments of parts to workers, and encoding matrices.

Each constructor returns a `GradientCode` for `jaxwgc.encode`, `jaxwgc.decode` and the
other functions of `jaxwgc.coding`. Some constructors take a code and build on it.
"""

from jaxwgc.codes._any_placement import any_placement
from jaxwgc.codes._batch_raptor import batch_raptor
from jaxwgc.codes._bernoulli import bernoulli, regularized_bernoulli
from jaxwgc.codes._binary import binary
from jaxwgc.codes._block_designs import paley, projective_plane
from jaxwgc.codes._clustered import clustered
from jaxwgc.codes._communication_efficient import communication_efficient
from jaxwgc.codes._cyclic_mds import cyclic_mds
from jaxwgc.codes._cyclic_repetition import cyclic_repetition
from jaxwgc.codes._edge_graph import edge_graph, ramanujan_graph
from jaxwgc.codes._fractional_repetition import fractional_repetition
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._ldgm import ldgm
from jaxwgc.codes._multi_message import multi_message
from jaxwgc.codes._partially_coded import partially_coded
from jaxwgc.codes._proportional_placement import proportional_placement
from jaxwgc.codes._reed_solomon import reed_solomon
from jaxwgc.codes._regular_graph import regular_graph
from jaxwgc.codes._replicated import replicated
from jaxwgc.codes._stochastic import stochastic
from jaxwgc.codes._stochastic_block import stochastic_block
from jaxwgc.codes._uncoded import uncoded
from jaxwgc.codes._unequal import correlations_of as correlations_of
from jaxwgc.codes._unequal import unequal
from jaxwgc.codes._unequal import variances_of as variances_of
from jaxwgc.codes._worst_rounding import worst_rounding

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
