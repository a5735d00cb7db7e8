"""Verification: corrupted messages are found before they are decoded."""

import contextlib
import dataclasses
import logging
import operator
import time
from typing import Any

import jax
import numpy as np

from jaxwgc import coding
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._actors import Actors, NoResponse
from jaxwgc.distributed.ray._fleet import Fleet
from jaxwgc.distributed.ray._message_round import Verdict, Verifier
from jaxwgc.distributed.ray._messages import unpacked
from jaxwgc.distributed.ray._options import Verification
from jaxwgc.distributed.ray._session import find_ray
from jaxwgc.distributed.ray._worker import PROJECTION_DIM, Task, Worker, read, sent

log = logging.getLogger("jaxwgc.distributed")


class Recomputation:
    """Messages of one part, computed by the coordinator if workers contradict.

    Args:
      task: Task of the workers.
      parts: Parts, or None if the task loads them.
    """

    def __init__(self, task: Task, parts: Any):
        self._task, self._parts = task._replace(delay=None, corrupt=None), parts
        self._worker: Worker | None = None

    def message(self, order: Any, part: int, row: np.ndarray) -> np.ndarray:
        """Returns the message (1, length) of a row (1, num_segments) of the code."""
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
        # Large parameters are in Ray's object store.
        order = order if isinstance(order, bytes) else find_ray().get(order)
        answer = self._worker.compute(order)
        return unpacked(answer.message, np.iscomplexobj(row))


@dataclasses.dataclass
class Tools:
    """Workers and projections of messages, shared by all verifiers.

    Attributes:
      actors: Actors of the workers.
      fleet: States of the workers.
      noise: Relative difference of honest copies.
      message_dtype: Dtype of messages on their way, or None.
      recomputation: `Recomputation` of disputed parts.
    """

    actors: Actors
    fleet: Fleet
    noise: float
    message_dtype: str | None
    recomputation: Recomputation

    def __post_init__(self):
        self._project = jax.jit(coding.project, static_argnums=2)

    def project(self, key: Any, messages: np.ndarray) -> np.ndarray:
        """Returns projections of messages; the key is as it travels."""
        return np.asarray(self._project(read(key), messages, PROJECTION_DIM))

    def query(
        self, workers: np.ndarray, parts: Any, key: Any, *round_number: int
    ) -> np.ndarray:
        """Returns the workers' projections of their sums over some parts."""
        arguments = np.asarray(parts), key, *round_number
        return self.actors.query(workers, self.fleet.limit.seconds, *arguments)

    def recompute(self, key: Any, part: int, row: np.ndarray) -> np.ndarray:
        """Returns the projection of the right message of one part."""
        message = self.recomputation.message(self.actors.order, int(part), row)
        return self.project(key, message)[0]

    def noise_of(self, messages: np.ndarray) -> float:
        """Returns the relative difference of honest copies, rounding included."""
        return max(self.noise, coding.rounding_noise(messages, self.message_dtype))


class ParityChecks:
    """Verifier of codes with one message per worker: compares messages.

    Args:
      tools: `Tools`.
      locator: `ErrorLocator` of the code.
      on_wrong: `"drop"`, `"arbitrate"` or `"raise"`.
    """

    def __init__(self, tools: Tools, locator: coding.ErrorLocator, on_wrong: str):
        self._tools, self._locator, self._on_wrong = tools, locator, on_wrong
        # Seconds that all checks have taken so far.
        self.seconds = 0.0

        def locate(messages, mask, number):
            # Only a worker that knows all messages can guess the key.
            key = jax.random.fold_in(coding.key_from(messages), number)
            given = key, tools.noise, tools.message_dtype
            return locator.locate(messages, mask, *given), key

        self._locate = jax.jit(locate)

    def check(self, this_round: Any) -> Verdict:
        """Returns the verdict on a `MessageRound`."""
        start = time.monotonic()
        messages, received = this_round.messages, this_round.received
        location, key = self._locate(messages, received, this_round.number + 1)
        location = jax.tree.map(np.asarray, location)
        verdict = Verdict(location.mask, location.wrong, bool(location.refused))
        disputed, when = location.disputed, self._tools.fleet.when
        if verdict.rejected and disputed.any() and self._on_wrong == "arbitrate":
            verdict = self._arbitrate(this_round, disputed, sent(key))
        if verdict.rejected and disputed.any():
            answers = f"messages of workers {np.flatnonzero(disputed).tolist()}"
            why = "and it cannot be said which are wrong: the round is rejected"
            log.warning("%s contradict each other %s, %s", answers, when, why)
        named = verdict.wrong if verdict.wrong.any() else disputed
        if self._on_wrong == "raise" and named.any():
            slots = np.array(self._tools.fleet.slots)[named]
            names = "; ".join(f"worker {slot.index} on {slot.where}" for slot in slots)
            what = "wrong answers" if verdict.wrong.any() else "a wrong answer from one"
            raise RuntimeError(f"{what} {when}: {names}")
        self.seconds += time.monotonic() - start
        return verdict

    def _arbitrate(self, this_round: Any, disputed: np.ndarray, key: Any) -> Verdict:
        """Asks workers in dispute for sums over fewer and fewer parts.

        The messages of a group are multiples of one message.
        """
        assert self._locator.copies is not None
        labels, signs = self._locator.copies
        code, tools = self._locator.code, self._tools
        messages, received = this_round.messages, this_round.received
        scales = (self._locator.norms * signs)[:, None]
        matrix = np.asarray(code.encoding_matrix)
        matrix = matrix.reshape(code.num_workers, code.num_parts, -1)
        totals = tools.project(key, messages) / scales
        wrong, is_settled = np.zeros_like(received), True
        for label in np.unique(labels[disputed]):
            group = np.flatnonzero(disputed & (labels == label))
            rows, scale = matrix[group[0]], scales[group]

            def ask(pair, parts, group=group, scale=scale):
                return tools.query(group[pair], parts, key) / scale[pair]

            def recompute(part, rows=rows, scale=scale):
                return tools.recompute(key, part, rows[part][None]) / scale[0]

            parts, noise = np.flatnonzero(rows.any(1)), tools.noise_of(messages)
            try:
                given = totals[group], parts, ask, recompute, noise
                settlement = coding.arbitrate(*given)
            except NoResponse:
                is_settled = False
                continue
            wrong[group] = settlement.wrong
            is_settled &= settlement.settled
            dispute = f"a dispute of workers {group.tolist()} {tools.fleet.when}"
            state = "settled" if settlement.settled else "open"
            number = settlement.num_exchanges
            log.info("%s is %s after %d exchanges", dispute, state, number)
        if not is_settled:
            return Verdict(np.zeros_like(received), wrong, True)
        number = this_round.number + 1
        others, _ = self._locate(messages, received & ~disputed, number)
        right = np.asarray(others.mask) | (disputed & ~wrong)
        return Verdict(right, wrong | np.asarray(others.wrong), False)


class Audits:
    """Verifier of rounds on request: has one part of some rounds computed twice.

    Args:
      tools: `Tools`.
      code: Code with several messages per worker.
      audit: Probability of an audit in a round.
      seed: Seed of the choice of rounds, parts and workers.
    """

    def __init__(self, tools: Tools, code: GradientCode, audit: float, seed: int):
        self._tools, self._code, self._audit = tools, code, audit
        self._random = np.random.default_rng(seed)
        self.seconds = 0.0

    def check(self, this_round: Any) -> Verdict:
        """Returns the verdict on a `RequestRound`."""
        start = time.monotonic()
        wrong = np.zeros(self._code.num_workers, bool)
        if self._random.random() < self._audit:
            # Without a response, the audit is left to a later round.
            with contextlib.suppress(NoResponse):
                self._compare(this_round, wrong)
        self.seconds += time.monotonic() - start
        return Verdict(~wrong, wrong, False)

    def _compare(self, this_round: Any, wrong: np.ndarray) -> None:
        """Asks the sender of a part and another worker that holds it."""
        code, tools = self._code, self._tools
        shape = code.num_workers, code.messages_per_worker, code.num_parts
        rows = np.asarray(code.encoding_matrix).reshape(shape)
        is_sent = np.einsum("im,imj->ij", this_round.requests, rows) != 0
        if not is_sent.any():
            return
        owners, parts = np.nonzero(is_sent)
        place = self._random.integers(len(owners))
        owner, part = owners[place], parts[place]
        is_up = tools.fleet.are("idle", "computing")
        is_up &= [not slot.is_suspected for slot in tools.fleet.slots]
        helpers = np.flatnonzero(np.asarray(code.assignment)[:, part] & is_up)
        helpers = helpers[helpers != owner]
        if not len(helpers):
            return
        workers = np.array([owner, self._random.choice(helpers)])
        key = sent(jax.random.key(self._random.integers(2**31)))
        claims = tools.query(workers, [part], key, this_round.number)
        settlement = coding.arbitrate(
            claims,
            [int(part)],
            lambda workers, parts: claims[workers],
            lambda part: tools.recompute(key, part, np.ones((1, 1))),
            tools.noise_of(this_round.messages),
        )
        wrong[workers] = settlement.wrong


def verifier_of(
    tools: Tools,
    options: Verification,
    code: GradientCode,
    locator: coding.ErrorLocator | None,
    key: jax.Array,
) -> Verifier | None:
    """Returns the verifier that the options name, or None."""
    if locator is not None and options.on_wrong is not None:
        return ParityChecks(tools, locator, options.on_wrong)
    if options.audit:
        return Audits(tools, code, options.audit, int(jax.random.bits(key)))
    return None
