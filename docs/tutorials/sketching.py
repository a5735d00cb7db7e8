# %% [markdown]
# # Sketching
#
# The leverage score of a row of a matrix $X$ measures how much the row matters to a
# linear fit. It is the largest $(x_i^{\top} \theta)^2$ over all $\theta$ with $\| X
# \theta \| = 1$. This notebook samples rows by their scores, for data for which this
# helps, and for data for which it does not. It then codes a sample of parts.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxwgc
from jaxwgc import codes, sketching

plt.rcParams["figure.dpi"] = 150

# %% [markdown]
# ## Two data sets
#
# Both have 2,000 rows of five normal features. In the second, every row is multiplied
# by a random number from a Pareto distribution: a few rows become large.

# %%
num_rows, num_columns = 2000, 5
keys = jax.random.split(jax.random.key(0), 5)
normal = jax.random.normal(keys[0], (num_rows, num_columns))
factors = jax.random.pareto(keys[1], 1.2, (num_rows, 1))
matrices = {"light tails": normal, "heavy tails": normal * factors}

noise = jax.random.normal(keys[2], (num_rows,))
targets = {name: matrix.sum(axis=1) + noise for name, matrix in matrices.items()}
scores = {name: sketching.leverage_scores(x) for name, x in matrices.items()}
for name, values in scores.items():
    top = jnp.sort(values)[-20:].sum() / values.sum()
    print(f"{name}: the top 1% of the rows have {100 * top:.0f}% of the scores")

# %% [markdown]
# ## Sampling rows
#
# `sample_rows` draws rows and scales each, so that the expected Gram matrix of the
# sample is $X^{\top} X$. We fit on a sample, and measure the excess of the fit on *all*
# rows, $(\| X \tilde\theta - y \|^2 - \min) / \min$: for uniform rows, for rows by
# their scores, and for a sketch, whose rows are random combinations.

# %%
sizes = [20, 80, 320]
methods = ["uniform rows", "rows by scores", "sketch"]


def solve(matrix, target):
    return jnp.linalg.lstsq(matrix, target)[0]


def squared_residual(solution, matrix, target):
    return jnp.sum((matrix @ solution - target) ** 2)


def excesses_of(name):
    """Returns the excess of every trial, (trials, sizes, methods)."""
    data = (matrices[name], targets[name])
    least = squared_residual(solve(*data), *data)

    def trial(key):
        rows = []
        for size in sizes:
            uniform = sketching.sample_rows(key, jnp.ones(num_rows), size)
            by_scores = sketching.sample_rows(key, scores[name], size)
            sketch = sketching.sparse_sign(key, size, num_rows)
            samples = [part.apply(data) for part in (uniform, by_scores, sketch)]
            rows.append([squared_residual(solve(*own), *data) for own in samples])
        return jnp.array(rows) / least - 1

    return jaxwgc.monte_carlo(trial, keys[3], num_trials=200)


excesses = {name: excesses_of(name) for name in matrices}

# %% alt="Excess against the number of rows: three equal lines with light tails; with heavy tails uniform rows are far above the others"
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
for axes, (name, values) in zip(panels, excesses.items(), strict=True):
    middle, high = 100 * np.quantile(values, [0.5, 0.9], axis=0)
    for column, method in enumerate(methods):
        [line] = axes.loglog(sizes, middle[:, column], "o-", label=method)
        axes.loglog(sizes, high[:, column], ":", color=line.get_color())
    axes.set(xlabel="rows", title=name)
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
panels[0].set_ylabel("excess (%), median and 90% (dotted)")
panels[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# With light tails, scores gain nothing: all rows matter alike. With heavy tails,
# uniform samples leave out the few rows that matter. If only a solution is wanted,
# `preconditioned` computes it to full accuracy. Scores are useful if *rows* are needed:
# to label them, to send them, or to keep fewer of them on every worker.
#
# ## Sampling parts, and coding them
#
# A cluster holds data in parts. We draw 20 of 100 parts by the sums of their scores.
# Parts may be drawn twice, so the counts go into the code: `jaxwgc.weighted` scales the
# columns of its encoding matrix. Three of the 20 workers straggle.

# %%
data = (matrices["heavy tails"], targets["heavy tails"])
parts, row_weights = jaxwgc.partition(data, 100)
probabilities = jaxwgc.parts.partition_probabilities(scores["heavy tails"], 100)
sample = jaxwgc.parts.sample_partitions(keys[4], probabilities, num_distinct=20)
small = jaxwgc.parts.weighted_parts(sample, parts, row_weights)
print("times each part was drawn:", *small.weights.astype(int))


def loss(params, part):
    (x, y), row_weights = part
    return jnp.sum(row_weights * (x @ params - y) ** 2)


code = jaxwgc.weighted(codes.fractional_repetition(20, 3), small.weights)
received = jnp.ones(20, bool).at[jnp.array([4, 9, 13])].set(False)
kept = (small.parts, small.row_weights)
start = jnp.zeros(num_columns)
_, gradient = jaxwgc.decoded_value_and_grad(loss, code)(start, kept, received)
_, by_part = jaxwgc.partial_value_and_grad(loss)(start, kept)
expected = small.weights @ by_part
error = jnp.linalg.norm(gradient - expected) / jnp.linalg.norm(expected)
print(f"decoded gradient: relative difference from the weighted sum {error:.1e}")

# %% [markdown]
# Descent ends at the solution of the sample, not at that of all data. A [new sample at
# every step](../getting-started.md#fewer-data-leverage-score-sampling) avoids this.
# [Sketching](../sketching.md) measures samplers, embeddings and solvers side by side.
