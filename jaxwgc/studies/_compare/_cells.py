"""Cells of a comparison: simulated rounds, and the masks that they decode."""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from jaxwgc.studies._compare._inputs import Inputs
from jaxwgc.studies._compare._trials import Draws, Schedule, Trials, simulate
from jaxwgc.studies._progress import Progress
from jaxwgc.studies._simulation._masks import DecodedMasks, decode_all, distinct_rows
from jaxwgc.studies._simulation._rounds import Waiting

# Index of code, delay model and waiting rule.
Cell: TypeAlias = tuple[int, int, int]


class Group(NamedTuple):
    """Codes with equal loads, and their waiting rules.

    Attributes:
      loads: Load of each worker, (num_workers,).
      waiting: Distinct rules of these codes.
      places: Index of the rule in `waiting`, by the indices of code and rule.
    """

    loads: np.ndarray
    waiting: list[Waiting]
    places: dict[tuple[int, int], int]


def groups_of_equal_loads(inputs: Inputs) -> list[Group]:
    """Returns the codes and rules that share drawn times."""
    groups: dict[bytes, Group] = {}
    for place, code in enumerate(inputs.codes.values()):
        loads = np.asarray(code.loads, np.float64)
        group = groups.setdefault(loads.tobytes(), Group(loads, [], {}))
        known = {one.identity: index for index, one in enumerate(group.waiting)}
        for number, rules in enumerate(inputs.rules.values()):
            waiting = Waiting.of(code, rules[place], inputs.late)
            if waiting.identity not in known:
                known[waiting.identity] = len(group.waiting)
                group.waiting.append(waiting)
            group.places[place, number] = known[waiting.identity]
    return list(groups.values())


def simulated(
    inputs: Inputs,
    groups: list[Group],
    key: jax.Array,
    schedule: Schedule,
    shown: Progress,
) -> dict[Cell, Trials]:
    """Returns the trials of every cell."""
    trials = {}
    for place, (name, delay) in enumerate(inputs.delays.items()):
        drawn = Draws(name, delay, key, schedule)
        for group in groups:
            of_rules = simulate(drawn, group.loads, group.waiting, shown.advance)
            for (code, rule), index in group.places.items():
                trials[code, place, rule] = of_rules[index]
    return trials


def quantities_of_cells(
    inputs: Inputs, trials: dict[Cell, Trials], tolerance: float, shown: Progress
) -> Iterator[tuple[Cell, dict[str, np.ndarray]]]:
    """Yields the trials of each quantity, (num_trials,), of each cell.

    Masks that occur in several cells of a code are decoded once.
    """
    cells: list[list[Cell]] = [[] for _ in inputs.codes]
    for cell in trials:
        cells[cell[0]].append(cell)
    distinct = [
        distinct_rows(np.concatenate([trials[cell].masks for cell in of_code]))
        for of_code in cells
    ]
    decoded_codes = decode_all(
        list(inputs.codes.values()), [masks for masks, _ in distinct]
    )
    for of_code, (_, places), decoded in zip(
        cells, distinct, decoded_codes, strict=True
    ):
        shown.advance()
        start = 0
        for cell in of_code:
            end = start + len(trials[cell].masks)
            of_trials = decoded.take(places[start:end][trials[cell].places])
            yield cell, _quantities(trials[cell], of_trials, tolerance)
            start = end


def _quantities(
    trials: Trials, decoded: DecodedMasks, tolerance: float
) -> dict[str, np.ndarray]:
    """Returns the trials of each quantity of a cell, (num_trials,)."""
    return {
        "time": trials.time,
        "error": decoded.error,
        "share": decoded.share,
        "exact": decoded.residual <= tolerance,
        "messages": decoded.messages,
        "work": trials.work,
    }
