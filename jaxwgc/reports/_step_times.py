"""Step times of the processes of a running loop, exchanged every few steps."""

import importlib
import logging
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxwgc._common import validation
from jaxwgc.reports._statistics import LEAST_RESPONSES, MARGIN
from jaxwgc.reports._straggler_report import StragglerReport, straggler_report
from jaxwgc.reports._workers import Kind

Gather: TypeAlias = Callable[
    [np.ndarray], np.ndarray | Sequence[np.ndarray | None] | None
]

# Number of the latest exchanges whose laps decide whether a process is slow.
_NUM_RECENT = 4
_SLOW_KINDS = (Kind.CHRONIC, Kind.SINCE)
_MISSING_KINDS = (Kind.MISSING, Kind.MISSING_SINCE)
_ONE_PROCESS = (
    "StepTimes needs laps of several processes; got those of one. In JAX, call "
    "jax.distributed.initialize before"
)
_AFTER_BARRIER = (
    "laps of all processes are equal, as if they included the wait for the slowest "
    "process, and cannot show which one is slow: stop a lap before the collective "
    "operation. If laps end before it, pass before_collective=True: processes are then "
    "equally fast"
)
# Lower bound of a lap in seconds, so that it is above 0 if the clock has not advanced.
_SHORTEST_LAP = 1e-9

log = logging.getLogger("jaxwgc.reports")


class SpeedChange(NamedTuple):
    """Event: a worker has become slow, has recovered or no longer responds.

    Attributes:
      worker: Name of the worker.
      kind: `Kind.SINCE` if it is slow, `Kind.UNTIL` if it has recovered or responds
        again, `Kind.MISSING_SINCE` if it does not respond.
      before: `kind` of the previous change of the worker; `Kind.UNTIL` if there was
        none.
      step: First step with the new speed.
      slowdown: Its time divided by that of the median worker, in the steps since the
        last exchange. NaN without a response.
      report: `StragglerReport` of these steps.

    Example:
      >>> import numpy as np, jaxwgc
      >>> times = np.random.default_rng(0).uniform(1.0, 1.1, (50, 3))
      >>> times[:, 2] *= 2
      >>> change = jaxwgc.reports.SpeedChange(
      ...     worker="host2",
      ...     kind=jaxwgc.reports.Kind.SINCE,
      ...     before=jaxwgc.reports.Kind.UNTIL,
      ...     step=100,
      ...     slowdown=2.0,
      ...     report=jaxwgc.straggler_report(times),
      ... )
      >>> print(change)
      worker host2 is slow since step 100: 2.00 times the median worker
    """

    worker: str
    kind: Kind
    before: Kind
    step: int
    slowdown: float
    report: StragglerReport

    def __str__(self) -> str:
        if self.kind == Kind.MISSING_SINCE:
            return f"worker {self.worker} does not respond since step {self.step}"
        if self.kind == Kind.SINCE:
            what = "is slow"
        elif self.before == Kind.MISSING_SINCE:
            what = "responds again"
        else:
            what = "has recovered"
        return (
            f"worker {self.worker} {what} since step {self.step}: "
            f"{self.slowdown:.2f} times the median worker"
        )


def _log_change(change: SpeedChange) -> None:
    """Logs a change of speed as a warning, and a recovery as information."""
    level = logging.INFO if change.kind == Kind.UNTIL else logging.WARNING
    log.log(level, "%s", change)


class StepTimes:
    """Measures how long each process works per step, and reports slow processes.

    A lap is the time from `start` to `stop`, or in `with step_times:`, by the clock of
    the host. It must hold the work of this process alone and end before a collective
    operation, such as the sum of gradients. With asynchronous dispatch, as in JAX and
    on GPUs, the work must be waited for in the lap, e.g. by `jax.block_until_ready`.

    After every `every` laps, all processes exchange their laps in `stop`. All processes
    must therefore take the same laps. On process 0, `on_change` is then called for each
    process that has become slow, has recovered or does not respond any more, and
    `latest` is the report of these laps. A lap that raises an error does not count.

    A process is slow if it is `Kind.CHRONIC` or `Kind.SINCE` in the report of these
    laps, and in the reports of the laps of the last four exchanges at two exchanges in
    a row. The second condition keeps noise and short slow spells from being named. A
    step that takes all processes long, as for compiling, makes none slow. Without JAX,
    e.g. in PyTorch, JAX is not imported.

    Args:
      gather: `"jax"` for `jax.experimental.multihost_utils.process_allgather`,
        `"torch"` for `torch.distributed.all_gather_object`, or a function. It takes the
        laps of this process, float64 (every,), and returns those of all processes in
        order, (processes, every), with None for a process that does not respond. It
        returns None on a process that makes no report.
      every: Number of laps between two exchanges, at least 8.
      on_change: Function of a `SpeedChange`. By default the logger `jaxwgc.reports`
        gets a line.
      names: Name of each process. Defaults to 0, 1, ….
      first_step: Step of the first lap, e.g. that of a checkpoint.
      before_collective: Whether laps are known to end before processes wait for each
        other. Equal laps then mean that processes are equally fast.
      clock: Function that returns seconds.

    Raises:
      ImportError: If the library of `gather` is not installed.
      ValueError: If `every` is less than 8, `first_step` is negative, or `gather` is
        another name.
      TypeError: If an argument has the wrong type.

    Example:
      Two processes in one, of which the second takes twice as long:

      >>> import jaxwgc
      >>> step_times = jaxwgc.StepTimes(
      ...     lambda laps: [laps, 2 * laps], every=50, on_change=print
      ... )
      >>> for step in range(100):
      ...     with step_times:
      ...         gradient = sum(range(100))
      worker 1 is slow since step 0: 2.00 times the median worker
      >>> step_times.metrics()["step_times/slowest"]
      1.0
    """

    def __init__(
        self,
        gather: Literal["jax", "torch"] | Gather,
        *,
        every: int = 50,
        on_change: Callable[[SpeedChange], object] = _log_change,
        names: Sequence[str] | None = None,
        first_step: int = 0,
        before_collective: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if not callable(gather):
            validation.check_choice("gather", gather, tuple(_GATHER))
            gather = _GATHER[gather]()
        if names is not None:
            names = _checked_names(names)
        self.latest: StragglerReport | None = None
        self._gather = gather
        self._every = validation.check_int("every", every, minimum=LEAST_RESPONSES)
        self._on_change = on_change
        self._names = names
        self._first_step = validation.check_int("first_step", first_step, minimum=0)
        self._before_collective = validation.check_bool(
            "before_collective", before_collective
        )
        self._clock = clock
        self._started_at: float | None = None
        self._laps: list[float] = []
        # Times (laps, processes) of each exchange.
        self._windows: list[np.ndarray] = []
        self._num_exchanged = 0
        # Kind of the newest `SpeedChange` of each worker.
        self._speeds: dict[str, Kind] = {}
        # Workers that were slow in the recent laps at the previous exchange. A second
        # exchange confirms that they are slow.
        self._suspects: set[str] = set()
        self._has_warned = False

    def start(self) -> None:
        """Starts a lap, which times the work of this process in one step.

        Raises:
          RuntimeError: If a lap has been started and not stopped.
        """
        if self._started_at is not None:
            raise RuntimeError(
                f"the lap of step {self._step} must be stopped before another one "
                "starts: call stop() once after each start(), and do not nest laps"
            )
        self._started_at = self._clock()

    def stop(self) -> None:
        """Stops a lap; after `every` laps, all processes exchange their laps.

        Raises:
          RuntimeError: If no lap has been started, or the exchange fails.
          ValueError: If the clock has gone back, or `gather` returns something else
            than the laps of as many processes as before.
        """
        now = self._clock()
        if self._started_at is None:
            raise RuntimeError("a lap must be started before it stops: call start()")
        seconds = now - self._started_at
        self._started_at = None
        if not seconds >= 0:
            raise ValueError(
                f"clock must not go back; the lap of step {self._step} took "
                f"{seconds:.3g} s. Use time.perf_counter"
            )
        self._laps.append(max(seconds, _SHORTEST_LAP))
        if len(self._laps) == self._every:
            self.exchange()

    def __enter__(self) -> "StepTimes":
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error_type is None:
            self.stop()
        else:
            self._started_at = None

    def exchange(self) -> None:
        """Exchanges lap times since the last exchange, e.g. at the end of training.

        All processes must call it after the same lap.

        Raises:
          RuntimeError: If the exchange fails.
          ValueError: If `gather` returns something else than the laps of as many
            processes as before.
        """
        laps = np.full(self._every, np.nan)
        laps[: len(self._laps)] = self._laps
        num_laps = len(self._laps)
        self._laps = []
        try:
            rows = self._gather(laps)
        except Exception as error:
            raise RuntimeError(
                f"the exchange of step times failed after {self._num_exchanged} "
                f"exchanged steps: {type(error).__name__}: {error}. A process may have "
                "ended, or taken another number of laps. report() on process 0 covers "
                "the steps before"
            ) from error
        first = self._step
        self._num_exchanged += num_laps
        if rows is None or not num_laps:
            return
        times = self._checked(rows)[:num_laps]
        self._windows.append(times)
        if times.shape[1] == 1:
            self._warn_once(_ONE_PROCESS)
        elif not np.isnan(times).all() and num_laps > 1:
            self.latest = self._report_of(times, first)
            recent = np.concatenate(self._windows[-_NUM_RECENT:])
            first_recent = first + num_laps - len(recent)
            self._compare(self._report_of(recent, first_recent))

    def report(self) -> StragglerReport:
        """Returns the straggler report of all exchanged laps.

        Raises:
          ValueError: If there are fewer than 2 laps or processes. Only process 0 has
            laps.
        """
        if not self._windows:
            raise ValueError(
                "report() needs exchanged laps; got none. Call exchange() on all "
                "processes first, and report() on process 0"
            )
        return self._report_of(np.concatenate(self._windows), self._first_step)

    def metrics(self) -> dict[str, float]:
        """Returns metrics of the last exchanged laps, for a metric writer.

        `step_times/slowest`, number of the slowest process; `step_times/slowdown`, its
        time divided by that of the median process; `step_times/time_lost`, the seconds
        by which a step would be shorter if all processes took as long as the median
        one; `step_times/after_barrier`, 1 if the laps include the wait for other
        processes: the others are then NaN. An empty dict before the first exchange and
        on other processes than 0.
        """
        report = self.latest
        if report is None:
            return {}
        slowest = float(np.nanargmax(report.slowdown))
        metrics = {
            "step_times/slowest": slowest,
            "step_times/slowdown": float(report.slowdown[int(slowest)]),
            "step_times/time_lost": report.round_time - report.median_time,
        }
        if report.after_barrier:
            metrics = dict.fromkeys(metrics, float("nan"))
        return metrics | {"step_times/after_barrier": float(report.after_barrier)}

    @property
    def _step(self) -> int:
        """Number of the step of the next lap."""
        return self._first_step + self._num_exchanged + len(self._laps)

    def _report_of(self, times: np.ndarray, first_step: int) -> StragglerReport:
        """Returns the straggler report of given laps."""
        return straggler_report(
            times,
            names=self._names,
            steps=first_step + np.arange(len(times)),
            before_collective=self._before_collective,
        )

    def _checked(self, rows: np.ndarray | Sequence[np.ndarray | None]) -> np.ndarray:
        """Converts gathered laps to an array (laps, processes), after checks."""
        missing = np.full(self._every, np.nan)
        columns = [
            missing if row is None else np.asarray(row, np.float64) for row in rows
        ]
        for process, column in enumerate(columns):
            if column.shape != missing.shape:
                raise ValueError(
                    f"gather must return {self._every} laps of each process; got shape "
                    f"{column.shape} from process {process}. Pass the same `every` on "
                    "all processes"
                )
        if self._windows and len(columns) != self._windows[0].shape[1]:
            raise ValueError(
                f"gather must return laps of {self._windows[0].shape[1]} processes, as "
                f"before; got {len(columns)}. If processes join or leave, make another "
                "StepTimes"
            )
        return np.stack(columns, axis=1)

    def _warn_once(self, text: str) -> None:
        """Logs a warning, unless one has been logged before."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(text)

    def _compare(self, recent: StragglerReport) -> None:
        """Calls `on_change` for each worker that has changed since the last exchange.

        Args:
          recent: Report of the laps of the last exchanges.
        """
        latest = self.latest
        assert latest is not None
        if latest.after_barrier:
            self._warn_once(_AFTER_BARRIER)
        is_slow = np.array([kind in _SLOW_KINDS for kind in recent.kinds])
        for worker, name in enumerate(latest.names.tolist()):
            before = self._speeds.get(name, Kind.UNTIL)
            now = before
            is_confirmed = is_slow[worker] and name in self._suspects
            kind = latest.kinds[worker]
            slowdown = float(latest.slowdown[worker])
            if kind in _MISSING_KINDS:
                now = Kind.MISSING_SINCE
            elif kind in _SLOW_KINDS and is_confirmed:
                now = Kind.SINCE
            elif before == Kind.MISSING_SINCE or np.log(slowdown) < MARGIN:
                now = Kind.UNTIL
            self._speeds[name] = now
            if now != before:
                change = SpeedChange(
                    worker=name,
                    kind=now,
                    before=before,
                    step=_first_step(worker, now, before, latest, recent),
                    slowdown=slowdown,
                    report=latest,
                )
                self._on_change(change)
        self._suspects = set(recent.names[is_slow].tolist())


def _checked_names(names: Sequence[str]) -> list[str]:
    """Returns the names of processes; raises ValueError if two are equal."""
    if isinstance(names, str):
        raise TypeError(f"names must be a list of strings; got {names!r}")
    checked = [str(name) for name in names]
    for name in checked:
        if checked.count(name) > 1:
            raise ValueError(f"names must differ; got {name!r} twice")
    return checked


def _first_step(
    worker: int,
    now: Kind,
    before: Kind,
    latest: StragglerReport,
    recent: StragglerReport,
) -> int:
    """Finds the first step in which a worker has its new speed.

    Args:
      worker: Index of the worker.
      now: Kind of its change.
      before: Kind of the change before.
      latest: Report of the laps since the last exchange.
      recent: Report of the laps of the last exchanges.
    """
    is_known = recent.kinds[worker] == now and before != Kind.MISSING_SINCE
    if is_known or now == Kind.MISSING_SINCE:
        step = int(recent.change_round[worker])
        return step if step >= 0 else int(recent.rounds.steps[0])
    rounds = latest.rounds if now == Kind.UNTIL else recent.rounds
    responds = np.isfinite(rounds.times[:, worker])
    # The new speed begins after the last round without a response.
    gaps = np.flatnonzero(~responds)
    start = gaps[-1] + 1 if len(gaps) and gaps[-1] + 1 < len(responds) else 0
    return int(rounds.steps[start])


def _gather_of_jax() -> Gather:
    """Returns a function that gathers laps on process 0 through JAX."""
    import jax
    from jax.experimental import multihost_utils

    def gather(laps):
        rows: Any = multihost_utils.process_allgather(laps)
        return rows if jax.process_index() == 0 else None

    return gather


def _gather_of_torch() -> Gather:
    """Returns a function that gathers laps on rank 0 through PyTorch."""
    group = importlib.import_module("torch.distributed")

    def gather(laps):
        rows: list[Any] = [None] * group.get_world_size()
        group.all_gather_object(rows, laps)
        return rows if group.get_rank() == 0 else None

    return gather


_GATHER: dict[str, Callable[[], Gather]] = {
    "jax": _gather_of_jax,
    "torch": _gather_of_torch,
}
