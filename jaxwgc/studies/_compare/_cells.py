"""Cells of a comparison: simulated rounds, and the masks that they decode."""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from jaxwgc.studies._compare._inputs import Inputs
from jaxwgc.studies._compare._trials import Draws, Schedule, Trials, simulate
from jaxwgc.studies._progress import Progress
from jaxwgc.studies._simulation._masks import DecodedMasks, decode_packed, distinct_rows
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
    """Returns the trials of every cell.

    Raises:
      ValueError: If a rule ends rounds at times that are NaN.
    """
    trials = {}
    for place, (name, delay) in enumerate(inputs.delays.items()):
        drawn = Draws(name, delay, key, schedule)
        for group in groups:
            of_rules = simulate(drawn, group.loads, group.waiting, shown.advance)
            for (code, rule), index in group.places.items():
                if np.isnan(of_rules[index].time).any():
                    raise ValueError(
                        f"waiting[{[*inputs.rules][rule]!r}] must end rounds at a time "
                        f"or at infinity; with delays[{name!r}] and "
                        f"codes[{[*inputs.codes][code]!r}] a round ends at nan"
                    )
                trials[code, place, rule] = of_rules[index]
    return trials


class _CellsOfCode(NamedTuple):
    """Cells of one code, which share their decoded masks.

    Attributes:
      masks: Distinct masks of all cells, packed bits, uint8 (masks, bytes).
      places: For each cell, the index in `masks` of each of the masks of its trials.
    """

    masks: np.ndarray
    places: dict[Cell, np.ndarray]

    @classmethod
    def of(cls, trials: dict[Cell, Trials]) -> "_CellsOfCode":
        """Returns the cells of a code with their distinct masks."""
        of_cells = [of_cell.masks for of_cell in trials.values()]
        masks, places = distinct_rows(np.concatenate(of_cells))
        ends = np.cumsum([len(of_cell) for of_cell in of_cells])
        split = np.split(places, ends[:-1])
        return cls(masks, dict(zip(trials, split, strict=True)))


def quantities_of_cells(
    inputs: Inputs, trials: dict[Cell, Trials], tolerance: float, shown: Progress
) -> Iterator[tuple[Cell, dict[str, np.ndarray]]]:
    """Yields the trials of each quantity, (num_trials,), of each cell.

    Masks that occur in several cells of a code are decoded once.
    """
    for place, code in enumerate(inputs.codes.values()):
        cells = _CellsOfCode.of(
            {cell: trials[cell] for cell in trials if cell[0] == place}
        )
        decoded = decode_packed(code, cells.masks)
        shown.advance()
        for cell, places in cells.places.items():
            of_trials = decoded.take(places[trials[cell].places])
            yield cell, _quantities(trials[cell], of_trials, tolerance)


def _quantities(
    trials: Trials, decoded: DecodedMasks, tolerance: float
) -> dict[str, np.ndarray]:
    """Returns the trials of each quantity of a cell, (num_trials,)."""
    return {
        "time": trials.time,
        "error": decoded.error,
        "share": decoded.share,
        # The error is 0 if the residual is rounding.
        "exact": (decoded.residual <= tolerance) | (decoded.error == 0),
        "messages": decoded.messages,
        "work": trials.work,
    }
