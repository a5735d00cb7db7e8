"""The actor on a worker that is asked for sums of the parts that it has finished."""

import dataclasses
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _flat_vectors
from jaxwgc.distributed.ray._messages import Report, pack
from jaxwgc.distributed.ray._worker import Worker, read_order

# Gradients that are added up in one pass through memory.
_AT_ONCE = 8
# Seconds that reports wait for others, to travel with them: long against a call of Ray
# for each (1 to 2 milliseconds), short against rounds in which workers are replaced.
HOLD_SECONDS = 0.05
# Times of a part that a worker waits before it computes parts that others are at.
_PARTS_HELD = 2


@dataclasses.dataclass(eq=False)
class _Step:
    """The state of one round on a worker; see `PartWorker.compute`."""

    number: int
    order: tuple[list, Any, int]
    taken: np.ndarray
    gradients: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    reports: list[Report] = dataclasses.field(default_factory=list)
    # Number of these reports that can wait for the next one.
    num_quiet: int = 0
    is_stopped: bool = False

    @property
    def turns(self) -> np.ndarray:
        """The turns that are left: see `turns_left`."""
        is_done = np.full(len(self.taken), self.is_stopped)
        is_done[list(self.gradients)] = True
        return turns_left(self.taken, is_done)

    @property
    def is_free(self) -> bool:
        """Returns whether there is a part that no other worker has or computes."""
        return bool((self.taken[self.turns] == 0).any())


def turns_left(taken: np.ndarray, is_done: np.ndarray) -> np.ndarray:
    """Returns the turns that a worker has not done, in the order that helps most.

    Args:
      taken: int (num_turns,), of each part 0, where another is at it 1, and where
        another has finished it 2.
      is_done: bool (num_turns,), by the worker.
    """
    left = np.flatnonzero(~is_done)
    return left[np.argsort(taken[left], kind="stable")]


class PartWorker(Worker):
    """Goes through its parts, and keeps the gradient of each until it is asked.

    One thread computes. The calls of the coordinator come in others, and hardly wait
    for it: only for the next report.
    """

    def compute(
        self,
        order: tuple[list, Any, int] | bytes,
        number: int,
        taken: np.ndarray,
        seen: int,
    ) -> list[Report]:
        """Goes on to another round, between two parts; returns the first reports.

        The first are those of the last round that the coordinator has not seen. They
        wait for one of this round, to save a call, unless it has seen none of the last.

        Args:
          order: leaves of params, key and step, maybe pickled.
          number: of the round. They grow, and of two the later one counts.
          taken: int (num_held,), of its parts: see `turns_left`.
          seen: number of reports of the last round that the coordinator has seen.
        """
        leaves, key, step = read_order(order)
        with self._changed:
            if number > self._step.number:
                order = jax.device_put(leaves), key, step
                unseen = self._step.reports[seen:]
                num_quiet = len(unseen) if seen else 0
                self._step = _Step(number, order, taken, {}, unseen, num_quiet)
        return self.report(number, 0, taken)

    def report(self, number: int, seen: int, taken: np.ndarray) -> list[Report]:
        """Returns the reports since the first few, as soon as there are any.

        Maybe those of an earlier round, too, in which it was late. None at all if
        another call takes over.
        """
        with self._changed:
            step = self._step
            if step.number != number:
                return []
            step.taken, step.is_stopped = taken, False
            self._num_calls += 1
            calls = self._num_calls
            self._changed.notify_all()

            def is_over():
                is_newest = calls == self._num_calls and not step.is_stopped
                return self._error is not None or not is_newest

            def is_waiting_for(number):
                return len(step.reports) < number and not is_over()

            first = max(seen, step.num_quiet) + 1
            self._changed.wait_for(lambda: not is_waiting_for(first))
            if len(step.reports) >= first:
                # More reports travel in the same call, until its own parts are done.
                full = step.num_quiet + self.task.report_size
                self._changed.wait_for(
                    lambda: not (is_waiting_for(full) and step.is_free), HOLD_SECONDS
                )
            if self._error is not None:
                raise self._error
            return step.reports[seen:]

    def answer(self, number: int, request: np.ndarray) -> np.ndarray | None:
        """Returns the sum of its messages, times the numbers of a request.

        None where it has gone on to another round. It stops until it is to report.
        """
        self.stop(number)
        with self._changed:
            self._num_calls += 1
            step = self._step
        if step.number != number:
            return None
        weights = request @ self.rows
        asked = np.flatnonzero(weights)
        total = jnp.zeros_like(self._zeros)
        for start in range(0, len(asked), _AT_ONCE):
            turns = asked[start : start + _AT_ONCE]
            gradients = [step.gradients[turn] for turn in turns]
            gradients += [self._zeros] * (_AT_ONCE - len(turns))
            factors = np.zeros(_AT_ONCE, total.dtype)
            factors[: len(turns)] = weights[turns]
            total = self._add(total, factors, gradients)
        return self._corrupted(step.order[2], np.asarray(self._pack(total)))

    def project(
        self, order: Any, parts: np.ndarray, key: Any, number: int
    ) -> np.ndarray:
        """Returns a projection of the gradient of one part of a round.

        Of the one that is here, or else it is computed, besides all else.
        """
        turn = self.held.tolist().index(parts[0])
        with self._changed:
            step = self._step
            gradient = step.gradients.get(turn) if step.number == number else None
        leaves, step_key, number_of_step = read_order(order)
        if gradient is None:
            arguments = self._arguments_of(turn, step_key, number_of_step)
            gradient, _, _ = self._compiled(leaves, *arguments)
        wire = self._corrupted(number_of_step, np.asarray(self._pack(gradient)))
        return self._projection(wire, key)

    def stop(self, number: int) -> list[Report]:
        """Ends a round, between two parts."""
        with self._changed:
            if self._step.number == number:
                self._step.is_stopped = True
            self._changed.notify_all()
        return []

    def _compile(self, parts):
        self.parts = [jax.tree.map(jnp.asarray, part) for part in parts]
        leaves = jax.tree.leaves(self.task.params)
        arguments = self._arguments_of(0, self.task.key, 0)
        lowered = jax.jit(self._one_part).lower(leaves, *arguments)
        self._compiled = lowered.compile()
        like = lowered.out_info[0]
        self._zeros = jnp.zeros(like.shape, like.dtype)
        self._add = jax.jit(_add, donate_argnums=0)
        self._pack = jax.jit(
            lambda total: pack(total[None], dtype=self.task.message_dtype)
        )
        factors, gradients = np.zeros(_AT_ONCE, like.dtype), [self._zeros] * _AT_ONCE
        total = self._add(jnp.zeros_like(self._zeros), factors, gradients)
        wire = self._pack(total).block_until_ready()
        self._changed = threading.Condition()
        self._step = _Step(-1, ([], None, 0), np.zeros(0, np.int8))
        self._num_calls = 0
        self._error: Exception | None = None
        threading.Thread(target=self._work, daemon=True).start()
        return wire

    def _work(self):
        """Computes the parts of the newest round, one after the other."""
        took = 0.0
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._step.turns))
                    # What others have, or are at, is for them to send, or to finish:
                    # it is done again only after a while.
                    hold = max(_PARTS_HELD * took, HOLD_SECONDS)
                    self._changed.wait_for(lambda: self._step.is_free, hold)
                    step, turns = self._step, self._step.turns
                    if not len(turns):
                        continue
                    turn = int(turns[0])
                gradient, report = self._finish(step, turn)
                with self._changed:
                    took = report.seconds
                    step.gradients[turn] = gradient
                    self._step.reports.append(report)
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _finish(self, step, turn):
        begin = time.monotonic()
        leaves, key, number = step.order
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, number))
        arguments = self._arguments_of(turn, key, number)
        gradient, (loss, aux), is_finite = self._compiled(leaves, *arguments)
        values = float(loss), jax.tree.map(np.asarray, aux), bool(is_finite)
        return gradient, Report(step.number, turn, *values, time.monotonic() - begin)

    def _arguments_of(self, turn, key, step):
        return self.parts[turn], np.uint32(self.held[turn]), key, np.uint32(step)

    def _one_part(self, leaves, part, index, key, step):
        values, gradient = self._value_and_grad(leaves, part, index, key, step)
        message = _flat_vectors.ravel(gradient)
        return message, values, jnp.isfinite(message).all()


def _add(total, factors, gradients):
    for factor, gradient in zip(factors, gradients):
        total = total + factor * gradient
    return total
