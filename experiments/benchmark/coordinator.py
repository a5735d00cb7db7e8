"""What a step on a Ray cluster costs beside the work of its workers."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
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
        rows = [["all", *(f"{own['all']:.1f}" for own in numbers.values())]]
        for share, text in SHARES.items():
            cells = (f"{own[share]:.1f}" for own in numbers.values())
            rows.append([f"{share}: {text}", *cells])
        return ResultTable(
            f"A step with empty work, {NUM_WORKERS} workers, {NUM_AWAITED} awaited, "
            f"{num_params:,} parameters: milliseconds",
            ["share", *(f"messages in {name}" for name in numbers)],
            rows,
        )

    return Study(cells, tables={"": tabulate})


def empty_loss(params: jax.Array, part: jax.Array) -> jax.Array:
    """Whose gradient is as long as params, and costs nothing but its memory."""
    return part[0] * params[0]


def measure(num_params: int, num_steps: int, dtype: str | None) -> dict[str, Any]:
    """Median milliseconds a step, and of its shares."""
    code = jaxwgc.codes.cyclic_repetition(
        jax.random.key(0), NUM_WORKERS, num_stragglers=NUM_WORKERS - NUM_AWAITED
    )
    optimizer = optax.chain(jaxwgc.decode_aggregate(code), optax.sgd(1e-3))

    @jax.jit
    def update(messages, state, params, received):
        updates, state = optimizer.update(messages, state, params, received=received)
        return optax.apply_updates(params, updates), state

    params = jnp.zeros(num_params)
    state = optimizer.init(params)
    records = []
    with jaxwgc.distributed.RayCluster(
        empty_loss,
        code,
        np.ones((code.num_parts, 1), np.float32),
        wait=jaxwgc.stragglers.fastest(NUM_AWAITED),
        message_dtype=dtype,
    ) as cluster:
        for _ in range(NUM_WARM + num_steps):
            start = time.perf_counter()
            found = cluster.compute(params)
            computed = time.perf_counter()
            params, state = jax.block_until_ready(
                update(found.messages, state, params, found.received)
            )
            end = time.perf_counter()
            own = {"all": end - start, "decoding": end - computed, **cluster.seconds}
            own["waiting"] = computed - start - own["broadcast"] - own["transfer"]
            records.append(own)
    return {
        name: 1e3 * float(np.median([own[name] for own in records[NUM_WARM:]]))
        for name in records[0]
    }
