"""Losses, batches and faults, which workers import without the tests."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.distributed import Faults

# Steps with faults: one is as long as DELAYS, one is held until a test makes the file
# `go` (at most five minutes), in one a message has NaN, and from the last one on sums
# have the wrong sign.
TIMED = 10**6
HELD = 10**7
NOT_FINITE = 10**8
WRONG = 10**9
DELAYS = 0.05, 0.01


def distances(params, part):
    """Half of the squared distances of rows; the aux has what else is in the part."""
    x = part["x"]
    return 0.5 * jnp.sum((x - params) ** 2), {
        "mean": x.mean(0),
        "noise": jax.random.normal(part["key"]),
        "2": 2,
    }


def draw_rows(key, part):
    return {**part, "x": draw(key, part["x"])}


def draw(key, rows):
    return jax.random.choice(key, rows, (4,), replace=False)


def squares(params, part):
    return jnp.sum((params - part) ** 2)


def residuals(params, part):
    values = part @ params["w"] + params["b"]
    return jnp.sum(values**2), {"most": jnp.abs(values).max()}


class OfTwoArguments(RuntimeError):
    """An exception that can be pickled, and not read again."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


# Class and arguments of what worker 1 raises, by the text in the file `raise`.
RAISED = {
    "": (ArithmeticError, ["as told"]),
    "two arguments": (OfTwoArguments, ["as", "told"]),
    "interrupt": (KeyboardInterrupt, ["as told"]),
    "exit": (SystemExit, ["as told"]),
}


def faults(folder, seconds=0.0):
    """Faults by step, mostly of worker 1; `seconds` is the delay in other steps.

    Worker 1 raises as long as there is the file `raise`, by its text. Of its processes,
    only the first that comes to it sends wrong sums.
    """

    def delay(worker, step):
        end = time.monotonic() + 300
        while step == HELD and not (folder / "go").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return DELAYS[worker] if step == TIMED else seconds

    def corrupt(worker, step, message):
        if worker == 1 and (folder / "raise").exists():
            kind, arguments = RAISED[(folder / "raise").read_text()]
            raise kind(*arguments)
        if worker == 1 and step == NOT_FINITE:
            message[0] = np.nan
        if worker == 1 and step >= WRONG:
            first = folder / "first"
            if not first.exists():
                first.write_text(str(os.getpid()))
            if first.read_text() == str(os.getpid()):
                message *= -1
        return message

    return Faults(delay, corrupt)
