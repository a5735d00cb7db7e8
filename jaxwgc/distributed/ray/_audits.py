"""Audits: where no part is sent twice, some are asked for twice."""

import dataclasses
import time

import jax
import numpy as np

from jaxwgc import coding
from jaxwgc.distributed.ray._on_request import OnRequest, PartRound
from jaxwgc.distributed.ray._worker import sent
from jaxwgc.distributed.ray._wrong_answers import (
    NUM_COLUMNS,
    NoAnswer,
    Recomputation,
    Suspicion,
    ask,
)


@dataclasses.dataclass(eq=False)
class Auditing(OnRequest):
    """A coordinator that has one part of some rounds computed by two workers.

    Attributes:
      audit: the probability of it in a round.
      seed: of the rounds, parts and helpers.
      noise: of honest messages.
      message_dtype: of messages on their way, or None.
      recomputation: of parts of which two workers say different things.
    """

    audit: float
    seed: int
    noise: float
    message_dtype: str | None
    recomputation: Recomputation

    def __post_init__(self):
        super().__post_init__()
        self._suspicion = Suspicion(self.slots, self._retire)
        self._random = np.random.default_rng(self.seed)
        self._project = jax.jit(coding.project, static_argnums=2)

    def _is_right(self, round: PartRound) -> bool:
        """Audits a round at most once; returns whether its sums can be used."""
        if round.wrong is not None:
            return True
        round.wrong = np.zeros(len(self.slots), bool)
        if self._random.random() >= self.audit:
            return True
        start = time.monotonic()
        try:
            self._compare(round)
        except NoAnswer:
            # Where that was needed, it is asked for again.
            return round.requests is not None
        finally:
            round.examination = time.monotonic() - start
        for slot in self.slots:
            if round.wrong[slot.index]:
                self._leave_out(slot.index, round)
        self._suspicion.note(round.wrong, self._when)
        return not round.wrong.any()

    def _compare(self, round: PartRound) -> None:
        """Asks the sender of a part for it, and another holder; notes who is wrong."""
        assert round.requests is not None and round.wrong is not None
        code = self.code
        shape = code.num_workers, code.messages_per_worker, code.num_parts
        rows = np.asarray(code.encoding_matrix).reshape(shape)
        is_sent = np.einsum("im,imj->ij", round.requests, rows) != 0
        if not is_sent.any():
            return
        owners, parts = np.nonzero(is_sent)
        place = self._random.integers(len(owners))
        owner, part = owners[place], parts[place]
        is_up = [slot.is_idle or slot.is_computing for slot in self.slots]
        helpers = np.flatnonzero(np.asarray(code.assignment)[:, part] & is_up)
        helpers = helpers[helpers != owner]
        if not len(helpers):
            return
        workers = np.array([owner, self._random.choice(helpers)])
        key = jax.random.key(self._random.integers(2**31))
        given = round.order, np.array([part]), sent(key), NUM_COLUMNS, round.number
        slots = [self.slots[worker] for worker in workers]
        claims = ask(slots, self._retire, self.timeouts.answer, *given)

        def recompute(part):
            message = self.recomputation.message(round.order, part, np.ones((1, 1)))
            return np.asarray(self._project(key, message, NUM_COLUMNS))[0]

        rounding = coding.rounding_noise(round.sums, self.message_dtype)
        settlement = coding.arbitrate(
            claims,
            [int(part)],
            lambda workers, parts: claims[workers],
            recompute,
            max(self.noise, rounding),
        )
        round.wrong[workers] = settlement.wrong

    def _leave_out(self, worker: int, round: PartRound) -> None:
        """Its sum is not used; others finish its parts, if the rule lets them."""
        round.is_out[worker] = True
        round.done[worker] = False
        round.requests = round.ends = None
        self._listen_to_idle(round)
