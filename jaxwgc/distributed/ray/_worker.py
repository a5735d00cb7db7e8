"""Worker that sends one message per round."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import coding
from jaxwgc.distributed.ray._messages import Answer, SentKey, pack
from jaxwgc.distributed.ray._task import Order, read_order
from jaxwgc.distributed.ray._worker_base import WorkerBase


class Worker(WorkerBase):
    """Computes the message of one worker from its parts."""

    _is_stacked = True

    def compute(self, order: Order | bytes) -> Answer:
        """Returns the message for leaves of params, key and step, possibly pickled."""
        begin = time.monotonic()
        leaves, key, step = read_order(order)
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, step))
        data = self.data.of_step(step, 0)
        self.data.expect([(step + 1, 0)])
        wire, losses, aux, digests = self._call_compiled(
            leaves, data, self.rows, key, step
        )
        return Answer(
            message=self._corrupted(step, wire),
            losses=losses,
            aux=aux,
            seconds=time.monotonic() - begin,
            digests=digests,
        )

    def project(
        self, order: Order | bytes, parts: np.ndarray, key: SentKey
    ) -> np.ndarray:
        """Returns the projection (PROJECTION_DIM,) of a message formed from some parts.

        Args:
          order: Leaves of params, key and step of the round, possibly pickled.
          parts: Indices of parts that the worker holds.
          key: Key of `coding.project`, in the form in which it is sent.
        """
        leaves, step_key, step = read_order(order)
        num_segments = self.rows.shape[1] // len(self.held)
        is_asked = np.isin(self.held, parts).repeat(num_segments)
        rows = self.rows * is_asked
        data = self.data.of_step(step, 0)
        wire, _, _, _ = self._call_compiled(leaves, data, rows, step_key, step)
        return self._projection(self._corrupted(step, wire), key)

    def _call_compiled(
        self,
        leaves: list[np.ndarray],
        data: Any,
        rows: np.ndarray,
        key: SentKey,
        step: int,
    ) -> tuple[np.ndarray, np.ndarray, Any, np.ndarray | None]:
        """Returns message, losses, aux and digests with these rows of the code."""
        held = self.held.astype(np.uint32)
        result = self._compiled(leaves, data, rows, held, key, np.uint32(step))
        return jax.tree.map(np.asarray, result)

    def _compile(self) -> jax.ShapeDtypeStruct:
        """Compiles the message of the parts."""
        step = self._first_step
        lowered = jax.jit(self._message).lower(
            jax.tree.leaves(self.task.params),
            self.data.of_step(step, 0),
            self.rows,
            self.held.astype(np.uint32),
            self.task.key,
            np.uint32(step),
        )
        self._compiled = lowered.compile()
        return lowered.out_info[0]

    def _message(self, leaves, parts, rows, held, key, step):
        """Computes message, losses, aux and digests; parts have a leading axis."""

        def of_part(part, index, columns):
            loss, aux, gradient = self._loss_aux_and_gradient(
                leaves, part, index, key, step
            )
            message = coding.form_messages(columns, gradient)
            return message, (loss, aux, self._digest(part))

        def add(message, part_index_and_columns):
            part, index, columns = part_index_and_columns
            message_of_part, values = of_part(part, index, columns)
            return message + message_of_part, values

        columns = jnp.moveaxis(rows.reshape(len(rows), len(held), -1), 1, 0)
        first_part = jax.tree.map(lambda leaf: leaf[0], parts)
        like, _ = jax.eval_shape(of_part, first_part, held[0], columns[0])
        zero = jnp.zeros(like.shape, like.dtype)
        # Parts are computed one by one, so that memory holds one gradient.
        message, values = jax.lax.scan(add, zero, (parts, held, columns))
        losses, aux, digests = values
        wire = pack(message, self.task.message_dtype)
        return wire, losses, aux, digests
