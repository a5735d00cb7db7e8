"""Real workers that send something wrong: when they are named, and what is applied."""

import functools
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable
from jaxwgc import codes
from jaxwgc.distributed import Faults, Verification
from jaxwgc.distributed.ray import _fleet

NUM_WORKERS, WRONG_WORKER = 8, 3
NUM_ROWS, NUM_PARAMS = 800, 2_000
# The share of its answers in which one bit of one entry is another.
SHARE = 0.1
RATE = 1e-4
# Relative errors of the gradient below are harmless.
HARMLESS = 1e-5
# Of codes that are audited.
PARTS_EACH, AUDITS = 4, (0.1, 0.5)
# For the time of a step.
NUM_LARGE = 1_000_000
# The first steps find memory and compile.
NUM_WARM = 5


def handlings() -> dict[str, dict[str, Any]]:
    """Codes, and what is done with wrong answers."""
    solomon = codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, replication=4)
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    return {
        "Reed–Solomon, 4 copies: believed": {
            "code": solomon,
            "wait": jaxwgc.stragglers.fastest(NUM_WORKERS - 1),
        },
        "Reed–Solomon, 4 copies: dropped": {
            "code": solomon,
            "verification": Verification(on_wrong="drop"),
        },
        "fractional repetition, 2 copies: arbitrated": {
            "code": halves,
            "verification": Verification(on_wrong="arbitrate"),
        },
    }


def wrong_workers(
    steps: int = 500,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """A real worker that flips bits: named, left out and replaced; audits; the price.

    Args:
        steps: Of training, on 8 processes of this machine; twice as many rounds
            are audited.
        seed: Of the random numbers.
        out: Folder for tables and numbers.
    """
    if steps < 1:
        raise ExperimentError(f"--steps must be at least 1; got {steps}")
    # Each wrong answer would be a line between those of the progress.
    logging.getLogger("jaxwgc.distributed").setLevel(logging.ERROR)
    sections = {
        "bits": functools.partial(bits, steps, seed),
        "audits": functools.partial(audits, 2 * steps, seed),
        "price": functools.partial(price, max(1, steps // 10)),
    }
    title = "Workers that send something wrong"
    run("wrong-workers", title, sections, steps, seed, out, "wrong_workers", "steps")


def bits(steps: int, seed: int) -> Study:
    """Steps of training while one worker flips bits."""
    cells = {name: Once(train, how, steps, seed) for name, how in handlings().items()}
    return Study(cells, tables={"": functools.partial(tabulate_bits, steps)})


def train(handling: dict[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """Steps with flipped bits: how many, and which were seen; errors of gradients."""
    code = handling["code"]
    random = np.random.default_rng(seed)
    x = random.normal(size=(code.num_parts, NUM_ROWS // code.num_parts, NUM_PARAMS))
    x = x.astype(np.float32) / np.sqrt(NUM_ROWS)
    solution = random.normal(size=NUM_PARAMS).astype(np.float32)
    parts = x, x @ solution

    def loss(params, part):
        x, y = part
        return jnp.sum((x @ params - y) ** 2)

    @jax.jit
    def compare(params, messages, received):
        decoded = jaxwgc.decode(code, messages, received, params)
        whole = tuple(leaf.reshape(NUM_ROWS, *leaf.shape[2:]) for leaf in parts)
        true = jax.grad(loss)(params, whole)
        error = jnp.linalg.norm(decoded - true) / jnp.linalg.norm(true)
        # Training goes on with the true one, so that all handlings see the same, and
        # slowly: relative to a gradient that vanishes, rounding is no small error.
        return params - RATE * true, error

    blamed = named = applied = refused = flipped = 0
    first_named = replaced = first_flip = None
    worst = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        jaxwgc.distributed.RayCluster(
            loss,
            parts=parts,
            faults=Faults(corrupt=flips(folder, seed)),
            **handling,
        ) as cluster,
    ):
        warnings.simplefilter("ignore")
        params = jnp.zeros(NUM_PARAMS)
        pid = None
        for step in range(steps):
            round = cluster.compute(params)
            # Who is replaced does not flip bits.
            pid = pid or cluster.workers[WRONG_WORKER].pid
            is_first = cluster.workers[WRONG_WORKER].pid == pid
            params, error = compare(params, round.messages, round.received)
            has_flipped = is_first and has_answered(round) and is_flipped(step, seed)
            is_named = round.wrong is not None and bool(round.wrong[WRONG_WORKER])
            if has_flipped or is_named:
                flipped += 1
                first_flip = step if first_flip is None else first_flip
            named += is_named
            if is_named and first_named is None:
                first_named = step
            if not is_first and replaced is None:
                replaced = step
            others = np.arange(NUM_WORKERS) != WRONG_WORKER
            blamed += round.wrong is not None and int(round.wrong[others].sum())
            refused += round.refused
            if not round.refused:
                applied += bool(error > HARMLESS)
                worst = max(worst, float(error))
    return {
        "flipped": flipped,
        "named": named,
        "first_flip": first_flip,
        "first_named": first_named,
        "replaced": replaced,
        "blamed": blamed,
        "refused": refused,
        "applied": applied,
        "worst": worst,
    }


def has_answered(round: jaxwgc.distributed.Round) -> bool:
    """Says whether the wrong worker has, in time."""
    return bool(np.isfinite(round.times[WRONG_WORKER]))


def is_flipped(step: int, seed: int) -> bool:
    """Says whether a bit is, in that step."""
    return np.random.default_rng((seed, step)).random() < SHARE


def flips(folder: str, seed: int) -> Any:
    """Returns `corrupt`: the first process of one worker flips bits."""
    file = Path(folder) / "first"

    def corrupt(worker: int, step: int, message: np.ndarray) -> np.ndarray:
        if worker != WRONG_WORKER:
            return message
        if not file.exists():
            file.write_text(str(os.getpid()))
        if file.read_text() != str(os.getpid()):
            return message
        random = np.random.default_rng((seed, step))
        if random.random() < SHARE:
            # Of the upper half of the number: sign, exponent, first of the mantissa.
            bit = np.uint32(1) << np.uint32(random.integers(16, 32))
            message.view(np.uint32)[random.integers(len(message))] ^= bit
        return message

    return corrupt


def tabulate_bits(steps: int, numbers: Numbers) -> ResultTable:
    """A row a handling."""

    def shown(step):
        return "never" if step is None else str(step)

    rows = [
        [
            name,
            str(row["flipped"]),
            str(row["named"]),
            shown(row["first_flip"]),
            shown(row["first_named"]),
            shown(row["replaced"]),
            str(row["blamed"]),
            str(row["refused"]),
            str(row["applied"]),
            f"{row['worst']:.0e}",
        ]
        for name, row in numbers.items()
    ]
    heads = [
        "code and what is done",
        "answers with a flipped bit",
        "named",
        "first flip at step",
        "first named at",
        "replaced at",
        "others blamed",
        "rounds refused",
        "wrong gradients",
        "largest error",
    ]
    title = (
        f"{steps} steps, one of {NUM_WORKERS} workers flips a bit of one entry in "
        f"{SHARE:.0%} of its answers, until it is replaced"
    )
    return ResultTable(title, heads, rows)


def audits(rounds: int, seed: int) -> Study:
    """Rounds until a worker is found that is wrong in each of them."""
    cells = {f"{audit:g}": Once(audited, audit, rounds, seed) for audit in AUDITS}
    return Study(cells, tables={"": tabulate_audits})


def audited(audit: float, rounds: int, seed: int) -> dict[str, Any]:
    """Mean rounds from one finding to the next, half of its interval, and the law."""
    num_parts = NUM_WORKERS * PARTS_EACH
    code = codes.replicated(NUM_WORKERS, num_parts, copies=2)

    def corrupt(worker: int, step: int, message: np.ndarray) -> np.ndarray:
        if worker == WRONG_WORKER:
            message[step % len(message)] += 1
        return message

    gaps, blamed, since = [], 0, 0
    with (
        warnings.catch_warnings(),
        # It stays, so that it can be found again.
        mock.patch.object(_fleet, "MAX_CORRUPTED_ROUNDS", rounds + 1),
        jaxwgc.distributed.RayCluster(
            lambda params, part: jnp.sum(params * part),
            code,
            np.ones((num_parts, NUM_PARAMS), np.float32),
            key=jax.random.key(seed),
            batch=lambda key, part: part,
            verification=Verification(audit=audit),
            faults=Faults(corrupt=corrupt),
        ) as cluster,
    ):
        warnings.simplefilter("ignore")
        params = np.zeros(NUM_PARAMS, np.float32)
        for _ in range(rounds):
            round = cluster.compute(params)
            since += 1
            assert round.wrong is not None
            if round.wrong[WRONG_WORKER]:
                gaps.append(since)
                since = 0
            blamed += int(round.wrong.sum() - round.wrong[WRONG_WORKER])
    # Each part is asked for from its sender and from the other who holds it.
    share = np.asarray(code.assignment)[WRONG_WORKER].sum() / num_parts
    return {
        "found": len(gaps),
        "mean": float(np.mean(gaps)) if gaps else None,
        "half": float(1.96 * np.std(gaps) / np.sqrt(len(gaps))) if gaps else None,
        "expected": float(1 / (audit * share)),
        "blamed": blamed,
    }


def tabulate_audits(numbers: Numbers) -> ResultTable:
    """A row a probability."""
    rows = [
        [
            audit,
            str(row["found"]),
            f"{row['mean']:.1f} ± {row['half']:.1f}" if row["found"] else "never",
            f"{row['expected']:.1f}",
            str(row["blamed"]),
        ]
        for audit, row in numbers.items()
    ]
    heads = ["audit", "times found", "rounds until found", "law", "others blamed"]
    title = (
        f"On request with 2 copies, {NUM_WORKERS} workers: one that is always wrong, "
        "against 1 / (audit · share of the parts that it holds)"
    )
    return ResultTable(title, heads, rows)


def price(steps: int) -> Study:
    """Measures what looking costs the coordinator."""
    code = codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, replication=4)
    wait = jaxwgc.stragglers.fastest(NUM_WORKERS - 1)
    replicated = codes.replicated(NUM_WORKERS, copies=2)
    cells = {
        "Reed–Solomon": Once(seconds, {"code": code, "wait": wait}, steps),
        "Reed–Solomon, on_wrong": Once(
            seconds,
            {
                "code": code,
                "wait": wait,
                "verification": Verification(on_wrong="drop"),
            },
            steps,
        ),
        "on request": Once(seconds, {"code": replicated}, steps),
        "on request, audit=0.1": Once(
            seconds,
            {"code": replicated, "verification": Verification(audit=0.1)},
            steps,
        ),
    }
    return Study(cells, tables={"": tabulate_price})


def seconds(given: dict[str, Any], steps: int) -> dict[str, float]:
    """Median and mean milliseconds of a step without work, and of looking."""
    code = given["code"]
    parts = np.ones((code.num_parts, 1), np.float32)
    params = np.zeros(NUM_LARGE, np.float32)
    taken, looked = [], []
    with jaxwgc.distributed.RayCluster(
        lambda params, part: jnp.sum(part) * params[0], parts=parts, **given
    ) as cluster:
        for step in range(NUM_WARM + steps):
            begin = time.perf_counter()
            round = cluster.compute(params)
            if step >= NUM_WARM:
                taken.append(time.perf_counter() - begin)
                looked.append(round.timings.get("examination", 0.0))
    return {
        "median": 1e3 * float(np.median(taken)),
        "mean": 1e3 * float(np.mean(taken)),
        "examination": 1e3 * float(np.median(looked)),
        "examination_mean": 1e3 * float(np.mean(looked)),
    }


def tabulate_price(numbers: Numbers) -> ResultTable:
    """A row a cluster."""
    keys = ["median", "mean", "examination", "examination_mean"]
    rows = [
        [name, *(f"{row[each]:.1f}" for each in keys)] for name, row in numbers.items()
    ]
    heads = ["code", "ms a step, median", "mean", "ms of looking, median", "mean"]
    title = (
        f"Steps without work, {NUM_WORKERS} workers, {NUM_LARGE:,} parameters in "
        "float32"
    )
    return ResultTable(title, heads, rows)
