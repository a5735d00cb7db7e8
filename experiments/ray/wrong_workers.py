"""Real workers that send corrupted messages: detection, and gradients applied."""

import functools
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.ray.steps import timed_rounds
from experiments.runner.study import Numbers, Once, Sections, Study, command, timed
from jaxwgc import codes
from jaxwgc.distributed import Faults, Verification
from jaxwgc.distributed.ray import _fleet

NUM_WORKERS = 8
WRONG_WORKER = 3
NUM_ROWS = 800
NUM_PARAMS = 2_000
# Fraction of its messages in which one bit of one entry is flipped.
SHARE = 0.1
RATE = 1e-4
# Relative errors of the gradient below this are harmless.
HARMLESS = 1e-5
ALL_BUT_ONE = jaxwgc.stragglers.fastest(NUM_WORKERS - 1)
DROP = Verification(on_wrong="drop")
# Parts per worker of audited codes, and audit probabilities.
PARTS_EACH = 4
AUDITS = (0.1, 0.5)
# Parameters when the time of a step is measured.
NUM_LARGE = 1_000_000


# Times of a step and of its verification.
MILLISECONDS = (
    "ms per step, median",
    "ms per step, mean",
    "ms of verification, median",
    "ms of verification, mean",
)


def solomon(**options: Any) -> dict[str, Any]:
    """Returns a Reed–Solomon code with 4 copies and options for the cluster."""
    code = codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, copies=4)
    return {"code": code, **options}


def handlings() -> dict[str, dict[str, Any]]:
    """Returns codes and what the coordinator does with corrupted messages."""
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    arbitrated = {"code": halves, "verification": Verification(on_wrong="arbitrate")}
    return {
        "Reed–Solomon, 4 copies: believed": solomon(wait=ALL_BUT_ONE),
        "Reed–Solomon, 4 copies: dropped": solomon(verification=DROP),
        "fractional repetition, 2 copies: arbitrated": arbitrated,
    }


@command("wrong-workers", "Workers that send corrupted messages", "steps")
def wrong_workers(steps: int = 500, seed: int = 0) -> Sections:
    """Trains on real workers that flip bits: detection, audits and overhead.

    Args:
        steps: Training steps on 8 processes of this machine; twice as many rounds
            are audited.
    """
    return {
        "bits": functools.partial(bits, steps, seed),
        "audits": functools.partial(audits, 2 * steps, seed),
        "price": functools.partial(price, max(1, steps // 10)),
    }


def bits(steps: int, seed: int) -> Study:
    """Returns the steps of training while one worker flips bits."""
    return timed(
        {name: Once(train, how, steps, seed) for name, how in handlings().items()},
        f"{steps} steps, one of {NUM_WORKERS} workers flips a bit of one entry in "
        f"{SHARE:.0%} of its messages until it is replaced",
        {
            "code and handling": "{name}",
            "messages with a flipped bit": "{flipped}",
            "detected": "{named}",
            "first flip at step": "{first_flipped}",
            "first detected at step": "{first_named}",
            "replaced at step": "{first_replaced}",
            "honest workers blamed": "{blamed}",
            "rounds rejected": "{rejected}",
            "wrong gradients": "{applied}",
            "largest error": "{worst:.0e}",
        },
    )


def train(handling: dict[str, Any], steps: int, seed: int) -> Numbers:
    """Returns counts of flipped and detected bits, and errors of gradients."""
    code = handling["code"]
    random = np.random.default_rng(seed)
    x = random.normal(size=(code.num_parts, NUM_ROWS // code.num_parts, NUM_PARAMS))
    x = x.astype(np.float32) / np.sqrt(NUM_ROWS)
    solution = random.normal(size=NUM_PARAMS).astype(np.float32)
    parts = (x, x @ solution)

    def loss(params, part):
        x, y = part
        return jnp.sum((x @ params - y) ** 2)

    @jax.jit
    def compare(params, messages, received):
        decoded = jaxwgc.decode(code, messages, received, params)
        whole = tuple(leaf.reshape(NUM_ROWS, *leaf.shape[2:]) for leaf in parts)
        true = jax.grad(loss)(params, whole)
        error = jnp.linalg.norm(decoded - true) / jnp.linalg.norm(true)
        # All handlings train with the true gradient, to see the same rounds. The step
        # is small: relative to a vanishing gradient, rounding would be a large error.
        return params - RATE * true, error

    pid = None
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        jaxwgc.distributed.RayCluster(
            loss, parts=parts, faults=Faults(corrupt=flips(folder, seed)), **handling
        ) as cluster,
    ):
        warnings.simplefilter("ignore")
        params = jnp.zeros(NUM_PARAMS)
        for step in range(steps):
            done = cluster.compute(params)
            # A replacement does not flip bits.
            pid = pid or cluster.workers[WRONG_WORKER].pid
            is_first = cluster.workers[WRONG_WORKER].pid == pid
            params, error = compare(params, done.messages, done.received)
            wrong = np.zeros(NUM_WORKERS, bool) if done.wrong is None else done.wrong
            is_named = bool(wrong[WRONG_WORKER])
            has_responded = np.isfinite(done.times[WRONG_WORKER])
            has_flipped = is_first and has_responded and is_flipped(step, seed)
            error = 0.0 if done.rejected else float(error)
            rows.append(
                {
                    "flipped": has_flipped or is_named,
                    "named": is_named,
                    "replaced": not is_first,
                    "blamed": int(wrong.sum() - is_named),
                    "rejected": done.rejected,
                    "applied": error > HARMLESS,
                    "error": error,
                }
            )

    return summarize(rows)


def summarize(rows: list[dict[str, Any]]) -> Numbers:
    """Returns counts over the steps, first steps, and the largest error."""
    numbers: Numbers = {}
    for name in ("flipped", "named", "blamed", "rejected", "applied"):
        numbers[name] = sum(row[name] for row in rows)
    for name in ("flipped", "named", "replaced"):
        steps = [step for step, row in enumerate(rows) if row[name]]
        numbers[f"first_{name}"] = steps[0] if steps else None
    numbers["worst"] = max(0.0, *(row["error"] for row in rows))
    return numbers


def is_flipped(step: int, seed: int) -> bool:
    """Returns whether a bit is flipped in that step."""
    return np.random.default_rng((seed, step)).random() < SHARE


def flips(folder: str, seed: int) -> Callable[[int, int, np.ndarray], np.ndarray]:
    """Returns `corrupt`, with which the first process of one worker flips bits."""
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
            # A bit of the sign, of the exponent or of the upper mantissa.
            bit = np.uint32(1) << np.uint32(random.integers(16, 32))
            message.view(np.uint32)[random.integers(len(message))] ^= bit
        return message

    return corrupt


def audits(rounds: int, seed: int) -> Study:
    """Returns the rounds until a worker is detected that is wrong in all of them."""

    def rounds_until_detection(row):
        if not row["found"]:
            return "never"
        return f"{row['mean']:.1f} ± {row['half']:.1f}"

    return timed(
        {f"{audit:g}": Once(audited, audit, rounds, seed) for audit in AUDITS},
        f"On request with 2 copies, {NUM_WORKERS} workers of which one is always "
        "wrong; expected: 1 / (audit · fraction of the parts that it holds)",
        {
            "audit": "{name}",
            "times detected": "{found}",
            "rounds until detection": rounds_until_detection,
            "expected": "{expected:.1f}",
            "honest workers blamed": "{blamed}",
        },
    )


def audited(audit: float, rounds: int, seed: int) -> Numbers:
    """Returns the mean rounds between detections, and their expected value."""
    num_parts = NUM_WORKERS * PARTS_EACH
    code = codes.replicated(NUM_WORKERS, num_parts, copies=2)

    def corrupt(worker: int, step: int, message: np.ndarray) -> np.ndarray:
        if worker == WRONG_WORKER:
            message[step % len(message)] += 1
        return message

    gaps = []
    blamed = 0
    since = 0
    with (
        warnings.catch_warnings(),
        # The worker is not replaced, so that it can be detected again.
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
            wrong = cluster.compute(params).wrong
            since = since + 1
            assert wrong is not None
            if wrong[WRONG_WORKER]:
                gaps.append(since)
                since = 0
            blamed += int(wrong.sum() - wrong[WRONG_WORKER])
    # An audited part is requested from its sender and from its other holder.
    share = np.asarray(code.assignment)[WRONG_WORKER].sum() / num_parts
    mean = None
    half = None
    if gaps:
        mean = float(np.mean(gaps))
        half = float(1.96 * np.std(gaps) / np.sqrt(len(gaps)))
    return {
        "found": len(gaps),
        "mean": mean,
        "half": half,
        "expected": float(1 / (audit * share)),
        "blamed": blamed,
    }


def price(steps: int) -> Study:
    """Returns the overhead of verification at the coordinator."""
    request = codes.replicated(NUM_WORKERS, copies=2)
    audit = Verification(audit=0.1)
    clusters = {
        "Reed–Solomon": solomon(wait=ALL_BUT_ONE),
        "Reed–Solomon, on_wrong": solomon(wait=ALL_BUT_ONE, verification=DROP),
        "on request": {"code": request},
        "on request, audit=0.1": {"code": request, "verification": audit},
    }
    return timed(
        {name: Once(seconds, options, steps) for name, options in clusters.items()},
        f"Steps without work, {NUM_WORKERS} workers, {NUM_LARGE:,} parameters in "
        "float32",
        {"code": "{name}", **{name: f"{{{name}:.1f}}" for name in MILLISECONDS}},
    )


def seconds(options: dict[str, Any], steps: int) -> dict[str, float]:
    """Returns median and mean milliseconds of a step and of its verification."""
    parts = np.ones((options["code"].num_parts, 1), np.float32)
    with jaxwgc.distributed.RayCluster(
        lambda params, part: jnp.sum(part) * params[0], parts=parts, **options
    ) as cluster:
        rounds = timed_rounds(cluster, np.zeros(NUM_LARGE, np.float32), steps)
    steps_ms = [1e3 * seconds for seconds, _ in rounds]
    verification_ms = [1e3 * done.timings.get("examination", 0.0) for _, done in rounds]
    return {
        "ms per step, median": float(np.median(steps_ms)),
        "ms per step, mean": float(np.mean(steps_ms)),
        "ms of verification, median": float(np.median(verification_ms)),
        "ms of verification, mean": float(np.mean(verification_ms)),
    }
