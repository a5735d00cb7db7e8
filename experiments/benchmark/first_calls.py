"""Time and number of compiled programs of the first call of each public function."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import in_own_process
from jaxwgc import codes, coding, decoders, sketching, stragglers, studies

COMPILED = "/jax/core/compile/backend_compile_duration"
# Shape of the matrix whose least squares are the first call of a process.
YARDSTICK = 2_000, 20


def study(repeats: int, seed: int, quick: bool) -> Study:
    """One row per call, each in processes of its own, none of which compiled before."""
    names = ["encode"] if quick else [*calls()]
    return timed(
        [Once(measure, name, 1 if quick else min(repeats, 3), seed) for name in names],
        "First calls: compiled programs, seconds, and seconds over those of the first "
        "`jnp.linalg.lstsq` of a random "
        f"{YARDSTICK[0]:,} × {YARDSTICK[1]} matrix in the same "
        "process, start of JAX included; "
        "median of processes without a compilation cache, float32",
        lambda row: {
            "first call": f"`{row['call']}`",
            "programs": f"{row['programs']:,}",
            "seconds": f"{row['seconds']:.2f}",
            "seconds / lstsq": f"{row['seconds'] / row['lstsq']:.2f}",
        },
    )


def measure(name: str, repeats: int, seed: int) -> dict[str, Any]:
    """Returns the run with the median ratio."""
    runs = [in_own_process(run, name, seed) for _ in range(repeats)]
    return sorted(runs, key=lambda one: one["seconds"] / one["lstsq"])[repeats // 2]


def run(name: str, seed: int) -> dict[str, Any]:
    """Times the yardstick and then the call."""
    programs = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: programs.append(event) if event == COMPILED else None
    )

    def seconds(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - start

    def least_squares():
        matrix = jax.random.normal(jax.random.key(seed), YARDSTICK)
        return jnp.linalg.lstsq(matrix, matrix[:, 0])

    lstsq = seconds(least_squares)
    call = calls()[name]()
    programs.clear()
    return {
        "call": name,
        "seconds": seconds(call),
        "lstsq": lstsq,
        "programs": len(programs),
    }


def calls() -> dict[str, Callable[[], Callable[[], Any]]]:
    """Returns functions that prepare a call, which is not timed, and return it."""
    key = jax.random.key
    code, small = codes.reed_solomon(50, 20, 30), codes.cyclic_mds(6, 3)
    weighted = jaxwgc.weighted(code, np.arange(1.0, 21))
    repeated = codes.fractional_repetition(6, 2)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1000, 5)).astype(np.float32)
    y = x @ np.arange(5, dtype=np.float32)
    parts = (x.reshape(20, 50, 5), y.reshape(20, 50))
    params = {"w": np.zeros(5, np.float32)}
    gradients = {"w": generator.normal(size=(20, 5)).astype(np.float32)}
    received = np.arange(50) >= code.num_stragglers
    messages, few_messages = np.ones((50, 3), np.complex64), np.ones((6, 5), np.float32)
    probabilities = np.full(1000, 1e-3, np.float32)
    times = generator.exponential(size=(200, 8)) + 1
    delay = stragglers.shifted_exponential(1.0, 1.0)
    uniform = stragglers.uniform(code.num_stragglers)

    def loss(params, part):
        x, y = part
        return jnp.sum((x @ params["w"] - y) ** 2)

    def update(make, updates, **options):
        def prepare():
            aggregate = make()
            state = aggregate.init(params)
            return lambda: aggregate.update(updates, state, params, **options)

        return prepare

    def readme_step():
        aggregate = jaxwgc.coded_aggregate(code, uniform, key(1))
        optimizer = optax.chain(aggregate, optax.adam(0.1))

        @jax.jit
        def step(params, state):
            _, gradients = jaxwgc.partial_value_and_grad(loss)(params, parts)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return functools.partial(step, params, optimizer.init(params))

    def of(function, *arguments, **options):
        return lambda: functools.partial(function, *arguments, **options)

    def with_key(function, *arguments, **options):
        return lambda: functools.partial(function, key(0), *arguments, **options)

    def locate(code, messages):
        received = np.ones(code.num_workers, bool)
        return lambda: functools.partial(
            jaxwgc.locate_errors, code, messages, received, key(0)
        )

    def until_decodable():
        wait = stragglers.until_decodable(code)
        return jaxwgc.coded_aggregate(code, stragglers.delayed(delay, wait), key(1))

    return {
        "README step": readme_step,
        "coded_aggregate.update": update(
            lambda: jaxwgc.coded_aggregate(code, uniform, key(1)), gradients
        ),
        "coded_aggregate.update, until decodable": update(until_decodable, gradients),
        "decode_aggregate.update": update(
            lambda: jaxwgc.decode_aggregate(code), messages, received=received
        ),
        "block_leverage_aggregate.update": update(
            lambda: jaxwgc.block_leverage_aggregate(
                code, uniform, key(1), np.full(40, 0.025)
            ),
            {"w": np.ones((40, 5), np.float32)},
        ),
        "partial_value_and_grad": of(
            jaxwgc.partial_value_and_grad(loss), params, parts
        ),
        "decoded_value_and_grad": of(
            jaxwgc.decoded_value_and_grad(loss, code), params, parts, received
        ),
        "encode": of(jaxwgc.encode, code, gradients),
        "decode": of(jaxwgc.decode, code, messages, received, params),
        "decoding_weights": of(jaxwgc.decoding_weights, code, received),
        "decoding_weights, weighted": of(jaxwgc.decoding_weights, weighted, received),
        "decoding_weights, least squares": of(
            jaxwgc.decoding_weights, code, received, decoders.LeastSquares
        ),
        "effective_weights": of(jaxwgc.effective_weights, code, received),
        "decoding_error": of(jaxwgc.decoding_error, code, received),
        "locate_errors": locate(small, few_messages),
        "locate_errors, roots of unity": locate(code, messages),
        "locate_errors, copies": locate(repeated, few_messages),
        "check_step": of(jaxwgc.check_step, loss, code, params, parts, data=(x, y)),
        "partition": of(jaxwgc.partition, (x, y), 20),
        "monte_carlo": with_key(
            lambda key: jaxwgc.monte_carlo(jax.random.uniform, key, 100)
        ),
        "straggler_report": of(jaxwgc.straggler_report, times),
        "plan": with_key(lambda key: jaxwgc.plan(delay, 8, key)),
        "coding.quantize": with_key(coding.quantize, messages, 8),
        "studies.diagnose": with_key(lambda key: studies.diagnose(small, key)),
        "studies.worst_pattern": of(studies.worst_pattern, small, 3),
        "stragglers.fit_delays": of(stragglers.fit_delays, times),
        "sketching.leverage_scores": of(sketching.leverage_scores, x),
        "sketching.ridge_leverage_scores": of(sketching.ridge_leverage_scores, x, 1.0),
        "sketching.approximate_leverage_scores": with_key(
            sketching.approximate_leverage_scores, x
        ),
        "sketching.rank_k_leverage_scores": with_key(
            sketching.rank_k_leverage_scores, x, 2
        ),
        "sketching.lewis_weights": of(sketching.lewis_weights, x, 1.0),
        "sketching.sample_rows": with_key(sketching.sample_rows, probabilities, 100),
        "sketching.sparse_sign": with_key(
            lambda key: sketching.sparse_sign(key, 100, num_rows=1000).apply((x, y))
        ),
        "sketching.sketch_and_solve": with_key(sketching.sketch_and_solve, x, y, 100),
        "sketching.preconditioned": with_key(sketching.preconditioned, x, y),
        "sketching.iterative_hessian_sketch": with_key(
            sketching.iterative_hessian_sketch, x, y, 100, 5
        ),
        "sketching.logistic_newton_sketch": with_key(
            sketching.logistic_newton_sketch, x, y > 0, 100, ridge=1.0
        ),
        "sketching.choose_ridge": of(sketching.choose_ridge, x, y, [0.1, 1.0, 10.0]),
    }
