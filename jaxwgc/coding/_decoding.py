"""Decoding weights of a round, and quantities derived from them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, flat_vectors
from jaxwgc._common.arrays import (
    Array,
    array_module,
    on_host_or_compiled,
    product,
    promoted,
    scale_of,
    squares,
    working,
    working_constant,
)
from jaxwgc._common.pytrees import register
from jaxwgc.codes import GradientCode
from jaxwgc.coding._decoded_gradients import (
    Leaks,
    collapse_function,
    collapse_leaves,
    combine,
    floor_weights,
    leaks_of,
    unmixed,
)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Decoding:
    """Decoding weights of a round, and quantities derived from them.

    Returned by `jaxwgc.decoding`. To use known weights, call
    `Decoding(code, mask, weights)`. A pytree.

    Attributes:
      code: Gradient code.
      mask: Which messages arrived, bool (..., num_messages).
      weights: Decoding weights, (..., num_segments, num_messages), zero at messages
        that did not arrive.
      block_weights: aᵀB in real form, (..., num_blocks, num_parts, num_blocks): the
        weight of each block of each part in each block of the decoded gradient. A block
        is a segment, or half of one if messages are complex.
      effective_weights: Weight of each partial gradient in the decoded gradient, real
        (..., num_parts): the real part of aᵀB, averaged over segments. All ones, or the
        weights of a weighted code, if the code tolerates the stragglers. Otherwise
        segments and halves of the gradient also leak into each other; `block_weights`,
        `error`, `combine` and `collapse` include these leaks.
      error: Squared norm of aᵀB - target, real (...), averaged over segments. Zero up
        to rounding if the code tolerates the stragglers. Divided by the number of
        parts, it is the fraction of the gradient that is lost. Differentiable in the
        entries of B if the weights are the least-squares ones: they minimise the error,
        so that their own derivative does not contribute to first order.
      residual: Norm of aᵀB - target, real (...).
      relative_residual: The residual divided by the norm of the target, real (...).
      share: Fraction of the gradient recovered, cᵀ target / ‖target‖² with the
        effective weights c, real (...). 1 if decoding is exact. If whole parts are
        lost, their fraction is missing.

    Raises:
      ValueError: If the shape of mask or weights does not fit the code.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> decoding = jaxwgc.decoding(code, jnp.array([True, True, False]))
      >>> decoding.effective_weights, float(decoding.error), bool(decoding.failed())
      (Array([1., 1., 0.], dtype=float32), 1.0, True)
      >>> decoding.collapse(jnp.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0]]))
      Array([3., 5.], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, sections 2.2 and 4.
    """

    code: GradientCode
    mask: jax.Array
    weights: jax.Array
    block_weights: jax.Array = dataclasses.field(init=False, repr=False)
    effective_weights: jax.Array = dataclasses.field(init=False, repr=False)
    error: jax.Array = dataclasses.field(init=False, repr=False)
    residual: jax.Array = dataclasses.field(init=False, repr=False)
    relative_residual: jax.Array = dataclasses.field(init=False, repr=False)
    share: jax.Array = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        num_messages = self.code.num_messages
        if np.shape(self.mask)[-1:] != (num_messages,):
            raise ValueError(
                f"mask must have shape (..., num_messages) = (..., {num_messages}); "
                f"got {np.shape(self.mask)}"
            )
        object.__setattr__(self, "mask", jnp.asarray(self.mask))
        object.__setattr__(self, "weights", promoted(self.weights))
        if self.mask.dtype != bool:
            raise TypeError(f"mask must be bool; got {self.mask.dtype}")
        if jnp.iscomplexobj(self.weights) and not self.code.is_complex:
            raise TypeError(
                f"weights must be real for {self.code}; got {self.weights.dtype}"
            )
        num_segments = self.code.num_segments
        if np.shape(self.weights)[-2:] != (num_segments, num_messages):
            raise ValueError(
                "weights must have shape (..., num_segments, num_messages) = "
                f"(..., {num_segments}, {num_messages}); got {np.shape(self.weights)}"
            )
        measured = measures_of(
            self.weights,
            self.mask,
            working(self.code.encoding_matrix),
            working(self.code.target),
        )
        for name, value in measured._asdict().items():
            object.__setattr__(self, name, value)

    @property
    def received(self) -> jax.Array:
        """Mask of workers that sent all of their messages, bool (..., num_workers)."""
        return self.mask.reshape(
            *self.mask.shape[:-1], self.code.num_workers, self.code.messages_per_worker
        ).all(axis=-1)

    @property
    def requests(self) -> jax.Array:
        """Returns the factors by which each worker multiplies its messages on request.

        They are the decoding weights at the messages that arrived, real
        (..., num_workers, messages_per_worker). `jaxwgc.coding.requested_sum` applies
        a row to the messages of a worker.

        Raises:
          ValueError: If the code has segments or complex messages: their sums do not
            allow rounding errors to be cleared.
        """
        code = self.code
        code.check_requests()
        return self.weights.reshape(
            *self.weights.shape[:-2], code.num_workers, code.messages_per_worker
        )

    def failed(self, tolerance: jax.typing.ArrayLike = 1e-3) -> jax.Array:
        """Returns whether the residual exceeds a fraction of the target's norm.

        The result is bool (...), the fraction is `tolerance`.
        """
        array_validation.check_number("tolerance", tolerance, minimum=0)
        return ~(self.relative_residual <= tolerance)

    def combine(
        self,
        messages: jax.Array,
        params: Any,
        message_dtype: jax.typing.DTypeLike | None = None,
    ) -> Any:
        """Decodes the gradient from messages, as `jaxwgc.decode` does.

        Args:
          messages: (..., num_messages, length), in the form of `jaxwgc.encode`.
            Messages that did not arrive may hold anything, including NaN.
          params: Pytree with the structure, shapes and dtypes of the gradient.
          message_dtype: Dtype that messages were rounded to. Defaults to their dtype.

        Returns:
          A pytree like params, with the batch axes in front.

        Raises:
          ValueError: If messages have the wrong shape, or params are None.
          TypeError: If params are not floats, or messages are not numbers, complex for
            a real code, or real for a complex one.
        """
        array_validation.check_message_dtype(message_dtype)
        if params is None:
            raise ValueError("params must be given if messages are; got None")
        array_validation.check_dtypes("params", params, "real or complex floats", True)
        params = jax.tree.map(
            lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), params
        )
        num_blocks = self.block_weights.shape[-1]
        length = -(-flat_vectors.raveled_size(params) // num_blocks)
        # Messages are promoted here, because jit would truncate integers of 64 bits.
        messages = check_messages_of(self.code, messages, length)
        sent_dtype = messages.dtype if message_dtype is None else message_dtype
        messages = promoted(messages)
        if not jnp.issubdtype(sent_dtype, jnp.inexact):
            sent_dtype = messages.dtype
        sent_dtype = jnp.dtype(sent_dtype)
        leaks = self._leaks()
        floors = None
        if leaks is not None:
            matrix = working(self.code.encoding_matrix)
            floors = floor_weights(leaks, matrix, self.weights, self.mask, sent_dtype)
        flat = combine(self.weights, floors, messages, self.mask)
        return flat_vectors.unravel(flat, params)

    def collapse(self, partial_gradients: Any) -> Any:
        """Decodes the gradient from partial gradients, without forming messages.

        Equal to `combine` up to rounding, at about the cost of summing the gradients.
        In a round that decodes with a residual, `combine` also clears entries of the
        size of the residual, since it cannot tell them from zeros.

        Args:
          partial_gradients: Pytree with leaves (num_parts, ...). Alternatively a linear
            function of real weights (num_parts,) that returns the weighted sum of the
            partial gradients, a pytree.

        Raises:
          ValueError: If a leading axis is not num_parts, or the decoding has batch
            axes.
        """
        if self.mask.ndim != 1:
            raise ValueError(
                "mask must be of one round (use jax.vmap for more); got shape "
                f"{self.mask.shape}"
            )
        leaks = self._leaks()
        num_segments = self.code.num_segments
        # A function is a callable leaf. Gradients such as Equinox modules are callable,
        # too, but are not leaves.
        if isinstance(partial_gradients, jax.tree_util.Partial) or (
            callable(partial_gradients)
            and jax.tree_util.all_leaves([partial_gradients])
        ):
            return collapse_function(
                self.effective_weights, leaks, num_segments, partial_gradients
            )
        return collapse_leaves(
            self.effective_weights, leaks, num_segments, partial_gradients
        )

    def _leaks(self) -> Leaks | None:
        """Returns the disturbance between blocks; None if the gradient is one block."""
        if self.block_weights.shape[-1] == 1:
            return None
        return leaks_of(
            self.block_weights,
            self.effective_weights,
            self.relative_residual,
            working(self.code.target),
        )


class Measures(NamedTuple):
    """Quantities that follow from decoding weights, see `Decoding`."""

    block_weights: Array
    effective_weights: Array
    error: Array
    residual: Array
    relative_residual: Array
    share: Array


@on_host_or_compiled
def measures_of(weights: Array, mask: Array, matrix: Array, target: Array) -> Measures:
    """Computes quantities that follow from decoding weights, on the arrays' device.

    Args:
      weights: Decoding weights a, (..., num_segments, num_messages).
      mask: Which messages arrived, bool (..., num_messages).
      matrix: B, (num_messages, num_parts * num_segments).
      target: (num_parts,).
    """
    xp = array_module(weights)
    mixed = product(xp.where(mask[..., None, :], weights, 0), matrix)
    *batch, num_blocks, num_columns = mixed.shape
    num_parts = num_columns // num_blocks
    if xp.iscomplexobj(mixed):
        mixed = flat_vectors.real_form(mixed)
        num_blocks = 2 * num_blocks
    blocks = mixed.reshape(*batch, num_blocks, num_parts, num_blocks)
    is_own_block = np.eye(num_blocks, dtype=bool)[:, None, :]
    effective = xp.where(is_own_block, blocks, 0).sum(axis=(-3, -1)) / num_blocks
    difference = blocks - unmixed(target, num_blocks)
    # Scaling prevents an underflow of the squares of tiny entries.
    scale = working_constant(scale_of(target))
    squared_norm = xp.sum(squares(target / scale))
    squared_norm = xp.where(squared_norm > 0, squared_norm, 1)
    squared = xp.sum(squares(difference / scale), axis=(-3, -2, -1)) / num_blocks
    # The square root has an infinite derivative at zero.
    root = xp.sqrt(xp.where(squared > 0, squared, 1))
    distance = xp.where(squared > 0, root, squared)
    return Measures(
        block_weights=blocks,
        effective_weights=effective,
        error=xp.sum(squares(difference), axis=(-3, -2, -1)) / num_blocks,
        residual=distance * scale,
        relative_residual=distance / xp.sqrt(squared_norm),
        share=product(effective / scale, target / scale) / squared_norm,
    )


def check_messages_of(
    code: GradientCode, messages: Any, length: int | str = "any"
) -> jax.Array:
    """Checks the shape of the messages of a code, and converts them to an array.

    The shape is (..., num_messages, length).
    """
    messages = array_validation.as_array(
        "messages",
        messages,
        "numbers or bools",
        "...",
        num_messages=code.num_messages,
        length=length,
    )
    if jnp.iscomplexobj(messages) != code.is_complex:
        required = "complex" if code.is_complex else "real"
        raise TypeError(f"messages must be {required} for {code}; got {messages.dtype}")
    return messages
