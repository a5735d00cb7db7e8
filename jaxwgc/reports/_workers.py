"""Names, kinds and missing responses of workers, for both reports."""

import enum
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxwgc._common.text import aligned, workers_named
from jaxwgc.reports._statistics import FALSE_ALARMS
from jaxwgc.traces._missing_at_end import missing_at_end

# Share of the rounds above which the advice mentions missing responses of a worker, or
# rounds without any response.
MISSING = 0.01
# Number of tests of missing responses of each worker.
_NUM_TESTS = 2


class Kind(enum.StrEnum):
    """Kind of a worker in a report, e.g. slow in most rounds, or missing.

    Members are strings, which the text of the report shows. Kinds of a change have a
    round in `change_round` of the report.

    Attributes:
      STEADY: `"steady"`, no other kind was shown.
      CHRONIC: `"chronic"`, slow in most rounds.
      FAST: `"fast"`, faster than the median worker in most rounds.
      INTERMITTENT: `"intermittent"`, slow now and then.
      SINCE: `"since"`, slow from a round on.
      FAST_SINCE: `"fast since"`, fast from a round on.
      OTHERS_FASTER_SINCE: `"others faster since"`, slower than the others from a round
        on, since these became faster.
      UNTIL: `"until"`, slow up to a round.
      FAST_UNTIL: `"fast until"`, fast up to a round.
      MISSING_SINCE: `"missing since"`, without a response from a round on.
      MISSING: `"missing"`, without any response.
      UNKNOWN: `"unknown"`, since the times are those after a barrier.
      LATE: `"late"`, last in significantly more rounds than others, from waiting times.

    Example:
      >>> import numpy as np, jaxwgc
      >>> from jaxwgc.reports import Kind
      >>> times = 1 + 0.1 * np.random.default_rng(0).random((100, 4))
      >>> times[60:, 2] *= 1.5
      >>> report = jaxwgc.straggler_report(times)
      >>> is_slower = report.kinds == Kind.SINCE
      >>> report.names[is_slower].tolist(), report.change_round[is_slower].tolist()
      (['2'], [60])
    """

    STEADY = "steady"
    CHRONIC = "chronic"
    FAST = "fast"
    INTERMITTENT = "intermittent"
    SINCE = "since"
    FAST_SINCE = "fast since"
    OTHERS_FASTER_SINCE = "others faster since"
    UNTIL = "until"
    FAST_UNTIL = "fast until"
    MISSING_SINCE = "missing since"
    MISSING = "missing"
    UNKNOWN = "unknown"
    LATE = "late"

    def has_round(self) -> bool:
        """Returns whether the kind names a round, as "since round 60" does."""
        return self in (*DIFFER_AFTER, *DIFFER_BEFORE, Kind.MISSING_SINCE)


# Kinds of workers with a change of speed: slow or fast from a round on, and slow or
# fast up to a round.
DIFFER_AFTER = (Kind.SINCE, Kind.FAST_SINCE, Kind.OTHERS_FASTER_SINCE)
DIFFER_BEFORE = (Kind.UNTIL, Kind.FAST_UNTIL)


class Workers(NamedTuple):
    """Names, kinds and missing responses of workers.

    Attributes:
      names: (workers,).
      kinds: `Kind` of each worker, object (workers,).
      change_round: Round that the kind names, int (workers,). -1 if it names none.
      missing: Number of rounds without a response, int (workers,).
      missing_p_value: Significance of missing more responses than other workers, or all
        of the last ones; corrected for the number of tests, (workers,).
      num_rounds: Number of rounds.
      noun: What is counted, "round" or "step".
    """

    names: np.ndarray
    kinds: np.ndarray
    change_round: np.ndarray
    missing: np.ndarray
    missing_p_value: np.ndarray
    num_rounds: int
    noun: str

    @classmethod
    def of(
        cls,
        names: np.ndarray,
        kinds: np.ndarray,
        change_round: np.ndarray,
        is_response: np.ndarray,
        steps: np.ndarray,
        noun: str = "round",
    ) -> "Workers":
        """Tests for missing responses, and returns workers with their kinds.

        Args:
          names: (workers,).
          kinds: Kinds of workers that respond, object (workers,).
          change_round: Round that the kind names, int (workers,). -1 if it names none.
          is_response: Whether there is a response, bool (rounds, workers).
          steps: Number of each round, int (rounds,).
          noun: What they count.
        """
        has_response = is_response.any(axis=1)
        steps = steps[has_response]
        start, p_end = missing_at_end(is_response[has_response])
        num_missing = len(steps) - is_response.sum(axis=0)
        num_tests = _NUM_TESTS * len(names)
        never_responds = start == 0
        is_gone = (p_end * num_tests < FALSE_ALARMS) & ~never_responds
        # A response that is missing only in the last round may still come.
        is_gone &= len(steps) - start > 1
        # Missing responses after a worker has stopped responding are not compared,
        # because they are not due to chance.
        num_by_chance = num_missing - np.where(is_gone, len(steps) - start, 0)
        p_values = np.minimum(_p_values_of_counts(num_by_chance), p_end)
        first_missing = steps[np.minimum(start, len(steps) - 1)]
        # A copy is changed, because `np.where` would convert kinds to plain strings.
        kinds = kinds.copy()
        kinds[is_gone] = Kind.MISSING_SINCE
        kinds[never_responds] = Kind.MISSING
        return cls(
            names=names,
            kinds=kinds,
            change_round=np.where(is_gone, first_missing, change_round),
            missing=len(is_response) - is_response.sum(axis=0),
            missing_p_value=np.minimum(p_values * num_tests, 1.0),
            num_rounds=len(is_response),
            noun=noun,
        )

    def named(self, is_named: np.ndarray) -> str:
        """Returns the names of some workers as text, e.g. "workers 3, 5"."""
        return workers_named(self.names[is_named])

    @property
    def is_unreliable(self) -> np.ndarray:
        """Mask of the workers with significantly many missing responses."""
        return self.missing_p_value < FALSE_ALARMS

    @property
    def misses_often(self) -> np.ndarray:
        """Mask of the workers that miss responses often, or never respond."""
        misses_many = self.missing > MISSING * self.num_rounds
        is_often = (self.is_unreliable & misses_many) | (self.kinds == Kind.MISSING)
        return is_often & (self.kinds != Kind.MISSING_SINCE)


def workers_to_check(workers: Workers) -> list[str]:
    """Returns sentences that name workers with significantly many missing responses."""
    sentences = []
    is_gone = workers.kinds == Kind.MISSING_SINCE
    if is_gone.any():
        starts = workers.change_round[is_gone]
        if len(set(starts)) == 1:
            since = f"{workers.noun} {starts[0]}"
        else:
            since = f"{workers.noun}s {', '.join(map(str, starts))}"
        names = workers.named(is_gone)
        sentences.append(f"Check {names}: no response since {since}.")
    is_often = workers.misses_often
    if is_often.any():
        at_most = "up to " if is_often.sum() > 1 else ""
        names = workers.named(is_often)
        sentences.append(
            f"Check {names}: no response in {at_most}{workers.missing[is_often].max()} "
            f"of {workers.num_rounds} rounds."
        )
    return sentences


def kind_texts(kinds: np.ndarray, change_round: np.ndarray, noun: str) -> list[str]:
    """Returns kinds as text, e.g. "since round 151"."""
    return [
        f"{kind} {noun} {number}" if kind.has_round() else str(kind)
        for kind, number in zip(kinds, change_round)
    ]


def with_errors(values: np.ndarray, errors: np.ndarray) -> list[str]:
    """Returns values with errors as text, e.g. "1.04 ± 0.006"."""
    return [f"{value:.3g} ± {error:.2g}" for value, error in zip(values, errors)]


def table_text(
    columns: Mapping[str, Sequence[Any] | np.ndarray], order: np.ndarray
) -> str:
    """Returns columns as the text of a table, with rows in a given order."""
    rows = [[str(cells[row]) for cells in columns.values()] for row in order]
    return aligned([list(columns), *rows])


def report_text(totals: str, table: str, advice: str) -> str:
    """Returns the text of a report: totals, table and advice."""
    return "\n\n".join([textwrap.fill(totals, 80), table, textwrap.fill(advice, 80)])


def report_dict(report: Any) -> dict[str, Any]:
    """Converts a report to lists, numbers and None, for JSON.

    Args:
      report: A `StragglerReport` or a `WaitReport`. Its `rounds` are left out.
    """
    fields = report._asdict() | {
        "kinds": report.kind_texts,
        "kind_values": report.kinds,
    }
    fields.pop("rounds", None)
    text = json.dumps(fields, default=np.ndarray.tolist)
    # JSON has neither NaN nor infinity, so they become None.
    return json.loads(text, parse_constant=lambda _: None)


def _p_values_of_counts(num_missing: np.ndarray) -> np.ndarray:
    """Computes p-values for missing more responses than other workers.

    If workers are alike, each missing response is equally likely at every worker. The
    worker with the most is compared first. If it is significant, it is left out of the
    next comparison, so that it does not hide others.
    """
    num_workers = len(num_missing)
    p_values = np.ones(num_workers)
    order = np.argsort(-num_missing)
    for rank, worker in enumerate(order[:-1]):
        total = num_missing[order[rank:]].sum()
        chance = 1 / (num_workers - rank)
        p_value = scipy.special.bdtrc(num_missing[worker] - 1, total, chance)
        if p_value * _NUM_TESTS * num_workers >= FALSE_ALARMS:
            break
        p_values[worker] = p_value
    return p_values
