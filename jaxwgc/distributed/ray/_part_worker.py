"""Worker process of rounds on request: reports parts, and sends weighted sums."""

import dataclasses
import functools
import operator
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.flat_vectors import ravel
from jaxwgc.distributed.ray._digests import digest
from jaxwgc.distributed.ray._errors import BatchError, WorkerError, naming_parts
from jaxwgc.distributed.ray._events import Ready
from jaxwgc.distributed.ray._messages import (
    HOLD_SECONDS,
    Progress,
    Report,
    SentKey,
    Taken,
    pack,
)
from jaxwgc.distributed.ray._task import Assignment, Order, Task, read_order
from jaxwgc.distributed.ray._worker import WorkerBase

# Number of terms that one call of a compiled function adds to a sum. Several terms at
# once need fewer passes through memory than one by one.
_AT_ONCE = 8
# Before a worker computes parts that other workers have finished or are computing, it
# waits at least this multiple of the time of its last part.
_PARTS_HELD = 2


@dataclasses.dataclass(eq=False)
class _Step:
    """State of one round in the process of a worker.

    A position counts the parts of the worker, in the order in which it computes them.

    Attributes:
      number: Number of the round.
      leaves: Leaves of params.
      key: Key of the round, in the format in which it is sent.
      step: Step of the round.
      taken: `Taken` of each part of the worker, int8 (num_held,).
      expected: Weights of the terms in the sum that the coordinator expects to request,
        (num_held,). Zeros if it expects none, or has the sum.
      terms: Finished terms by the position of their part.
      reports: Reports in the order in which parts were finished.
      num_quiet: Number of reports of the last round at the start of `reports`. They are
        sent only together with a report of this round.
      begin: Time at which the round started on the worker.
      is_stopped: Whether the worker computes no further part.
      error: Error of the user's `batches`, which ends this round only.
    """

    number: int
    leaves: list[jax.Array]
    key: SentKey | None
    step: int
    taken: np.ndarray
    expected: np.ndarray
    terms: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    reports: list[Report] = dataclasses.field(default_factory=list)
    num_quiet: int = 0
    begin: float = dataclasses.field(default_factory=time.monotonic)
    is_stopped: bool = False
    error: WorkerError | None = None

    @property
    def positions(self) -> np.ndarray:
        """Positions of the parts left to compute, free parts first; none if stopped."""
        is_done = np.full(len(self.taken), self.is_stopped)
        is_done[list(self.terms)] = True
        return positions_left(self.taken, is_done)

    @property
    def has_expected_sum(self) -> bool:
        """True if a sum is expected, and all of its terms are finished."""
        positions = np.flatnonzero(self.expected).tolist()
        return len(positions) > 0 and self.terms.keys() >= {*positions}

    @property
    def has_free_part(self) -> bool:
        """True if a part is left that no other worker has finished or is computing."""
        return bool((self.taken[self.positions] == Taken.FREE).any())


def positions_left(taken: np.ndarray, is_done: np.ndarray) -> np.ndarray:
    """Returns the positions of a worker's unfinished parts, sorted by `Taken`.

    Args:
      taken: int (num_positions,), `Taken` of each part.
      is_done: bool (num_positions,), parts that the worker has finished.
    """
    left = np.flatnonzero(~is_done)
    return left[np.argsort(taken[left], kind="stable")]


class _PartResult(NamedTuple):
    """Term, loss and auxiliary outputs of one part, from the compiled function.

    Attributes:
      term: (1, length).
      loss: Loss of the part.
      aux: Auxiliary outputs of the loss, a pytree.
      is_finite: Whether all entries of the term are finite.
    """

    term: jax.Array
    loss: jax.Array
    aux: Any
    is_finite: jax.Array


class _NextPart(NamedTuple):
    """Part that the worker computes next.

    Attributes:
      step: State of the round.
      position: Position of the part.
      position_after: Position of the next free part, or None.
    """

    step: _Step
    position: int
    position_after: int | None


class PartWorker(WorkerBase):
    """Worker that computes one part at a time, and stores the terms for weighted sums.

    One thread computes parts. The coordinator's calls run in other threads. Only the
    calls of `compute` and `report` wait for finished parts.
    """

    _is_stacked = False

    def __init__(self, assignment: Assignment | None, task: Task | list[Any]):
        super().__init__(assignment, task)
        # Guards the attributes below, which all threads share.
        self._changed = threading.Condition()
        self._step = _Step(
            number=-1,
            leaves=[],
            key=None,
            step=0,
            taken=np.zeros(0, np.int8),
            expected=np.zeros(0),
        )
        self._num_calls = 0
        self._error: WorkerError | None = None
        # Seconds that the last part took; 0 before the first part.
        self._part_seconds = 0.0

    def start(self, assignment: Assignment | None = None) -> Ready:
        """Loads data, compiles, starts the computing thread, and returns `Ready`."""
        ready = super().start(assignment)
        self.start_thread()
        return ready

    def start_thread(self) -> None:
        """Starts the thread that computes the parts of the newest round."""
        threading.Thread(target=self._work, daemon=True).start()

    # Methods that the coordinator calls.

    def compute(
        self,
        order: Order | bytes,
        number: int,
        taken: np.ndarray,
        seen: int,
        expected: np.ndarray,
    ) -> Progress:
        """Starts a round after the current part, waits, and returns new reports.

        The first reports are those of the last round that the coordinator has not seen.
        To save a call, they are sent together with a report of this round, unless the
        coordinator has seen no report of the last round.

        Args:
          order: Leaves of params, key and step, possibly pickled.
          number: Number of the round. Rounds older than the newest one are ignored.
          taken: int (num_held,), `Taken` of each part of the worker.
          seen: Number of reports of the last round that the coordinator has seen.
          expected: Weights of the messages in the sum that the coordinator expects to
            request, (num_messages,); zeros if it expects none.
        """
        leaves, key, step = read_order(order)
        with self._changed:
            if number > self._step.number:
                unseen = self._step.reports[seen:]
                self._step = _Step(
                    number=number,
                    leaves=jax.device_put(leaves),
                    key=key,
                    step=step,
                    taken=taken,
                    expected=expected @ self.rows,
                    reports=unseen,
                    num_quiet=len(unseen) if seen else 0,
                )
        return self.report(number, 0, taken)

    def report(self, number: int, seen: int, taken: np.ndarray) -> Progress:
        """Waits for a finished part; returns new reports, and perhaps the expected sum.

        The reports may include those of an earlier round, in which the worker was late.
        The expected sum comes with the reports of its last parts. The worker then
        computes no further parts until the next call for reports. A newer call of the
        coordinator ends the wait.

        Args:
          number: Number of the round. The result is empty for any but the newest round.
          seen: Number of reports in this round that the coordinator has seen.
          taken: int (num_held,), `Taken` of each part of the worker.
        """
        with self._changed:
            step = self._step
            if step.number != number:
                return Progress()
            step.taken = taken
            step.is_stopped = False
            self._num_calls += 1
            this_call = self._num_calls
            self._changed.notify_all()

            def is_waiting_for(num_reports):
                is_newest = this_call == self._num_calls and not step.is_stopped
                has_failed = self._error is not None or step.error is not None
                return is_newest and not has_failed and len(step.reports) < num_reports

            num_first = max(seen, step.num_quiet) + 1
            self._changed.wait_for(lambda: not is_waiting_for(num_first))
            if len(step.reports) >= num_first:
                # If free parts are left, the call waits up to `HOLD_SECONDS`, to return
                # several reports together.
                num_full = step.num_quiet + self.task.report_size
                self._changed.wait_for(
                    lambda: not (is_waiting_for(num_full) and step.has_free_part),
                    HOLD_SECONDS,
                )
            error = self._error or step.error
            if error is not None:
                raise error
            reports = step.reports[seen:]
            if this_call != self._num_calls or not step.has_expected_sum:
                return Progress(reports)
            weights = step.expected
            step.expected = np.zeros_like(weights)
            step.is_stopped = True
        return Progress(reports, self._sum_of_step(step, weights))

    def send_sum(self, number: int, request: np.ndarray) -> np.ndarray | None:
        """Returns a weighted sum of the worker's terms, or None.

        The worker computes no further parts until the next call for reports.

        Args:
          number: Number of the round. None is returned if the worker has gone on to
            another round.
          request: Weights of the worker's messages in the sum, (num_messages,).
        """
        self.stop(number)
        with self._changed:
            self._num_calls += 1
            step = self._step
        if step.number != number:
            return None
        return self._sum_of_step(step, request @ self.rows)

    def project(
        self, order: Order | bytes, parts: np.ndarray, key: SentKey, number: int
    ) -> np.ndarray:
        """Computes the random projection of one part's term.

        If the term of the part is stored, it is used. Otherwise, this thread computes
        the term, and the computing thread continues meanwhile.
        """
        position = self.held.tolist().index(parts[0])
        term = None
        with self._changed:
            if self._step.number == number:
                term = self._step.terms.get(position)
        leaves, step_key, step = read_order(order)
        if term is None:
            arguments = self._arguments(position, step_key, step)
            term = self._compiled(leaves, *arguments).term
        wire = self._corrupted(step, np.asarray(pack(term, self.task.message_dtype)))
        return self._projection(wire, key)

    def stop(self, number: int) -> Progress:
        """Stops the computation of a round after the current part.

        The returned `Progress` has no reports.
        """
        with self._changed:
            if self._step.number == number:
                self._step.is_stopped = True
            self._changed.notify_all()
        return Progress()

    # Methods of the computing thread.

    def _work(self) -> None:
        """Computes parts of the newest round one by one, in an endless loop.

        An error ends the loop, and the next call for reports raises it.
        """
        try:
            while True:
                next_part = self._wait_for_part()
                if next_part is not None:
                    self._compute_part(next_part)
        except BaseException as error:
            with self._changed:
                self._error = WorkerError.of(error)
                self._changed.notify_all()

    def _wait_for_part(self) -> _NextPart | None:
        """Waits for a part to compute; returns the part, or None to wait again."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._step.positions) > 0)
            # Without free parts, this worker waits before it computes parts of other
            # workers. Meanwhile, a worker of half the speed can finish its own parts.
            own_seconds = time.monotonic() - self._step.begin
            hold = max(_PARTS_HELD * self._part_seconds, min(own_seconds, HOLD_SECONDS))
            self._changed.wait_for(lambda: self._step.has_free_part, hold)
            step = self._step
            positions = step.positions.tolist()
            if not positions:
                return None
            position_after = None
            for position in positions[1:]:
                if step.taken[position] == Taken.FREE:
                    position_after = position
                    break
            return _NextPart(
                step=step, position=positions[0], position_after=position_after
            )

    def _compute_part(self, next_part: _NextPart) -> None:
        """Computes a part, and stores its term and report.

        An error of the user's `batches` is stored as the error of the round.
        """
        step = next_part.step
        try:
            term, report = self._finish(next_part)
        except BatchError as error:
            with self._changed:
                step.error = WorkerError.of(error)
                step.is_stopped = True
                self._changed.notify_all()
            return
        with self._changed:
            self._part_seconds = report.seconds
            step.terms[next_part.position] = term
            # If another round has started meanwhile, the report is sent in that round.
            self._step.reports.append(report)
            self._changed.notify_all()

    def _finish(self, next_part: _NextPart) -> tuple[jax.Array, Report]:
        """Computes a part; returns its term and its report.

        Meanwhile, the batches of the next free part and of the first part of the next
        step are read.
        """
        begin = time.monotonic()
        state = next_part.step
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, state.step))
        arguments = self._arguments(next_part.position, state.key, state.step)
        groups_of_steps = [(state.step + 1, 0)]
        if next_part.position_after is not None:
            groups_of_steps.insert(0, (state.step, next_part.position_after))
        self.data.expect(groups_of_steps)
        with naming_parts(self.held[[next_part.position]]):
            result = self._compiled(state.leaves, *arguments)
            loss = float(result.loss)
        report = Report(
            number=state.number,
            position=next_part.position,
            loss=loss,
            aux=jax.tree.map(lambda leaf: np.asarray(leaf)[None], result.aux),
            is_finite=bool(result.is_finite),
            seconds=time.monotonic() - begin,
            digest=digest(arguments[0]) if self.task.has_digests else None,
        )
        return result.term, report

    # Compiled functions.

    def _compile(self) -> jax.ShapeDtypeStruct:
        """Compiles `_one_part` and `_add`; returns shape and dtype of a sent sum."""
        leaves = jax.tree.leaves(self.task.params)
        arguments = self._arguments(0, self.task.key, self._first_step)
        with naming_parts(self.held[:1]):
            lowered = jax.jit(self._one_part).lower(leaves, *arguments)
        self._compiled = lowered.compile()
        self._zeros = jnp.zeros_like(lowered.out_info.term)
        self._add = jax.jit(_add, donate_argnums=0)
        positions = range(len(self.held))
        wire = self._sum(dict.fromkeys(positions, self._zeros), np.ones(len(positions)))
        return jax.ShapeDtypeStruct(wire.shape, wire.dtype)

    def _arguments(
        self, position: int, key: SentKey | None, step: int
    ) -> tuple[Any, np.uint32, SentKey | None, np.uint32]:
        """Returns the arguments of `_one_part` after `leaves`, for one part."""
        part = self.data.of_step(step, position)
        return part, np.uint32(self.held[position]), key, np.uint32(step)

    def _one_part(self, leaves, part, index, key, step) -> _PartResult:
        """Computes the term, loss and auxiliary outputs of one part."""
        term = self._term(leaves, part, index, key, step)
        vector = ravel(term.value)[None]
        return _PartResult(
            term=vector,
            loss=term.loss,
            aux=term.aux,
            is_finite=jnp.isfinite(vector).all(),
        )

    def _sum_of_step(self, step: _Step, weights: np.ndarray) -> np.ndarray:
        """Computes the weighted sum of finished terms, and applies `Faults.corrupt`."""
        wire = self._sum(step.terms, weights)
        return self._corrupted(step.step, np.asarray(wire))

    def _sum(self, terms: dict[int, jax.Array], weights: np.ndarray) -> jax.Array:
        """Computes the weighted sum of terms, in the format in which it is sent."""
        asked = np.flatnonzero(weights)
        total: jax.Array | None = None
        for start in range(0, max(1, len(asked)), _AT_ONCE):
            positions = asked[start : start + _AT_ONCE]
            added = [terms[position] for position in positions]
            added += [self._zeros] * (_AT_ONCE - len(positions))
            factors = np.zeros(_AT_ONCE, self._zeros.dtype)
            factors[: len(positions)] = weights[positions]
            total = self._add(total, factors, added)
        assert total is not None
        return pack(total, self.task.message_dtype)


def _add(
    total: jax.Array | None, factors: jax.Array, terms: list[jax.Array]
) -> jax.Array:
    """Adds weighted terms to a total; None is a total of zero."""
    products = [factor * term for factor, term in zip(factors, terms)]
    if total is not None:
        products.insert(0, total)
    return functools.reduce(operator.add, products)
