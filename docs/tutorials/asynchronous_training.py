# %% [markdown]
# # Asynchronous training
#
# Asynchronous workers do not wait for each other. When a gradient arrives, a rule
# decides whether it updates the parameters. A gradient is *stale* if others have
# updated them since its worker was given its own. This notebook repeats two published
# comparisons of rules at a small scale.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxwgc
from jaxwgc import asynchronous, codes, stragglers

plt.rcParams["figure.dpi"] = 150
rng = np.random.default_rng(0)

# %% [markdown]
# ## A quadratic with noise
#
# Ringmaster ([2025](https://arxiv.org/abs/2501.16168)) was tested on a quadratic with a
# tridiagonal matrix: 1,729 coordinates, each with noise of standard deviation 0.01, and
# 6,174 workers. Here are 100 and 500, from a start of our choice. A loss depends on
# parameters and a part, so the noise is in the parts: each computation draws one.

# %%
num_workers, dim = 500, 100
matrix = (2 * np.eye(dim) - np.eye(dim, k=1) - np.eye(dim, k=-1)) / 4
vector = -np.eye(dim)[0] / 4
noise = rng.normal(0, 0.01, (num_workers, dim))


def quadratic(x, noise):
    value = x @ matrix @ x / 2 - vector @ x
    return (value + noise @ x) / num_workers  # parts are summed


problem = asynchronous.Problem(
    loss=quadratic,
    parts=noise - noise.mean(axis=0),
    start=np.sqrt(dim) * jnp.eye(dim)[0],
    num_workers=num_workers,
    draws="one of all",
)

# %% [markdown]
# Worker $i$ takes $i + |N(0, i)|$ seconds, drawn from a trace for each computation.


# %%
def unequal_workers(num_workers):
    mean = np.arange(1, num_workers + 1)
    extra = np.abs(rng.normal(0, np.sqrt(mean), (500, num_workers)))
    return stragglers.empirical(mean + extra)


delay = unequal_workers(num_workers)

# %% [markdown]
# ## One rule
#
# `train` follows the arrivals. This rule applies each gradient.

# %%
rule = asynchronous.every_arrival()
optimizer = optax.sgd(0.02)
state, events = asynchronous.train(
    rule, problem, delay, optimizer, jax.random.key(0), num_arrivals=2000
)
final_loss = problem.total_loss(state.params)
median = np.median(events.staleness)
print(f"loss {final_loss:.3f} after {events.time[-1]:.0f} seconds")
print(f"gradients of {len(np.unique(events.worker))} of {num_workers} workers")
print(f"staleness: median {median:.0f}, largest {events.staleness.max()}")

# %% [markdown]
# ## A race
#
# Ringmaster drops gradients from a staleness $R$ on. Rennala drops all that are stale, and averages $B$ others. Delay-adaptive steps
# shrink with the staleness. `race` finds the best step size of each rule, and runs all
# with the same seeds.

# %%
results = jaxwgc.race(
    {
        "Ringmaster, R = 3": asynchronous.ringmaster(threshold=3),
        "Ringmaster, R = 30": asynchronous.ringmaster(threshold=30),
        "Rennala, B = 2": asynchronous.rennala(size=2),
        "delay-adaptive": asynchronous.delay_adaptive(),
    },
    problem,
    delay,
    jax.random.key(1),
    seconds=120.0,
    step_sizes=[0.02, 0.05, 0.2, 0.8, 1.6],
    solution=jnp.asarray(np.linalg.solve(matrix, vector)),
    num_seeds=5,
)
print(results)


# %% alt="Loss against time on logarithmic axes, for two thresholds of Ringmaster, Rennala, and delay-adaptive steps. At the end, Ringmaster with the small threshold and Rennala are lowest. Delay-adaptive steps are far above."
def draw(results):
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, losses in zip(results.methods, results.loss, strict=True):
        low, median, high = np.quantile(losses, [0.25, 0.5, 0.75], axis=0)
        [line] = axes.semilogy(results.seconds, median, label=name)
        axes.fill_between(results.seconds, low, high, alpha=0.2, color=line.get_color())
    axes.set(xlabel="seconds", ylabel="loss relative to the start")
    figure.legend(loc="outside right upper")
    return axes


draw(results).set_xscale("log")
plt.show()

# %% [markdown]
# Ringmaster with a small threshold is as fast as Rennala, and faster in the paper.
# Delay-adaptive steps are far behind, as there. The staler the gradients, the smaller
# the best step size.

# %% [markdown]
# ## Parts that differ
#
# Ringleader ([2025](https://arxiv.org/abs/2509.22860)) was tested with 100 workers that
# have different labels, by a Dirichlet distribution. They train a network on MNIST, by
# batches of four images. Here 30 workers train softmax regression with a ridge on small
# digits. A worker owns 20 batches, and draws one for each computation.

# %%
num_workers, num_batches, batch_size = 30, 20, 4
images, labels = load_digits(return_X_y=True)
images = images.astype(np.float32) / 16
rng = np.random.default_rng(1)
chosen = []
for fractions in rng.dirichlet(np.full(10, 0.1), num_workers):
    chances = fractions[labels] / fractions[labels].sum()
    chosen.append(rng.choice(len(labels), (num_batches, batch_size), p=chances))
chosen = np.concatenate(chosen)


def loss(weights, part):
    images, labels = part
    losses = optax.softmax_cross_entropy_with_integer_labels(images @ weights, labels)
    return (jnp.mean(losses) + 0.01 * jnp.sum(weights**2)) / len(chosen)


problem = asynchronous.Problem(
    loss=loss,
    parts=(images[chosen], labels[chosen]),
    start=jnp.zeros((64, 10)),
    num_workers=num_workers,
    draws="one of own",
)
delay = unequal_workers(num_workers)


def descend(_, weights):
    return weights - jax.grad(problem.total_loss)(weights)


solution = jax.lax.fori_loop(0, 2000, descend, problem.start)

# %% [markdown]
# ## A rule of your own
#
# A rule is a frozen dataclass with `decide`, and with `init` if it has a state. This is
# IA²SGD, which the paper tests, too: at each arrival, it takes a step by the mean of the
# newest gradients of all workers.


# %%
@dataclasses.dataclass(frozen=True)
class NewestOfEach(asynchronous.AsynchronousRule):
    def init(self, params, num_workers):
        return jnp.zeros((num_workers, *params.shape))

    def decide(self, arrival, state):
        newest = state.at[arrival.worker].set(arrival.gradient)
        mean = newest.mean(axis=0)
        return asynchronous.Decision(True, mean, arrival.is_worker), newest


# %% [markdown]
# Rounds that wait can race, too. With `memory=True`, stored messages stand for late
# workers.

# %%
uncoded = codes.uncoded(num_workers)
all_workers = stragglers.fastest(num_workers)
half = stragglers.fastest(num_workers // 2)
results = jaxwgc.race(
    {
        "wait for all": asynchronous.synchronous(uncoded, all_workers),
        "stored messages": asynchronous.synchronous(
            uncoded, half, late="busy", memory=True
        ),
        "every arrival": asynchronous.every_arrival(),
        "Rescaled": asynchronous.rescaled(),
        "IA²SGD": NewestOfEach(),
        "Ringleader": asynchronous.ringleader(),
    },
    problem,
    delay,
    jax.random.key(2),
    seconds=1000.0,
    step_sizes=np.geomspace(0.008, 2, 12),
    targets=[0.3, 0.1, 0.05],
    solution=solution,
    num_seeds=9,
    num_points=100,
)
print(results)

# %% alt="Loss against time for six methods on digits. Ringleader descends slowest, and its quartiles are widest. Waiting is faster. Every arrival becomes flat. Stored messages, Rescaled, and IA²SGD descend fastest, and stay close together."
draw(results)
plt.show()

# %% [markdown]
# In the paper, Ringleader is fastest. Here it is slowest: IA²SGD and waiting are ahead.
# In this race it makes 16 rounds of 30 steps, while waiting makes 27 steps. Fast workers
# count more if every gradient is applied: every arrival becomes flat, and Rescaled does
# not.
#
# [Wait, code, or go asynchronous?](../asynchronous.md) compares all methods by measured
# times, and the [API](../api/asynchronous.md) has all rules.
