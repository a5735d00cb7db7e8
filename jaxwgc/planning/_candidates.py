"""Candidates of a plan: codes with waiting rules."""

import dataclasses
import functools

import numpy as np

from jaxwgc import stragglers
from jaxwgc._common.tolerances import DECODES
from jaxwgc.codes import GradientCode

CANCELLED = "cancelled"
BUSY = "busy"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A code and a waiting rule, for `choices` of `jaxwgc.plan`.

    Attributes:
      name: Constructor of the code, or its name in `codes`. It is only printed.
      code: Gradient code.
      wait: Waiting rule.
      late: What late workers do: `"cancelled"` (they stop when the round ends) or
        `"busy"` (they continue, and join the round in which they respond).
      memory: Whether late messages are stored, for `jaxwgc.coded_aggregate` or
        `RayCluster.train`.
      by_speed: Whether `plan` has made the loads proportional to the speeds of the
        workers.

    Example:
      >>> import jaxwgc
      >>> from jaxwgc import codes, planning, stragglers
      >>> binary = codes.binary(6, num_stragglers=2)
      >>> candidate = planning.Candidate("binary", binary, stragglers.fastest(4))
      >>> candidate.is_exact, candidate.replication, candidate.waits_for
      (True, 3.0, 'first 4')
    """

    name: str
    code: GradientCode
    wait: stragglers.WaitingRule
    late: str = CANCELLED
    memory: bool = False
    by_speed: bool = False

    def model(self, delay: stragglers.DelayModel) -> stragglers.StragglerModel:
        """Returns the straggler model of this candidate, for `jaxwgc.coded_aggregate`.

        Args:
          delay: Delay model of the plan, or another one for the same workers.

        Raises:
          TypeError: If `delay` is not a delay model.
        """
        return stragglers.delayed(delay, self.wait, self.late)

    @functools.cached_property
    def replication(self) -> float:
        """Mean number of copies per part."""
        return float(np.asarray(self.code.assignment).sum(0).mean())

    @property
    def is_coded(self) -> bool:
        """True if parts have several copies."""
        return self.replication > 1

    @property
    def sends_several_messages(self) -> bool:
        """True if workers send several messages, or finished parts on request."""
        return self.code.messages_per_worker > 1

    @functools.cached_property
    def is_exact(self) -> bool:
        """True if the code guarantees that every round that ends decodes.

        A code with `num_stragglers` above 0 guarantees it for that many stragglers. Any
        other code is decoded once, with the messages of all workers.
        """
        num_stragglers = int(np.asarray(self.code.num_stragglers))
        if isinstance(self.wait, stragglers.fastest):
            num_enough = self.code.num_workers - num_stragglers
            waits_long_enough = self.wait.num_required >= num_enough
        else:
            tolerance = self.wait.tolerance
            waits_long_enough = tolerance is not None and tolerance <= DECODES
        if not waits_long_enough or num_stragglers > 0:
            return waits_long_enough
        return bool(self.code.decodes(np.ones(self.code.num_messages, bool), DECODES))

    @property
    def is_baseline(self) -> bool:
        """True for equal work without a code, waiting for all workers."""
        loads = np.asarray(self.code.loads)
        is_plain = not self.is_coded and not self.sends_several_messages
        waits_for_all = self.wait == stragglers.fastest(self.code.num_workers)
        has_equal_loads = bool(np.all(loads == loads[0]))
        return is_plain and has_equal_loads and waits_for_all and self.is_exact

    @property
    def waits_for(self) -> str:
        """Label of the waiting rule, e.g. "all", "first 29", "1.35 s", "error 10%".

        "+ late" is added if late messages are stored.
        """
        label, _ = self.wait.describe(self.code.num_workers)
        return f"{label} + late" if self.memory else label

    def __str__(self) -> str:
        """Returns a phrase, e.g. "binary with 2 copies, waiting for all 8 workers"."""
        copies = f" with {self.replication:.3g} copies" if self.is_coded else ""
        _, phrase = self.wait.describe(self.code.num_workers)
        remembering = ", late messages stored" if self.memory else ""
        return f"{self.name}{copies}, waiting {phrase}{remembering}"
