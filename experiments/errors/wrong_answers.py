"""Wrong answers: what is found, how often, and what training makes of it."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.errors import bits, learning
from experiments.errors.bits import HARMLESS
from experiments.errors.rounds import INDEPENDENT, TOGETHER, WORST, Rounds, known_codes
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable

# By code and number of missing answers, the numbers of wrong ones.
CELLS: dict[tuple[str, int], tuple[int, ...]] = {
    ("RS(20, 20, 9)", 0): (1, 2, 4, 5, 6, 7),
    ("RS(20, 20, 9)", 2): (1, 3, 4, 5),
    ("RS(50, 20, 30)", 0): (1, 5, 10, 14, 20, 25, 28),
    ("RS(50, 20, 30)", 10): (5, 9, 15, 19),
    ("cyclic repetition, n = 12, s = 5", 0): (1, 2, 3, 4),
    ("cyclic repetition, n = 12, s = 5", 2): (1, 2),
}
# Rounds without errors, over those of a cell.
BATCHES = 50
# Where colluding workers are one more than the code can tell.
BEYOND = {"RS(20, 20, 9)": 5, "RS(50, 20, 30)": 15, "cyclic MDS, n = 12, s = 5": 3}


def wrong_answers(
    runs: int | None = None,
    quick: bool = False,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Wrong answers: which are found, at what size, and what they do to training.

    Args:
        runs: Rounds a cell; 200 by default, 5 with --quick. Rounds without errors, and
            those of each bit, are fifty and five times as many.
        quick: Fewer of both.
        seed: Of the random numbers.
        out: Folder for tables, figures and numbers.
    """
    if runs is None:
        runs = 5 if quick else 200
    key = jax.random.key(seed)
    rounds = functools.cache(lambda name: Rounds(known_codes(key)[name], runs, key))
    sections = {
        "located": functools.partial(located, runs, rounds),
        "clean": functools.partial(clean, runs, rounds, list(known_codes(key))),
        "beyond": functools.partial(beyond, runs, rounds),
        "bits": functools.partial(bits.study, runs, key),
        "training": functools.partial(learning.study, quick, key),
        "gradients": functools.partial(learning.compared, runs, key),
    }
    run("wrong_answers", "Wrong answers", sections, runs, seed, out)


# By the name of a code.
Known = Callable[[str], Rounds]


def located(runs: int, rounds: Known) -> Study:
    """The share of rounds in which exactly the wrong workers are named."""
    numbers = {
        "rounds": runs,
        "cells": [
            {"code": name, "missing": missing, "wrong": wrong}
            | {"": Once(_located, rounds, name, missing, wrong)}
            for (name, missing), numbers in CELLS.items()
            for wrong in numbers
        ],
    }
    return Study(numbers, tables={"": tabulate_located})


def _located(rounds: Known, name: str, missing: int, wrong: int) -> Numbers:
    code = rounds(name).code
    checks = code.num_stragglers - missing
    # Half as many colluders can be told.
    kinds = INDEPENDENT | (TOGETHER if wrong <= checks // 2 else {})
    if 2 * wrong >= code.num_workers:
        # The others are wrong as well, if all signs are turned.
        kinds = {"noise": INDEPENDENT["noise"]}
    played = {kind: rounds(name).play(kind, wrong, missing) for kind in kinds}
    errors = [each.error[each.is_right] for each in played.values()]
    return {
        "checks": checks,
        "right": {name: int(each.is_right.sum()) for name, each in played.items()},
        "refused": int(sum(each.is_refused.sum() for each in played.values())),
        "blamed": int(sum(each.blames.sum() for each in played.values())),
        "error": float(max(each.max(initial=0) for each in errors)),
    }


def tabulate_located(numbers: Numbers) -> ResultTable:
    """A row a cell; the least success of the kinds of errors."""

    def least(cell, kinds):
        shown = [cell.right[name] for name in kinds if name in cell.right]
        return f"{min(shown)}" if shown else "beyond"

    rows = [
        [
            cell.code,
            str(cell.missing),
            str(cell.checks),
            str(cell.wrong),
            least(cell, INDEPENDENT),
            least(cell, TOGETHER),
            str(cell.refused),
            str(cell.blamed),
            f"{cell.error:.0e}",
        ]
        for cell in numbers["cells"]
    ]
    return ResultTable(
        f"Of {numbers['rounds']} rounds in float32, those in which exactly the wrong "
        "workers are named: the least over four kinds of independent errors, and over "
        "three of errors that agree. Where half of all are wrong, noise alone",
        [
            "code",
            "missing",
            "checks",
            "wrong",
            "independent",
            "that agree",
            "refused, of all",
            "others blamed",
            "largest error of the gradient",
        ],
        rows,
    )


def clean(runs: int, rounds: Known, names: list[str]) -> Study:
    """Rounds in which nobody is wrong."""
    numbers = {
        "rounds": BATCHES * runs,
        "codes": {name: Once(_clean, rounds, name) for name in names},
    }
    return Study(numbers, tables={"clean": tabulate_clean})


def _clean(rounds: Known, name: str) -> Numbers:
    played = [rounds(name).play("noise", 0, 1, batch) for batch in range(BATCHES)]
    return {
        "blamed": int(sum(each.blames.sum() for each in played)),
        "refused": int(sum(each.is_refused.sum() for each in played)),
        "error": float(max(each.error.max() for each in played)),
    }


def tabulate_clean(numbers: Numbers) -> ResultTable:
    """A row a code."""
    return ResultTable(
        f"{numbers['rounds']:,} rounds in which one worker is missing and nobody is "
        "wrong",
        ["code", "somebody blamed", "refused", "largest error of the gradient"],
        [
            [name, str(cell.blamed), str(cell.refused), f"{cell.error:.0e}"]
            for name, cell in numbers["codes"].items()
        ],
    )


def beyond(runs: int, rounds: Known) -> Study:
    """More colluders than can be told from the others."""
    numbers = {
        "rounds": runs,
        "cells": [
            {"code": name, "wrong": wrong, "kind": kind}
            | {"": Once(_beyond, rounds, name, kind, wrong)}
            for name, wrong in BEYOND.items()
            for kind in TOGETHER | WORST
        ],
    }
    return Study(numbers, tables={"beyond": tabulate_beyond})


def _beyond(rounds: Known, name: str, kind: str, wrong: int) -> Numbers:
    played = rounds(name).play(kind, wrong)
    return {
        "right": int(played.is_right.sum()),
        "refused": int(played.is_refused.sum()),
        "blamed": int(played.blames.sum()),
        "unnoticed": int(np.sum((played.error > HARMLESS) & ~played.is_refused)),
    }


def tabulate_beyond(numbers: Numbers) -> ResultTable:
    """A row a code and kind."""
    return ResultTable(
        f"More workers that agree than the code can tell, {numbers['rounds']} rounds",
        [
            "code",
            "wrong",
            "error",
            "found",
            "refused",
            "others blamed",
            "error above 1e-5",
        ],
        [
            [
                cell.code,
                str(cell.wrong),
                cell.kind,
                str(cell.right),
                str(cell.refused),
                str(cell.blamed),
                str(cell.unnoticed),
            ]
            for cell in numbers["cells"]
        ],
    )
