"""Gradient coding with importance-weighted data, for JAX and optax.

The everyday names are here; constructors of codes are in `jaxwgc.codes`, ways to decode
them in `jaxwgc.decoders`, straggler models in `jaxwgc.stragglers`, leverage scores,
sampling, embeddings and least squares in `jaxwgc.sketching`, what judges and learns
codes in `jaxwgc.studies`, the step on many devices in `jaxwgc.distributed`.
`jaxwgc.check_step` looks for mistakes that would stay silent.
"""

from jaxwgc import (
    checks,
    codes,
    coding,
    corruptions,
    decoders,
    distributed,
    sketching,
    stragglers,
    studies,
)
from jaxwgc.aggregate import (
    CodedAggregateState,
    ErrorCounts,
    coded_aggregate,
    decode_aggregate,
)
from jaxwgc.block_leverage import (
    BlockLeverageState,
    block_leverage_aggregate,
    sampled_value_and_grad,
)
from jaxwgc.checks import check_step
from jaxwgc.codes import GradientCode
from jaxwgc.coding import (
    Decoding,
    ErrorLocation,
    decode,
    decoding,
    decoding_error,
    decoding_weights,
    effective_weights,
    encode,
    locate_errors,
    weighted,
)
from jaxwgc.gradients import decoded_value_and_grad, partial_value_and_grad
from jaxwgc.sketching import partition
from jaxwgc.studies import (
    Plan,
    StragglerReport,
    Summary,
    monte_carlo,
    plan,
    straggler_report,
    summarize,
)

__version__ = "0.1.0"

__all__ = [
    "BlockLeverageState",
    "CodedAggregateState",
    "Decoding",
    "ErrorCounts",
    "ErrorLocation",
    "GradientCode",
    "Plan",
    "StragglerReport",
    "Summary",
    "block_leverage_aggregate",
    "check_step",
    "checks",
    "coded_aggregate",
    "codes",
    "coding",
    "corruptions",
    "decode",
    "decode_aggregate",
    "decoded_value_and_grad",
    "decoders",
    "decoding",
    "decoding_error",
    "decoding_weights",
    "distributed",
    "effective_weights",
    "encode",
    "locate_errors",
    "monte_carlo",
    "partial_value_and_grad",
    "partition",
    "plan",
    "sampled_value_and_grad",
    "sketching",
    "straggler_report",
    "stragglers",
    "studies",
    "summarize",
    "weighted",
]
