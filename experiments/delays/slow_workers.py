"""Slow workers that still count: how long rounds take with parts on request."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.patches import Patch

import jaxwgc
from experiments.delays import late_answers
from experiments.delays.traces import LANGUAGE_MODELS
from experiments.runner import figures
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable, interval
from jaxwgc import codes, stragglers

COPIES = (2, 3, 4)
# Of each worker without copies, where no trace says how many.
NUM_WORKERS, NUM_PARTS = 20, 8
LAWS: dict[str, stragglers.DelayModel] = {
    "1 + Exp(1)": stragglers.shifted_exponential(shift=1.0, rate=1.0),
    "Pareto, shape 2": stragglers.pareto(scale=1.0, shape=2.0),
    "10% ten times slower": stragglers.bernoulli_slowdown(0.1, slowdown=10.0),
}
# Optimization-based block coordinate gradient coding: 20,000 units of work, each of
# 50 + Exp(mean 1000) on its worker; what is published, in millions, by workers.
PUBLISHED = {10: 2.41, 30: 1.100, 50: 0.806}
WORK, BLOCK_COPIES, BLOCK_PARTS = 20_000, 6, 20

COVERED = (0.99, 0.97, 0.9)
# Of the workers in the picture, the last one slow.
SPEEDS = (1.0, 0.9, 1.1, 0.3)


def slow_workers(
    runs: int | None = None,
    quick: bool = False,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Slow workers that still count: on request, by coverage, and remembered.

    Args:
        runs: Simulated trainings of each choice; 40 by default, 4 with --quick. And a
            thousand rounds for each of them.
        quick: Fewer of both.
        seed: Of the random numbers.
        out: Folder for tables and numbers.
    """
    if runs is None:
        runs = 4 if quick else 40
    with np.load(LANGUAGE_MODELS) as file:
        traces = {name: file[name].astype(float) for name in late_answers.AWAITED}
    key = jax.random.key(seed)
    sections = {
        "on_request": functools.partial(on_request, traces, 1000 * runs, key),
        "blocks": functools.partial(blocks, 1000 * runs, key),
        "memory": functools.partial(late_answers.memory, traces, runs, key),
        "digits": functools.partial(late_answers.digits, runs, quick, key),
    }
    run("slow_workers", "Slow workers that still count", sections, runs, seed, out)


def ends(times: jax.Array, wait: Callable[[Any], stragglers.WaitingRule], code: Any):
    """When rounds end, (rounds,), of times (rounds, workers) of a load of one."""
    loads, rule = np.asarray(code.loads), wait(code)
    keys = jax.random.split(jax.random.key(0), len(times))

    @jax.jit
    def batch(keys, times):
        return jax.vmap(lambda key, row: rule.arrivals(key, row * loads).elapsed)(
            keys, times
        )

    # As many rounds at once as fit into memory.
    size = max(1, 2**24 // code.num_messages)
    pieces = [
        batch(keys[start : start + size], times[start : start + size])
        for start in range(0, len(times), size)
    ]
    return np.concatenate(pieces).astype(float)


def ratio(times: np.ndarray, other: np.ndarray) -> jaxwgc.Summary:
    """Returns the ratio of means of two columns of the same rounds (delta method)."""
    estimate = times.mean() / other.mean()
    return jaxwgc.summarize((times - estimate * other) / other.mean() + estimate)


def rounds_of(times: np.ndarray, parts: int) -> Numbers:
    """Seconds a round by what is waited for, and over waiting for all."""
    times = np.asarray(times, float)
    num_workers = times.shape[1]
    in_order = np.sort(times, axis=1)[:, ::-1]
    everyone = in_order[:, 0]
    # With any n - s of the workers, each with s + 1 times the work.
    exact = in_order * np.arange(1, num_workers + 1)
    best = int(exact.mean(0).argmin())
    drawn = jnp.asarray(times, jnp.float32)
    seconds = {"best_code": exact[:, best]}
    if num_workers % 2 == 0:
        repetition = codes.fractional_repetition(num_workers, 1)
        seconds["repetition"] = ends(drawn, stragglers.until_decodable, repetition)
    for copies in COPIES:
        code = codes.replicated(num_workers, num_workers * parts, copies)
        seconds[f"request_{copies}"] = ends(drawn, stragglers.until_decodable, code)
    code = codes.replicated(num_workers, num_workers * parts, 2)
    for share in COVERED:
        seconds[f"covered_{share}"] = ends(
            drawn, lambda code, share=share: stragglers.coverage(code, share), code
        )
    seconds["bound"] = num_workers / np.sum(1 / times, axis=1)
    return {
        "num_workers": num_workers,
        "parts": parts,
        "stragglers": best,
        "wait_for_all": jaxwgc.summarize(everyone),
        "seconds": {name: jaxwgc.summarize(column) for name, column in seconds.items()},
        "ratio": {name: ratio(column, everyone) for name, column in seconds.items()},
    }


def on_request(traces: dict[str, np.ndarray], num_rounds: int, key: jax.Array) -> Study:
    """Every round of the traces, and rounds of random delays."""

    def of_law(law, key):
        keys = jax.random.split(key, num_rounds)
        loads = jnp.ones(NUM_WORKERS)
        state = law.init(NUM_WORKERS)
        times = jax.vmap(lambda key: law.sample(key, state, loads)[0])(keys)
        return rounds_of(np.asarray(times), NUM_PARTS)

    cells = [
        {"delays": f"`{name}`", "": Once(rounds_of, times.sum(-1), times.shape[2])}
        for name, times in traces.items()
    ]
    for law_key, (name, law) in zip(
        jax.random.split(key, len(LAWS)), LAWS.items(), strict=True
    ):
        cells.append({"delays": name, "": Once(of_law, law, law_key)})
    return Study(
        cells,
        tables={"": tabulate_rounds, "coverage": tabulate_coverage},
        figures={"meeting": lambda numbers: draw_meeting()},
    )


def tabulate_rounds(numbers: Numbers) -> ResultTable:
    """A row a distribution of delays."""

    def show(row):
        seconds, over = row["seconds"], row["ratio"]
        return {
            "delays": row["delays"],
            "workers × parts": f"{row['num_workers']} × {row['parts']}",
            "wait for all": interval(row["wait_for_all"]),
            "best exact code": f"{seconds['best_code'].mean:.2f} "
            f"(s = {row['stragglers']})",
            "repetition ×2": interval(over["repetition"]),
            "request ×2": interval(seconds["request_2"]),
            "over all": interval(over["request_2"]),
            "×3": interval(seconds["request_3"]),
            "×4": interval(seconds["request_4"]),
            "bound": interval(seconds["bound"]),
        }

    return ResultTable.of_records(
        "Seconds a step with exact gradients: waiting for all without a code; any n - "
        "s of the workers, each with s + 1 times the work; fractional repetition over "
        "waiting for all; finished parts on request with 2, 3 and 4 copies; and the "
        "bound, all workers busy until the last part is done and none of them twice",
        show,
        numbers,
    )


def tabulate_coverage(numbers: Numbers) -> ResultTable:
    """The same for rounds that are over before all parts are."""

    def show(row):
        return {
            "delays": row["delays"],
            "all": interval(row["seconds"]["request_2"]),
            **{
                f"{share:.0%}": interval(row["seconds"][f"covered_{share}"])
                for share in COVERED
            },
        }

    return ResultTable.of_records(
        "Seconds a step with two copies on request, until a share of the parts is "
        "covered",
        show,
        numbers,
    )


def blocks(num_rounds: int, key: jax.Array) -> Study:
    """The setting of block coordinate gradient coding, in millions."""

    def measure(num_workers):
        law = stragglers.shifted_exponential(shift=50.0, rate=1e-3)
        loads, state = jnp.ones(num_workers), law.init(num_workers)
        keys = jax.random.split(key, num_rounds // 10)
        times = jax.vmap(lambda key: law.sample(key, state, loads)[0])(keys)
        times = np.asarray(times, float) * WORK / num_workers / 1e6
        in_order = np.sort(times, axis=1)[:, ::-1]
        exact = (in_order * np.arange(1, num_workers + 1)).mean(0)
        code = codes.replicated(num_workers, num_workers * BLOCK_PARTS, BLOCK_COPIES)
        taken = ends(jnp.asarray(times, jnp.float32), stragglers.until_decodable, code)
        return {"best_code": exact.min(), "request": jaxwgc.summarize(taken)}

    cells = [
        {"num_workers": number, "published": value, "": Once(measure, number)}
        for number, value in PUBLISHED.items()
    ]
    return Study(cells, tables={"": tabulate_blocks})


def tabulate_blocks(numbers: Numbers) -> ResultTable:
    """A row a number of workers."""

    def show(row):
        return {
            "workers": str(row["num_workers"]),
            "best exact code": f"{row['best_code']:.2f}",
            "published optimum": f"{row['published']:.3g}",
            f"on request ×{BLOCK_COPIES}": interval(row["request"], 3),
        }

    return ResultTable.of_records(
        f"Time of a step, in millions, of {WORK:,} units of work that each take 50 + "
        "Exp(mean 1000): block coordinate gradient coding as published, and finished "
        "parts on request. Computing alone is counted, as there",
        show,
        numbers,
    )


def draw_meeting() -> figures.Figure:
    """Draws who computes which part when, in a round of four workers."""
    num_workers, parts = len(SPEEDS), 8
    code = codes.replicated(num_workers, num_workers * parts, copies=2)
    times = jnp.asarray(code.loads / np.array(SPEEDS), jnp.float32)
    wait = stragglers.until_decodable(code)
    arrivals = wait.arrivals(jax.random.key(0), times)
    requests = np.asarray(jaxwgc.decoding(code, arrivals).requests)
    elapsed = float(arrivals.elapsed)
    figure, (axes,) = figures.new_figure(8.6, 2.6)
    looks: dict[str, dict[str, Any]] = {
        "its own part, sent": {"color": figures.COLORS[0]},
        "a part of the next one, sent": {"color": figures.COLORS[1]},
        "computed in vain": {"color": "0.8"},
    }
    decoder: Any = code.decoders[0]
    copies = np.asarray(decoder.copies)
    for worker, speed in enumerate(SPEEDS):
        seconds = 1 / speed / parts
        for turn in range(int(np.ceil(elapsed / seconds - 1e-6))):
            if turn >= code.messages_per_worker:
                break
            message = worker * code.messages_per_worker + turn
            part = int(np.nonzero(copies == message)[0][0])
            is_sent = bool(requests[worker, turn])
            look = list(looks.values())[2 if not is_sent else int(turn >= parts)]
            start, end = turn * seconds, min((turn + 1) * seconds, elapsed)
            axes.barh(
                worker, end - start, 0.8, start, edgecolor="white", linewidth=1, **look
            )
            if end - start > 0.06:
                middle = (start + end) / 2
                color = "white" if is_sent and turn < parts else "black"
                look: Any = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": 8,
                    "color": color,
                }
                axes.text(middle, worker, str(part), **look)
    axes.set(xlabel="time of the round, in times of an even share of the work")
    axes.set_yticks(
        range(num_workers), [f"worker {each}" for each in range(num_workers)]
    )
    axes.invert_yaxis()
    axes.grid(False)
    axes.axvline(elapsed, color="0.3", linewidth=1, linestyle="--")
    handles = [Patch(**look) for look in looks.values()]
    figure.legend(handles, list(looks), loc="outside lower center", ncols=3)
    return figure
