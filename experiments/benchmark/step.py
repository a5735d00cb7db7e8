"""Time of a coded training step relative to a plain one, on one device and on eight."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import jaxwgc
from experiments.paper import descent
from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.timing import median_seconds
from jaxwgc import codes, distributed

NUM_DEVICES = 8
NUM_WORKERS = 40
CODES = {
    "fractional repetition": codes.fractional_repetition(NUM_WORKERS, 1),
    "cyclic MDS": codes.cyclic_mds(NUM_WORKERS, 1),
}


COLUMNS = {
    "step": "{name}",
    "milliseconds": "{seconds:1e3 .1f}",
    "relative to the plain step": "{ratio:.2f}",
}


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the time of a coded step of an MLP on the paper's cluster."""
    num_rows = 400 if quick else 10_000
    title = f"A step on an MLP 784-128-10, {num_rows:,} rows, float32"
    return timed(Once(measure, repeats, seed, num_rows), title, COLUMNS)


def mesh(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the time of coded and of plain data parallelism on eight devices."""
    num_rows = 400 if quick else 10_000
    return timed(
        Once(in_another_process, repeats, seed, num_rows, 1 if quick else 2),
        f"A step on {NUM_DEVICES} CPU devices, {NUM_WORKERS} workers with two parts "
        f"each: an MLP 784-128-10, {num_rows:,} rows, float32",
        COLUMNS,
    )


def relative_times(repeats: int, calls: dict[str, Callable[[], Any]]) -> Numbers:
    """Returns seconds of calls timed in turn, and ratios to the first one."""
    seconds = median_seconds(3 * repeats, *calls.values())
    times = {}
    for name, of_call in zip(calls, seconds, strict=True):
        times[name] = {"seconds": of_call, "ratio": of_call / seconds[0]}
    return times


def problem(
    seed: int, num_rows: int
) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array], jax.Array]:
    """Returns parameters, images and labels, and a key."""
    keys = jax.random.split(jax.random.key(seed), 5)
    params = {
        "hidden": jax.random.normal(keys[0], (784, 128)) / 28,
        "hidden_bias": jnp.zeros(128),
        "output": jax.random.normal(keys[1], (128, 10)) / 11,
        "output_bias": jnp.zeros(10),
    }
    images = jax.random.normal(keys[2], (num_rows, 784))
    labels = jax.random.randint(keys[3], (num_rows,), 0, 10)
    return params, (images, labels), keys[4]


def loss(params, batch, weights=1.0):
    """Returns the sum of weighted cross entropies."""
    images, labels = batch
    hidden = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"])
    logits = hidden @ params["output"] + params["output_bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(weights * losses)


def measure(repeats: int, seed: int, num_rows: int) -> Numbers:
    """Returns times of all steps."""
    params, whole, key = problem(seed, num_rows)
    parts, _ = jaxwgc.partition(whole, descent.CODE.num_parts)
    loads = jnp.asarray(descent.CODE.loads, jnp.float32)
    sgd = optax.sgd(1e-5)

    def call_of(step, state):
        return functools.partial(jax.jit(step), params, state)

    def call_of_optimizer(gradient, optimizer):
        def step(params, state):
            updates, state = optimizer.update(gradient(params), state, params)
            return optax.apply_updates(params, updates), state

        return call_of(step, optimizer.init(params))

    def plain_gradient(params):
        return jax.grad(loss)(params, whole)

    decoded = jaxwgc.decoded_value_and_grad(loss, descent.CODE)

    def collapsed(params, carry):
        key, state = carry
        key, round_key = jax.random.split(key)
        arrivals, _ = descent.STRAGGLERS.sample(round_key, (), loads)
        _, gradient = decoded(params, parts, arrivals.received)
        updates, state = sgd.update(gradient, state, params)
        return optax.apply_updates(params, updates), (key, state)

    def coded(method, **options):
        aggregate = jaxwgc.coded_aggregate(
            descent.CODE, descent.STRAGGLERS, key, method=method, **options
        )
        partials = jaxwgc.partial_value_and_grad(loss)

        def partial_gradients(params):
            _, gradients = partials(params, parts)
            return gradients

        return call_of_optimizer(partial_gradients, optax.chain(aggregate, sgd))

    calls = {
        "plain full batch": call_of_optimizer(plain_gradient, sgd),
        "coded, one backward pass": call_of(collapsed, (key, sgd.init(params))),
        "coded, effective weights on partial gradients": coded("partials"),
        "coded, every message formed and decoded": coded("messages"),
        "coded, corrupted messages corrected": coded("messages", correct_errors=True),
    }
    return relative_times(repeats, calls)


def in_another_process(*parameters: int) -> Numbers:
    """Runs `measure_mesh` after it sets the number of devices, before JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={NUM_DEVICES}"
    program = (
        "import json; from experiments.benchmark import step; "
        f"print(json.dumps(step.measure_mesh(*{parameters})))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", program]
    printed = subprocess.check_output(command, text=True, env=environment)
    last_line = printed.splitlines()[-1]
    return json.loads(last_line)


def measure_mesh(repeats: int, seed: int, num_rows: int, num_codes: int) -> Numbers:
    """Returns times of all steps on the devices."""
    mesh = jax.make_mesh((NUM_DEVICES,), ("workers",))
    params, data, _ = problem(seed, num_rows)
    parts = jax.device_get(jaxwgc.partition(data, NUM_WORKERS))
    received = np.arange(NUM_WORKERS) > 0

    def part_loss(params, part):
        return loss(params, *part)

    def of_shard(params, parts):
        """Runs one backward pass over all rows of a device."""
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)
        return jax.lax.psum(jax.value_and_grad(part_loss)(params, rows), "workers")

    plain = jax.shard_map(
        of_shard,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("workers")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )

    @functools.partial(jax.jit, static_argnums=0)
    def update(step, params, placed):
        _, gradient = step(params, placed)
        return jax.tree.map(lambda old, slope: old - 1e-5 * slope, params, gradient)

    uncoded = codes.uncoded(NUM_WORKERS)
    placed = distributed.place_parts(parts, uncoded, mesh)
    calls = {"plain": functools.partial(update, plain, params, placed.arrays)}
    for name in [*CODES][:num_codes]:
        compute = distributed.mesh_value_and_grad(part_loss, CODES[name], mesh)
        step = functools.partial(compute, received=received)
        placed = distributed.place_parts(parts, CODES[name], mesh)
        calls[name] = functools.partial(update, step, params, placed)
    return relative_times(repeats, calls)
