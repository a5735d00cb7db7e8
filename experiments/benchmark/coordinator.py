"""The cost of a step on a Ray cluster beside the work of its workers."""

import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.benchmark import _coordinators
from experiments.runner.study import Once, Study
from experiments.runner.tables import ResultTable

NUM_WORKERS, NUM_AWAITED = 8, 6
# The first steps find memory and compile.
NUM_WARM = 5
SHARES = {
    "broadcast": "parameters into the object store, a task to each worker",
    "waiting": "until the answers are there, the empty work included",
    "transfer": "answers read, checked and copied",
    "decoding": "decoding and an SGD step, compiled as one",
}


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Steps with empty work, messages in float32 and in bfloat16."""
    del seed
    num_params = 1_000 if quick else 1_000_000
    num_steps = 3 if quick else 5 * repeats
    cells = {
        name: Once(measure, num_params, num_steps, dtype)
        for name, dtype in {"float32": None, "bfloat16": "bfloat16"}.items()
    }

    def tabulate(numbers):
        rows = [["all", *(f"{times['all']:.1f}" for times in numbers.values())]]
        for share, text in SHARES.items():
            cells = (f"{times[share]:.1f}" for times in numbers.values())
            rows.append([f"{share}: {text}", *cells])
        return ResultTable(
            f"A step with empty work, {NUM_WORKERS} workers, {NUM_AWAITED} awaited, "
            f"{num_params:,} parameters: milliseconds",
            ["share", *(f"messages in {name}" for name in numbers)],
            rows,
        )

    return Study(cells, tables={"": tabulate})


def peers(repeats: int, seed: int, quick: bool) -> Study:
    """The same step with a plain Ray loop, and with memory that processes share."""
    del seed
    sizes = [1_000] if quick else [1_000, 1_000_000]
    num_blocks, num_steps = (2, 3) if quick else (repeats + 1, 20)
    cells = {
        f"{num_params:,}": Once(compare, num_params, num_blocks, num_steps)
        for num_params in sizes
    }

    def tabulate(numbers):
        heads = list(next(iter(numbers.values())))
        rows = [
            [
                size,
                *(f"{times[name]:.1f}" for name in heads),
                f"{times['RayCluster'] / times['plain Ray']:.2f}",
            ]
            for size, times in numbers.items()
        ]
        return ResultTable(
            f"A step with empty work, {NUM_WORKERS} workers, {NUM_AWAITED} awaited: "
            "milliseconds",
            ["parameters", *heads, "RayCluster over plain Ray"],
            rows,
        )

    return Study(cells, tables={"": tabulate})


def compare(num_params: int, num_blocks: int, num_steps: int) -> dict[str, float]:
    """Median milliseconds a step of each, in blocks of steps that take turns."""
    code, optimizer, update = _step()
    seconds: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(
            jaxwgc.distributed.RayCluster(
                _coordinators.empty_loss,
                code,
                np.ones((code.num_parts, 1), np.float32),
                wait=jaxwgc.stragglers.fastest(NUM_AWAITED),
            )
        )

        def ours(params):
            round = cluster.compute(params)
            return round.messages, round.received

        ours(jnp.zeros(num_params))
        given = code, num_params, NUM_AWAITED
        coordinators = {
            "RayCluster": ours,
            "plain Ray": stack.enter_context(_coordinators.plain_ray(*given)),
            "shared memory": stack.enter_context(_coordinators.shared(*given)),
        }
        for block in range(num_blocks):
            for name, compute in coordinators.items():
                params = jnp.zeros(num_params)
                state = optimizer.init(params)
                for step in range(NUM_WARM + num_steps):
                    start = time.perf_counter()
                    messages, received = compute(params)
                    params, state = jax.block_until_ready(
                        update(messages, state, params, received)
                    )
                    if block and step >= NUM_WARM:
                        taken = time.perf_counter() - start
                        seconds.setdefault(name, []).append(taken)
    return {name: 1e3 * float(np.median(taken)) for name, taken in seconds.items()}


def _step():
    """A code, and decoding with a step of SGD, compiled as one."""
    code = jaxwgc.codes.cyclic_repetition(
        jax.random.key(0), NUM_WORKERS, num_stragglers=NUM_WORKERS - NUM_AWAITED
    )
    optimizer = optax.chain(jaxwgc.decode_aggregate(code), optax.sgd(1e-3))

    @jax.jit
    def update(messages, state, params, received):
        updates, state = optimizer.update(messages, state, params, received=received)
        return optax.apply_updates(params, updates), state

    return code, optimizer, update


def measure(num_params: int, num_steps: int, dtype: str | None) -> dict[str, Any]:
    """Median milliseconds a step, and of its shares."""
    code, optimizer, update = _step()
    params = jnp.zeros(num_params)
    state = optimizer.init(params)
    records = []
    with jaxwgc.distributed.RayCluster(
        _coordinators.empty_loss,
        code,
        np.ones((code.num_parts, 1), np.float32),
        wait=jaxwgc.stragglers.fastest(NUM_AWAITED),
        decoding=jaxwgc.aggregate.DecodingOptions(message_dtype=dtype),
    ) as cluster:
        for _ in range(NUM_WARM + num_steps):
            start = time.perf_counter()
            round = cluster.compute(params)
            computed = time.perf_counter()
            params, state = jax.block_until_ready(
                update(round.messages, state, params, round.received)
            )
            end = time.perf_counter()
            times = {"all": end - start, "decoding": end - computed, **round.timings}
            times["waiting"] = computed - start - times["broadcast"] - times["transfer"]
            records.append(times)
    return {
        name: 1e3 * float(np.median([times[name] for times in records[NUM_WARM:]]))
        for name in records[0]
    }
