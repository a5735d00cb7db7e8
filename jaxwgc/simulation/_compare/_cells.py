"""Cells of a comparison: simulated rounds, and the masks that they decode."""

from collections.abc import Hashable, Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from jaxwgc._common.progress import Progress
from jaxwgc.simulation._compare._inputs import Inputs
from jaxwgc.simulation._compare._trials import Draws, Schedule, Trials, simulate
from jaxwgc.simulation._masks import DecodedMasks, decode_packed, distinct_rows
from jaxwgc.simulation._rounds import Loads, Waiting

# Index of code, delay model and waiting rule.
Cell: TypeAlias = tuple[int, int, int]


class Group(NamedTuple):
    """Codes with equal loads and parts, and their waiting rules.

    Attributes:
      loads: Loads and parts of the workers.
      waiting: Distinct rules of these codes.
      places: Index of the rule in `waiting`, by the indices of code and rule.
    """

    loads: Loads
    waiting: list[Waiting]
    places: dict[tuple[int, int], int]


def groups_of_equal_loads(inputs: Inputs) -> list[Group]:
    """Returns the codes and rules that share drawn times."""
    groups: dict[Hashable, Group] = {}
    for place, code in enumerate(inputs.codes.values()):
        loads = Loads.of(code, np.float64)
        empty = Group(loads=loads, waiting=[], places={})
        group = groups.setdefault(loads.identity, empty)
        known = {waiting.identity: at for at, waiting in enumerate(group.waiting)}
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
      ValueError: If a rule ends rounds at times that are NaN or negative.
    """
    trials = {}
    code_names = list(inputs.codes)
    rule_names = list(inputs.rules)
    for place, (name, delay) in enumerate(inputs.delays.items()):
        draws = Draws(name=name, delay=delay, key=key, schedule=schedule)
        for group in groups:
            trials_of_rules = simulate(draws, group.loads, group.waiting, shown.advance)
            for (code, rule), index in group.places.items():
                trials_of_cell = trials_of_rules[index]
                is_valid = trials_of_cell.time >= 0
                if not is_valid.all():
                    end = trials_of_cell.time[~is_valid][0]
                    raise ValueError(
                        f"waiting[{rule_names[rule]!r}] must end rounds at times of at "
                        f"least 0, or at infinity; with delays[{name!r}] and "
                        f"codes[{code_names[code]!r}] a round ends at {end}"
                    )
                trials[code, place, rule] = trials_of_cell
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
        masks_of_cells = [trials_of_cell.masks for trials_of_cell in trials.values()]
        masks, places = distinct_rows(np.concatenate(masks_of_cells))
        ends = np.cumsum([len(masks_of_cell) for masks_of_cell in masks_of_cells])
        places_of_cells = np.split(places, ends[:-1])
        return cls(masks=masks, places=dict(zip(trials, places_of_cells, strict=True)))


def quantities_of_cells(
    inputs: Inputs, trials: dict[Cell, Trials], tolerance: float, shown: Progress
) -> Iterator[tuple[Cell, dict[str, np.ndarray]]]:
    """Yields the trials of each quantity, (num_trials,), of each cell.

    Masks that occur in several cells of a code are decoded once.
    """
    for place, code in enumerate(inputs.codes.values()):
        trials_of_code = {cell: trials[cell] for cell in trials if cell[0] == place}
        cells = _CellsOfCode.of(trials_of_code)
        decoded = decode_packed(code, cells.masks)
        shown.advance()
        for cell, trials_of_cell in trials_of_code.items():
            places = cells.places[cell]
            decoded_trials = decoded.take(places[trials_of_cell.places])
            yield cell, _quantities(trials_of_cell, decoded_trials, tolerance)


def _quantities(
    trials: Trials, decoded: DecodedMasks, tolerance: float
) -> dict[str, np.ndarray]:
    """Returns the trials of each quantity of a cell, (num_trials,)."""
    return {
        "time": trials.time,
        "error": decoded.error,
        "share": decoded.share,
        # An error of 0 means that the residual is rounding.
        "exact": (decoded.residual <= tolerance) | (decoded.error == 0),
        "messages": decoded.messages,
        "work": trials.work,
    }
