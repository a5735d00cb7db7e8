"""Compares codes, delay models and waiting rules: the public function."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.stragglers import DelayModel
from jaxwgc.studies._compare._comparison import QUANTITIES, Comparison
from jaxwgc.studies._compare._inputs import Inputs, checked_inputs
from jaxwgc.studies._compare._masks import (
    DecodedMasks,
    decode_packed,
    distinct_rows,
)
from jaxwgc.studies._compare._rounds import (
    Draws,
    Rounds,
    Schedule,
    Waiting,
    simulate,
)
from jaxwgc.studies._monte_carlo import Summary, student_summary, summarize
from jaxwgc.studies._progress import Progress

# Quantities from 0 to 1 for optimal decoders. If all trials are 0 or 1, `summarize` has
# the interval of a proportion: an error that was never seen is not known to be 0.
_PROPORTIONS = ("error", "exact")
# Default number of trials per call of a compiled program: a few MB of times.
_BATCH_SIZE = 4096


def compare(
    codes: Mapping[str, GradientCode] | Sequence[GradientCode],
    delays: Mapping[str, DelayModel] | Sequence[DelayModel],
    waiting: Mapping[str, Any] | Sequence[Any],
    key: jax.Array,
    num_trials: int,
    *,
    late: str = "cancelled",
    decoder: DecoderLike | Mapping[str, DecoderLike] = None,
    tolerance: float = 1e-3,
    num_rounds: int = 50,
    keep_trials: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Comparison:
    """Simulates rounds of all combinations of codes, delay models and waiting rules.

    A trial is one round: finish times are drawn, the rule ends the round, and the code
    is decoded from the messages that arrived. Trial i uses the key fold_in(key, i) in
    all cells, so that differences between cells are more accurate than their values,
    and a larger num_trials extends a study. The trial of a cell is
    `stragglers.delayed(delay, wait, late).sample(fold_in(key, i), state, code.loads)`.

    Times are drawn once per delay model and vector of loads, and each distinct mask of
    a code is decoded once. Rules and delay models that differ only in numbers, and
    codes of equal shapes and decoders, share compiled programs. So do studies with
    other numbers of trials.

    Rounds depend on each other if a delay model has a state (`markov`, `empirical`), or
    if late workers are busy. Trials are then consecutive rounds of independent
    clusters, each of which starts with idle workers: trial i is round i % num_rounds of
    cluster i // num_rounds. Intervals are those of the means of clusters.

    Args:
      codes: Gradient codes for equally many workers: a dict with names, or a list. A
        list gets names such as "Lagrange, 4 copies".
      delays: Delay models: a dict with names, or a list. A list gets the `repr` of each
        model as its name.
      waiting: Waiting rules, or functions of a code that return one, such as
        `stragglers.until_decodable`: a dict with names, or a list.
      key: PRNG key of either kind.
      num_trials: Number of trials of each cell, at least 1. If rounds depend on each
        other, it is rounded up to a multiple of num_rounds.
      late: What late workers do, see `stragglers.delayed`: `"cancelled"` or `"busy"`.
      decoder: Decoder of all codes, see `jaxwgc.decoding_weights`, or a dict with the
        decoders of some codes by name.
      tolerance: Residual relative to the norm of the target up to which a round is
        exact.
      num_rounds: Number of consecutive rounds of a cluster, if rounds depend on each
        other.
      keep_trials: Whether the result has the trials of every quantity.
      batch_size: Number of trials per call of a compiled program, at least 1. None for
        4096. Reduce it if a round needs much memory.
      progress: Called as `progress(done, total)` after each batch of trials and each
        decoded code. By default, a terminal or notebook shows a bar after two seconds
        if rich is installed.

    Returns:
      A `Comparison` with means, 95% intervals, tables and figures.

    Raises:
      ValueError: If codes have different numbers of workers, a rule does not fit a
        code, names are not different, an argument is out of range, or a delay model
        returns NaN.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax, jaxwgc
      >>> from jaxwgc import codes, stragglers
      >>> study = jaxwgc.compare(
      ...     {
      ...         "uncoded": codes.uncoded(6),
      ...         "2 copies": codes.fractional_repetition(6, num_stragglers=1),
      ...     },
      ...     [stragglers.shifted_exponential(shift=1.0, rate=1.0)],
      ...     {"first 5": stragglers.fastest(5), "done": stragglers.until_decodable},
      ...     jax.random.key(0),
      ...     num_trials=1000,
      ... )
      >>> study.error.mean[:, 0, 0].round(3)
      array([0.167, 0.   ])
      >>> bool((study.exact.mean[:, 0, 1] == 1).all())
      True

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017, and Glasgow, Wootters, "Approximate gradient coding with optimal
      decoding", 2021, for decoding errors against stragglers; Lee et al., 2018, for
      times.
    """
    key = jnp.asarray(_validation.check_key(key))
    _validation.check_concrete("key", key, "a study runs on the host")
    num_trials = _validation.check_int("num_trials", num_trials, minimum=1)
    num_rounds = _validation.check_int("num_rounds", num_rounds, minimum=1)
    _validation.check_number("tolerance", tolerance, minimum=0, traceable=False)
    _validation.check_bool("keep_trials", keep_trials)
    batch_size = _BATCH_SIZE if batch_size is None else batch_size
    batch_size = _validation.check_int("batch_size", batch_size, minimum=1)
    inputs = checked_inputs(codes, delays, waiting, late, decoder)
    if not _rounds_are_dependent(inputs):
        num_rounds = 1
    num_trials = -(-num_trials // num_rounds) * num_rounds
    schedule = Schedule(num_trials, num_rounds, batch_size)
    groups = _groups_of_equal_loads(inputs)
    num_batches = schedule.num_batches * len(groups) * len(inputs.delays)
    with Progress(progress, num_batches + len(inputs.codes)) as shown:
        rounds = _simulated(inputs, groups, key, schedule, shown)
        quantities = _decoded(inputs, rounds, schedule, tolerance, keep_trials, shown)
    return Comparison(
        codes=tuple(inputs.codes),
        delays=tuple(inputs.delays),
        waiting=tuple(inputs.rules),
        num_trials=num_trials,
        **quantities,
    )


# Index of code, delay model and waiting rule.
_Cell: TypeAlias = tuple[int, int, int]


def _rounds_are_dependent(inputs: Inputs) -> bool:
    """Returns whether a round depends on the rounds before it."""
    states = [delay.init(inputs.num_workers) for delay in inputs.delays.values()]
    return inputs.late == "busy" or bool(jax.tree.leaves(states))


class _Group(NamedTuple):
    """Codes with equal loads, and their waiting rules.

    Attributes:
      loads: Load of each worker, (num_workers,).
      waiting: Distinct rules of these codes.
      places: Index of the rule in `waiting`, by the indices of code and rule.
    """

    loads: np.ndarray
    waiting: list[Waiting]
    places: dict[tuple[int, int], int]


def _groups_of_equal_loads(inputs: Inputs) -> list[_Group]:
    """Returns the codes and rules that share drawn times."""
    groups: dict[bytes, _Group] = {}
    for place, code in enumerate(inputs.codes.values()):
        loads = np.asarray(code.loads, np.float64)
        group = groups.setdefault(loads.tobytes(), _Group(loads, [], {}))
        known = {one.identity: index for index, one in enumerate(group.waiting)}
        for number, rules in enumerate(inputs.rules.values()):
            # Rounds of codes with one message per worker depend on the code only by
            # its loads.
            is_plain = code.messages_per_worker == 1
            waiting = Waiting(rules[place], None if is_plain else code)
            if waiting.identity not in known:
                known[waiting.identity] = len(group.waiting)
                group.waiting.append(waiting)
            group.places[place, number] = known[waiting.identity]
    return list(groups.values())


def _simulated(
    inputs: Inputs,
    groups: list[_Group],
    key: jax.Array,
    schedule: Schedule,
    shown: Progress,
) -> dict[_Cell, Rounds]:
    """Returns the rounds of every cell."""
    rounds = {}
    for place, (name, delay) in enumerate(inputs.delays.items()):
        drawn = Draws(name, delay, inputs.late, key, schedule)
        for group in groups:
            of_rules = simulate(drawn, group.loads, group.waiting, shown.advance)
            for (code, rule), index in group.places.items():
                rounds[code, place, rule] = of_rules[index]
    return rounds


def _decoded(
    inputs: Inputs,
    rounds: dict[_Cell, Rounds],
    schedule: Schedule,
    tolerance: float,
    keep_trials: bool,
    shown: Progress,
) -> dict[str, Any]:
    """Returns the quantities of a `Comparison`, and the trials if they are kept."""
    shape = len(inputs.codes), len(inputs.delays), len(inputs.rules)
    summaries = {name: Summary(*np.empty((4, *shape))) for name in QUANTITIES}
    trials = None
    if keep_trials:
        shape_of_trials = (*shape, schedule.num_trials)
        trials = {name: np.empty(shape_of_trials) for name in QUANTITIES}
    for cell, one, decoded in _decoded_cells(inputs, rounds, shown):
        for name, values in _quantities(one, decoded, tolerance).items():
            if trials is not None:
                trials[name][cell] = values
            summary = _summary(name, values, schedule.num_rounds)
            for ends, value in zip(summaries[name], summary, strict=True):
                ends[cell] = value
    return {**summaries, "trials": trials}


def _decoded_cells(
    inputs: Inputs, rounds: dict[_Cell, Rounds], shown: Progress
) -> Iterator[tuple[_Cell, Rounds, DecodedMasks]]:
    """Yields the rounds of each cell, with the decoded mask of each trial."""
    cells: list[list[_Cell]] = [[] for _ in inputs.codes]
    for cell in rounds:
        cells[cell[0]].append(cell)
    # Masks that occur in several cells of a code are decoded once.
    packed = [
        distinct_rows(np.concatenate([rounds[cell].masks for cell in of_code]))
        for of_code in cells
    ]
    # Codes are decoded in parallel: programs compile, and run, on one core each.
    with ThreadPoolExecutor() as pool:
        decoded_codes = pool.map(
            decode_packed, inputs.codes.values(), [masks for masks, _ in packed]
        )
        for of_code, (_, places), decoded in zip(
            cells, packed, decoded_codes, strict=True
        ):
            shown.advance()
            start = 0
            for cell in of_code:
                end = start + len(rounds[cell].masks)
                places_of_trials = places[start:end][rounds[cell].places]
                yield cell, rounds[cell], decoded.take(places_of_trials)
                start = end


def _quantities(
    rounds: Rounds, decoded: DecodedMasks, tolerance: float
) -> dict[str, np.ndarray]:
    """Returns the trials of each quantity of a cell, (num_trials,)."""
    return {
        "time": rounds.time,
        "error": decoded.residual**2,
        "share": decoded.share,
        "exact": decoded.residual <= tolerance,
        "messages": decoded.messages,
        "work": rounds.work,
    }


def _summary(name: str, trials: np.ndarray, num_rounds: int) -> Summary:
    """Returns mean and interval of trials, or of clusters of consecutive trials."""
    if num_rounds > 1:
        trials = trials.reshape(-1, num_rounds).mean(axis=1, dtype=np.float64)
    # Means of infinite times have no interval.
    with np.errstate(invalid="ignore"):
        if name in _PROPORTIONS:
            return summarize(trials)
        return student_summary(trials)
