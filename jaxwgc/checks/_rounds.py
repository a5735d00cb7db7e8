"""Why rounds do not decode, by the workers that have responded in them."""

from typing import Any, NamedTuple

import numpy as np

from jaxwgc import coding
from jaxwgc.checks._mistakes import OF_ROUNDS, problems
from jaxwgc.codes import GradientCode


class Rounds(NamedTuple):
    """Rounds that were simulated or observed.

    Attributes:
      received: bool (rounds, num_workers).
      failed: bool (rounds,), which rounds could not be decoded.
      elapsed: (rounds,), how long each took; None if that is not known.
    """

    received: np.ndarray
    failed: np.ndarray
    elapsed: np.ndarray | None = None

    @classmethod
    def observed(cls, code: GradientCode, received: Any) -> "Rounds":
        """Returns rounds of the masks (num_workers,) or (rounds, num_workers)."""
        received = np.atleast_2d(received)
        return cls(received, np.asarray(coding.decoding(code, received).failed()))

    def problems(self, code: GradientCode) -> list[str]:
        """Explains why rounds do not decode, if at least half of them do not."""
        if self.failed.mean() < 0.5:
            return []
        counts = self.received.sum(1)
        least, most = counts.min(), counts.max()
        is_same = (self.received == self.received[0]).all()
        found = problems(
            OF_ROUNDS,
            num_failed=self.failed.sum(),
            num_rounds=len(counts),
            num_workers=code.num_workers,
            num_stragglers=code.num_stragglers,
            enough=code.num_workers - code.num_stragglers,
            most=most,
            responses=most if least == most else f"{least} to {most}",
            took="" if self.elapsed is None else f", in {self.elapsed.mean():.3g}",
            is_inverted=is_same
            and not Rounds.observed(code, ~self.received[:1]).failed.any(),
        )
        return found[:1]
