# %% [markdown]
# # Wrong answers
#
# A worker with a faulty processor sends plausible but wrong numbers, and no error. A
# code with redundant messages finds the worker in the same round: messages of a code
# satisfy linear relations, and a wrong one breaks them.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxwgc
from jaxwgc import codes, coding, corruptions, stragglers

plt.rcParams["figure.dpi"] = 150
keys = jax.random.split(jax.random.key(0), 5)

# %% [markdown]
# ## One round
#
# Twelve workers hold twelve parts with five copies each. Any four workers may be
# missing. Here one is missing, which leaves three checks. A bit of the exponent of one
# number flips, in the message of worker 7.

# %%
code = codes.reed_solomon(12, num_parts=12, copies=5)
x = jax.random.normal(keys[0], (600, 20))
y = x @ jnp.arange(20.0) + jax.random.normal(keys[1], (600,))
parts = jaxwgc.partition((x, y), code.num_parts)


def loss(params, part):
    (x, y), row_weights = part
    return jnp.sum(row_weights * (x @ params["w"] - y) ** 2) / 600


params = {"w": jnp.zeros(20)}
_, gradients = jaxwgc.partial_value_and_grad(loss)(params, parts)
messages = coding.form_messages(code.encoding_matrix, gradients)
received = jnp.ones(12, bool).at[3].set(False)

flip = corruptions.bit_flip(stragglers.fixed(np.arange(12) != 7), bit=27)
corrupted, _, _ = flip.sample(keys[2], flip.init(12), messages, 12)
location = jaxwgc.locate_errors(code, corrupted, received, keys[3])
print("checks", location.checks, "wrong workers", np.flatnonzero(location.wrong))

# %% [markdown]
# `decode` takes the result as `received`, and leaves this worker out.

# %%
exact = jax.tree.map(lambda leaf: leaf.sum(0), gradients)["w"]
for name, mask in {"trusted": received, "located": location}.items():
    decoded = jaxwgc.decode(code, corrupted, mask, params)["w"]
    error = jnp.linalg.norm(decoded - exact) / jnp.linalg.norm(exact)
    print(f"{name:8} relative error of the gradient {error:.1e}")

# %% [markdown]
# ## Training
#
# In a chain, `correct_errors=True` does this in every step. Here another worker sends
# ten times its message in each step.

# %%
wrong = corruptions.scaling(stragglers.uniform(1), factor=10.0)
missing = stragglers.uniform(1)
best = jnp.linalg.lstsq(x, y)[0]


def train(corrupt, correct_errors, num_steps=60):
    aggregate = jaxwgc.coded_aggregate(
        code,
        missing,
        keys[4],
        method="messages",
        corrupt=corrupt,
        correct_errors=correct_errors,
    )
    optimizer = optax.chain(aggregate, optax.sgd(0.3))

    def step(carry, _):
        params, state = carry
        _, gradients = jaxwgc.partial_value_and_grad(loss)(params, parts)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.linalg.norm(params["w"] - best)

    start = (params, optimizer.init(params))
    (_, state), distances = jax.lax.scan(step, start, None, length=num_steps)
    return distances, state[0]


runs = {
    "no faults": train(None, False),
    "not corrected": train(wrong, False),
    "corrected": train(wrong, True),
}
_, state = runs["corrected"]
print(
    "rounds corrected", state.errors.num_corrected, "by worker", state.errors.num_wrong
)

# %% alt="Distance to the solution by step: the corrected run lies on the run without faults, and the other one does not converge"
figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
for (name, (distances, _)), width in zip(runs.items(), [5, 1.5, 1.5], strict=True):
    axes.semilogy(distances, label=name, linewidth=width)
axes.set(xlabel="step", ylabel="distance to the solution")
axes.legend()
plt.show()

# %% [markdown]
# ## Limits
#
# With $\rho$ checks, independent faults are located in up to $\rho - 1$ messages, and
# faults that agree in up to $\rho / 2$. Beyond, the round is rejected, and the step is
# skipped. Errors near the rounding of the messages are not found, and do no harm. In a
# `RayCluster`, pass `verification=Verification(on_wrong="drop")`. [Wrong
# answers](../wrong-answers.md) has all limits, measured, and the overhead.
