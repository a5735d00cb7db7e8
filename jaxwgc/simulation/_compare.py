"""Compares codes, delay models and waiting rules by simulated rounds."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc._common.progress import Progress
from jaxwgc.codes import GradientCode
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.simulation._compare_inputs import Inputs, checked_inputs
from jaxwgc.simulation._comparison import (
    QUANTITIES,
    Comparison,
    events_of,
    summary_of_errors,
    summary_of_rounds,
    summary_of_times,
)
from jaxwgc.simulation._masks import decode_packed, distinct_rows
from jaxwgc.simulation._monte_carlo import Summary, summarize
from jaxwgc.simulation._rounds import (
    Drawn,
    Loads,
    Rounds,
    code_of_ends,
    draw_rounds,
    end_rounds,
)
from jaxwgc.stragglers import DelayModel, WaitingRule

# Functions that compute the mean of a quantity and its interval. Quantities that are
# not listed use `summary_of_rounds`.
_SUMMARIES = {
    "time": summary_of_times,
    "exact": summarize,
    "error": summary_of_errors,
}
# Combination of a code, a delay model and a waiting rule, as their indices.
_Cell: TypeAlias = tuple[int, int, int]
# Default number of trials per call of a compiled program. The times of a batch need
# only a few MB.
_BATCH_SIZE = 4096


def compare(
    codes: Mapping[Any, GradientCode] | Iterable[GradientCode],
    delays: Mapping[Any, DelayModel] | Iterable[DelayModel],
    waiting: Mapping[Any, Any] | Iterable[Any],
    key: jax.Array,
    num_trials: int,
    *,
    late: str = "cancelled",
    decoder: DecoderLike | Mapping[Any, DecoderLike] = None,
    tolerance: float = 1e-3,
    num_rounds: int = 50,
    keep_trials: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """Compares codes, delay models and waiting rules by simulated rounds.

    A trial is one round: finish times are drawn, the rule ends the round, and the code
    is decoded from the messages that arrived. Trial i uses the key fold_in(key, i) in
    all cells, so that differences between cells are more accurate than their values,
    and a larger num_trials extends a study. The trial of a cell is
    `stragglers.delayed(delay, wait, late).sample(fold_in(key, i), state, code.loads)`.

    Times scale with `code.loads`: a worker with twice the data takes about twice as
    long. Times are drawn once per delay model and vector of loads, and each distinct
    mask of a code is decoded once.

    Studies with other numbers of trials share compiled programs, and so do codes of
    equal shapes with equal decoders. Other numbers compile nothing in the rules
    `fastest`, `deadline` and `until_decodable`, and in the delay models
    `shifted_exponential`, `pareto`, `weibull`, `log_normal`, `bernoulli_slowdown` and
    `empirical`. Other rules and delay models, e.g. `relative_deadline`, `affine`,
    `markov`, `unequal_speeds` and your own, compile once for each object. An object
    must not change: compiled programs ignore later changes of attributes.

    Rounds depend on each other if a delay model has a state (`markov`, `empirical`,
    `unequal_speeds`), or if late workers are busy. If this holds for one delay model,
    trials are consecutive rounds of independent clusters, each of which starts with
    idle workers: trial i is round i % num_rounds of cluster i // num_rounds. Intervals
    of delay models with dependent rounds are those of the means of clusters. For them,
    choose num_trials of at least 100 * num_rounds.

    Rare rounds may decide a mean time, e.g. one in a thousand that takes a thousand
    times as long. Intervals widen if few such rounds were seen, and the table marks the
    time if they are fewer than 10 in effect (`Comparison.time_events`). Then simulate
    more rounds. A rare round that was never seen is in no mean and in no interval.

    Args:
      codes: Gradient codes for equally many workers: a dict with names, or a list. A
        list gets names such as "Lagrange, 4 copies", with the decoder of the study.
      delays: Delay models: a dict with names, or a list. A list gets the `repr` of each
        model as its name.
      waiting: Waiting rules, or functions of a code that return one, such as
        `stragglers.until_decodable`: a dict with names, or a list. Functions get codes
        with the decoder of the study. Names that are different numbers become a
        numeric axis of figures, and a numeric column of DataFrames.
      key: PRNG key of either kind.
      num_trials: Number of trials of each cell, at least 1. If rounds depend on each
        other, it is rounded up to a multiple of num_rounds.
      late: What late workers do. `"cancelled"` workers stop when the round ends.
        `"busy"` workers continue, and join the round in which they respond. Codes with
        several messages per worker need `"cancelled"`.
      decoder: Decoder of all codes, an instance or a class, or a dict with the decoders
        of some codes by name. Defaults to the first decoder of each code.
      tolerance: Residual relative to the norm of the target up to which a round is
        exact. A residual that is rounding is exact for every tolerance.
      num_rounds: Number of consecutive rounds of a cluster, if rounds depend on each
        other.
      keep_trials: Whether the result has the trials of every quantity.
      batch_size: Number of trials per call of a compiled program, at least 1. None for
        4096. Reduce it if a round needs much memory.
      progress: Called as `progress(done, total)` after each batch of trials and each
        decoded code. By default, a bar appears after two seconds in a terminal, if rich
        is installed, and in a notebook, if rich and ipywidgets are.

    Returns:
      A `Comparison` with means, 95% intervals, tables and figures. Its arrays have the
      shape (codes, delays, waiting), and times the unit of the delay models.

    Raises:
      ValueError: If codes have different numbers of workers, a rule does not fit a
        code, names are not different, an argument is out of range, or a delay model or
        rule returns invalid times.
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
    key = jnp.asarray(array_validation.check_key(key))
    array_validation.check_concrete("key", key, "a study runs on the host")
    num_trials = validation.check_int("num_trials", num_trials, minimum=1)
    num_rounds = validation.check_int("num_rounds", num_rounds, minimum=1)
    array_validation.check_number("tolerance", tolerance, minimum=0, traceable=False)
    validation.check_bool("keep_trials", keep_trials)
    if batch_size is None:
        batch_size = _BATCH_SIZE
    batch_size = validation.check_int("batch_size", batch_size, minimum=1)
    inputs = checked_inputs(codes, delays, waiting, late, decoder)
    if not any(inputs.has_dependent_rounds):
        num_rounds = 1
    num_trials = -(-num_trials // num_rounds) * num_rounds
    schedule = _Schedule(
        num_trials=num_trials, num_rounds=num_rounds, batch_size=batch_size
    )
    # Memory for kept trials is allocated before the simulation, so that a lack of
    # memory shows at once.
    shape = (len(inputs.codes), len(inputs.delays), len(inputs.rules))
    summaries = {name: Summary(*np.empty((4, *shape))) for name in QUANTITIES}
    time_events = np.empty(shape)
    kept: dict[str, np.ndarray] = {}
    if keep_trials:
        kept = {name: np.empty((*shape, num_trials)) for name in QUANTITIES}
    groups = _groups_of_equal_loads(inputs)
    num_batches = schedule.num_batches * len(groups) * len(inputs.delays)
    with Progress(progress, num_batches + len(inputs.codes)) as shown:
        trials = _simulated(inputs, groups, key, schedule, shown)
        for cell, quantities in _quantities_of_cells(inputs, trials, tolerance, shown):
            _, delay, _ = cell
            is_dependent = inputs.has_dependent_rounds[delay]
            for name, values in quantities.items():
                if keep_trials:
                    kept[name][cell] = values
                clusters = values.reshape(-1, num_rounds if is_dependent else 1)
                means = clusters.mean(axis=1, dtype=np.float64)
                if name == "time":
                    time_events[cell] = events_of(means).number
                # Infinite times have a NaN interval (inf - inf), without a warning.
                with np.errstate(invalid="ignore"):
                    summary = _SUMMARIES.get(name, summary_of_rounds)(means)
                for table, value in zip(summaries[name], summary, strict=True):
                    table[cell] = value
    return Comparison(
        codes=tuple(inputs.codes),
        delays=tuple(inputs.delays),
        waiting=tuple(inputs.rules),
        num_trials=num_trials,
        time_events=time_events,
        trials=kept,
        **summaries,
    )


class _Schedule(NamedTuple):
    """Division of the trials into batches of simulated clusters.

    Trial i is round `i % num_rounds` of cluster `i // num_rounds`.

    Attributes:
      num_trials: Number of trials, a multiple of num_rounds.
      num_rounds: Consecutive rounds of a cluster; 1 if trials are independent.
      batch_size: Number of trials per call of a compiled program.
    """

    num_trials: int
    num_rounds: int
    batch_size: int

    @property
    def num_clusters(self) -> int:
        """Number of clusters per batch, i.e. per call of a compiled program."""
        return max(self.batch_size // self.num_rounds, 1)

    @property
    def num_batches(self) -> int:
        """Number of batches, i.e. calls of a compiled program, for all trials."""
        return -(-self.num_trials // (self.num_clusters * self.num_rounds))

    def batches(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yields the trial numbers of each batch, and how many of its clusters count.

        The last batch is padded by clusters that do not count.
        """
        size = self.num_clusters * self.num_rounds
        for start in range(0, self.num_trials, size):
            numbers = start + np.arange(size)
            num_used = min(size, self.num_trials - start) // self.num_rounds
            yield numbers.reshape(self.num_clusters, self.num_rounds), num_used


class _Trials(NamedTuple):
    """Results of the simulated rounds of all trials, as NumPy arrays.

    Attributes:
      time: Duration of the round, (num_trials,).
      work: Work until the end of the round, in passes over the data, (num_trials,).
      masks: Distinct masks of the messages that arrived, packed bits, uint8
        (masks, bytes).
      places: Index of the mask of each trial, int (num_trials,).
    """

    time: np.ndarray
    work: np.ndarray
    masks: np.ndarray
    places: np.ndarray

    @classmethod
    def joined(cls, batches: Sequence[Rounds], num_trials: int) -> "_Trials":
        """Concatenates the rounds of all batches, without the padding at the end."""
        time = np.concatenate([rounds.time for rounds in batches])
        work = np.concatenate([rounds.work for rounds in batches])
        packed = np.concatenate([rounds.masks for rounds in batches])
        masks, places = distinct_rows(packed[:num_trials])
        return cls(
            time=time[:num_trials], work=work[:num_trials], masks=masks, places=places
        )


class _Series(NamedTuple):
    """Combinations of a code and a waiting rule with equal rounds, simulated once.

    Attributes:
      rule: Waiting rule.
      code: Code of the messages, the first code of the combinations.
      cells: Indices of code and rule of each combination.
    """

    rule: WaitingRule
    code: GradientCode
    cells: list[tuple[int, int]]


class _Group(NamedTuple):
    """Codes with equal loads and parts, for which times are drawn only once."""

    loads: Loads
    series: dict[Hashable, _Series]


def _groups_of_equal_loads(inputs: Inputs) -> list[_Group]:
    """Groups codes that share drawn times, and their rules that share rounds."""
    groups: dict[Hashable, _Group] = {}
    for place, code in enumerate(inputs.codes.values()):
        loads = Loads.of(code, np.float64)
        group = groups.setdefault(loads.identity, _Group(loads=loads, series={}))
        for number, rules in enumerate(inputs.rules.values()):
            rule = rules[place]
            identity = id(rule), id(code_of_ends(rule, code))
            series = group.series.setdefault(identity, _Series(rule, code, []))
            series.cells.append((place, number))
    return list(groups.values())


def _simulated(
    inputs: Inputs,
    groups: list[_Group],
    key: jax.Array,
    schedule: _Schedule,
    shown: Progress,
) -> dict[_Cell, _Trials]:
    """Simulates the rounds of all combinations of code, delay model and rule.

    Raises:
      ValueError: If times of a delay model, or ends of rounds, are NaN or negative.
    """
    code_names = list(inputs.codes)
    rule_names = list(inputs.rules)
    trials = {}
    for place, (name, delay) in enumerate(inputs.delays.items()):
        for group in groups:
            batches = []
            for numbers, num_clusters in schedule.batches():
                drawn = _draw(name, delay, key, numbers, group.loads)
                _check_times(name, np.asarray(drawn.times)[:num_clusters])
                started = [
                    end_rounds(
                        series.rule,
                        inputs.late,
                        series.code,
                        drawn,
                        num_clusters=num_clusters,
                    )
                    for series in group.series.values()
                ]
                batches.append(jax.device_get(started))
                shown.advance()
            for series, rounds in zip(
                group.series.values(), zip(*batches), strict=True
            ):
                joined = _Trials.joined(rounds, schedule.num_trials)
                is_valid = joined.time >= 0
                for code, number in series.cells:
                    if not is_valid.all():
                        raise ValueError(
                            f"waiting[{rule_names[number]!r}] must end rounds at times "
                            f"of at least 0, or at infinity; with delays[{name!r}] and "
                            f"codes[{code_names[code]!r}], a round ended at "
                            f"{joined.time[~is_valid][0]}"
                        )
                    trials[code, place, number] = joined
    return trials


def _draw(
    name: str, delay: DelayModel, key: jax.Array, numbers: np.ndarray, loads: Loads
) -> Drawn:
    """Draws the times of a batch of trials. Errors name the delay model."""
    keys, delay_keys = _keys_of(key, numbers)
    try:
        [drawn] = draw_rounds(delay, keys, [loads], delay_keys=delay_keys)
    except (TypeError, ValueError) as error:
        raise ValueError(f"delays[{name!r}] failed to draw times: {error}") from error
    # Times are copied to the device once, for all rules.
    return drawn._replace(times=jnp.asarray(drawn.times))


def _check_times(name: str, times: np.ndarray) -> None:
    if not times.min() >= 0:
        invalid = times[~(times >= 0)]
        raise ValueError(
            f"delays[{name!r}] must return times of at least 0 (infinity for a worker "
            f"that never responds); got {invalid[0]}. Check the parameters of the "
            "delay model and the loads of the codes"
        )


@jax.jit
def _keys_of(key: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Derives two keys for each trial: for the round, and for its delays alone.

    Args:
      key: PRNG key.
      numbers: Trial numbers, (clusters, num_rounds).
    """
    keys_of_cluster = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = jax.vmap(keys_of_cluster, in_axes=(None, 0))(key, numbers)
    delay_and_wait_keys = jax.vmap(jax.vmap(jax.random.split))(keys)
    return keys, delay_and_wait_keys[:, :, 0]


def _quantities_of_cells(
    inputs: Inputs, trials: dict[_Cell, _Trials], tolerance: float, shown: Progress
) -> Iterator[tuple[_Cell, dict[str, np.ndarray]]]:
    """Yields each combination with its trials of time, error and other quantities.

    Masks that occur in several combinations of a code are decoded once.
    """
    for place, code in enumerate(inputs.codes.values()):
        cells = {cell: trials[cell] for cell in trials if cell[0] == place}
        masks_of_cells = [trials_of_cell.masks for trials_of_cell in cells.values()]
        masks, places = distinct_rows(np.concatenate(masks_of_cells))
        decoded = decode_packed(code, masks)
        num_messages = np.bitwise_count(masks).sum(axis=1, dtype=np.float64)
        shown.advance()
        ends = np.cumsum([len(masks_of_cell) for masks_of_cell in masks_of_cells])
        places_of_cells = np.split(places, ends[:-1])
        for cell, places_of_cell in zip(cells, places_of_cells, strict=True):
            trials_of_cell = cells[cell]
            at_trials = places_of_cell[trials_of_cell.places]
            residual = decoded.residual[at_trials]
            error = decoded.error[at_trials]
            quantities = {
                "time": trials_of_cell.time,
                "error": error,
                "share": decoded.share[at_trials],
                # A residual that is only rounding has the error 0. It is exact for
                # every tolerance.
                "exact": (residual <= tolerance) | (error == 0),
                "messages": num_messages[at_trials],
                "work": trials_of_cell.work,
            }
            yield cell, quantities
