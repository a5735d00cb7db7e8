"""Compilation: size and time of programs, and time of first calls."""

import functools
import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.runner.study import Numbers, Once, Study, timed
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
    named = programs(seed)
    names = [*named][:2] if quick else [*named]
    for name in names:
        program = named[name]
        lowered = jax.jit(program.function).lower(*program.arguments)
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        text = compiled.as_text() or ""
        num_operations = text.count(" = ")
        measured.append((name, num_operations, seconds))
    measured.sort(key=lambda row: row[1], reverse=True)
    return measured[:SHOWN]


class Program(NamedTuple):
    """A function to compile for its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def effective_weights(code: jaxwgc.GradientCode, received: np.ndarray) -> jax.Array:
    """Returns the weights of the partial gradients in a round."""
    return jaxwgc.decoding(code, received).effective_weights


def programs(seed: int) -> dict[str, Program]:
    """Returns the programs by name."""
    key = jax.random.key(seed)
    reed_solomon = codes.reed_solomon(50, 20, 30)
    compiled_codes = {
        "reed_solomon": reed_solomon,
        "reed_solomon, weighted": jaxwgc.weighted(reed_solomon, np.arange(1.0, 21)),
        "cyclic_mds": codes.cyclic_mds(8, 2),
        "communication_efficient": codes.communication_efficient(8, 2, 2),
        "fractional_repetition": codes.fractional_repetition(6, 2),
        "bernoulli": codes.bernoulli(key, 20, 20, copies=3),
    }
    named: dict[str, Program] = {}
    for name, code in compiled_codes.items():
        uniform = stragglers.uniform(code.num_stragglers)
        named[f"a step of Adam, {name}"] = step(code, uniform, key)
        mask = np.arange(code.num_workers) > 0
        decode = functools.partial(effective_weights, code)
        named[f"a round, {name}"] = Program(decode, (mask,))
    delay = stragglers.shifted_exponential(1.0, 1.0)
    wait = stragglers.until_decodable(reed_solomon)
    until_decodable = step(reed_solomon, stragglers.delayed(delay, wait), key)
    named["a step of Adam, reed_solomon, until decodable"] = until_decodable
    matrix = jax.random.normal(key, (200, 6))
    target = matrix @ jnp.arange(6.0)
    for method in ("gram", "sketch", "factor"):
        solve = functools.partial(sketching.preconditioned, method=method)
        named[f"preconditioned, {method}"] = Program(solve, (key, matrix, target))
    newton = functools.partial(sketching.logistic_newton_sketch, sketch_size=50)
    named["logistic_newton_sketch"] = Program(newton, (key, matrix, target > 0))
    named["leverage_scores"] = Program(sketching.leverage_scores, (matrix,))
    lewis_weights = functools.partial(sketching.lewis_weights, p=1.0)
    named["lewis_weights"] = Program(lewis_weights, (matrix,))
    sample_rows = functools.partial(sketching.sample_rows, sample_size=20)
    named["sample_rows"] = Program(sample_rows, (key, jnp.ones(200) / 200))
    return named


def step(
    code: jaxwgc.GradientCode, model: stragglers.StragglerModel, key: jax.Array
) -> Program:
    """Returns the update of an optax chain and its arguments."""
    optimizer = optax.chain(jaxwgc.coded_aggregate(code, model, key), optax.adam(1e-3))
    gradients = jax.tree.map(lambda leaf: np.stack([leaf] * code.num_parts), PARAMS)
    return Program(optimizer.update, (gradients, optimizer.init(PARAMS), PARAMS))


COMPILED = "/jax/core/compile/backend_compile_duration"
# Shape of the matrix whose least squares are the first call of a process.
YARDSTICK = (2_000, 20)


def first_calls(repeats: int, seed: int, quick: bool) -> Study:
    """Returns a row per call, from processes that have not compiled before."""
    names = ["encode"] if quick else [*calls()]
    repeats = 1 if quick else min(repeats, 3)
    return timed(
        [Once(measure, name, repeats, seed) for name in names],
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


def measure(name: str, repeats: int, seed: int) -> Numbers:
    """Returns the run with the median ratio."""
    runs = [in_own_process(run, name, seed) for _ in range(repeats)]
    runs.sort(key=lambda record: record["seconds"] / record["lstsq"])
    return runs[repeats // 2]


def run(name: str, seed: int) -> Numbers:
    """Times the yardstick and then the call."""
    programs = []

    def count_program(event, duration_secs, **metadata):
        if event == COMPILED:
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(count_program)

    def least_squares():
        matrix = jax.random.normal(jax.random.key(seed), YARDSTICK)
        return jnp.linalg.lstsq(matrix, matrix[:, 0])

    [(_, lstsq)] = measure_in_turn([least_squares], repeats=1)
    call = calls()[name]()
    programs.clear()
    [(_, first_call)] = measure_in_turn([call], repeats=1)
    return {
        "call": name,
        "programs": len(programs),
        "seconds": first_call.median,
        "lstsq": lstsq.median,
    }


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

    def call_of(function, *arguments, **options):
        return lambda: functools.partial(function, *arguments, **options)

    def update_of(make_aggregate, updates, **options):
        def prepare():
            aggregate = make_aggregate()
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

    def coded():
        return jaxwgc.coded_aggregate(code, uniform, other_key)

    def coded_until_decodable():
        wait = stragglers.until_decodable(code)
        return jaxwgc.coded_aggregate(code, stragglers.delayed(delay, wait), other_key)

    def decoding():
        return jaxwgc.decode_aggregate(code)

    def block_leverage():
        probabilities = np.full(40, 0.025)
        return jaxwgc.block_leverage_aggregate(code, uniform, other_key, probabilities)

    block_gradients = {"w": np.ones((40, 5), np.float32)}
    partial = jaxwgc.partial_value_and_grad(loss)
    decoded = jaxwgc.decoded_value_and_grad(loss, code)
    prepared = {
        "README step": readme_step,
        "coded_aggregate.update": update_of(coded, gradients),
        "coded_aggregate.update, until decodable": update_of(
            coded_until_decodable, gradients
        ),
        "decode_aggregate.update": update_of(decoding, messages, received=received),
        "block_leverage_aggregate.update": update_of(block_leverage, block_gradients),
        "partial_value_and_grad": call_of(partial, params, parts),
        "decoded_value_and_grad": call_of(decoded, params, parts, received),
    }
    # Arguments by the name of the function, which ends at a comma.
    arguments_of: dict[str, tuple[Any, ...]] = {
        "encode": (code, gradients),
        "decode": (code, messages, received, params),
        "decoding": (code, received),
        "decoding, weighted": (weighted, received),
        "decoding, least squares": (code, received, decoders.LeastSquares),
        "locate_errors": (small, few_messages, np.ones(6, bool), key),
        "locate_errors, roots of unity": (code, messages, np.ones(50, bool), key),
        "locate_errors, copies": (repeated, few_messages, np.ones(6, bool), key),
        "check_step": (loss, code, params, parts),
        "partition": ((x, y), 20),
        "monte_carlo": (jax.random.uniform, key, 100),
        "straggler_report": (times,),
        "plan": (delay, 8, key),
        "coding.quantize": (key, messages, 8),
        "simulation.diagnose": (small, key),
        "simulation.worst_pattern": (small, 3),
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
    for name, arguments in arguments_of.items():
        path, _, _ = name.partition(",")
        function = operator.attrgetter(path)(jaxwgc)
        prepared[name] = call_of(function, *arguments, **options.get(name, {}))

    def apply_sparse_sign():
        # An embedding is drawn when it is applied.
        return sketching.sparse_sign(key, 100, 1000).apply((x, y))

    prepared["sketching.sparse_sign"] = call_of(apply_sparse_sign)
    return prepared
