# %% [markdown]
# # Which worker is slow?
#
# A table with the seconds of every worker in every step shows which worker is slow,
# since when, and what it costs. Here the table is simulated, so that we know the
# answer. A file of your own is read by `python -m jaxwgc report times.csv`.

# %%
import matplotlib.pyplot as plt
import numpy as np

import jaxwgc

plt.rcParams["figure.dpi"] = 150

num_steps, num_workers = 400, 8
rng = np.random.default_rng(0)
times = rng.lognormal(mean=0.0, sigma=0.08, size=(num_steps, num_workers))
times[250:, 2] *= 1.4  # worker 2 is slower from step 250 on
stalls = rng.random(num_steps) < 0.02
times[stalls, 5] *= 6.0  # worker 5 stalls now and then

# %% [markdown]
# The times must be those *before* workers wait for each other. After a barrier, all
# workers have the same time, and the report says so.

# %%
report = jaxwgc.straggler_report(times)
print(report)

# %% [markdown]
# *Kind* tells a worker that became slow from one that always was, and from one that
# stalls. *Time lost* is by how much all rounds would be shorter if this worker were as
# fast as the median worker.

# %% alt="Times of the workers by step; worker 2 is above the others from step 250 on, and worker 5 has single peaks"
figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for worker in range(num_workers):
    named = worker in (2, 5)
    axes.plot(
        times[:, worker],
        color={2: "tab:red", 5: "tab:blue"}.get(worker, "0.7"),
        linewidth=1.0 if named else 0.4,
        zorder=2 if named else 1,
        label=f"worker {worker}" if named else None,
    )
axes.set(xlabel="step", ylabel="seconds")
axes.legend()
plt.show()

# %% [markdown]
# ## Is it chance?
#
# Some worker is the slowest in every round. The report names none without evidence:
# this is the same noise without the two faults.

# %%
calm = rng.lognormal(mean=0.0, sigma=0.08, size=(num_steps, num_workers))
print(jaxwgc.straggler_report(calm))

# %% [markdown]
# ## Only waiting times
#
# If nobody measured the times of the workers, a profiler still has the seconds that
# each worker waits in the collective. The slow worker waits least. These are the steps
# after worker 2 became slow.

# %%
waits = times.max(axis=1, keepdims=True) - times
print(jaxwgc.straggler_report(waits=waits[250:]))

# %% [markdown]
# ## What next
#
# `jaxwgc.plan` takes the same table, and finds the code and waiting rule with the
# shortest training time: [Should you code?](should_you_code.py) The page [Which of my
# workers is slow?](../which-worker-is-slow.md) has the tables that are read, real
# traces, and how often the report is wrong.
