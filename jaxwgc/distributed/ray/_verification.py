"""Verification: corrupted messages are found before they are decoded."""

import contextlib
import operator
import time
from typing import Any

import jax
import numpy as np

from jaxwgc import coding
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._actors import Driver, NoResponse
from jaxwgc.distributed.ray._fleet import log
from jaxwgc.distributed.ray._messages import sent
from jaxwgc.distributed.ray._rounds import Verdict
from jaxwgc.distributed.ray._session import find_ray
from jaxwgc.distributed.ray._worker import PROJECTION_DIM, Task, Worker, project


class Verifier:
    """Base class of verifiers, which find corrupted messages of rounds.

    Args:
      driver: `Driver` of the rounds.
      code: Gradient code.
      task: Task of the workers.
      parts: Parts as they travel, or None if the task loads them.
      noise: Relative difference of honest copies.

    Attributes:
      seconds: Seconds that all checks have taken so far.
    """

    def __init__(
        self, driver: Driver, code: GradientCode, task: Task, parts: Any, noise: float
    ):
        self._actors = driver.actors
        self._fleet = driver.fleet
        self._code = code
        self._noise = noise
        self._task = task._replace(delay=None, corrupt=None)
        self._parts = parts
        self._worker: Worker | None = None
        self.seconds = 0.0

    def check(self, this_round: Any) -> Verdict:
        """Returns the verdict on a `MessageRound` or `RequestRound`."""
        start = time.monotonic()
        verdict = self._verdict(this_round)
        self.seconds += time.monotonic() - start
        return verdict

    def _verdict(self, this_round: Any) -> Verdict:
        raise NotImplementedError

    def _query(self, workers: np.ndarray, parts: Any, *given: Any) -> np.ndarray:
        """Returns projections by several workers of their sums over some parts."""
        seconds = self._fleet.limit.seconds
        return self._actors.query(workers, seconds, np.asarray(parts), *given)

    def _recompute(self, key: Any, part: int, row: np.ndarray) -> np.ndarray:
        """Computes the projection of the message of one part on the coordinator.

        Args:
          key: Key of the projection, as it travels.
          part: Index of the part.
          row: Row of the code for this part, (1, num_segments).
        """
        if self._task.load is None:
            given = jax.tree.map(operator.itemgetter(part), self._parts)
        else:
            given = sent(self._task.load(int(part)))
        held = np.array([part])
        if self._worker is None:
            self._worker = Worker(0, held, row, None, self._task)
            self._worker.prepare([given])
        self._worker.held = held
        self._worker.rows = row
        self._worker.parts = jax.tree.map(lambda leaf: leaf[None], given)
        # Large parameters are in Ray's object store, and small ones are pickled.
        order = self._actors.order
        order = order if isinstance(order, bytes) else find_ray().get(order)
        return self._worker.project(order, held, key)

    def _noise_of(self, messages: np.ndarray) -> float:
        """Returns the relative difference of honest copies, rounding included."""
        rounding = coding.rounding_noise(messages, self._task.message_dtype)
        return max(self._noise, rounding)


class ParityChecks(Verifier):
    """Verifier of codes with one message per worker, by parity checks.

    Args:
      *given: Arguments of `Verifier`.
      locator: `ErrorLocator` of the code.
      on_wrong: `"drop"`, `"arbitrate"` or `"raise"`.
    """

    def __init__(self, *given: Any, locator: coding.ErrorLocator, on_wrong: str):
        super().__init__(*given)
        self._locator = locator
        self._on_wrong = on_wrong

        def locate(messages, mask, number):
            # Only a worker that knows all messages can guess the key.
            key = jax.random.fold_in(coding.key_from(messages), number)
            return locator.locate(
                messages, mask, key, self._noise, self._task.message_dtype
            ), key

        self._locate = jax.jit(locate)

    def _verdict(self, this_round: Any) -> Verdict:
        location, key = self._locate(
            this_round.messages, this_round.received, this_round.number + 1
        )
        location = jax.tree.map(np.asarray, location)
        verdict = Verdict(location.mask, location.wrong, bool(location.refused))
        disputed = location.disputed
        when = self._fleet.when
        if verdict.rejected and disputed.any() and self._on_wrong == "arbitrate":
            verdict = self._arbitrate(this_round, disputed, key)
        if verdict.rejected and disputed.any():
            text = "messages of workers %s contradict each other %s: round rejected"
            log.warning(text, np.flatnonzero(disputed).tolist(), when)
        named = verdict.wrong if verdict.wrong.any() else disputed
        if self._on_wrong == "raise" and named.any():
            slots = np.array(self._fleet.slots)[named]
            names = "; ".join(f"worker {slot.index} on {slot.where}" for slot in slots)
            what = "wrong answers" if verdict.wrong.any() else "a wrong answer from one"
            raise RuntimeError(f"{what} {when}: {names}")
        return verdict

    def _arbitrate(self, this_round: Any, disputed: np.ndarray, key: Any) -> Verdict:
        """Settles disputes of workers by sums over fewer and fewer parts.

        The messages of a group are multiples of one message.
        """
        assert self._locator.copies is not None
        labels, signs = self._locator.copies
        messages = this_round.messages
        received = this_round.received
        scales = (self._locator.norms * signs)[:, None]
        matrix = np.asarray(self._code.encoding_matrix)
        matrix = matrix.reshape(len(received), self._code.num_parts, -1)
        totals = np.asarray(project(key, messages, PROJECTION_DIM)) / scales
        key = sent(key)
        wrong = np.zeros_like(received)
        is_settled = True
        for label in np.unique(labels[disputed]):
            group = np.flatnonzero(disputed & (labels == label))
            rows = matrix[group[0]]
            scale = scales[group]

            def ask(pair, parts, group=group, scale=scale):
                return self._query(group[pair], parts, key) / scale[pair]

            def recompute(part, rows=rows, scale=scale):
                return self._recompute(key, part, rows[part][None]) / scale[0]

            parts = np.flatnonzero(rows.any(1))
            noise = self._noise_of(messages)
            try:
                settlement = coding.arbitrate(
                    totals[group], parts, ask, recompute, noise
                )
            except NoResponse:
                is_settled = False
                continue
            wrong[group] = settlement.wrong
            is_settled &= settlement.settled
        if not is_settled:
            return Verdict(np.zeros_like(received), wrong, True)
        number = this_round.number + 1
        others, _ = self._locate(messages, received & ~disputed, number)
        right = np.asarray(others.mask) | (disputed & ~wrong)
        return Verdict(right, wrong | np.asarray(others.wrong), False)


class Audits(Verifier):
    """Verifier of rounds on request: compares two copies of one part in some rounds.

    Args:
      *given: Arguments of `Verifier`.
      audit: Probability of an audit in a round.
      seed: Seed of the choice of rounds, parts and workers.
    """

    def __init__(self, *given: Any, audit: float, seed: int):
        super().__init__(*given)
        self._audit = audit
        self._random = np.random.default_rng(seed)

    def _verdict(self, this_round: Any) -> Verdict:
        wrong = np.zeros(self._code.num_workers, bool)
        if self._random.random() < self._audit:
            # If a worker does not respond, the audit is left to a later round.
            with contextlib.suppress(NoResponse):
                self._compare(this_round, wrong)
        return Verdict(~wrong, wrong, False)

    def _compare(self, this_round: Any, wrong: np.ndarray) -> None:
        """Compares the sender's gradient of a random part with another holder's."""
        code = self._code
        shape = code.num_workers, code.messages_per_worker, code.num_parts
        rows = np.asarray(code.encoding_matrix).reshape(shape)
        is_sent = np.einsum("im,imj->ij", this_round.requests, rows) != 0
        if not is_sent.any():
            return
        owners, parts = np.nonzero(is_sent)
        place = self._random.integers(len(owners))
        owner = owners[place]
        part = parts[place]
        is_up = self._fleet.are("idle", "computing")
        is_up &= [not slot.is_suspected for slot in self._fleet.slots]
        helpers = np.flatnonzero(np.asarray(code.assignment)[:, part] & is_up)
        helpers = helpers[helpers != owner]
        if not len(helpers):
            return
        workers = np.array([owner, self._random.choice(helpers)])
        key = sent(jax.random.key(self._random.integers(2**31)))
        claims = self._query(workers, [part], key, this_round.number)
        settlement = coding.arbitrate(
            claims,
            [int(part)],
            lambda workers, parts: claims[workers],
            lambda part: self._recompute(key, part, np.ones((1, 1))),
            self._noise_of(this_round.messages),
        )
        wrong[workers] = settlement.wrong
