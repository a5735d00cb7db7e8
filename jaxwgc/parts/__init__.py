"""Parts of a data set: partitions, samples and weights."""

from jaxwgc.parts._partitions import partition, partition_probabilities
from jaxwgc.parts._sample_partitions import (
    PartitionSample,
    drop_last_distinct,
    sample_partitions,
)
from jaxwgc.parts._weighted_parts import (
    WeightedParts,
    rescaling_factors,
    scale_rows,
    weighted_parts,
)

# Sorted as in the documentation, not alphabetically.
__all__ = [
    "partition",
    "partition_probabilities",
    "sample_partitions",
    "PartitionSample",
    "drop_last_distinct",
    "rescaling_factors",
    "scale_rows",
    "weighted_parts",
    "WeightedParts",
]
