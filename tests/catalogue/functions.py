"""Public functions of no protocol, whose arguments are checked alike."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from jaxwgc import codes, coding, planning, simulation, stragglers
from jaxwgc.decoders import LeastSquares
from tests.catalogue.row import Row

KEY = jax.random.key(0)
CODE = codes.cyclic_mds(4, 1)
REAL = codes.cyclic_repetition(KEY, 4, 1)
SIX = codes.uncoded(6)
UNEQUAL = codes.unequal([0.1, 0.2, 0.5], 2)
LEAST = LeastSquares()
PARETO = stragglers.pareto(1.0, 2.0)
UNIFORM = stragglers.uniform(2)
ALL = np.ones(6, bool)
HALVES = np.full(3, 0.5)
MANY = np.ones((6, 2), np.float32)
NINE = np.ones(9, np.float32)
ONES = np.ones(3)
TIMES = np.arange(1.0, 19).reshape(6, 3)

ROWS = (
    # Coding.
    Row(
        make=coding.allocate_bits,
        arguments={"straggler_probabilities": HALVES, "length": 8, "total_bits": 9},
        rules={"length": "at least 1", "total_bits": "at least 2"},
    ),
    Row(
        make=coding.form_messages,
        arguments={"matrix_rows": MANY.T, "partial_gradients": MANY},
    ),
    Row(make=coding.inverse_variance_weights, arguments={"variances": ONES}),
    Row(
        make=coding.quantization_variance,
        arguments={"length": 8, "bits": np.array([4])},
        rules={"length": "at least 1"},
    ),
    Row(
        make=coding.source_variances,
        arguments={"residuals": MANY.T, "row_weights": MANY.T},
    ),
    Row(
        make=jaxwgc.decode,
        arguments={
            "code": SIX,
            "messages": MANY,
            "received": ALL,
            "params": MANY[0],
            "decoder": LEAST,
        },
    ),
    Row(
        make=jaxwgc.decoding,
        arguments={"code": SIX, "received": ALL, "decoder": LEAST},
    ),
    Row(make=jaxwgc.encode, arguments={"code": SIX, "partial_gradients": MANY}),
    Row(
        make=jaxwgc.locate_errors,
        arguments={
            "code": CODE,
            "messages": MANY[:4],
            "received": ALL[:4],
            "key": KEY,
            "noise": 0.1,
        },
        rules={"noise": "at least 0"},
    ),
    Row(
        make=codes.worst_rounding,
        arguments={"code": CODE, "num_patterns": 10},
        rules={"num_patterns": "at least 1"},
    ),
    Row(
        make=codes.proportional_placement,
        arguments={"speeds": ONES, "num_parts": 4, "copies": 2},
        rules={"num_parts": "at least 1", "copies": "at least 1"},
    ),
    # Aggregators and gradients.
    Row(
        make=jaxwgc.aggregate.DecodingOptions,
        arguments={"tolerance": 0.1},
        rules={"tolerance": "at least 0"},
    ),
    Row(
        make=jaxwgc.block_leverage_aggregate,
        arguments={
            "code": SIX,
            "model": UNIFORM,
            "key": KEY,
            "probabilities": NINE,
            "num_draws": 6,
        },
        rules={"num_draws": "at least 1"},
    ),
    Row(
        make=jaxwgc.coded_aggregate,
        arguments={
            "code": SIX,
            "model": UNIFORM,
            "key": KEY,
            "method": "messages",
            "undecodable": "skip",
            "memory": False,
            "correct_errors": False,
            "noise": 0.0,
        },
        rules={"noise": "at least 0"},
    ),
    Row(
        make=jaxwgc.decode_aggregate,
        arguments={
            "code": CODE,
            "on_request": False,
            "memory": False,
            "correct_errors": True,
            "noise": 0.1,
        },
        rules={"noise": "at least 0"},
    ),
    Row(
        make=jaxwgc.decoded_value_and_grad,
        arguments={"loss": jnp.dot, "code": SIX, "has_aux": True, "decoder": LEAST},
    ),
    Row(
        make=jaxwgc.partial_value_and_grad,
        arguments={"loss": jnp.dot, "has_aux": True},
    ),
    Row(
        make=jaxwgc.sampled_value_and_grad,
        arguments={
            "loss": jnp.dot,
            "code": SIX,
            "probabilities": NINE,
            "num_draws": 6,
        },
        rules={"num_draws": "at least 1"},
    ),
    # Stragglers.
    Row(
        make=stragglers.fit_delays,
        arguments={"times": TIMES, "loads": 1.0},
        rules={"loads": "at least 0, finite and not all 0"},
    ),
    # Studies.
    Row(
        make=jaxwgc.monte_carlo,
        arguments={
            "trial": lambda key: 1.0,
            "key": KEY,
            "num_trials": 3,
            "batch_size": 2,
        },
        rules={"num_trials": "at least 1", "batch_size": "at least 1"},
    ),
    Row(
        make=jaxwgc.plan,
        arguments={
            "delay": PARETO,
            "num_workers": 4,
            "key": KEY,
            "num_rounds": 40,
            "tail": 1.0,
        },
        rules={
            "num_workers": "at least 1",
            "num_rounds": "at least 40",
            "tail": "at least 0",
        },
    ),
    Row(
        make=planning.Candidates,
        arguments={"late": "busy", "memory": False, "exact": False},
    ),
    Row(
        make=planning.Goal,
        arguments={"target": 0.1, "condition": 10.0, "heterogeneity": 0.1},
        rules={
            "target": "between 0 and 1",
            "condition": "at least 1",
            "heterogeneity": "at least 0",
        },
    ),
    Row(make=jaxwgc.straggler_report, arguments={"times": TIMES}),
    Row(
        make=jaxwgc.summarize,
        arguments={"results": ONES, "confidence": 0.9},
        rules={"confidence": "between 0 and 1"},
    ),
    Row(
        make=simulation.adversarial,
        arguments={"code": SIX, "num_stragglers": 1, "decoder": LEAST},
        rules={"num_stragglers": "at least 0"},
    ),
    Row(
        make=simulation.diagnose,
        arguments={
            "code": SIX,
            "key": KEY,
            "num_stragglers": 1,
            "quantile_levels": HALVES,
            "decoder": LEAST,
        },
        rules={"num_stragglers": "at least 0"},
        checks_keys=False,
    ),
    Row(
        make=simulation.expected_error,
        arguments={"code": UNEQUAL, "straggler_probabilities": HALVES},
    ),
    Row(
        make=simulation.learn_entries,
        arguments={
            "code": REAL,
            "model": UNIFORM,
            "key": KEY,
            "num_steps": 1,
            "batch_size": 1,
            "learning_rate": 0.1,
        },
        rules={
            "num_steps": "at least 1",
            "batch_size": "at least 1",
            "learning_rate": "positive",
        },
    ),
    Row(
        make=simulation.straggler_probabilities,
        arguments={"received": ALL[:, None], "confidence": 0.9},
        rules={"confidence": "between 0 and 1"},
    ),
    Row(
        make=simulation.worst_pattern,
        arguments={"code": SIX, "num_stragglers": 1, "decoder": LEAST},
        rules={"num_stragglers": "at least 0"},
    ),
)
