"""Step times by the share of a worker's time that does not depend on its load."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner import figures
from experiments.runner.study import Numbers, Once, Study, timed
from jaxwgc import codes, stragglers

NUM_WORKERS = 256
# Parts per worker without copies, on request.
NUM_PARTS = 8
# Copies of both codes. The figure shows the faster number.
COPIES = (2, 4)
# Fraction of the workers that a round waits for if stragglers are ignored.
RESPONSES = 0.9
# Shares of the time at load 1 that do not depend on the load.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
# Ways to act in the figure, by the beginning of their names in the numbers.
CHOICES = {
    "code": "exact, one message per worker",
    "request": "exact, on request",
    "first": f"first {RESPONSES:.0%} of the workers",
}
# Rounds that are simulated at once, to bound memory.
BATCH = 64

# Standard deviation of the logarithms of times.
SPREAD = 0.1
# Probability of a stall, and its length in the unit of the overhead.
STALL_PROBABILITY = 0.0075
STALL_TIME = 25.0


def even(overhead: float, slope: float) -> stragglers.DelayModel:
    """Returns a delay model of times with a log-normal spread of a tenth."""
    times = stragglers.log_normal(median=1.0, deviation=SPREAD)
    return stragglers.affine(times, overhead=overhead, slope=slope)


def exponential(overhead: float, slope: float) -> stragglers.DelayModel:
    """Returns a delay model of times 1 + Exp(1)."""
    times = stragglers.shifted_exponential(shift=1.0, rate=1.0)
    return stragglers.affine(times, overhead=overhead, slope=slope)


def stalling(overhead: float, slope: float) -> stragglers.DelayModel:
    """Returns a delay model of `even` times, with a stall in few of them."""
    # Probabilities that sum to 1 make rounds independent.
    return stragglers.markov(
        fast=even(overhead, slope),
        slow=even(overhead + STALL_TIME, slope),
        become_slow=STALL_PROBABILITY,
        become_fast=1 - STALL_PROBABILITY,
    )


LAWS: dict[str, Callable[[float, float], stragglers.DelayModel]] = {
    "spread of a tenth": even,
    "1 + Exp(1)": exponential,
    f"spread of a tenth, {STALL_PROBABILITY:.2%} stall for {STALL_TIME:g}": stalling,
}
# A fit to published measurements of 256 cloud functions: a call takes 1 s, and 0.15 s
# more for the whole batch, of which a load of 1 is a 256th. Times have a log-normal
# spread of 0.1, and 0.75% of the responses stall for 25 s.
SERVERLESS_OVERHEAD = 1.0
SERVERLESS_SLOPE = 0.15 / 256
SERVERLESS = stalling(SERVERLESS_OVERHEAD, SERVERLESS_SLOPE)


def fixed_share(num_rounds: int, key: jax.Array) -> Study:
    """Returns step times by law and share, and those of the law "serverless"."""
    rows = []
    for name, law in LAWS.items():
        for share in SHARES:
            delay = law(share, 1 - share)
            cell = Once(step_times, delay, num_rounds, key)
            rows.append({"delays": name, "share": share, "": cell})
    share = SERVERLESS_OVERHEAD / (SERVERLESS_OVERHEAD + SERVERLESS_SLOPE)
    cell = Once(step_times, SERVERLESS, num_rounds, key)
    rows.append({"delays": "serverless", "share": share, "": cell})
    return timed(
        rows,
        f"Time of a step of {NUM_WORKERS} workers, by the share of the time at load 1 "
        "that does not depend on the load: waiting for all without a code; fractional "
        f"repetition, one message per worker; on request, {NUM_PARTS} "
        f"per worker; first {RESPONSES:.0%} of the workers without a code, which loses "
        "the other parts. Every round begins afresh",
        {
            "delays": "{delays}",
            "share": "{share:.4g}",
            "wait for all": "{seconds[all]}",
            **{
                f"one message ×{copies}": f"{{seconds[code_{copies}]}}"
                for copies in COPIES
            },
            **{
                f"request ×{copies}": f"{{seconds[request_{copies}]}}"
                for copies in COPIES
            },
            f"first {RESPONSES:.0%}": "{seconds[first]}",
        },
        figures={"": draw},
    )


def step_times(
    delay: stragglers.DelayModel, num_rounds: int, key: jax.Array
) -> Numbers:
    """Returns times of rounds by choice, from the same draws."""
    uncoded = codes.uncoded(NUM_WORKERS)
    num_responses = math.ceil(RESPONSES * NUM_WORKERS)
    choices: dict[str, tuple[jaxwgc.GradientCode, stragglers.WaitingRule]] = {
        "all": (uncoded, stragglers.fastest(NUM_WORKERS)),
        "first": (uncoded, stragglers.fastest(num_responses)),
    }
    for copies in COPIES:
        code = codes.fractional_repetition(NUM_WORKERS, num_stragglers=copies - 1)
        choices[f"code_{copies}"] = (code, stragglers.until_decodable(code))
        code = codes.replicated(NUM_WORKERS, NUM_WORKERS * NUM_PARTS, copies)
        choices[f"request_{copies}"] = (code, stragglers.until_decodable(code))
    keys = jax.random.split(key, num_rounds)
    seconds = {}
    for name, (code, wait) in choices.items():
        model = stragglers.delayed(delay, wait)
        loads = jnp.asarray(code.loads)
        seconds[name] = jaxwgc.summarize(ends(model, loads, keys))
    return {"seconds": seconds}


def ends(
    model: stragglers.StragglerModel, loads: jax.Array, keys: jax.Array
) -> np.ndarray:
    """Returns the ends of rounds, one per key."""

    def end(key):
        arrivals, _ = model.sample(key, model.init(len(loads)), loads)
        return arrivals.elapsed

    rounds = jax.jit(lambda keys: jax.lax.map(end, keys, batch_size=BATCH))
    return np.asarray(rounds(keys), float)


def fastest_of(seconds: Numbers, kind: str) -> float:
    """Returns the mean time of a key of `CHOICES`, with the best number of copies."""
    if kind == "first":
        return seconds["first"].mean
    return min(seconds[f"{kind}_{copies}"].mean for copies in COPIES)


def draw(numbers: Numbers) -> figures.Figure:
    """Draws gains over waiting for all, by law and share."""
    figure, panels = figures.new_figure(9.6, 3.8, columns=len(LAWS), sharey=False)
    for axes, name in zip(panels, LAWS):
        rows = [row for row in numbers if row["delays"] == name]
        shares = [row["share"] for row in rows]
        for index, (kind, label) in enumerate(CHOICES.items()):
            gains = []
            for row in rows:
                seconds = row["seconds"]
                gains.append(seconds["all"].mean / fastest_of(seconds, kind))
            figures.line(axes, index, shares, gains, label=label)
        axes.axhline(1, color="0.3", linewidth=1, linestyle="--", label="wait for all")
        axes.set(title=name, ylim=(0, None))
    panels[0].set_ylabel("time of waiting for all / time of the choice")
    panels[len(LAWS) // 2].set_xlabel(
        "share of the time at load 1 that does not depend on the load"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(CHOICES) + 1)
    return figure
