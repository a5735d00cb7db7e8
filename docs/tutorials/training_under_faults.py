# %% [markdown]
# # Training under faults
#
# Five processes train a classifier. One of them is always slow, and another is killed
# on the way. With a code, every step has the exact gradient of all data. Without one,
# training that does not wait for the slow worker never uses its data.
#
# The data are three spirals, sorted from the inside out like data that were collected
# in some order: part 0 is the centre, and part 4 the rim.

# %%
import logging
import os
import signal
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster

plt.rcParams["figure.dpi"] = 150
logging.basicConfig(stream=sys.stdout, format="%(message)s")  # lost workers

num_workers, num_rows = 5, 1000
rng = np.random.default_rng(0)
radius = np.linspace(0.1, 1.0, num_rows, dtype=np.float32)
labels = np.arange(num_rows) % 3
angle = 2 * np.pi * labels / 3 + 5 * radius + 0.1 * rng.normal(size=num_rows)
points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
parts = jaxwgc.partition((points.astype(np.float32), labels), num_workers)

# %% [markdown]
# ## The loss of a part
#
# The loss is a *sum* over rows, since gradients of parts are summed. Row weights are 0
# for rows of padding.


# %%
def loss(params, part):
    (points, labels), row_weights = part
    hidden = jnp.tanh(points @ params["inner"] + params["bias"])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        hidden @ params["outer"], labels
    )
    return jnp.sum(row_weights * losses) / num_rows


keys = jax.random.split(jax.random.key(0), 3)
params = {
    "inner": 5 * jax.random.normal(keys[0], (2, 64)),
    "bias": jax.random.normal(keys[1], (64,)),
    "outer": 0.1 * jax.random.normal(keys[2], (64, 3)),
}

# %% [markdown]
# ## Faults
#
# Every worker sleeps in every step as if it computed, and worker 4 sleeps longest. A
# callback runs after each step: it records which workers responded, and kills the
# process of worker 1 once. A new process takes its place, and loads its data again.


# %%
def train(code, tolerance, num_steps=100):
    received = []

    def record_and_kill(progress):
        received.append(np.isfinite(progress.round.times))
        if progress.state.step == 20:
            os.kill(cluster.workers[1].pid, signal.SIGKILL)

    with RayCluster(
        loss,
        code,
        parts,
        wait=stragglers.fastest(3),
        decoding=DecodingOptions(tolerance=tolerance),
        faults=Faults(delay=lambda worker, step: 0.5 if worker == 4 else 0.08),
    ) as cluster:
        optimizer = optax.adam(0.02)
        state = cluster.train(optimizer, params, num_steps, callbacks=[record_and_kill])
    return state.params, np.array(received)


# %% [markdown]
# Both runs wait for the three fastest workers. `uncoded` gives each worker one part, so
# steps are accepted without two parts: their relative error is below 1. `cyclic_mds`
# gives each worker three parts, and any three responses decode to the exact gradient.

# %%
runs = {
    "uncoded": train(codes.uncoded(num_workers), tolerance=1.0),
    "cyclic_mds": train(codes.cyclic_mds(num_workers, 2), tolerance=1e-3),
}
for name, (_, received) in runs.items():
    print(f"{name:12}steps with a response, by worker: {received.sum(axis=0)}")

# %% [markdown]
# ## The loss by part

# %% alt="Final loss of each part: low everywhere with the code, and high on the last part without"
figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
for place, (name, (trained, _)) in enumerate(runs.items()):
    by_part = num_workers * jax.vmap(loss, in_axes=(None, 0))(trained, parts)
    axes.bar(np.arange(num_workers) + 0.4 * place, by_part, 0.38, label=name)
axes.set(xlabel="part, from the centre to the rim", ylabel="mean loss at the end")
axes.set(yscale="log", ylim=(1e-4, 10))
axes.set_xticks(np.arange(num_workers) + 0.2, range(num_workers))
axes.legend()
plt.show()

# %% [markdown]
# Without a code, the rim was never seen. The mean loss of a step does not show it, as
# the missing part is missing there, too. With the code, all parts are learned, and no
# step was lost when the process died.
#
# The price is the work of each worker: three parts instead of one. If no worker were
# slow, waiting for all of them would be faster. [Should you code at
# all?](should_you_code.py) decides by your own times. With `codes.replicated`, the
# second copy is computed only when it is needed. [Run it on your
# cluster](../cluster/several-machines.md) has checkpoints, several machines, and what is guaranteed
# under which failure.
