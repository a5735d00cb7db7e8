"""Corrupted messages: detection rates, false alarms and training."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.errors import learning
from experiments.errors import rounds as rounds_of
from experiments.errors.rounds import INDEPENDENT, TOGETHER, WORST, Outcomes, Rounds
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Numbers, Once, Sections, Study, command
from experiments.runner.tables import ResultTable, table_of
from jaxwgc import corruptions, stragglers

SHOWN = (
    "RS(20, 20, 9)",
    "cyclic repetition, n = 12, s = 5",
    "fractional repetition, n = 12, s = 2",
)
NUM_BITS = 32
# Relative change of the gradient below which an error does not matter.
HARMLESS = 1e-5
SIZES = 10.0 ** np.arange(-8, 3.1, 0.5)


def bits(runs: int, key: jax.Array) -> Study:
    """Returns detections by bit and by size of the error."""
    known = rounds_of.known_codes(key)
    cells = {}
    for name in SHOWN:
        code = known[name]
        cells[name] = {
            "bits": Once(flipped, code, 5 * runs, key),
            "whole": Once(sized, code, 1.0, runs, key),
            "entry": Once(sized, code, 1e-9, runs, key),
        }
    numbers = {"rounds": 5 * runs, "sizes": SIZES.tolist(), "codes": cells}
    return Study(numbers, tables={"bits": tabulate}, figures={"sizes": draw})


class Played(NamedTuple):
    """Rounds with one corrupted message: detection, and error of the gradient."""

    is_detected: np.ndarray
    error: np.ndarray


def _play(
    code: jaxwgc.GradientCode,
    model_of: Callable[[stragglers.StragglerModel, Any], corruptions.CorruptionModel],
    settings: jax.Array,
    runs: int,
    key: jax.Array,
) -> list[Played]:
    """Returns the rounds per setting of the model."""
    number = code.num_workers

    def one_round(key, setting):
        keys = jax.random.split(key, 4)
        wrong = jax.random.randint(keys[1], (), 0, number)
        honest = stragglers.fixed(jnp.arange(number) != wrong)
        model = model_of(honest, setting)
        everyone = jnp.ones(number, bool)
        located, error = rounds_of.corrupt_and_decode(code, model, keys, everyone)
        is_detected = located.wrong.any() | located.rejected | ~located.mask.all()
        return is_detected, jnp.where(located.rejected, 0, error)

    keys = jax.random.split(key, runs)

    @jax.jit
    def play_all(setting):
        return jax.lax.map(lambda key: one_round(key, setting), keys)

    played = []
    for setting in settings:
        is_detected, error = play_all(setting)
        played.append(Played(np.asarray(is_detected), np.asarray(error)))
    return played


def flipped(code: jaxwgc.GradientCode, runs: int, key: jax.Array) -> list[Numbers]:
    """Returns per bit the detections, and the worst error of decoded gradients."""
    numbers = []
    for rounds in _play(code, corruptions.bit_flip, jnp.arange(NUM_BITS), runs, key):
        numbers.append(
            {
                "detected": int(rounds.is_detected.sum()),
                "harm": float(rounds.error.max()),
                "harmful": int(np.sum(rounds.error > HARMLESS)),
            }
        )
    return numbers


def sized(
    code: jaxwgc.GradientCode, share: float, runs: int, key: jax.Array
) -> list[Numbers]:
    """Returns detections by relative size of an error in a share of the entries."""

    def model_of(who, size):
        return corruptions.additive_noise(who, size, share)

    # Errors in one entry are relative to the norm of the message.
    scale = np.sqrt(rounds_of.NUM_PARAMETERS) if share < 1 else 1.0
    sizes = jnp.asarray(SIZES * scale, jnp.float32)
    numbers = []
    for rounds in _play(code, model_of, sizes, runs, key):
        detected = rounds.is_detected.mean()
        numbers.append({"detected": detected, "harm": rounds.error.max()})
    return numbers


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per bit."""

    table = ResultTable(
        f"One bit of one entry of one message is flipped, {numbers['rounds']:,} rounds "
        f"per bit, {rounds_of.NUM_PARAMETERS:,} parameters: rounds in which it is "
        "detected, and in brackets the largest relative error of the decoded gradient",
        ["bit (exponent from 23)", *numbers["codes"]],
    )

    def cells(bit):
        outcomes = [code.bits[bit] for code in numbers["codes"].values()]
        return [f"{outcome.detected} ({outcome.harm:.0e})" for outcome in outcomes]

    # Every other bit. Neighbours with equal cells share a row.
    shown = range(NUM_BITS - 2, -1, -2)
    for same_cells, group in itertools.groupby(shown, key=cells):
        bits = list(group)
        name = str(bits[0])
        if len(bits) > 1:
            name = f"{bits[0]} to {bits[-1]}"
        table.rows.append([name, *same_cells])
    return table


def draw(numbers: Numbers) -> Figure:
    """Draws detections and the largest error of decoded gradients by size."""
    figure, (left, right) = new_figure(9, 4, columns=2, sharey=False)
    for index, (name, code) in enumerate(numbers["codes"].items()):
        for linestyle, kind in (("-", "whole"), ("--", "entry")):
            label = name if kind == "whole" else None
            shares = [100 * cell.detected for cell in code[kind]]
            harms = [max(cell.harm, 1e-9) for cell in code[kind]]
            for axes, values in ((left, shares), (right, harms)):
                line(
                    axes,
                    index,
                    numbers["sizes"],
                    values,
                    linestyle=linestyle,
                    label=label,
                )
    left.set(ylabel="detected, percent")
    right.set(yscale="log", ylabel="relative error of the decoded gradient")
    right.axhline(HARMLESS, color="0.6", linewidth=0.8)
    label = "relative error of the message (dashed: one entry)"
    for axes in (left, right):
        axes.set(xscale="log", xlabel=label)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3)
    return figure


# Numbers of corrupted messages by code and number of missing messages.
CELLS: dict[tuple[str, int], tuple[int, ...]] = {
    ("RS(20, 20, 9)", 0): (1, 2, 4, 5, 6, 7),
    ("RS(20, 20, 9)", 2): (1, 3, 4, 5),
    ("RS(50, 20, 30)", 0): (1, 5, 10, 14, 20, 25, 28),
    ("RS(50, 20, 30)", 10): (5, 9, 15, 19),
    ("cyclic repetition, n = 12, s = 5", 0): (1, 2, 3, 4),
    ("cyclic repetition, n = 12, s = 5", 2): (1, 2),
}
# Batches of rounds without errors.
BATCHES = 50
# Numbers of colluding workers: one more than the code can locate.
BEYOND = {"RS(20, 20, 9)": 5, "RS(50, 20, 30)": 15, "cyclic MDS, n = 12, s = 5": 3}


@command("wrong-answers", "Corrupted messages")
def wrong_answers(runs: int = 200, quick: bool = False, seed: int = 0) -> Sections:
    """Detects and corrects corrupted messages, and trains with them.

    Args:
        runs: Rounds per cell. There are 50 times as many rounds without errors, and 5
            times as many for each bit.
        quick: Run at most 5 rounds per cell, and train with fewer seeds.
    """
    runs = min(runs, 5) if quick else runs
    key = jax.random.key(seed)
    known = rounds_of.known_codes(key)
    rounds = functools.cache(lambda name: Rounds(known[name], runs, key))
    return {
        "located": functools.partial(located, runs, rounds),
        "clean": functools.partial(clean, runs, rounds, list(known)),
        "beyond": functools.partial(beyond, runs, rounds),
        "bits": functools.partial(bits, runs, key),
        "training": functools.partial(learning.study, quick, key),
        "gradients": functools.partial(learning.compared, runs, key),
    }


# Rounds by the name of a code.
Known = Callable[[str], Rounds]


def located(runs: int, rounds: Known) -> Study:
    """Returns the rounds in which exactly the corrupted workers are located."""
    cells = []
    for (name, missing), numbers in CELLS.items():
        for wrong in numbers:
            cells.append(
                {
                    "code": name,
                    "missing": missing,
                    "wrong": wrong,
                    "": Once(_located, rounds, name, missing, wrong),
                }
            )

    def minimum_over(kinds):
        def cell(row):
            counts = [row["right"][name] for name in kinds if name in row["right"]]
            return str(min(counts, default="beyond"))

        return cell

    table = table_of(
        "Of {rounds} rounds in float32, those in which exactly the corrupted workers "
        "are located: minimum over four kinds of independent errors, and over three "
        "kinds of errors that agree. If half of the workers are corrupted, noise alone",
        {
            "code": "{code}",
            "checks": "{checks}",
            "corrupted": "{wrong}",
            "independent": minimum_over(INDEPENDENT),
            "that agree": minimum_over(TOGETHER),
            "rejected, of all": "{rejected}",
            "honest workers blamed": "{blamed}",
            "largest error of the gradient": "{error:.0e}",
        },
        informative,
    )
    return Study({"rounds": runs, "cells": cells}, tables={"": table})


def informative(numbers: Numbers) -> list[Numbers]:
    """Returns the cells, without those that equal one with more corrupted workers."""
    shown = []
    cells = numbers["cells"]
    for cell, following in itertools.zip_longest(cells, cells[1:]):
        is_repeated = following is not None and all(
            cell[name] == following[name]
            for name in ("code", "missing", "right", "refused", "blamed")
        )
        if not is_repeated:
            shown.append(cell)
    return shown


def _located(rounds: Known, name: str, missing: int, wrong: int) -> Numbers:
    code = rounds(name).code
    checks = code.num_stragglers - missing
    if 2 * wrong >= code.num_workers:
        # If half of all signs are flipped, the other half may be the corrupted one.
        kinds = ["noise"]
    elif wrong <= checks // 2:
        kinds = [*INDEPENDENT, *TOGETHER]
    else:
        # Half as many colluders can be located.
        kinds = [*INDEPENDENT]
    played = {kind: rounds(name).play(kind, wrong, missing) for kind in kinds}
    together = _concatenated([*played.values()])
    return {
        "checks": checks,
        "right": {kind: outcomes.is_right.sum() for kind, outcomes in played.items()},
        "rejected": together.is_rejected.sum(),
        "blamed": together.blames.sum(),
        "error": together.error[together.is_right].max(initial=0),
    }


def _concatenated(outcomes: list[Outcomes]) -> Outcomes:
    """Returns the outcomes of all rounds."""
    return jax.tree.map(lambda *fields: np.concatenate(fields), *outcomes)


def clean(runs: int, rounds: Known, names: list[str]) -> Study:
    """Returns the outcomes of rounds without corrupted messages."""
    table = table_of(
        "{rounds:,} rounds with one missing and no corrupted message",
        {
            "code": "{name}",
            "honest workers blamed": "{blamed}",
            "rejected": "{rejected}",
            "largest error of the gradient": "{error:.0e}",
        },
        "codes",
    )
    cells = {name: Once(_clean, rounds, name) for name in names}
    return Study({"rounds": BATCHES * runs, "codes": cells}, tables={"clean": table})


def _clean(rounds: Known, name: str) -> Numbers:
    played = [rounds(name).play("noise", 0, 1, batch) for batch in range(BATCHES)]
    together = _concatenated(played)
    return {
        "blamed": together.blames.sum(),
        "rejected": together.is_rejected.sum(),
        "error": together.error.max(),
    }


def beyond(runs: int, rounds: Known) -> Study:
    """Returns the outcomes with more colluders than the code can locate."""
    cells = []
    for name, wrong in BEYOND.items():
        for kind in (*TOGETHER, *WORST):
            cell = Once(_beyond, rounds, name, kind, wrong)
            cells.append({"code": name, "wrong": wrong, "kind": kind, "": cell})
    table = table_of(
        "More workers with errors that agree than the code can locate, {rounds} rounds",
        {
            "code": "{code}",
            "corrupted": "{wrong}",
            "error": "{kind}",
            "located": "{right}",
            "rejected": "{rejected}",
            "honest workers blamed": "{blamed}",
            "error above 1e-5": "{unnoticed}",
        },
        "cells",
    )
    return Study({"rounds": runs, "cells": cells}, tables={"beyond": table})


def _beyond(rounds: Known, name: str, kind: str, wrong: int) -> Numbers:
    played = rounds(name).play(kind, wrong)
    is_unnoticed = (played.error > HARMLESS) & ~played.is_rejected
    return {
        "right": played.is_right.sum(),
        "rejected": played.is_rejected.sum(),
        "blamed": played.blames.sum(),
        "unnoticed": np.sum(is_unnoticed),
    }
