"""Corrupted messages: detection rates, false alarms and training."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.errors import bits, learning
from experiments.errors.bits import HARMLESS
from experiments.errors.rounds import INDEPENDENT, TOGETHER, WORST, Rounds, known_codes
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import table_of

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


def wrong_answers(
    runs: int | None = None,
    quick: bool = False,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Corrupted messages: which are detected, at what size, and training with them.

    Args:
        runs: Rounds per cell; 200 by default, 5 with --quick. There are 50 times as
            many rounds without errors, and 5 times as many for each bit.
        quick: Run few rounds, and train with fewer seeds.
        seed: Seed of the random numbers.
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
    run("wrong_answers", "Corrupted messages", sections, runs, seed, out)


# Rounds by the name of a code.
Known = Callable[[str], Rounds]


def located(runs: int, rounds: Known) -> Study:
    """Returns the rounds in which exactly the corrupted workers are located."""
    cells = [
        {"code": name, "missing": missing, "wrong": wrong}
        | {"": Once(_located, rounds, name, missing, wrong)}
        for (name, missing), numbers in CELLS.items()
        for wrong in numbers
    ]

    def least(kinds):
        def cell(row):
            shown = [row["right"][name] for name in kinds if name in row["right"]]
            return f"{min(shown)}" if shown else "beyond"

        return cell

    table = table_of(
        "Of {rounds} rounds in float32, those in which exactly the corrupted workers "
        "are located: minimum over four kinds of independent errors, and over three "
        "kinds of errors that agree. If half of the workers are corrupted, noise alone",
        {
            "code": "{code}",
            "missing": "{missing}",
            "checks": "{checks}",
            "corrupted": "{wrong}",
            "independent": least(INDEPENDENT),
            "that agree": least(TOGETHER),
            "rejected, of all": "{refused}",
            "honest workers blamed": "{blamed}",
            "largest error of the gradient": "{error:.0e}",
        },
        "cells",
    )
    return Study({"rounds": runs, "cells": cells}, tables={"": table})


def _located(rounds: Known, name: str, missing: int, wrong: int) -> Numbers:
    code = rounds(name).code
    checks = code.num_stragglers - missing
    # Half as many colluders can be located.
    kinds = INDEPENDENT | (TOGETHER if wrong <= checks // 2 else {})
    if 2 * wrong >= code.num_workers:
        # If half of all signs are flipped, the other half may be the corrupted one.
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


def clean(runs: int, rounds: Known, names: list[str]) -> Study:
    """Returns the outcomes of rounds without corrupted messages."""
    table = table_of(
        "{rounds:,} rounds with one missing and no corrupted message",
        {
            "code": "{name}",
            "honest workers blamed": "{blamed}",
            "rejected": "{refused}",
            "largest error of the gradient": "{error:.0e}",
        },
        "codes",
    )
    cells = {name: Once(_clean, rounds, name) for name in names}
    return Study({"rounds": BATCHES * runs, "codes": cells}, tables={"clean": table})


def _clean(rounds: Known, name: str) -> Numbers:
    played = [rounds(name).play("noise", 0, 1, batch) for batch in range(BATCHES)]
    return {
        "blamed": int(sum(each.blames.sum() for each in played)),
        "refused": int(sum(each.is_refused.sum() for each in played)),
        "error": float(max(each.error.max() for each in played)),
    }


def beyond(runs: int, rounds: Known) -> Study:
    """Returns the outcomes with more colluders than the code can locate."""
    cells = [
        {"code": name, "wrong": wrong, "kind": kind}
        | {"": Once(_beyond, rounds, name, kind, wrong)}
        for name, wrong in BEYOND.items()
        for kind in TOGETHER | WORST
    ]
    table = table_of(
        "More workers with errors that agree than the code can locate, {rounds} rounds",
        {
            "code": "{code}",
            "corrupted": "{wrong}",
            "error": "{kind}",
            "located": "{right}",
            "rejected": "{refused}",
            "honest workers blamed": "{blamed}",
            "error above 1e-5": "{unnoticed}",
        },
        "cells",
    )
    return Study({"rounds": runs, "cells": cells}, tables={"beyond": table})


def _beyond(rounds: Known, name: str, kind: str, wrong: int) -> Numbers:
    played = rounds(name).play(kind, wrong)
    return {
        "right": int(played.is_right.sum()),
        "refused": int(played.is_refused.sum()),
        "blamed": int(played.blames.sum()),
        "unnoticed": int(np.sum((played.error > HARMLESS) & ~played.is_refused)),
    }
