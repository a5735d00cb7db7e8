"""Verification of messages before they are decoded."""

import abc
import contextlib
import operator
from typing import Any

import jax
import numpy as np

from jaxwgc import coding
from jaxwgc.codes import GradientCode
from jaxwgc.coding._arbitration import Arbitration
from jaxwgc.coding._locate_errors import rounding_noise
from jaxwgc.coding._projection import key_from
from jaxwgc.distributed.ray._actors import Actors
from jaxwgc.distributed.ray._data import DataSource, HostBatches, StoredParts
from jaxwgc.distributed.ray._errors import NoResponse
from jaxwgc.distributed.ray._events import Unverified, Verdict
from jaxwgc.distributed.ray._fleet import Fleet, log
from jaxwgc.distributed.ray._messages import SentKey, sent
from jaxwgc.distributed.ray._options import Verification
from jaxwgc.distributed.ray._session import find_ray
from jaxwgc.distributed.ray._task import Assignment, Order, Task, read_order
from jaxwgc.distributed.ray._worker import PROJECTION_DIM, Worker, project


class WorkersOfRound:
    """Access to the workers of a round: queries, names and parameters.

    Args:
      actors: Ray actors of the workers.
      fleet: States of the workers.
    """

    def __init__(self, actors: Actors, fleet: Fleet):
        self._actors = actors
        self._fleet = fleet

    def order(self) -> Order | bytes:
        """Returns leaves of params, key and step of the round, possibly pickled."""
        order = self._actors.order
        # Large params are in Ray's object store. Small params are pickled bytes.
        return order if isinstance(order, bytes) else find_ray().get(order)

    def can_be_queried(self) -> np.ndarray:
        """Returns a mask of the workers that are running and not suspected."""
        return self._fleet.are("idle", "computing") & ~self._fleet.are_suspected

    def name(self, worker: int) -> str:
        """Returns a worker's index and where it runs, as text."""
        return f"worker {worker} on {self._fleet.slots[worker].where}"

    def query(self, workers: np.ndarray, *arguments: object) -> np.ndarray:
        """Returns projections of the messages of several workers.

        Args:
          workers: int (num_queried,), indices of the workers.
          *arguments: Arguments of `Worker.project`, or of `PartWorker.project`, after
            `order`.

        Raises:
          NoResponse: If a worker is lost.
        """
        return self._actors.query(workers, self._fleet.limit.seconds, *arguments)


class PartCopies:
    """Source of further copies of parts: other workers, and this process.

    Args:
      code: Gradient code.
      task: Task of the workers.
      parts: Parts in the format in which they are sent, or None if the task loads or
        reads parts.
      workers: Workers that can be queried.
    """

    def __init__(
        self, code: GradientCode, task: Task, parts: Any, workers: WorkersOfRound
    ):
        self.code = code
        self.workers = workers
        self.message_dtype = task.message_dtype
        self._task = task._replace(delay=None, corrupt=None)
        self._parts = parts
        self._worker: Worker | None = None

    def recompute(self, key: SentKey, part: int, row: np.ndarray) -> np.ndarray:
        """Computes the projection of one part's message in this process.

        Args:
          key: Key of the projection, in the format in which it is sent.
          part: Index of the part.
          row: Row of the code for this part, (1, num_segments).
        """
        order = self.workers.order()
        _, _, step = read_order(order)
        held = np.array([part])
        data = self._data_of(int(part), step)
        if self._worker is None:
            assignment = Assignment(worker=0, held=held, rows=row, step=step)
            self._worker = Worker(assignment, self._task)
            self._worker.prepare_data(data)
        self._worker.held = held
        self._worker.rows = row
        self._worker.data = data
        return self._worker.project(order, held, key)

    def _data_of(self, part: int, step: int) -> DataSource:
        """Returns the `DataSource` of one part in a step."""
        if self._task.batches is not None:
            return HostBatches(self._task.batches, [part], step, is_stacked=True)
        if self._task.load is not None:
            data = sent(self._task.load(part))
        else:
            data = jax.tree.map(operator.itemgetter(part), self._parts)
        return StoredParts([data], is_stacked=True)


class Verifier(abc.ABC):
    """Base class of verifiers, which find corrupted messages of rounds.

    Args:
      copies: Sources of further copies of parts.
      noise: Relative difference of honest copies.
    """

    def __init__(self, copies: PartCopies, *, noise: float):
        self._copies = copies
        self._workers = copies.workers
        self._code = copies.code
        self._noise = noise

    @abc.abstractmethod
    def check(self, this_round: Unverified) -> Verdict:
        """Verifies the messages of a round, and returns a `Verdict`."""

    def _log_if_none_agrees(
        self, workers: np.ndarray, settlement: Arbitration, part: int, when: str
    ) -> None:
        """Logs a warning with likely causes if all copies of a part differ.

        Args:
          workers: Indices of the workers with a copy, int (num_disputed,).
          settlement: Outcome of their dispute.
          part: Part that was recomputed in this process.
          when: Round, in words.
        """
        if not settlement.wrong.all():
            return
        log.warning(
            "copies of part %d on workers %s and in this process all differ %s. Loss, "
            "contribution and batch must depend only on params, part and key, not on "
            "time, the process or other random numbers. If workers have unequal "
            "processors, set Verification.noise to the expected difference",
            part,
            sorted(workers.tolist()),
            when,
        )

    def _noise_of(self, messages: np.ndarray) -> float:
        """Returns the relative difference that honest copies of a message may have."""
        rounding = rounding_noise(messages, self._copies.message_dtype)
        return max(self._noise, rounding)


class ParityChecks(Verifier):
    """Verifies one message per worker by parity checks of the code.

    Args:
      copies: Sources of further copies of parts.
      noise: Relative difference of honest copies.
      locator: `ErrorLocator` of the code.
      on_wrong: `"drop"`, `"arbitrate"` or `"raise"`.
    """

    def __init__(
        self,
        copies: PartCopies,
        *,
        noise: float,
        locator: coding.ErrorLocator,
        on_wrong: str,
    ):
        super().__init__(copies, noise=noise)
        self._locator = locator
        self._on_wrong = on_wrong

        def locate(messages, mask, number):
            # The key is derived from all messages: a worker that does not know the
            # other messages cannot predict the projections.
            key = jax.random.fold_in(key_from(messages), number)
            location = locator.locate(
                messages, mask, key, self._noise, copies.message_dtype
            )
            return location, key

        self._locate = jax.jit(locate)

    def check(self, this_round: Unverified) -> Verdict:
        """Locates corrupted messages of a round, and returns a `Verdict`.

        With `on_wrong="arbitrate"`, disputes are settled by queries.

        Raises:
          RuntimeError: If messages are corrupted and `on_wrong` is `"raise"`.
        """
        location, key = self._locate(
            this_round.messages, this_round.received, this_round.number + 1
        )
        location = jax.tree.map(np.asarray, location)
        verdict = Verdict(
            right=location.mask,
            wrong=location.wrong,
            rejected=bool(location.rejected),
        )
        disputed = location.disputed
        when = this_round.when
        if verdict.rejected and disputed.any() and self._on_wrong == "arbitrate":
            verdict = self._arbitrate(this_round, disputed, key)
        if verdict.rejected and disputed.any():
            log.warning(
                "messages of workers %s contradict each other %s: round rejected",
                np.flatnonzero(disputed).tolist(),
                when,
            )
        if self._on_wrong == "raise":
            if verdict.wrong.any():
                raise RuntimeError(
                    f"corrupted messages {when}: {self._named(verdict.wrong)}"
                )
            if disputed.any():
                names = self._named(disputed)
                raise RuntimeError(
                    f"messages contradict each other {when}, and at least one is "
                    f"wrong: {names}. If you trust these workers, use check_step to "
                    "find terms that differ between copies"
                )
        return verdict

    def _named(self, workers: np.ndarray) -> str:
        """Returns the names of the workers in a mask, as text."""
        indices = np.flatnonzero(workers).tolist()
        return "; ".join(self._workers.name(worker) for worker in indices)

    def _arbitrate(
        self, this_round: Unverified, disputed: np.ndarray, key: jax.Array
    ) -> Verdict:
        """Settles disputes by queries for sums over fewer and fewer parts.

        Honest messages of a group are multiples of one message. The returned `Verdict`
        rejects the round if a dispute cannot be settled.
        """
        assert self._locator.copies is not None
        labels, signs = self._locator.copies
        messages = this_round.messages
        received = this_round.received
        scales = np.asarray(self._locator.norms * signs)[:, None]
        projections = np.asarray(project(key, messages, PROJECTION_DIM))
        noise = self._noise_of(messages)
        wrong = np.zeros_like(received)
        are_all_settled = True
        for label in np.unique(labels[disputed]):
            group = np.flatnonzero(disputed & (labels == label))
            claims = projections[group] / scales[group]
            try:
                settlement = self._settle(
                    group, scales[group], claims, sent(key), noise, when=this_round.when
                )
            except NoResponse:
                are_all_settled = False
                continue
            wrong[group] = settlement.wrong
            if not settlement.settled:
                are_all_settled = False
        if not are_all_settled:
            nobody = np.zeros_like(received)
            return Verdict(right=nobody, wrong=wrong, rejected=True)
        number = this_round.number + 1
        others, _ = self._locate(messages, received & ~disputed, number)
        return Verdict(
            right=np.asarray(others.mask) | (disputed & ~wrong),
            wrong=wrong | np.asarray(others.wrong),
            rejected=False,
        )

    def _settle(
        self,
        group: np.ndarray,
        scales: np.ndarray,
        claims: np.ndarray,
        key: SentKey,
        noise: float,
        *,
        when: str,
    ) -> Arbitration:
        """Finds the corrupted workers in one disputed group, by queries.

        Args:
          group: Indices of the workers, int (n,).
          scales: Factor of the message of each worker, (n, 1).
          claims: Projections of their messages without the factors.
          key: Key of the projections.
          noise: Relative difference of honest copies.
          when: Round, in words.

        Raises:
          NoResponse: If a worker is lost.
        """
        shape = (self._code.num_workers, self._code.num_parts, -1)
        rows = np.asarray(self._code.encoding_matrix).reshape(shape)[group[0]]

        def ask(pair, parts):
            asked = self._workers.query(group[pair], np.asarray(parts), key)
            return asked / scales[pair]

        recomputed = []

        def recompute(part):
            recomputed.append(part)
            return self._copies.recompute(key, part, rows[part][None]) / scales[0]

        parts = np.flatnonzero(rows.any(axis=1))
        settlement = coding.arbitrate(claims, parts, ask, recompute, noise)
        if recomputed:
            self._log_if_none_agrees(group, settlement, recomputed[-1], when)
        return settlement


class Audits(Verifier):
    """Verifies random rounds on request by comparing two copies of a random part.

    Args:
      copies: Sources of further copies of parts.
      noise: Relative difference of honest copies.
      audit: Probability of an audit in a round.
      seed: Seed of the choice of rounds, parts and workers.
    """

    def __init__(self, copies: PartCopies, *, noise: float, audit: float, seed: int):
        super().__init__(copies, noise=noise)
        self._audit = audit
        self._random = np.random.default_rng(seed)

    def check(self, this_round: Unverified) -> Verdict:
        """Audits a round with probability `audit`; accepts all other rounds."""
        wrong = np.zeros(self._code.num_workers, bool)
        if self._random.random() < self._audit:
            # If a queried worker does not respond, the round is accepted without an
            # audit.
            with contextlib.suppress(NoResponse):
                wrong = self._corrupted(this_round)
        return Verdict(right=~wrong, wrong=wrong, rejected=False)

    def _corrupted(self, this_round: Unverified) -> np.ndarray:
        """Audits a random part, and returns a mask of the corrupted workers.

        Two copies of the part's gradient are compared: from a worker that sent the part
        in its sum, and from another worker that holds the part.
        """
        wrong = np.zeros(self._code.num_workers, bool)
        pair = self._random_pair(this_round)
        if pair is None:
            return wrong
        workers, part = pair
        key = sent(jax.random.key(self._random.integers(2**31)))
        claims = self._workers.query(workers, np.array([part]), key, this_round.number)
        settlement = coding.arbitrate(
            claims,
            [part],
            lambda workers, parts: claims[workers],
            lambda part: self._copies.recompute(key, part, np.ones((1, 1))),
            self._noise_of(this_round.messages),
        )
        wrong[workers] = settlement.wrong
        self._log_if_none_agrees(workers, settlement, part, this_round.when)
        return wrong

    def _random_pair(self, this_round: Unverified) -> tuple[np.ndarray, int] | None:
        """Draws a part and two workers that hold the part; returns workers and part.

        The first worker has sent the part in its sum. Returns None if no part was sent,
        or if no other worker that holds the part can be queried.
        """
        assert this_round.requests is not None
        code = self._code
        shape = (code.num_workers, code.messages_per_worker, code.num_parts)
        rows = np.asarray(code.encoding_matrix).reshape(shape)
        is_sent = np.einsum("im,imj->ij", this_round.requests, rows) != 0
        if not is_sent.any():
            return None
        owners, parts = np.nonzero(is_sent)
        place = self._random.integers(len(owners))
        owner = owners[place]
        part = parts[place]
        is_holder = np.asarray(code.assignment)[:, part]
        helpers = np.flatnonzero(is_holder & self._workers.can_be_queried())
        helpers = helpers[helpers != owner]
        if not len(helpers):
            return None
        return np.array([owner, self._random.choice(helpers)]), int(part)


def verifier_of(
    options: Verification,
    locator: coding.ErrorLocator | None,
    copies: PartCopies,
    key: jax.Array,
) -> Verifier | None:
    """Returns the verifier that the options require, or None without verification.

    Args:
      options: Options of a cluster.
      locator: `ErrorLocator` of the code; None without parity checks.
      copies: Sources of further copies of parts.
      key: Key of the cluster.
    """
    if locator is not None:
        return ParityChecks(
            copies,
            noise=options.noise,
            locator=locator,
            on_wrong=str(options.on_wrong),
        )
    if options.audit:
        # The seed is derived from the key, so that audits are reproducible. Workers
        # know the key: audits find faulty workers, but not workers that evade audits.
        seed = int(jax.random.bits(key))
        return Audits(copies, noise=options.noise, audit=options.audit, seed=seed)
    return None
