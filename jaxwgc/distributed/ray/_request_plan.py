"""Plan of rounds on request: quantities that are determined by the code."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Decoder
from jaxwgc.distributed.ray._messages import Layout


class RequestPlan(NamedTuple):
    """Quantities of a code that are equal in all rounds on request.

    A position counts the parts of one worker, in the order in which the worker
    computes them.

    Attributes:
      code: Real code of one segment.
      layout: Shapes of the sums.
      find_weights: Maps a mask of messages to decoding weights (1, num_messages).
      parts: int (num_workers, num_positions), index of the part at each position;
        num_parts if the worker has fewer parts.
      is_held: bool (num_workers, num_positions), False if the worker has fewer parts.
      support: bool (num_workers, messages_per_worker, num_positions), parts that each
        message contains.
      may_skip: Whether workers need not compute parts that others have finished.
    """

    code: GradientCode
    layout: Layout
    find_weights: Callable[[np.ndarray], jax.Array]
    parts: np.ndarray
    is_held: np.ndarray
    support: np.ndarray
    may_skip: bool

    @property
    def report_size(self) -> int:
        """Number of parts per report: an equal share of all parts, rounded up."""
        return -(-self.code.num_parts // self.code.num_workers)

    @classmethod
    def of(cls, code: GradientCode, layout: Layout, decoder: Decoder) -> "RequestPlan":
        """Returns the plan of rounds with a code, message layout and decoder."""
        find_weights = jax.jit(
            lambda mask: decoder.checked_weights(
                code.encoding_matrix, code.segment_targets, mask
            )
        )
        loads = np.asarray(code.parts_per_worker)
        parts = np.full((code.num_workers, max(1, loads.max())), code.num_parts)
        rows = np.asarray(code.encoding_matrix) != 0
        rows = rows.reshape(code.num_workers, code.messages_per_worker, -1)
        support = np.zeros((*rows.shape[:2], parts.shape[1]), bool)
        for worker, load in enumerate(loads):
            held = layout.held[worker][:load]
            parts[worker, :load] = held
            support[worker, :, :load] = rows[worker][:, held]
        return cls(
            code=code,
            layout=layout,
            find_weights=find_weights,
            parts=parts,
            is_held=parts < code.num_parts,
            support=support,
            may_skip=bool(support.sum(2).max() <= 1),
        )

    def mask(self, done: np.ndarray) -> np.ndarray:
        """Returns which messages contain finished parts only.

        Args:
          done: Which parts are finished, bool (num_workers, num_positions).
        """
        return ~(self.support & ~done[:, None]).any(2)

    def requests(self, mask: np.ndarray) -> np.ndarray:
        """Returns the weights of the sum that each worker has to send.

        Args:
          mask: Which messages are finished, bool (num_workers, messages_per_worker).
        """
        weights = np.asarray(self.find_weights(mask.ravel())).reshape(mask.shape)
        return np.where(self.support.any(2), weights, 0)

    def seen_times(self, times: np.ndarray, sees_workers: bool) -> np.ndarray:
        """Converts times of parts to times of workers or messages.

        Args:
          times: Time at which each part was finished, (num_workers, num_positions).
          sees_workers: Whether the waiting rule takes times of workers, and not of
            messages.
        """
        if sees_workers:
            return np.where(self.is_held, times, 0.0).max(1)
        return np.where(self.support, times[:, None], 0.0).max(2).ravel()
