"""Comparison of codes: `python -m experiments codes`, a module per section."""

import functools

import jax

from experiments.codes import (
    equal_load,
    learned,
    noise,
    noisy_messages,
    partial_work,
    published,
    recovery,
    unequal,
)
from experiments.runner.study import Effort, Sections, command

SECTIONS = {
    "equal_load": equal_load.study,
    "noise": noise.study,
    "recovery": recovery.study,
    "learned": learned.study,
    "partial_work": partial_work.study,
    "unequal": unequal.study,
    "placement": noise.any_placement,
    "noisy": noisy_messages.study,
    "random_codes": published.random_codes,
    "expanders": published.expanders,
    "designs": published.designs,
}


@command("codes", "Which code? Patterns of stragglers")
def codes(runs: int = 2_000, seed: int = 0) -> Sections:
    """Compares all codes: error, noise, recovery, unequal workers, any placement.

    Args:
        runs: Random patterns of stragglers for each mean. Below 100 also fewer workers,
            sizes and steps, as a quick check.
    """
    effort = Effort(runs, is_full=runs >= 100)
    key = jax.random.key(seed)
    return {
        name: functools.partial(build, effort, key) for name, build in SECTIONS.items()
    }
