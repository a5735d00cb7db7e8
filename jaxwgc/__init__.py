"""Gradient coding with importance-weighted data, for JAX and optax.

The most used functions are here. Submodules: `codes` (gradient codes), `decoders`,
`parts` (partitions of data and their samples), `stragglers` (straggler models and
waiting rules), `simulation` (comparisons and trials), `planning`, `reports` (which
worker is slow), `distributed` (training on many devices) and `sketching` (leverage
scores, embeddings, least squares). `jaxwgc.check_step` looks for mistakes that raise no
error. Names are imported at their first use.
"""

from typing import TYPE_CHECKING

from jaxwgc._common import lazy

if TYPE_CHECKING:
    from jaxwgc import (
        aggregate,
        asynchronous,
        checks,
        codes,
        coding,
        corruptions,
        decoders,
        distributed,
        gradients,
        parts,
        planning,
        reports,
        simulation,
        sketching,
        stragglers,
    )
    from jaxwgc.aggregate import (
        CodedAggregateState,
        ErrorCounts,
        block_leverage_aggregate,
        coded_aggregate,
        decode_aggregate,
        sampled_value_and_grad,
    )
    from jaxwgc.asynchronous import race
    from jaxwgc.checks import check_step
    from jaxwgc.codes import GradientCode
    from jaxwgc.coding import (
        Decoding,
        ErrorLocation,
        decode,
        decoding,
        encode,
        locate_errors,
        weighted,
    )
    from jaxwgc.gradients import (
        decoded_value_and_grad,
        local_steps,
        partial_value_and_grad,
    )
    from jaxwgc.parts import partition
    from jaxwgc.planning import Plan, plan
    from jaxwgc.reports import StepTimes, StragglerReport, straggler_report
    from jaxwgc.simulation import (
        Comparison,
        Summary,
        compare,
        monte_carlo,
        summarize,
    )

__version__ = "0.1.0"

__all__ = [
    "CodedAggregateState",
    "Comparison",
    "Decoding",
    "ErrorCounts",
    "ErrorLocation",
    "GradientCode",
    "Plan",
    "StepTimes",
    "StragglerReport",
    "Summary",
    "aggregate",
    "asynchronous",
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
    "distributed",
    "encode",
    "gradients",
    "local_steps",
    "locate_errors",
    "monte_carlo",
    "partial_value_and_grad",
    "partition",
    "parts",
    "plan",
    "planning",
    "race",
    "reports",
    "sampled_value_and_grad",
    "simulation",
    "sketching",
    "straggler_report",
    "stragglers",
    "summarize",
    "weighted",
]

_MODULES = {
    "CodedAggregateState": "aggregate",
    "Comparison": "simulation",
    "Decoding": "coding",
    "ErrorCounts": "aggregate",
    "ErrorLocation": "coding",
    "GradientCode": "codes",
    "Plan": "planning",
    "StepTimes": "reports",
    "StragglerReport": "reports",
    "Summary": "simulation",
    "aggregate": "aggregate",
    "asynchronous": "asynchronous",
    "block_leverage_aggregate": "aggregate",
    "check_step": "checks",
    "checks": "checks",
    "coded_aggregate": "aggregate",
    "codes": "codes",
    "coding": "coding",
    "compare": "simulation",
    "corruptions": "corruptions",
    "decode": "coding",
    "decode_aggregate": "aggregate",
    "decoded_value_and_grad": "gradients",
    "decoders": "decoders",
    "decoding": "coding",
    "distributed": "distributed",
    "encode": "coding",
    "gradients": "gradients",
    "local_steps": "gradients",
    "locate_errors": "coding",
    "monte_carlo": "simulation",
    "partial_value_and_grad": "gradients",
    "partition": "parts",
    "parts": "parts",
    "plan": "planning",
    "planning": "planning",
    "race": "asynchronous",
    "reports": "reports",
    "sampled_value_and_grad": "aggregate",
    "simulation": "simulation",
    "sketching": "sketching",
    "straggler_report": "reports",
    "stragglers": "stragglers",
    "summarize": "simulation",
    "weighted": "coding",
}

# Hidden from type checkers: they would accept every name if they saw `__getattr__`.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
