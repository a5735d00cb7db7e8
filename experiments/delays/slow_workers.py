"""Slow workers that still count: sums on request, and stored messages."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.patches import Patch

import jaxwgc
from experiments.delays.traces import read_traces, simulated
from experiments.delays.when_coding_pays import fixed_share
from experiments.runner import figures
from experiments.runner.study import Numbers, Once, Sections, Study, command, timed
from jaxwgc import codes, stragglers

COPIES = (2, 3)
# Workers of a simulated round, and parts per worker without copies.
NUM_WORKERS = 20
NUM_PARTS = 8
LAWS: dict[str, stragglers.DelayModel] = {
    "1 + Exp(1)": stragglers.shifted_exponential(shift=1.0, rate=1.0),
    "Pareto, shape 2": stragglers.pareto(scale=1.0, shape=2.0),
    "10% ten times slower": stragglers.bernoulli_slowdown(0.1, slowdown=10.0),
}
# Optimization-based block coordinate gradient coding: 20,000 units of work that each
# take 50 + Exp(mean 1000); published times in millions by number of workers.
PUBLISHED = {10: 2.41, 30: 1.100, 50: 0.806}
WORK = 20_000
BLOCK_COPIES = 6
BLOCK_PARTS = 20
BLOCK_LAW = stragglers.shifted_exponential(shift=50.0, rate=1e-3)

COVERED = (0.97, 0.9)
# Rounds that are simulated at once, to bound memory.
BATCH = 256
# Speeds of the workers in the figure; the last one is slow.
SPEEDS = (1.0, 0.9, 1.1, 0.3)


@command("slow-workers", "Slow workers that still count", count="rounds")
def slow_workers(rounds: int = 10_000, seed: int = 0) -> Sections:
    """Simulates slow workers that contribute: on request, or by stored messages.

    Args:
        rounds: Simulated rounds of random delays, a tenth of them for 256 workers;
            traces have the measured rounds.
    """
    key = jax.random.key(seed)
    traces = read_traces()
    return {
        "on_request": functools.partial(on_request, traces, rounds, key),
        "blocks": functools.partial(blocks, rounds, key),
        "fixed_share": functools.partial(fixed_share, rounds // 10, key),
    }


def ends(
    times: np.ndarray, code: jaxwgc.GradientCode, wait: stragglers.WaitingRule
) -> np.ndarray:
    """Returns ends of rounds, (rounds,), from times (rounds, workers) at load 1."""
    loads = np.asarray(code.loads)
    key = jax.random.key(0)

    def end(row):
        return wait.arrivals(key, row * loads).elapsed

    rounds = jax.jit(lambda times: jax.lax.map(end, times, batch_size=BATCH))
    return np.asarray(rounds(jnp.asarray(times, jnp.float32)), float)


def exact_codes(times: np.ndarray) -> np.ndarray:
    """Returns the times of the fastest n - s workers with s + 1 times the work."""
    slowest_first = np.sort(times, axis=1)[:, ::-1]
    work = np.arange(1, times.shape[1] + 1)
    return slowest_first * work


def rounds_of(draw: Callable[[], np.ndarray]) -> Numbers:
    """Returns times of rounds by waiting rule."""
    times = draw()
    num_workers = times.shape[1]
    exact = exact_codes(times)
    best = int(exact.mean(0).argmin())
    seconds = {"all": exact[:, 0], "best_code": exact[:, best]}
    for copies in COPIES:
        code = codes.replicated(num_workers, num_workers * NUM_PARTS, copies)
        rule = stragglers.until_decodable(code)
        seconds[f"request_{copies}"] = ends(times, code, rule)
        if copies == 2:
            for share in COVERED:
                rule = stragglers.coverage(code, share)
                seconds[f"{share}"] = ends(times, code, rule)
    seconds["bound"] = num_workers / np.sum(1 / times, axis=1)
    summaries = {name: jaxwgc.summarize(rounds) for name, rounds in seconds.items()}
    return {"num_workers": num_workers, "stragglers": best, "seconds": summaries}


def drawn(law: stragglers.DelayModel, num_rounds: int, keys: jax.Array) -> np.ndarray:
    """Returns random times of the rounds, of one key."""
    [times] = simulated(law, NUM_WORKERS, num_rounds, keys)
    return times


def on_request(traces: dict[str, np.ndarray], num_rounds: int, key: jax.Array) -> Study:
    """Returns every round of the traces, and rounds of random delays."""
    rows = []
    for name, times in traces.items():
        cell = Once(rounds_of, lambda times=times: times)
        rows.append({"delays": f"`{name}`", "": cell})
    keys = jax.random.split(key, (len(LAWS), 1))
    for index, (name, law) in enumerate(LAWS.items()):
        draw = functools.partial(drawn, law, num_rounds, keys[index])
        rows.append({"delays": name, "": Once(rounds_of, draw)})

    def ratio(row):
        seconds = row["seconds"]
        return f"{seconds['request_2'].mean / seconds['all'].mean:.2f}"

    return timed(
        rows,
        "Time of a step: waiting for all without a code; any n - s of the workers, "
        "each with s + 1 times the work; on request with 2 copies and "
        "with 3, and with 2 until that share of the parts is covered; perfect "
        "division, all workers busy to the end and no part computed twice",
        {
            "delays": "{delays}",
            "wait for all": "{seconds[all]}",
            "best exact code": "{seconds[best_code].mean:.2f} (s = {stragglers})",
            "request ×2": "{seconds[request_2]}",
            "relative to all": ratio,
            "×3": "{seconds[request_3]}",
            **{f"{share:.0%}": f"{{seconds[{share}]}}" for share in COVERED},
            "perfect division": "{seconds[bound]}",
        },
        figures={"meeting": lambda numbers: draw_meeting()},
    )


def blocks(num_rounds: int, key: jax.Array) -> Study:
    """Returns the setting of block coordinate gradient coding, in millions."""

    def measure(num_workers):
        [times] = simulated(BLOCK_LAW, num_workers, num_rounds // 2, key[None])
        times = times * (WORK / num_workers / 1e6)
        code = codes.replicated(num_workers, num_workers * BLOCK_PARTS, BLOCK_COPIES)
        rounds = ends(times, code, stragglers.until_decodable(code))
        best = exact_codes(times).mean(0).min()
        return {"best_code": best, "request": jaxwgc.summarize(rounds)}

    rows = []
    for num_workers, published in PUBLISHED.items():
        cell = Once(measure, num_workers)
        rows.append({"num_workers": num_workers, "published": published, "": cell})
    return timed(
        rows,
        f"Time of a step, in millions, of {WORK:,} units of work that each take 50 + "
        "Exp(mean 1000): block coordinate gradient coding as published, and finished "
        "on request. Both count computation alone",
        {
            "workers": "{num_workers}",
            "best exact code": "{best_code:.2f}",
            "published optimum": "{published:.3g}",
            f"on request ×{BLOCK_COPIES}": "{request:3}",
        },
    )


def draw_meeting() -> figures.Figure:
    """Draws the parts that four workers compute in a round, by time."""
    num_workers = len(SPEEDS)
    code = codes.replicated(num_workers, num_workers * NUM_PARTS, copies=2)
    times = jnp.asarray(code.loads / np.array(SPEEDS), jnp.float32)
    arrivals = stragglers.until_decodable(code).arrivals(jax.random.key(0), times)
    requests = np.asarray(jaxwgc.decoding(code, arrivals).requests)
    elapsed = float(arrivals.elapsed)
    # The part of each message: (workers, messages per worker).
    parts = np.reshape(code.encoding_matrix, (*requests.shape, -1)).argmax(-1)
    figure, (axes,) = figures.new_figure(8.6, 2.6)
    first_copy, second_copy, *_ = figures.COLORS
    not_needed = "0.8"
    for (worker, position), is_sent in np.ndenumerate(requests):
        seconds = 1 / SPEEDS[worker] / NUM_PARTS
        start = position * seconds
        end = min((position + 1) * seconds, elapsed)
        if start > elapsed - 1e-6:
            continue
        if not is_sent:
            color = not_needed
        elif position < NUM_PARTS:
            color = first_copy
        else:
            color = second_copy
        axes.barh(
            worker,
            end - start,
            height=0.8,
            left=start,
            edgecolor="white",
            linewidth=1,
            color=color,
        )
        if end - start > 0.06:
            axes.text(
                (start + end) / 2,
                worker,
                parts[worker, position],
                ha="center",
                va="center",
                fontsize=8,
                color="white" if color == first_copy else "black",
            )
    axes.set(xlabel="time, in units of an even share of the work")
    axes.set_yticks(range(num_workers), [f"worker {n}" for n in range(num_workers)])
    axes.invert_yaxis()
    axes.grid(False)
    axes.axvline(elapsed, color="0.3", linewidth=1, linestyle="--")
    handles = [
        Patch(color=first_copy, label="own part, sent"),
        Patch(color=second_copy, label="part of the next worker, sent"),
        Patch(color=not_needed, label="not needed"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
