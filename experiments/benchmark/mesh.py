"""Time of a coded step on eight devices, against the same work with no coding."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import jaxwgc
from experiments.runner.study import Once, Study
from experiments.runner.tables import ResultTable
from experiments.runner.timing import median_seconds
from jaxwgc import distributed

NUM_DEVICES = 8
NUM_WORKERS = 40
CODES = {
    "fractional repetition": jaxwgc.codes.fractional_repetition(NUM_WORKERS, 1),
    "cyclic MDS": jaxwgc.codes.cyclic_mds(NUM_WORKERS, 1),
}


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Against plain data parallelism, which is the same work."""
    num_rows = 400 if quick else 10_000

    def tabulate(numbers):
        rows = [
            [name, f"{1e3 * seconds:.1f}", f"{seconds / numbers['plain']:.2f}"]
            for name, seconds in numbers.items()
        ]
        return ResultTable(
            f"A step on {NUM_DEVICES} CPU devices, {NUM_WORKERS} workers with two "
            f"parts each: an MLP 784-128-10, {num_rows:,} rows, float32",
            ["step", "milliseconds", "of the plain step"],
            rows,
        )

    cell = Once(in_another_process, repeats, seed, num_rows, 1 if quick else 2)
    return Study(cell, tables={"": tabulate})


def in_another_process(*parameters: int) -> dict[str, float]:
    """`measure`, where the devices are: their number is set before JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={NUM_DEVICES}"
    program = (
        "import json; from experiments.benchmark import mesh; "
        f"print(json.dumps(mesh.measure(*{parameters})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(repeats: int, seed: int, num_rows: int, num_codes: int) -> dict[str, float]:
    """Seconds, all timed in turn."""
    mesh = jax.make_mesh((NUM_DEVICES,), ("workers",))
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "hidden": jax.random.normal(keys[0], (784, 128)) / 28,
        "output": jax.random.normal(keys[1], (128, 10)) / 11,
    }
    images = np.asarray(jax.random.normal(keys[2], (num_rows, 784)))
    labels = np.asarray(jax.random.randint(keys[3], (num_rows,), 0, 10))
    parts = jax.device_get(jaxwgc.partition((images, labels), NUM_WORKERS))
    received = np.arange(NUM_WORKERS) > 0

    def loss(params, part):
        (images, labels), weights = part
        logits = jax.nn.relu(images @ params["hidden"]) @ params["output"]
        odds = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -jnp.sum(weights * odds[:, 0])

    def plain(params, placed):
        """One backward pass over all rows that a device has."""

        def of_shard(params, parts):
            rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)
            return jax.lax.psum(jax.value_and_grad(loss)(params, rows), "workers")

        return jax.shard_map(
            of_shard,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("workers")),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(params, placed)

    uncoded = jaxwgc.codes.uncoded(NUM_WORKERS)
    once = distributed.place_parts(parts, uncoded, mesh).arrays
    steps = {"plain": (plain, once)}
    for name, code in [*CODES.items()][:num_codes]:
        compute = distributed.mesh_value_and_grad(loss, code, mesh)
        step = functools.partial(compute, received=received)
        steps[name] = step, distributed.place_parts(parts, code, mesh)
    calls = []
    for step, placed in steps.values():

        def update(params, placed, step=step):
            _, gradient = step(params, placed)
            return jax.tree.map(lambda old, slope: old - 1e-5 * slope, params, gradient)

        calls.append(functools.partial(jax.jit(update), params, placed))
    seconds = median_seconds(3 * repeats, *calls)
    return dict(zip(steps, seconds, strict=True))
