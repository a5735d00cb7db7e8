"""Gradient codes: assignment of parts to workers, and encoding matrix."""

import dataclasses
import inspect
import zlib
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import Array, array_module
from jaxwgc._common.pytrees import Static, register
from jaxwgc._common.validation import in_short
from jaxwgc.codes._tolerance import check_tolerance
from jaxwgc.decoders import Decoder, LeastSquares
from jaxwgc.decoders._decoder import DecoderLike


@register
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GradientCode:
    """A gradient code: which worker holds which parts, with which coefficients.

    Worker i sends the sum over j of Bᵢⱼ gⱼ. Built by the constructors in
    `jaxwgc.codes`, or by `from_matrix` from your own matrix. It is a pytree: its
    arrays can be traced, mapped over by `jax.vmap` and passed through `jax.jit`;
    its integers are static. Codes built on the host keep NumPy arrays in float64 or
    complex128, so that their accuracy does not depend on JAX's precision setting.

    Attributes:
      encoding_matrix: B, real or complex (num_messages, num_parts * num_segments).
        This is (num_workers, num_parts) for one message per worker and one segment.
        Row i * messages_per_worker + t is message t of worker i; column
        j * num_segments + u is segment u of part j.
      assignment: Which worker holds which part, bool (num_workers, num_parts). B is
        zero elsewhere.
      target: Weights of the parts in the decoded gradient, (num_parts,). Ones, for the
        plain sum of partial gradients, unless changed by `jaxwgc.weighted`.
      num_stragglers: s; decoding is exact for any s stragglers. 0 for approximate
        codes, some of which are not exact even if all workers respond.
      decoders: Decoders from `jaxwgc.decoders` that fit the code. The first is the
        default.
      num_segments: Number m of segments of a gradient; a message has the length of one
        segment.
      messages_per_worker: Number of messages that a worker sends one after the other.
      required_parts: Number of parts that a worker must have finished before it can
        send each message, int (num_workers, messages_per_worker). None if it sends one
        message at the end.

    Example:
      Three workers with two parts each, any two of which determine the gradient:

      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> import jaxwgc
      >>> code = jaxwgc.GradientCode.from_matrix(
      ...     [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]], num_stragglers=1
      ... )
      >>> gradients = jnp.array([[1.0, 0], [2, 5], [3, 1]])
      >>> messages = jaxwgc.encode(code, gradients)
      >>> received = np.array([True, False, True])
      >>> decoded = jaxwgc.decode(code, messages, received, params=jnp.zeros(2))
      >>> bool(jnp.allclose(decoded, gradients.sum(0)))
      True

      `from_matrix` checks the matrix, and optionally that any s stragglers are
      tolerated. Call `GradientCode(...)` with all fields if arrays may be traced:
      shapes and types are checked at each use, entries are not.
    """

    encoding_matrix: Array
    assignment: Array
    target: Array
    num_stragglers: int
    decoders: tuple[Decoder, ...] = (LeastSquares(),)
    num_segments: Static[int] = 1
    messages_per_worker: Static[int] = 1
    required_parts: Array | None = None

    def __post_init__(self):
        for decoder in self.decoders:
            validation.check_instance("code.decoders", decoder, Decoder)
        for name in ("num_segments", "messages_per_worker"):
            validation.check_int(f"code.{name}", getattr(self, name), minimum=1)
        kinds = {
            "encoding_matrix": "numbers or bools",
            "assignment": "bools",
            "target": "real numbers or bools",
        }
        if self.messages_per_worker > 1:
            kinds["required_parts"] = "integers"
        for name, kind in kinds.items():
            array_validation.check_dtypes(f"code.{name}", getattr(self, name), kind)
        if not array_validation.is_traced(self.num_stragglers):
            validation.check_int("code.num_stragglers", self.num_stragglers, minimum=0)

    @classmethod
    def from_matrix(
        cls,
        encoding_matrix: ArrayLike,
        *,
        num_stragglers: int = 0,
        assignment: ArrayLike | None = None,
        target: ArrayLike | None = None,
        check_patterns: int = 0,
    ) -> "GradientCode":
        """Returns a code with your own encoding matrix, after checks.

        Args:
          encoding_matrix: B, real or complex (num_workers, num_parts): an array or a
            list of rows. Not traced.
          num_stragglers: s, less than num_workers; decoding is exact for any s
            stragglers.
          assignment: Which worker holds which part, bool (num_workers, num_parts).
            Defaults to the nonzero entries of B.
          target: Weights of the parts in the decoded gradient, real (num_parts,).
            Defaults to ones.
          check_patterns: Number of random patterns of s stragglers to decode; all
            patterns if there are fewer. The code is rejected if one of them is not
            tolerated. 0 skips this check.

        Returns:
          A code with one message per worker, decoded by least squares, in NumPy float64
          or complex128.

        Raises:
          ValueError: If a shape is wrong, an entry is not finite, an entry belongs to a
            part that the worker does not hold, or a part with a target has no entry. If
            the residual of a pattern exceeds 1e-6 of the norm of the target, in
            float64.
          TypeError: If an argument has the wrong type or is traced.

        Example:
          >>> import jaxwgc
          >>> matrix = [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]]
          >>> jaxwgc.GradientCode.from_matrix(
          ...     matrix, num_stragglers=1, check_patterns=100
          ... )
          GradientCode(num_workers=3, num_parts=3, num_stragglers=1, \
decoders=[LeastSquares])
        """
        matrix = array_validation.host_array(
            "encoding_matrix",
            encoding_matrix,
            "numbers or bools",
            num_workers="any",
            num_parts="any",
        )
        is_complex = np.iscomplexobj(matrix)
        matrix = matrix.astype(np.complex128 if is_complex else np.float64)
        num_workers, num_parts = matrix.shape
        held = matrix != 0
        if assignment is not None:
            held = array_validation.host_array("assignment", assignment, "bools")
        weights = np.ones(num_parts)
        if target is not None:
            weights = array_validation.host_array(
                "target", target, "real numbers or bools"
            )
            weights = weights.astype(np.float64)
        code = cls(
            encoding_matrix=matrix,
            assignment=held,
            target=weights,
            num_stragglers=validation.check_stragglers(num_stragglers, num_workers),
            decoders=(LeastSquares(num_stragglers),),
        )
        cls.check(code)
        others = np.argwhere((matrix != 0) & ~held)
        if others.size:
            worker, part = others[0]
            raise ValueError(
                "encoding_matrix must be 0 for parts that a worker does not hold; got "
                f"{matrix[worker, part]} for worker {worker} and part {part}. Set "
                "this entry to 0, or assignment to True"
            )
        is_lost = ~np.any(matrix != 0, axis=0) & (weights != 0)
        if is_lost.any():
            raise ValueError(
                "encoding_matrix must have a nonzero entry in the column of each part, "
                "since no message has the gradient of a part otherwise; got zeros for "
                f"parts {np.flatnonzero(is_lost).tolist()}. Give them to workers, or "
                "set their target to 0"
            )
        if validation.check_int("check_patterns", check_patterns, minimum=0):
            check_tolerance(matrix, weights, num_stragglers, check_patterns)
        return code

    @property
    def num_messages(self) -> int:
        """Number of messages of all workers together."""
        return self.encoding_matrix.shape[-2]

    @property
    def num_workers(self) -> int:
        """Number of workers."""
        return self.encoding_matrix.shape[-2] // self.messages_per_worker

    @property
    def num_parts(self) -> int:
        """Number of parts of the data."""
        return self.encoding_matrix.shape[-1] // self.num_segments

    @property
    def is_complex(self) -> bool:
        """True if messages are complex and pack two halves of a gradient."""
        return np.issubdtype(self.encoding_matrix.dtype, np.complexfloating)

    @property
    def parts_per_worker(self) -> Array:
        """Number of parts that each worker holds."""
        return self.assignment.sum(-1)

    @property
    def loads(self) -> Array:
        """Load of each worker: its work relative to an equal share of all work.

        A load of 1 is 1 / n of the data, so that one part is a load of n / k. Loads of
        different codes can be compared: they are 1 without a code, and their mean is
        the mean number of copies of a part. Delay models, plans and measured times use
        this unit.

        Returns:
          Float (num_workers,), `parts_per_worker * num_workers / num_parts`.
        """
        return self.parts_per_worker * self.num_workers / self.num_parts

    @property
    def part_shares(self) -> Array:
        """Share of a worker's work that is done after each of its parts.

        Parts of a worker are equal shares of its load, so that entry j - 1 of a worker
        with p parts is min(j / p, 1). It is 1 for a worker without parts.

        Returns:
          Float (num_workers, largest number of parts of a worker); (num_workers,
          num_parts) if the assignment is traced. (num_workers, 1), ones, for codes with
          one message per worker, which is ready after all parts.
        """
        if self.messages_per_worker == 1:
            return np.ones((self.num_workers, 1))
        num_held = self.parts_per_worker
        is_traced = array_validation.is_traced(num_held)
        longest = self.num_parts if is_traced else int(np.max(num_held))
        counts = np.arange(1, max(longest, 1) + 1)
        xp = array_module(num_held)
        shares = counts / xp.maximum(num_held, 1)[:, None]
        return xp.minimum(xp.where(num_held[:, None] > 0, shares, 1), 1)

    @property
    def segment_targets(self) -> Array:
        """Weights of the partial gradients in each segment of the decoded gradient."""
        identity = np.eye(self.num_segments, dtype=self.target.dtype)
        targets = identity[:, None, :] * self.target[:, None]
        return targets.reshape(self.num_segments, -1)

    @property
    def checksum(self) -> int | None:
        """Checksum of the encoding matrix and target, or None if one is traced.

        Stored messages and checkpoints keep it, since messages of one code cannot be
        decoded by another.
        """
        arrays = (self.encoding_matrix, self.target)
        if array_validation.is_traced(arrays):
            return None
        layout = (self.messages_per_worker, self.num_segments)
        checksum = zlib.crc32(str(layout).encode())
        for array in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
        return checksum

    def decoders_of(self, kind: type[Decoder]) -> tuple[Any, ...]:
        """Returns the code's decoders of a class, in their order."""
        return tuple(decoder for decoder in self.decoders if decoder.is_a(kind))

    def choose_decoder(self, decoder: DecoderLike = None) -> Decoder:
        """Returns a decoder that fits the code, the default or the given one.

        Args:
          decoder: None for the code's first decoder. A class for the code's first
            decoder of that class, or, if its fields have defaults, for a new instance.
            An instance is checked and returned.

        Raises:
          ValueError: If there is none, or it cannot decode the code.
          TypeError: If `decoder` has another type.
        """
        if decoder is None:
            if not self.decoders:
                raise ValueError("decoder must be given, since the code has none")
            return self.decoders[0]
        if isinstance(decoder, type) and issubclass(decoder, Decoder):
            of_class = self.decoders_of(decoder)
            if of_class:
                return of_class[0]
            chosen = self._new_decoder(decoder)
        else:
            validation.check_instance(
                "decoder",
                decoder,
                Decoder,
                " from jaxwgc.decoders, or a class among the code's decoders",
            )
            chosen = decoder
        # Decoders of the code itself fit, and are not checked at each use.
        if not any(chosen is known for known in self.decoders):
            chosen.check(self.encoding_matrix, self.segment_targets)
        return chosen

    def _new_decoder(self, decoder_class: type[Decoder]) -> Decoder:
        """Returns a decoder of a class, with the defaults of its fields."""
        required = [
            parameter.name
            for parameter in inspect.signature(decoder_class).parameters.values()
            if parameter.default is inspect.Parameter.empty
        ]
        if required:
            name = decoder_class.__name__
            raise ValueError(
                f"the class {name} decodes a code {decoder_class.needs}; for another "
                f"code, pass an instance, {name}({', '.join(required)}); got the class "
                f"and {self}"
            )
        return decoder_class()

    def decodes(
        self,
        mask: jax.typing.ArrayLike,
        tolerance: jax.typing.ArrayLike | None = None,
        decoder: DecoderLike = None,
    ) -> jax.Array:
        """Returns whether the given messages suffice to decode.

        Args:
          mask: Which messages have arrived, bool (..., num_messages); num_messages is
            num_workers, except for codes with several messages per worker.
          tolerance: Bound of the norm of aᵀB - target, relative to the norm of the
            target. By default that of the decoder: 0.001, or 0.999 for a decoder that
            is inexact on purpose.
          decoder: Decoder instance, or decoder class supported by the code. Defaults to
            `code.decoders[0]`.

        Returns:
          Bool (...).

        Raises:
          ValueError: If mask has the wrong shape.
          TypeError: If mask is not bool.

        Example:
          >>> import jaxwgc
          >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
          >>> code.decodes([[True, True, False, False], [True, False, True, False]])
          Array([ True, False], dtype=bool)
        """
        mask = array_validation.as_array(
            "mask", mask, "bools", "...", num_messages=self.num_messages
        )
        chosen = self.choose_decoder(decoder)
        if tolerance is None:
            tolerance = chosen.tolerance
        return chosen.decodes(
            self.encoding_matrix, self.segment_targets, jnp.asarray(mask), tolerance
        )

    def check_plain(self, user: str) -> None:
        """Raises ValueError unless there is one message per worker and one segment.

        Args:
          user: Name of the caller in the error message.
        """
        for name in ("num_segments", "messages_per_worker"):
            number = getattr(self, name)
            if number != 1:
                raise ValueError(f"code.{name} must be 1 for {user}; got {number}")

    @property
    def allows_requests(self) -> bool:
        """Returns whether a weighted sum of messages can be requested from a worker."""
        return self.num_segments == 1 and not self.is_complex

    def check_requests(self) -> None:
        """Raises ValueError unless `allows_requests` is True."""
        if not self.allows_requests:
            raise ValueError(
                "code must be real with one segment for requests, e.g. "
                f"codes.replicated; got {self}"
            )

    @staticmethod
    def check(code: object, concrete: str = "") -> "GradientCode":
        """Raises an error unless an argument is a single code with consistent shapes.

        Called where a code is used, since JAX transformations may have changed it.

        Args:
          code: Code to check.
          concrete: Why the code must not be traced; empty if it may be.

        Raises:
          ValueError: If it is a batch of codes, or its arrays have inconsistent shapes.
          TypeError: If it is not a GradientCode.
        """
        if not isinstance(code, GradientCode):
            raise TypeError(f"code must be a GradientCode; got {in_short(code)}")
        if concrete:
            array_validation.check_concrete("code", code, concrete)
        shape = np.shape(code.encoding_matrix)
        if len(shape) != 2:
            raise ValueError(
                "code must be one code (use jax.vmap for more); got an encoding matrix "
                f"of shape {shape}"
            )
        num_workers = shape[0] // code.messages_per_worker
        num_parts = shape[1] // code.num_segments
        shapes = {
            "encoding_matrix": (
                num_workers * code.messages_per_worker,
                num_parts * code.num_segments,
            ),
            "assignment": (num_workers, num_parts),
            "target": (num_parts,),
        }
        if code.messages_per_worker > 1:
            shapes["required_parts"] = (num_workers, code.messages_per_worker)
        for name, expected in shapes.items():
            shape = getattr(getattr(code, name), "shape", None)
            if shape != expected:
                raise ValueError(
                    f"code.{name} must have shape {expected} for "
                    f"{code.messages_per_worker} messages per worker; got {shape}"
                )
        is_known = not isinstance(code.num_stragglers, jax.core.Tracer)
        if is_known and code.num_stragglers >= num_workers:
            raise ValueError(
                "code.num_stragglers must be less than num_workers; got "
                f"code.num_stragglers = {code.num_stragglers} and num_workers = "
                f"{num_workers}"
            )
        return code

    def __repr__(self) -> str:
        return (
            f"GradientCode(num_workers={self.num_workers}, "
            f"num_parts={self.num_parts}, num_stragglers={self.num_stragglers}, "
            f"decoders=[{', '.join(map(str, self.decoders))}])"
        )
