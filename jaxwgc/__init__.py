"""Gradient coding with importance-weighted data, for JAX and optax.

The most used functions are here. Submodules: `codes` (gradient codes), `decoders`,
`stragglers` (straggler models and waiting rules), `studies` (simulation and planning),
`distributed` (training on many devices) and `sketching` (leverage scores, sampling,
embeddings, least squares). `jaxwgc.check_step` looks for mistakes that raise no error.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxwgc import codes, coding, corruptions, decoders, stragglers
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

if TYPE_CHECKING:
    from jaxwgc import aggregate, checks, distributed, sketching, studies
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
    from jaxwgc.sketching import partition
    from jaxwgc.studies import (
        Comparison,
        Plan,
        StragglerReport,
        Summary,
        compare,
        monte_carlo,
        plan,
        straggler_report,
        summarize,
    )

__version__ = "0.1.0"

__all__ = [
    "BlockLeverageState",
    "CodedAggregateState",
    "Comparison",
    "Decoding",
    "ErrorCounts",
    "ErrorLocation",
    "GradientCode",
    "Plan",
    "StragglerReport",
    "Summary",
    "aggregate",
    "block_leverage_aggregate",
    "check_step",
    "checks",
    "coded_aggregate",
    "codes",
    "coding",
    "compare",
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

# Module of each name that is imported at its first use, to keep `import jaxwgc` fast.
# Names that are missing here are in `jaxwgc.studies`.
_LATER = {
    "BlockLeverageState": "block_leverage",
    "CodedAggregateState": "aggregate",
    "ErrorCounts": "aggregate",
    "block_leverage_aggregate": "block_leverage",
    "sampled_value_and_grad": "block_leverage",
    "check_step": "checks",
    "coded_aggregate": "aggregate",
    "decode_aggregate": "aggregate",
    "partition": "sketching",
}


def __getattr__(name: str) -> Any:
    """Imports a submodule or function at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("aggregate", "checks", "distributed", "sketching", "studies"):
        return importlib.import_module(f"jaxwgc.{name}")
    return getattr(
        importlib.import_module(f"jaxwgc.{_LATER.get(name, 'studies')}"), name
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
