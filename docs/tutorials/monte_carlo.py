# %% [markdown]
# # A Monte Carlo figure
#
# Papers compare approximate codes by their decoding error against the fraction of
# stragglers. Charles, Papailiopoulos and Ellenberg
# ([2017](https://arxiv.org/abs/1711.06771)) compare one-step and optimal decoding of
# random codes. Glasgow and Wootters ([2021](https://arxiv.org/abs/2006.09638)) show
# that codes of graphs do nearly as well as any code. `jaxwgc.compare` makes such a
# figure in less than 20 lines.

# %%
import math

import jax
import matplotlib.pyplot as plt

import jaxwgc
from jaxwgc import codes, decoders, stragglers

plt.rcParams["figure.dpi"] = 150
code_key, study_key = jax.random.split(jax.random.key(0))

# %% [markdown]
# ## The study
#
# There are 100 workers, and five copies of each part. `codes.edge_graph` is the code of
# Glasgow and Wootters: parts are the vertices of a graph, and workers are its edges. If
# times are independent, any set of workers is equally likely to be the fastest. So
# `stragglers.fastest(f)` draws $100 - f$ stragglers at random, whatever the delay
# model.
#
# Every code occurs twice: with its own decoder, which is optimal, and with one-step
# decoding, which gives each response the same weight.

# %%
optimal = {
    "Bernoulli": codes.bernoulli(code_key, 100, 100, copies=5),
    "regular graph": codes.regular_graph(code_key, 100, copies=5),
    "repetition": codes.fractional_repetition(100, num_stragglers=4),
    "edges of a graph": codes.edge_graph(code_key, num_parts=40, degree=5),
}
one_step = {f"{name}, one step": code for name, code in optimal.items()}
delay = stragglers.shifted_exponential(shift=1.0, rate=1.0)
waiting = {lost: stragglers.fastest(100 - lost) for lost in (5, 10, 20, 30, 40, 50)}
decoding = dict.fromkeys(one_step, decoders.OneStep)
study = jaxwgc.compare(
    optimal | one_step, [delay], waiting, study_key, 500, decoder=decoding
)

# %% [markdown]
# ## The figure
#
# `study.error` has means and 95% intervals in arrays with axes of codes, delay models
# and waiting rules. `study.plot(log=True)` draws them, a panel for each delay model. A
# figure of your own takes a few lines.

# %% alt="Decoding error per part against the fraction of stragglers, on a logarithmic scale, for four codes with optimal and one-step decoding. Optimal decoding of repetition and of edges of a graph has the smallest error, and one-step decoding of the Bernoulli code the largest."
figure, axes = plt.subplots(figsize=(8, 4.0), layout="constrained")
for name, error in zip(study.codes, study.error.mean[:, 0], strict=True):
    axes.semilogy([*waiting], error, "--" if name in one_step else "-", label=name)
axes.set(xlabel="stragglers (%)", ylabel="error per part", ylim=(1e-4, 1))
figure.legend(loc="outside right upper", fontsize=8)
plt.show()

# %% [markdown]
# With one-step decoding, all codes with exactly five copies of each part have the same
# error. Optimal decoding reduces it by a factor of two to twenty. Repetition and the
# edges of a graph are best for random stragglers. For the worst ones they are not
# equal: an adversary takes all copies of a block. `simulation.worst_pattern` searches for
# its pattern.

# %%
for name in ("repetition", "edges of a graph"):
    code = optimal[name]
    received = jaxwgc.simulation.worst_pattern(code, num_stragglers=20, max_patterns=1)
    worst = float(jaxwgc.decoding(code, received).error) / code.num_parts
    mean = study.error.mean[study.codes.index(name), 0, [*waiting].index(20)]
    print(f"{name:18}20% stragglers: mean {mean:.4f}, worst {worst:.4f}")

# %% [markdown]
# ## A check
#
# Fractional repetition loses a part if all five copies of it are lost. With 50 random
# stragglers of 100 workers, this has the probability $\binom{95}{50} /
# \binom{100}{50}$, which is the mean error per part.

# %%
place = study.codes.index("repetition")
low, high = study.error.low[place, 0, -1], study.error.high[place, 0, -1]
expected = math.comb(95, 50) / math.comb(100, 50)
print(f"expected {expected:.4f}, interval of the study from {low:.4f} to {high:.4f}")

# %% [markdown]
# `print(study)` shows all quantities, and `study.to_dataframe()` returns them as a
# table. For quantities of your own, `jaxwgc.monte_carlo` runs any function of a key.
# [Charles et al.](../reproduction/charles.md) and [Glasgow and
# Wootters](../reproduction/glasgow-wootters.md) are reproduced at the size of the
# papers, and [Which code?](../codes.md) compares all codes.
