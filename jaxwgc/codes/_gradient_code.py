"""The type of every gradient code: who holds which parts, and how they are mixed."""

import dataclasses
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._pytrees import Static, register
from jaxwgc._targets import segment_target
from jaxwgc._validation import require
from jaxwgc.codes._tolerance import check_tolerance
from jaxwgc.decoders import Decoder, DecoderLike, LeastSquares

Array: TypeAlias = jax.Array | np.ndarray


@register
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GradientCode:
    """A gradient code: worker i sends the sum over j of Bᵢⱼ gⱼ.

    Made by the constructors in `jaxwgc.codes`, or by `from_matrix` of one's own matrix;
    used through the functions of `jaxwgc.coding`. It is a pytree: its arrays can be
    traced, mapped over by `jax.vmap` and passed through `jax.jit`, and its integers are
    static. Codes made on the host keep their arrays in NumPy float64 or complex128
    until they are used, so that their accuracy does not depend on JAX's precision
    setting.

    Attributes:
      encoding_matrix: B, real or complex of shape (num_messages, num_parts *
        num_segments): (num_workers, num_parts) for all codes but those of several
        messages a worker or of segments. Row i * messages_per_worker + t is message t
        of worker i; column j * num_segments + u is segment u of part j.
      assignment: bool of shape (num_workers, num_parts); True where the worker holds
        the part. B is zero elsewhere.
      target: the weights of the parts that decoding aims at, of shape (num_parts,):
        ones, so that decoding gives the plain sum of the partial gradients, unless
        `jaxwgc.weighted` has set others.
      num_stragglers: s; whichever s workers fail to answer, decoding is exact. 0 for
        approximate codes, some of which are not exact even when all answer.
      decoders: those of `jaxwgc.decoders` that fit the code; the first is used unless
        another is asked for.
      num_segments: m, the segments that a gradient is cut into; messages are as long
        as one of them.
      messages_per_worker: how many messages a worker sends, one after the other.
      required_parts: int (num_workers, messages_per_worker), how many of its parts a
        worker must have finished before it can send the message. None where it sends
        one message at the end.

    Example:
      Three workers with two parts each, any two of which give the gradient:

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

      `from_matrix` checks the matrix, and on request that any s workers may fail.
      `GradientCode(...)` itself, with all its fields, is for arrays that may be traced:
      shapes and types are checked where the code is used, entries are not.
    """

    encoding_matrix: Array
    assignment: Array
    target: Array
    num_stragglers: int
    decoders: tuple[Decoder, ...] = (LeastSquares(),)
    num_segments: Static[int] = 1
    messages_per_worker: Static[int] = 1
    required_parts: Array | None = None

    @classmethod
    def from_matrix(
        cls,
        encoding_matrix: Any,
        *,
        num_stragglers: int = 0,
        assignment: Any = None,
        target: Any = None,
        check_patterns: int = 0,
    ) -> "GradientCode":
        """The code of an encoding matrix of one's own, checked.

        Args:
          encoding_matrix: B (num_workers, num_parts), real or complex: an array or a
            list of rows. Not traced.
          num_stragglers: s, whichever workers fail to answer; less than num_workers.
          assignment: bool of the same shape, who holds what. By default the parts
            where B is not 0.
          target: real (num_parts,), the weights of the parts in the decoded gradient;
            ones by default.
          check_patterns: decodes that many patterns of s stragglers at random, or every
            one where there are no more than that, and refuses a code that does not
            survive one of them. 0 takes num_stragglers at its word.

        Returns:
          A code of one message a worker, decoded by least squares, in NumPy float64 or
          complex128.

        Raises:
          ValueError: where a shape is wrong, an entry is not finite or lies where the
            worker does not hold the part, or a pattern is not survived: to 1e-6 of the
            norm of the target, in float64.
          TypeError: where an argument has the wrong type or is traced.

        Example:
          >>> import jaxwgc
          >>> matrix = [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]]
          >>> jaxwgc.GradientCode.from_matrix(
          ...     matrix, num_stragglers=1, check_patterns=100
          ... )
          GradientCode(num_workers=3, num_parts=3, num_stragglers=1, \
decoders=[LeastSquares])
        """
        name, kind = "encoding_matrix", "numbers or bools"
        sizes = {"num_workers": "any", "num_parts": "any"}
        matrix = _validation.host_array(name, encoding_matrix, kind, **sizes)
        is_complex = np.iscomplexobj(matrix)
        matrix = matrix.astype(np.complex128 if is_complex else np.float64)
        num_workers, num_parts = matrix.shape
        assignment = matrix != 0 if assignment is None else assignment
        target = np.ones(num_parts) if target is None else target
        assignment = _validation.host_array("assignment", assignment, "bools")
        target = _validation.host_array("target", target, "real numbers or bools")
        target = target.astype(np.float64)
        code = cls(
            encoding_matrix=matrix,
            assignment=assignment,
            target=target,
            num_stragglers=_validation.check_stragglers(num_stragglers, num_workers),
            decoders=(LeastSquares(num_stragglers),),
        )
        cls.check(code)
        for worker, part in np.argwhere((matrix != 0) & ~assignment)[:1].tolist():
            raise ValueError(
                "encoding_matrix must be 0 where assignment is False; got "
                f"{matrix[worker, part]} for worker {worker} and part {part}"
            )
        if _validation.check_int("check_patterns", check_patterns, minimum=0):
            check_tolerance(matrix, target, num_stragglers, check_patterns)
        return code

    @property
    def num_messages(self) -> int:
        """Messages of all workers together."""
        return self.encoding_matrix.shape[-2]

    @property
    def num_workers(self) -> int:
        """n, the number of workers."""
        return self.num_messages // self.messages_per_worker

    @property
    def num_parts(self) -> int:
        """k, the number of data parts that are coded over."""
        return self.encoding_matrix.shape[-1] // self.num_segments

    @property
    def is_complex(self) -> bool:
        """True where messages are complex: two halves of a gradient in one."""
        return np.issubdtype(self.encoding_matrix.dtype, np.complexfloating)

    @property
    def parts_per_worker(self) -> Array:
        """The number of parts that each worker holds, of shape (num_workers,)."""
        return self.assignment.sum(-1)

    @property
    def loads(self) -> Array:
        """Returns the load of each worker: its work, over a fair share of all work.

        A load of 1 is 1 / n of the data, so that one part is a load of n / k. Loads of
        different codes can be compared: without a code they are 1, and their mean is
        the mean number of copies of a part. Delay models, plans and measured times take
        all loads in this unit. A worker with several messages goes through its parts at
        constant speed, in the time that its delay model gives for its load.

        Returns:
          Float (num_workers,), `parts_per_worker * num_workers / num_parts`.
        """
        return self.parts_per_worker * self.num_workers / self.num_parts

    @property
    def segment_targets(self) -> Array:
        """The target of aᵀB, (num_segments, num_parts * num_segments)."""
        return segment_target(self.target, self.num_segments)

    def decoders_of(self, kind: type[Decoder]) -> tuple[Any, ...]:
        """Returns the code's decoders of a class, in their order."""
        return tuple(decoder for decoder in self.decoders if decoder.is_a(kind))

    def choose_decoder(self, decoder: DecoderLike = None) -> Decoder:
        """A decoder that can decode this code.

        Args:
          decoder: None for the first of the code's own; a class for the first of the
            code's own of that class, or, where its fields have defaults, for one of
            them; or a decoder.

        Raises:
          ValueError: where there is none, or it cannot decode the code.
          TypeError: where `decoder` is neither.
        """
        chosen: Any = decoder
        if decoder is None:
            require(self.decoders, "decoder", "be given, since the code has none", None)
            chosen = self.decoders[0]
        elif isinstance(decoder, type) and issubclass(decoder, Decoder):
            of_kind = self.decoders_of(decoder)
            if not of_kind and any(
                field.default is dataclasses.MISSING
                for field in dataclasses.fields(cast(Any, decoder))
            ):
                decoder.refuse(self)
            chosen = of_kind[0] if of_kind else decoder()
        else:
            hint = " of jaxwgc.decoders, or a class of them for the code's own"
            _validation.check_instance("decoder", decoder, Decoder, hint)
        # Entries of the code's own decoders are not checked at every use.
        is_own = any(chosen is known for known in self.decoders)
        if not is_own:
            chosen.check(self.encoding_matrix, self.segment_targets)
        return chosen

    def decodes(
        self,
        mask: jax.typing.ArrayLike,
        tolerance: jax.typing.ArrayLike = 1e-3,
        decoder: DecoderLike = None,
    ) -> jax.Array:
        """Returns whether messages are enough to decode.

        Args:
          mask: bool (..., num_messages), the messages that have arrived: workers, but
            for codes of several messages a worker.
          tolerance: as for `jaxwgc.coded_aggregate`: the norm of aᵀB - target may be
            that share of the norm of the target.
          decoder: as for `jaxwgc.decoding_weights`.

        Returns:
          Bool (...).

        Raises:
          ValueError: where mask has the wrong shape.
          TypeError: where it is not bool.

        Example:
          >>> import jaxwgc
          >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
          >>> code.decodes([[True, True, False, False], [True, False, True, False]])
          Array([ True, False], dtype=bool)
        """
        sizes = {"num_messages": self.num_messages}
        mask = jnp.asarray(_validation.as_array("mask", mask, "bools", "...", **sizes))
        return self.choose_decoder(decoder).decodes(
            self.encoding_matrix, self.segment_targets, mask, tolerance
        )

    def check_plain(self, user: str) -> None:
        """Raises ValueError where messages are several, or shorter than the gradient.

        Args:
          user: who needs that, for the message.
        """
        for name in ("num_segments", "messages_per_worker"):
            given, rule = getattr(self, name), f"be 1 for {user}"
            require(given == 1, f"code.{name}", rule, given)

    @property
    def allows_requests(self) -> bool:
        """Returns whether workers can be asked for one sum of their messages."""
        return self.num_segments == 1 and not self.is_complex

    def check_requests(self) -> None:
        """Raises ValueError unless it allows requests."""
        rule = "be real and of one segment for requests, as codes.replicated is"
        require(self.allows_requests, "code", rule, self)

    @staticmethod
    def check(code: Any, concrete: str = "") -> "GradientCode":
        """Returns `code`, which must be one code whose fields fit together.

        For where a code is used: what JAX makes of a code on the way need not be one.

        Args:
          code: The code.
          concrete: Why the code must not be traced; empty if it may be.

        Raises:
          ValueError: for a batch of codes, or arrays of shapes that do not fit.
          TypeError: where it is no code, or a field has the wrong type.
        """
        _validation.check_instance("code", code, GradientCode)
        if concrete:
            _validation.check_concrete("code", code, concrete)
        shape = np.shape(code.encoding_matrix)
        rule = "be one code (use jax.vmap for more)"
        require(len(shape) == 2, "code", rule, f"an encoding matrix of shape {shape}")
        for decoder in code.decoders:
            _validation.check_instance("code.decoders", decoder, Decoder)
        for name in ("num_segments", "messages_per_worker"):
            _validation.check_int(f"code.{name}", getattr(code, name), minimum=1)
        per_worker, per_part = code.messages_per_worker, code.num_segments
        workers, parts = shape[0] // per_worker, shape[1] // per_part
        matrix = workers * per_worker, parts * per_part
        fields = [
            ("encoding_matrix", "numbers or bools", matrix),
            ("assignment", "bools", (workers, parts)),
            ("target", "real numbers or bools", (parts,)),
            ("required_parts", "integers", (workers, per_worker)),
        ]
        for name, kind, expected in fields:
            array = getattr(code, name)
            if name != "required_parts" or per_worker > 1:
                _validation.check_dtypes(f"code.{name}", array, kind)
                shape = getattr(array, "shape", None)
                rule = f"have shape {expected} for {per_worker} messages per worker"
                require(shape == expected, f"code.{name}", rule, shape)
        if not _validation.is_traced(code.num_stragglers):
            name, given = "code.num_stragglers", code.num_stragglers
            _validation.check_stragglers(given, workers, name)
        return code

    def __repr__(self) -> str:
        return (
            f"GradientCode(num_workers={self.num_workers}, "
            f"num_parts={self.num_parts}, num_stragglers={self.num_stragglers}, "
            f"decoders=[{', '.join(map(str, self.decoders))}])"
        )
