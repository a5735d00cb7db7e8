"""Wrong answers: found before they are decoded, left out, their senders replaced."""

import dataclasses
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxwgc import _validation, coding
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._coordinator import Answers, Coordinator, Verdict, log
from jaxwgc.distributed.ray._messages import unpacked
from jaxwgc.distributed.ray._session import check_connected, find_ray
from jaxwgc.distributed.ray._slots import WorkerSlot, reason
from jaxwgc.distributed.ray._worker import Task, Worker, read, sent

# Rounds in which a worker is wrong before another process takes its place.
WRONG_ROUNDS = 3
# Numbers that stand for a vector in a dispute.
NUM_COLUMNS = 64


class Suspicion:
    """In how many rounds each process was wrong."""

    def __init__(self, slots: Sequence[WorkerSlot], retire: Callable[..., None]):
        self._slots, self._retire = slots, retire
        self._counts = np.zeros(len(slots), int)

    def note(self, wrong: np.ndarray, when: str) -> None:
        """A line for each; who is wrong again and again gives its place to another."""
        for slot in self._slots:
            if not wrong[slot.index]:
                continue
            self._counts[slot.index] += 1
            times = self._counts[slot.index]
            log.warning(
                "worker %d on %s is wrong %s: its answer is left out, as %d so far",
                slot.index,
                slot.where,
                when,
                times,
            )
            if times < WRONG_ROUNDS or slot.actor is None:
                continue
            self._counts[slot.index] = 0
            trouble = f"its answers were wrong in {times} rounds"
            # Of whoever calls `compute`.
            warnings.warn(
                f"worker {slot.index} on {slot.where} is replaced, since {trouble}: "
                "that machine may compute wrong",
                stacklevel=6,
            )
            self._retire(slot, trouble)


class Recomputation:
    """Messages of one part, computed here, where workers contradict each other."""

    def __init__(self, task: Task, parts: Any):
        self._task, self._parts = task._replace(delay=None, corrupt=None), parts
        self._worker: Worker | None = None

    def message(self, order: Any, part: int, row: np.ndarray) -> np.ndarray:
        """Returns (1, length), that of a row (1, num_segments) of the code."""
        if self._task.load is None:
            given = jax.tree.map(operator.itemgetter(part), self._parts)
        else:
            given = sent(self._task.load(part))
        held = np.array([part])
        if self._worker is None:
            self._worker = Worker(0, held, row, None, self._task)
            self._worker.prepare([given])
        self._worker.held, self._worker.rows = held, row
        self._worker.parts = jax.tree.map(lambda leaf: leaf[None], given)
        # Large ones are in Ray's memory.
        order = order if isinstance(order, bytes) else find_ray().get(order)
        answer = self._worker.compute(order)
        return unpacked(answer.message, np.iscomplexobj(row))


def locator_of(code: GradientCode, on_wrong: str) -> coding.ErrorLocator:
    """Returns that of a code, after checks of the argument of `RayCluster`."""
    _validation.check_choice("on_wrong", on_wrong, ("drop", "arbitrate", "raise"))
    if code.messages_per_worker > 1:
        raise ValueError(
            "on_wrong must be None for codes of several messages a worker, which work "
            f"on request and send no part twice (audit is for them); got {on_wrong!r}"
        )
    locator = coding.ErrorLocator.of(code)
    if on_wrong == "arbitrate" and locator.copies is None:
        raise ValueError(
            "on_wrong must be 'drop' or 'raise' unless all checks of the code are "
            f"copies, as those of fractional_repetition; got 'arbitrate' for {code}"
        )
    return locator


def check_audit(audit: float | None, code: GradientCode) -> float:
    """Returns the probability of an audit; 0 where there is none."""
    if audit is None:
        return 0.0
    _validation.check_number("audit", audit, minimum=0, traceable=False)
    if audit >= 1:
        raise ValueError(f"audit must be a probability below 1; got {audit}")
    if audit and code.messages_per_worker == 1:
        raise ValueError(
            "audit must be None for codes of one message a worker, which on_wrong is "
            f"for; got {audit}"
        )
    return float(audit)


@dataclasses.dataclass(eq=False)
class Examining(Coordinator):
    """A coordinator that looks for wrong messages before they are decoded.

    Attributes:
      locator: of the code.
      on_wrong: `"drop"`, `"arbitrate"` or `"raise"`.
      noise: of honest messages.
      message_dtype: of messages on their way, or None.
      recomputation: of parts in dispute.
    """

    locator: coding.ErrorLocator
    on_wrong: str
    noise: float
    message_dtype: str | None
    recomputation: Recomputation

    def __post_init__(self):
        super().__post_init__()
        self._suspicion = Suspicion(self.slots, self._retire)

        def locate(messages, mask, number):
            # Nobody knows it who does not know all messages.
            key = jax.random.fold_in(coding.key_from(messages), number)
            return self.locator.locate(
                messages, mask, key, self.noise, self.message_dtype
            ), key

        self._locate = jax.jit(locate)
        self._project = jax.jit(coding.project, static_argnums=2)

    def _examine(
        self, answers: Answers, received: np.ndarray, order: Any
    ) -> Verdict | None:
        location, key = self._locate(answers.messages, received, len(self.times))
        location = jax.tree.map(np.asarray, location)
        verdict = Verdict(location.mask, location.wrong, bool(location.refused))
        if verdict.refused and location.disputed.any() and self.on_wrong == "arbitrate":
            verdict = self._arbitrate(
                answers, received, order, location.disputed, sent(key)
            )
        self._suspicion.note(verdict.wrong, self._when)
        if verdict.refused and location.disputed.any():
            log.warning(
                "answers of workers %s contradict each other %s, and it cannot be said "
                "who is wrong: the round is refused",
                np.flatnonzero(location.disputed).tolist(),
                self._when,
            )
        if self.on_wrong == "raise":
            self._raise_wrong(verdict.wrong, location.disputed)
        return verdict

    def _raise_wrong(self, wrong: np.ndarray, disputed: np.ndarray) -> None:
        who = wrong if wrong.any() else disputed
        if who.any():
            names = "; ".join(
                f"worker {slot.index} on {slot.where}"
                for slot in self.slots
                if who[slot.index]
            )
            what = "wrong answers" if wrong.any() else "a wrong answer from one"
            raise RuntimeError(f"{what} {self._when}: {names}")

    def _arbitrate(
        self,
        answers: Answers,
        received: np.ndarray,
        order: Any,
        disputed: np.ndarray,
        key: Any,
    ) -> Verdict:
        """Asks those in dispute for sums over fewer and fewer parts.

        The messages of each group are multiples of one.
        """
        assert self.locator.copies is not None
        labels, signs = self.locator.copies
        code = self.locator.code
        scales = (self.locator.norms * signs)[:, None]
        matrix = np.asarray(code.encoding_matrix)
        matrix = matrix.reshape(code.num_workers, code.num_parts, -1)
        rounding = coding.rounding_noise(answers.messages, self.message_dtype)
        noise = max(self.noise, rounding)
        totals = self._projections(key, answers.messages) / scales
        wrong, is_settled = np.zeros_like(received), True
        for label in np.unique(labels[disputed]):
            group = np.flatnonzero(disputed & (labels == label))
            rows = matrix[group[0]]

            def ask_pair(pair, parts, group=group):
                slots = [self.slots[worker] for worker in group[pair]]
                given = order, np.asarray(parts), key, NUM_COLUMNS
                claims = ask(slots, self._retire, self.timeouts.answer, *given)
                return claims / scales[group[pair]]

            def recompute(part, group=group, rows=rows):
                message = self.recomputation.message(order, int(part), rows[part][None])
                return self._projections(key, message)[0] / scales[group[0]]

            parts = np.flatnonzero(rows.any(1))
            try:
                settlement = coding.arbitrate(
                    totals[group], parts, ask_pair, recompute, noise
                )
            except NoAnswer:
                is_settled = False
                continue
            wrong[group] = settlement.wrong
            is_settled &= settlement.settled
            log.info(
                "a dispute of workers %s %s is %s after %d exchanges",
                group.tolist(),
                self._when,
                "settled" if settlement.settled else "open",
                settlement.num_exchanges,
            )
        if not is_settled:
            return Verdict(np.zeros_like(received), wrong, True)
        others, _ = self._locate(
            answers.messages, received & ~disputed, len(self.times)
        )
        right = np.asarray(others.mask) | (disputed & ~wrong)
        return Verdict(right, wrong | np.asarray(others.wrong), False)

    def _projections(self, key: Any, messages: np.ndarray) -> np.ndarray:
        return np.asarray(self._project(read(key), messages, NUM_COLUMNS))


class NoAnswer(Exception):
    """Somebody who was asked has been lost."""


def ask(
    slots: Sequence[WorkerSlot],
    retire: Callable[..., None],
    seconds: float,
    *arguments: Any,
) -> np.ndarray:
    """Returns projections (num_asked, num_columns): see `Worker.project`."""
    ray = find_ray()
    if any(slot.actor is None for slot in slots):
        raise NoAnswer
    tasks = [slot.actor.project.remote(*arguments) for slot in slots]
    ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
    claims = []
    for slot, task in zip(slots, tasks):
        try:
            claims.append(ray.get(task, timeout=1))
        except Exception as error:
            check_connected()
            retire(slot, reason(error), error)
    if len(claims) < len(slots):
        raise NoAnswer
    return np.stack(claims)
