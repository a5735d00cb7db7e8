"""Two processes with two devices each, joined by `jax.distributed` over loopback."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank, address = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(
    address, 2, rank, initialization_timeout=60, coordinator_bind_address=address
)
import jax.numpy as jnp, numpy as np, optax
import jaxwgc
from jaxwgc import distributed

assert (jax.device_count(), jax.local_device_count()) == (4, 2)
mesh = jax.make_mesh((4,), ("workers",))
code = jaxwgc.codes.cyclic_mds(5, 2)
data = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
loaded = set()


def loss(params, part):
    return jnp.sum((part @ params["w"] - 1) ** 2)


def load(index):
    loaded.add(index)
    return data[index]


placed = distributed.place_parts(load, code, mesh)
step = distributed.mesh_value_and_grad(loss, code, mesh)
optimizer = optax.sgd(0.01, momentum=0.5)


@jax.jit
def train(params, state, placed, mask):
    value, gradient = step(params, placed, mask)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


params, rows = {"w": np.zeros(3, np.float32)}, data.reshape(-1, 3)
state = jax.tree.map(np.asarray, optimizer.init(params))
expected, momentum = np.zeros(3), np.zeros(3)
for lost in range(3):
    params, state, value = train(params, state, placed, np.arange(5) != lost)
    misses = rows @ expected - 1
    momentum = 0.5 * momentum + 2 * misses @ rows
    expected -= 0.01 * momentum
    np.testing.assert_allclose(value, misses @ misses, rtol=1e-4)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-4)
print("done", sorted(loaded))
"""

# Two parts a device, two devices a process; the last part fills up.
LOADED = ["done [0, 1, 2, 3]", "done [4]"]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo is built for Linux")
def test_training_over_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ.get("XLA_FLAGS", "")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2",
            },
        )
        for rank in range(2)
    ]
    try:
        # One that fails would leave the other one waiting.
        for process, expected in zip(processes, LOADED, strict=True):
            printed, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-3000:]
            lines = [line for line in printed.splitlines() if "done" in line]
            assert "\n".join(lines) == expected
    finally:
        for process in processes:
            process.kill()
            process.communicate()
