"""Scores of rows, and small weighted data sets sampled by them.

`leverage_scores` and `partition_probabilities` say how much each part of a data set
matters, `sample_partitions` draws parts accordingly, and `weighted_parts` gathers them
with the weights that make the small data set stand for the large one.
"""

from jaxwgc.sketching._leverage_scores import leverage_scores
from jaxwgc.sketching._partition import partition, partition_probabilities
from jaxwgc.sketching._rescaling import (
    WeightedParts,
    rescaling_factors,
    scale_rows,
    weighted_parts,
)
from jaxwgc.sketching._sampling import (
    PartitionSample,
    drop_last_distinct,
    sample_partitions,
)

__all__ = [
    "PartitionSample",
    "WeightedParts",
    "drop_last_distinct",
    "leverage_scores",
    "partition",
    "partition_probabilities",
    "rescaling_factors",
    "sample_partitions",
    "scale_rows",
    "weighted_parts",
]
