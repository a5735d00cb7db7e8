# %% [markdown]
# # Should you code?
#
# A code with one message per worker computes every part several times. If times are
# proportional to the load, this pays only if the slowest workers are slow enough.
# `jaxwgc.plan` decides by measured times. Here are two simulated clusters: workers that
# differ a little, and workers that stall.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxwgc
from jaxwgc import codes, planning, stragglers

plt.rcParams["figure.dpi"] = 150

num_rounds, num_workers = 300, 8
rng = np.random.default_rng(0)
even = rng.lognormal(mean=0.0, sigma=0.1, size=(num_rounds, num_workers))
stalling = even * np.where(rng.random(even.shape) < 0.05, 10.0, 1.0)
traces = {"even": even, "stalling": stalling}

# %% [markdown]
# ## The plan
#
# The plan tries codes, numbers of copies and waiting rules on rounds that are drawn
# from the trace. It counts the steps to a target loss, since lost parts cost steps.

# %%
plans = {}
for name, times in traces.items():
    delay = stragglers.empirical(times)
    tries = planning.Candidates(copies=[1, 2, 4])
    plan = jaxwgc.plan(delay, num_workers, jax.random.key(0), candidates=tries)
    print(f"{name}: {plan.best.name}, waits for {plan.best.waits_for}")
    plans[name] = plan

# %% [markdown]
# `print(plan)` has the reasons, the runners-up, and what it costs not to code:

# %%
print(plans["stalling"])

# %% [markdown]
# ## At two loads
#
# A call of a cloud function takes long whatever its work. Times at one load do not show
# this: the plan takes them to be proportional to the load, so that two copies take too
# long, and says so. Measure a second time with twice the work per step, which takes
# minutes, and plan with both.

# %%
once = 1.0 + 0.1 * stalling
twice = 1.0 + 0.2 * stalling[rng.permutation(num_rounds)]
delay = stragglers.empirical(np.stack([once, twice]), measured_at=[1.0, 2.0])
for name, model in {"one load": stragglers.empirical(once), "two loads": delay}.items():
    tries = planning.Candidates(copies=[2])
    plan = jaxwgc.plan(model, num_workers, jax.random.key(0), candidates=tries)
    for choice in plan.by_code:
        if choice.name == "fractional_repetition":
            print(f"{name}: {choice.step_time.value:.2f} s a step, {choice}")

# %% [markdown]
# ## Why
#
# A study shows the trade-off without the plan. It draws rounds of three codes, and
# waits for more and more workers.

# %%
candidates = {
    "uncoded": codes.uncoded(num_workers),
    "repetition, 2 copies": codes.fractional_repetition(num_workers, 1),
    "repetition, 4 copies": codes.fractional_repetition(num_workers, 3),
}
delays = {name: stragglers.empirical(times) for name, times in traces.items()}
waiting = {count: stragglers.fastest(count) for count in range(1, num_workers + 1)}
study = jaxwgc.compare(candidates, delays, waiting, jax.random.key(1), 2000)

# %% alt="Decoding error against the time of a round, for three codes and two clusters: repetition is ahead only if workers stall"
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
for panel, axes in enumerate(panels):
    for code, name in enumerate(study.codes):
        elapsed = study.time.mean[code, panel]
        axes.plot(elapsed, study.error.mean[code, panel], ".-", label=name)
    axes.set(title=study.delays[panel], xlabel="time of a round", xscale="log")
    axes.set_xticks([1, 2, 4, 8, 16], [1, 2, 4, 8, 16])
    axes.minorticks_off()
panels[0].set_ylabel("error of the gradient")
panels[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# Each line goes from one awaited worker on the left to all on the right. With even
# workers, uncoded is exact first: twice the work takes longer than the slowest worker.
# With stalls, two copies lose little when uncoded workers still wait for the last one.
# The plan prefers `replicated` in both cases, because it computes second copies only of
# parts whose owner is late.
#
# [Should you code at all?](../planning.md) has measured clusters and how the plan is
# computed, and [Slow workers that still count](../slow-workers.md) explains
# `replicated`.
