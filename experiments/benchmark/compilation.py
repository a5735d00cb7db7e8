"""Compilation: size and time of programs, and time of first calls."""

import functools
import operator
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
from experiments.runner.timing import in_own_process, measure_in_turn
from jaxwgc import codes, decoders, sketching, stragglers

SHOWN = 10
PARAMS = {"weights": np.zeros(5, np.float32), "bias": np.zeros((), np.float32)}


def largest(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the largest of the programs that a user compiles first."""
    return timed(
        Once(compile_all, seed, quick),
        f"The {SHOWN} largest programs: a first training step, decoding of a round, "
        "and functions of `sketching`; one compilation each, float32",
        {
            "program": lambda row: row[0],
            "operations": lambda row: f"{row[1]:,}",
            "seconds to compile": lambda row: f"{row[2]:.2f}",
        },
    )


def compile_all(seed: int, quick: bool) -> list[tuple[str, int, float]]:
    """Returns names, operations after optimization, and seconds."""
    measured = []
    every = [*programs(seed).items()]
    for name, (function, *arguments) in every[: 2 if quick else None]:
        lowered = jax.jit(function).lower(*arguments)
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        measured.append((name, (compiled.as_text() or "").count(" = "), seconds))
    return sorted(measured, key=lambda row: -row[1])[:SHOWN]


def programs(seed: int) -> dict[str, tuple[Callable[..., Any], *tuple[Any, ...]]]:
    """Returns functions and their arguments by name."""
    key = jax.random.key(seed)
    paper = codes.reed_solomon(50, 20, 30)
    some = {
        "reed_solomon": paper,
        "reed_solomon, weighted": jaxwgc.weighted(paper, np.arange(1.0, 21)),
        "cyclic_mds": codes.cyclic_mds(8, 2),
        "communication_efficient": codes.communication_efficient(8, 2, 2),
        "fractional_repetition": codes.fractional_repetition(6, 2),
        "bernoulli": codes.bernoulli(key, 20, 20, replication=3),
    }
    calls: dict[str, Any] = {}
    for name, code in some.items():
        uniform = stragglers.uniform(code.num_stragglers)
        calls[f"a step of Adam, {name}"] = step(code, uniform, key)
        mask = np.arange(code.num_workers) > 0
        effective = functools.partial(jaxwgc.effective_weights, code)
        calls[f"a round, {name}"] = effective, mask
    code = some["reed_solomon"]
    delay = stragglers.shifted_exponential(1.0, 1.0)
    wait = stragglers.until_decodable(code)
    until_decodable = step(code, stragglers.delayed(delay, wait), key)
    calls["a step of Adam, reed_solomon, until decodable"] = until_decodable
    matrix = jax.random.normal(key, (200, 6))
    target = matrix @ jnp.arange(6.0)
    for method in ("gram", "sketch", "factor"):
        solve = functools.partial(sketching.preconditioned, method=method)
        calls[f"preconditioned, {method}"] = solve, key, matrix, target
    newton = functools.partial(sketching.logistic_newton_sketch, sketch_size=50)
    calls["logistic_newton_sketch"] = newton, key, matrix, target > 0
    calls["leverage_scores"] = sketching.leverage_scores, matrix
    calls["lewis_weights"] = functools.partial(sketching.lewis_weights, p=1.0), matrix
    rows = functools.partial(sketching.sample_rows, sample_size=20)
    calls["sample_rows"] = rows, key, jnp.ones(200) / 200
    return calls


def step(code, model, key):
    """Returns the update of an optax chain and its arguments."""
    optimizer = optax.chain(jaxwgc.coded_aggregate(code, model, key), optax.adam(1e-3))
    gradients = jax.tree.map(lambda leaf: np.stack([leaf] * code.num_parts), PARAMS)
    return optimizer.update, gradients, optimizer.init(PARAMS), PARAMS


COMPILED = "/jax/core/compile/backend_compile_duration"
# Shape of the matrix whose least squares are the first call of a process.
YARDSTICK = 2_000, 20


def first_calls(repeats: int, seed: int, quick: bool) -> Study:
    """Returns a row per call, from processes that have not compiled before."""
    names = ["encode"] if quick else [*calls()]
    return timed(
        [Once(measure, name, 1 if quick else min(repeats, 3), seed) for name in names],
        "First calls: compiled programs, seconds, and seconds over those of the first "
        "`jnp.linalg.lstsq` of a random "
        f"{YARDSTICK[0]:,} × {YARDSTICK[1]} matrix in the same "
        "process, start of JAX included; "
        "median of processes without a compilation cache, float32",
        {
            "first call": "`{call}`",
            "programs": "{programs:,}",
            "seconds": "{seconds:.2f}",
            "seconds / lstsq": lambda row: f"{row['seconds'] / row['lstsq']:.2f}",
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

    def least_squares():
        matrix = jax.random.normal(jax.random.key(seed), YARDSTICK)
        return jnp.linalg.lstsq(matrix, matrix[:, 0])

    [(_, lstsq)] = measure_in_turn([least_squares], repeats=1)
    call = calls()[name]()
    programs.clear()
    [(_, own)] = measure_in_turn([call], repeats=1)
    times = {"seconds": own.median, "lstsq": lstsq.median}
    return {"call": name, "programs": len(programs), **times}


def calls() -> dict[str, Callable[[], Callable[[], Any]]]:
    """Returns functions that prepare a call, which is not timed, and return it."""
    key = jax.random.key(0)
    other_key = jax.random.key(1)
    code = codes.reed_solomon(50, 20, 30)
    small = codes.cyclic_mds(6, 3)
    weighted = jaxwgc.weighted(code, np.arange(1.0, 21))
    repeated = codes.fractional_repetition(6, 2)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1000, 5)).astype(np.float32)
    y = x @ np.arange(5, dtype=np.float32)
    parts = (x.reshape(20, 50, 5), y.reshape(20, 50))
    params = {"w": np.zeros(5, np.float32)}
    gradients = {"w": generator.normal(size=(20, 5)).astype(np.float32)}
    received = np.arange(50) >= code.num_stragglers
    messages = np.ones((50, 3), np.complex64)
    few_messages = np.ones((6, 5), np.float32)
    probabilities = np.full(1000, 1e-3, np.float32)
    times = generator.exponential(size=(200, 8)) + 1
    delay = stragglers.shifted_exponential(1.0, 1.0)
    uniform = stragglers.uniform(code.num_stragglers)

    def loss(params, part):
        x, y = part
        return jnp.sum((x @ params["w"] - y) ** 2)

    def update(make, updates, **options):
        def prepare():
            aggregate = make()()
            state = aggregate.init(params)
            return lambda: aggregate.update(updates, state, params, **options)

        return prepare

    def readme_step():
        aggregate = jaxwgc.coded_aggregate(code, uniform, other_key)
        optimizer = optax.chain(aggregate, optax.adam(0.1))

        @jax.jit
        def step(params, state):
            _, gradients = jaxwgc.partial_value_and_grad(loss)(params, parts)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return functools.partial(step, params, optimizer.init(params))

    def of(function, *arguments, **options):
        return lambda: functools.partial(function, *arguments, **options)

    until_decodable = stragglers.delayed(delay, stragglers.until_decodable(code))
    coded = functools.partial(jaxwgc.coded_aggregate, code)
    block = functools.partial(jaxwgc.block_leverage_aggregate, code, uniform)
    partial = jaxwgc.partial_value_and_grad(loss)
    decoded = jaxwgc.decoded_value_and_grad(loss, code)
    prepared = {
        "README step": readme_step,
        "coded_aggregate.update": update(of(coded, uniform, other_key), gradients),
        "coded_aggregate.update, until decodable": update(
            of(coded, until_decodable, other_key), gradients
        ),
        "decode_aggregate.update": update(
            of(jaxwgc.decode_aggregate, code), messages, received=received
        ),
        "block_leverage_aggregate.update": update(
            of(block, other_key, np.full(40, 0.025)),
            {"w": np.ones((40, 5), np.float32)},
        ),
        "partial_value_and_grad": of(partial, params, parts),
        "decoded_value_and_grad": of(decoded, params, parts, received),
    }
    # Arguments by the name of the function.
    given: dict[str, tuple[Any, ...]] = {
        "encode": (code, gradients),
        "decode": (code, messages, received, params),
        "decoding_weights": (code, received),
        "decoding_weights, weighted": (weighted, received),
        "decoding_weights, least squares": (code, received, decoders.LeastSquares),
        "effective_weights": (code, received),
        "decoding_error": (code, received),
        "locate_errors": (small, few_messages, np.ones(6, bool), key),
        "locate_errors, roots of unity": (code, messages, np.ones(50, bool), key),
        "locate_errors, copies": (repeated, few_messages, np.ones(6, bool), key),
        "check_step": (loss, code, params, parts),
        "partition": ((x, y), 20),
        "monte_carlo": (jax.random.uniform, key, 100),
        "straggler_report": (times,),
        "plan": (delay, 8, key),
        "coding.quantize": (key, messages, 8),
        "studies.diagnose": (small, key),
        "studies.worst_pattern": (small, 3),
        "stragglers.fit_delays": (times,),
        "sketching.leverage_scores": (x,),
        "sketching.ridge_leverage_scores": (x, 1.0),
        "sketching.approximate_leverage_scores": (key, x),
        "sketching.rank_k_leverage_scores": (key, x, 2),
        "sketching.lewis_weights": (x, 1.0),
        "sketching.sample_rows": (key, probabilities, 100),
        "sketching.sparse_sign": (key, 100, 1000),
        "sketching.sketch_and_solve": (key, x, y, 100),
        "sketching.preconditioned": (key, x, y),
        "sketching.iterative_hessian_sketch": (key, x, y, 100, 5),
        "sketching.logistic_newton_sketch": (key, x, y > 0, 100),
        "sketching.choose_ridge": (x, y, [0.1, 1.0, 10.0]),
    }
    options = {
        "check_step": {"data": (x, y)},
        "sketching.logistic_newton_sketch": {"ridge": 1.0},
    }
    for name, arguments in given.items():
        function = operator.attrgetter(name.split(",")[0])(jaxwgc)
        prepared[name] = of(function, *arguments, **options.get(name, {}))
    # An embedding is drawn when it is applied.
    draw = functools.partial(sketching.sparse_sign, *given["sketching.sparse_sign"])
    prepared["sketching.sparse_sign"] = of(lambda: draw().apply((x, y)))
    return prepared
