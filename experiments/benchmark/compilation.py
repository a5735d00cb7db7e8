"""Size and compilation time of programs."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.runner.study import Once, Study, timed
from jaxwgc import codes, sketching, stragglers

SHOWN = 10
PARAMS = {"weights": np.zeros(5, np.float32), "bias": np.zeros((), np.float32)}


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the largest of the programs that a user compiles first."""
    return timed(
        Once(measure, seed, quick),
        f"The {SHOWN} largest programs: a first training step, decoding of a round, "
        "and functions of `sketching`; one compilation each, float32",
        {
            "program": lambda row: row[0],
            "operations": lambda row: f"{row[1]:,}",
            "seconds to compile": lambda row: f"{row[2]:.2f}",
        },
    )


def measure(seed: int, quick: bool) -> list[tuple[str, int, float]]:
    """Returns names, operations after optimization, and seconds."""
    measured, every = [], [*programs(seed).items()]
    for name, (function, *arguments) in every[: 2 if quick else None]:
        lowered = jax.jit(function).lower(*arguments)
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        measured.append((name, (compiled.as_text() or "").count(" = "), seconds))
    return sorted(measured, key=lambda row: -row[1])[:SHOWN]


def programs(seed: int) -> dict[str, tuple[Callable[..., Any], *tuple[Any, ...]]]:
    """Returns functions and their arguments by name."""
    key, paper = jax.random.key(seed), codes.reed_solomon(50, 20, 30)
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
        calls[f"a round, {name}"] = (
            functools.partial(jaxwgc.effective_weights, code),
            mask,
        )
    code = some["reed_solomon"]
    delay = stragglers.shifted_exponential(1.0, 1.0)
    wait = stragglers.until_decodable(code)
    calls["a step of Adam, reed_solomon, until decodable"] = step(
        code, stragglers.delayed(delay, wait), key
    )
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
