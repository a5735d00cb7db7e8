"""Time of a coded training step relative to a plain one, on one device and on eight."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import jaxwgc
from experiments.paper import descent
from experiments.runner.study import Numbers, Once, Study
from experiments.runner.tables import ResultTable
from experiments.runner.timing import median_seconds
from jaxwgc import codes, distributed

DESCRIPTIONS = (
    "plain full batch",
    "coded, one backward pass",
    "coded, effective weights on partial gradients",
    "coded, every message formed and decoded",
    "coded, corrupted messages corrected",
)
NUM_DEVICES, NUM_WORKERS = 8, 40
CODES = {
    "fractional repetition": codes.fractional_repetition(NUM_WORKERS, 1),
    "cyclic MDS": codes.cyclic_mds(NUM_WORKERS, 1),
}


def tabulate(title: str, names, numbers: Numbers) -> ResultTable:
    """Returns milliseconds, and ratios to the plain step."""
    seconds = numbers.values()
    return ResultTable(
        title,
        ["step", "milliseconds", "relative to the plain step"],
        [
            [name, f"{1e3 * each:.1f}", f"{each / numbers['plain']:.2f}"]
            for name, each in zip(names or numbers, seconds)
        ],
    )


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the time of a coded step of an MLP on the paper's cluster."""
    num_rows = 400 if quick else 10_000
    title = f"A step on an MLP 784-128-10, {num_rows:,} rows, float32"
    table = functools.partial(tabulate, title, DESCRIPTIONS)
    return Study(Once(measure, repeats, seed, num_rows), tables={"": table})


def mesh(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the time of coded and of plain data parallelism on eight devices."""
    num_rows = 400 if quick else 10_000
    title = (
        f"A step on {NUM_DEVICES} CPU devices, {NUM_WORKERS} workers with two parts "
        f"each: an MLP 784-128-10, {num_rows:,} rows, float32"
    )
    cell = Once(in_another_process, repeats, seed, num_rows, 1 if quick else 2)
    return Study(cell, tables={"": functools.partial(tabulate, title, None)})


def problem(seed: int, num_rows: int):
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


def measure(repeats: int, seed: int, num_rows: int) -> dict[str, float]:
    """Returns seconds of all steps, timed in turn."""
    params, whole, key = problem(seed, num_rows)
    parts, _ = jaxwgc.partition(whole, descent.CODE.num_parts)
    loads = jnp.asarray(descent.CODE.loads, jnp.float32)
    sgd = optax.sgd(1e-5)

    def stepper(gradient, optimizer):
        def step(params, state):
            updates, state = optimizer.update(gradient(params), state, params)
            return optax.apply_updates(params, updates), state

        return step, optimizer.init(params)

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
        optimizer = optax.chain(aggregate, sgd)
        return stepper(lambda params: partials(params, parts)[1], optimizer)

    steps = {
        "plain": stepper(lambda params: jax.grad(loss)(params, whole), sgd),
        "collapsed": (collapsed, (key, sgd.init(params))),
        "partials": coded("partials"),
        "messages": coded("messages"),
        "corrected": coded("messages", correct_errors=True),
    }
    calls = [
        functools.partial(jax.jit(step), params, state)
        for step, state in steps.values()
    ]
    return dict(zip(steps, median_seconds(3 * repeats, *calls), strict=True))


def in_another_process(*parameters: int) -> dict[str, float]:
    """Runs `measure_mesh` after it sets the number of devices, before JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={NUM_DEVICES}"
    program = (
        "import json; from experiments.benchmark import step; "
        f"print(json.dumps(step.measure_mesh(*{parameters})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_mesh(repeats: int, seed: int, num_rows: int, num_codes: int):
    """Returns seconds of all steps on the devices, timed in turn."""
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
    uncoded = codes.uncoded(NUM_WORKERS)
    steps = {"plain": (plain, distributed.place_parts(parts, uncoded, mesh).arrays)}
    for name, code in [*CODES.items()][:num_codes]:
        compute = distributed.mesh_value_and_grad(part_loss, code, mesh)
        step = functools.partial(compute, received=received)
        steps[name] = step, distributed.place_parts(parts, code, mesh)
    calls = []
    for step, placed in steps.values():

        def update(params, placed, step=step):
            _, gradient = step(params, placed)
            return jax.tree.map(lambda old, slope: old - 1e-5 * slope, params, gradient)

        calls.append(functools.partial(jax.jit(update), params, placed))
    return dict(zip(steps, median_seconds(3 * repeats, *calls), strict=True))
