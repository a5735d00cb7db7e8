"""Messages between workers and coordinator."""

import collections
import dataclasses
import enum
import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import coding
from jaxwgc._common import arrays
from jaxwgc._common.text import parts_named
from jaxwgc.codes import GradientCode

# Seconds for which a worker holds back a report, so that one call returns several
# reports. Long against a call of Ray (1 to 2 milliseconds), short against rounds in
# which workers are replaced.
HOLD_SECONDS = 0.05


class Taken(enum.IntEnum):
    """Status of a part of one worker: free, or taken by another worker.

    Workers compute parts in ascending order of these values.
    """

    FREE = 0
    COMPUTING = 1
    FINISHED = 2


class WorkerMessage(NamedTuple):
    """Response of a worker in a round: its message, losses, aux and seconds.

    Attributes:
      message: (1, length); a complex one as its real and imaginary parts, with an axis
        of two at the end, and one in bfloat16 as its bits.
      losses: Losses of the worker's parts, (num_held,).
      aux: Auxiliary outputs of the loss for these parts, a pytree with leaves
        (num_held, ...).
      seconds: Seconds from the receipt of the worker's task to this message.
      digests: Digests of the worker's batches; None if they are not compared.
      not_finite: Parts whose terms are not finite.
    """

    message: np.ndarray
    losses: np.ndarray
    aux: Any
    seconds: float
    digests: list[bytes] | None = None
    not_finite: Sequence[int] = ()


class Report(NamedTuple):
    """Report that a worker has finished a part, in a round on request.

    Attributes:
      number: Number of the round.
      position: Position of the part among the worker's parts, in order of computation.
      loss: Loss of the part.
      aux: Auxiliary outputs of the loss, a pytree with leaves (1, ...).
      is_finite: Whether all entries of the gradient of the part are finite.
      seconds: Seconds that the worker took for the part.
      digest: Digest of the batch; None if batches are not compared.
    """

    number: int
    position: int
    loss: float
    aux: Any
    is_finite: bool
    seconds: float
    digest: bytes | None = None


class Progress(NamedTuple):
    """Reports of a worker in a round on request, and its expected sum if finished.

    Attributes:
      reports: Reports of finished parts.
      expected_sum: Sum of the worker's messages with the weights that the coordinator
        expects to request, as `pack` returns it. None until its parts are finished, and
        once it has been returned.
    """

    reports: Sequence[Report] = ()
    expected_sum: np.ndarray | None = None


class LateTime(NamedTuple):
    """Seconds of a worker that responded late, to an earlier round.

    Attributes:
      worker: Index of the worker.
      rounds_ago: Number of rounds between that round and this one, at least 1.
      seconds: Seconds that the worker took.
    """

    worker: int
    rounds_ago: int
    seconds: float


class Round(NamedTuple):
    """The result of a round: the responses of a cluster for one set of parameters.

    Attributes:
      messages: (num_workers, length), zero if a message is missing. On request, the
        requested sum of each worker, for `jaxwgc.coding.decode_sums`.
      received: bool (num_workers,), workers with messages to decode. On request,
        workers from which a sum was requested.
      times: float (num_workers,), seconds from the start of the round to each response;
        infinity if there was none before the end of the round. On request (num_workers,
        num_positions), to each part, in the order of the worker.
      seconds: float (num_workers,), seconds that each worker took, as in
        `RayCluster.trace`; NaN if there was no response before the end of the round. On
        request for all of its parts, if those that it left to others take as long as
        those that it finished.
      elapsed: Duration of the round in seconds.
      known: bool (num_parts,), parts of which a worker has responded.
      losses: float (num_parts,), loss of each part; NaN if the part is not known, or
        with `contribution`.
      aux: Auxiliary outputs of the loss or contribution, with `has_aux`: a pytree with
        leaves (num_parts, ...), zero if the part is not known. None without `has_aux`.
      timings: Seconds of the coordinator for the broadcast, for the transfer of
        responses, and for their verification, if there is one.
      decoding: On request, the `jaxwgc.Decoding` with the weights of the requested
        sums. Every function accepts it as `received`. None for other codes.
      late: bool (num_workers,), workers with a message of an earlier round, which is
        not decoded: in `train` with memory. None without memory.
      wrong: bool (num_workers,), workers with corrupted messages, which are excluded:
        not in `received`, and zero. None without `on_wrong` and `audit`.
      rejected: Whether the round is rejected: its checks fail without an explanation,
        or too few messages arrived for any check. `received` is then all False.
      replaced: Number of replacements of workers that began in the round.
      reason: Why the round ended, in words.
      late_times: Seconds of responses to earlier rounds that came in this one, a tuple
        of NamedTuples with `worker`, `rounds_ago` and `seconds`.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> cluster = jaxwgc.distributed.RayCluster(
      ...     lambda params, part: jnp.sum((params - part) ** 2),
      ...     jaxwgc.codes.cyclic_mds(3, num_stragglers=1),
      ...     jnp.array([1.0, 2.0, 6.0]),
      ... )
      >>> with cluster:  # doctest: +SKIP
      ...     this_round = cluster.compute(jnp.zeros(()))
      >>> this_round.received, this_round.losses  # doctest: +SKIP
    """

    messages: np.ndarray
    received: np.ndarray
    times: np.ndarray
    seconds: np.ndarray
    elapsed: float
    known: np.ndarray
    losses: np.ndarray
    aux: Any
    timings: dict[str, float]
    decoding: coding.Decoding | None = None
    late: np.ndarray | None = None
    wrong: np.ndarray | None = None
    rejected: bool = False
    replaced: int = 0
    reason: str = ""
    late_times: tuple[LateTime, ...] = ()


class PartValues(NamedTuple):
    """Losses and auxiliary outputs of some parts.

    Attributes:
      parts: Indices of the parts, int (num_some,).
      losses: (num_some,).
      aux: Pytree, leaves (num_some, ...).
    """

    parts: np.ndarray
    losses: np.ndarray | float
    aux: Any


class ValuesOfAll(NamedTuple):
    """Losses and auxiliary outputs of all parts; `Round` documents the fields."""

    known: np.ndarray
    losses: np.ndarray
    aux: Any


class Layout(NamedTuple):
    """Shape and dtype of the messages, and the parts of each worker.

    Attributes:
      held: Parts of each worker, in the order of computation.
      num_parts: Number of parts of all workers.
      shape: Shape of the messages to decode, one per worker.
      dtype: Dtype of these messages.
      has_float16: Whether parameters, and so their gradients, or sent messages are in
        float16.
    """

    held: Sequence[np.ndarray]
    num_parts: int
    shape: tuple[int, ...]
    dtype: np.dtype
    has_float16: bool = False

    @property
    def num_held(self) -> np.ndarray:
        """Number of parts of each worker."""
        return np.array([len(parts) for parts in self.held])

    @classmethod
    def of(cls, code: GradientCode, params: Any, dtype: str | None) -> "Layout":
        """Returns the layout for gradients like `params` that are sent in `dtype`."""

        def encoded(params):
            partial_gradients = jax.vmap(lambda _: params)(jnp.zeros(code.num_parts))
            return coding.encode(code, partial_gradients)[: code.num_workers]

        messages = jax.eval_shape(encoded, params)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
        dtype_read = messages.dtype
        if dtype is not None:
            dtypes.add(np.dtype(dtype))
            dtype_read = np.dtype(np.complex64 if code.is_complex else np.float32)
        return cls(
            held=[_in_order(code, worker) for worker in range(code.num_workers)],
            num_parts=code.num_parts,
            shape=messages.shape,
            dtype=dtype_read,
            has_float16=np.dtype(np.float16) in dtypes,
        )

    def not_finite(self, name: str, parts: Sequence[int] = ()) -> str:
        """Returns an error text for a message or sum that is not finite.

        If the message is in float16, the text names a remedy.

        Args:
          name: `"message"` or `"sum"`.
          parts: Parts whose terms are not finite, if they are known.
        """
        origin = f" in {parts_named(parts)}" if len(parts) else ""
        if not self.has_float16:
            return f"its {name} is not finite{origin}"
        return (
            f"its {name} is not finite{origin} in float16, whose largest number is "
            f"{np.finfo(np.float16).max:g}: scale the loss down, or use bfloat16 or "
            "float32 as message_dtype and as dtype of params"
        )

    def by_part(self, values: Iterable[PartValues]) -> ValuesOfAll:
        """Collects losses and aux of some parts in arrays over all parts."""

        def zeros(leaf):
            return np.zeros((self.num_parts, *leaf.shape[1:]), leaf.dtype)

        known = np.zeros(self.num_parts, bool)
        losses = np.full(self.num_parts, np.nan)
        aux = None
        for some in values:
            known[some.parts] = True
            losses[some.parts] = some.losses
            if aux is None:
                aux = jax.tree.map(zeros, some.aux)
            for array, leaf in zip(jax.tree.leaves(aux), jax.tree.leaves(some.aux)):
                array[some.parts] = leaf
        return ValuesOfAll(known=known, losses=losses, aux=aux)


def _in_order(code: GradientCode, worker: int) -> np.ndarray:
    """Returns a worker's parts, ordered by the first message that needs each part.

    A worker that holds nothing sends zero times the first part.
    """
    parts = np.flatnonzero(np.asarray(code.assignment)[worker])
    if not len(parts):
        return np.zeros(1, int)
    if code.required_parts is None:
        return parts
    shape = (code.num_workers, code.messages_per_worker, -1)
    messages = np.asarray(code.encoding_matrix).reshape(shape)[worker]
    required = np.asarray(code.required_parts)[worker][:, None]
    is_needed = messages[:, parts] != 0
    needed_at = np.where(is_needed, required, len(parts)).min(0)
    return parts[np.argsort(needed_at, kind="stable")]


def pack(message: jax.typing.ArrayLike, dtype: str | None) -> jax.Array:
    """Converts a message to the array that is sent, rounded to a dtype.

    Complex numbers become pairs of real numbers, and bfloat16 becomes uint16.
    """
    message = jnp.asarray(message)
    if jnp.iscomplexobj(message):
        message = jnp.stack([message.real, message.imag], axis=-1)
    if dtype is not None:
        message = message.astype(dtype)
    if message.dtype == jnp.bfloat16:
        # NumPy has no bfloat16, and would pickle such an array entry by entry. The bits
        # are sent as integers.
        message = jax.lax.bitcast_convert_type(message, jnp.uint16)
    return message


def unpack(wire: np.ndarray, message: np.ndarray) -> None:
    """Writes the numbers of a sent message into the array `message`."""
    if wire.dtype == np.uint16:
        wire = wire.view(jnp.bfloat16)
    if np.iscomplexobj(message):
        message = message.view(np.real(message).dtype).reshape(wire.shape)
    message[...] = wire


def is_finite(values: np.ndarray) -> bool:
    """Returns whether all entries of an array are finite."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


class _Loan:
    """Handle of an array that `ArrayPool` has lent; its deletion returns the array."""

    def __init__(self, block: np.ndarray):
        self.__array_interface__ = block.__array_interface__


class ArrayPool:
    """Pool that lends arrays of one shape, and reuses arrays that are no longer used.

    To allocate fresh memory takes longer than to fill it, because the system provides
    memory page by page. The pool keeps one returned array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        self._shape = shape
        self._dtype = dtype
        self._returned: collections.deque[np.ndarray] = collections.deque(maxlen=1)

    def borrow(self) -> np.ndarray:
        """Returns an unused array; its entries are arbitrary."""
        if not self._returned:
            # JAX may hold arrays that it has read until Python collects garbage. The
            # collection can return one to the pool.
            gc.collect(0)
        if self._returned:
            block = self._returned.pop()
        else:
            # JAX uses an array without a copy only if its address is a multiple of 64.
            size = int(np.prod(self._shape)) * self._dtype.itemsize
            memory = np.empty(size + 64, np.uint8)
            start = -memory.ctypes.data % 64
            aligned = memory[start : start + size]
            block = aligned.view(self._dtype).reshape(self._shape)
        loan = _Loan(block)
        weakref.finalize(loan, self._returned.append, block)
        return np.asarray(loan)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Typed PRNG keys in a form that can be sent: their words and implementation."""

    words: np.ndarray
    kind: str = dataclasses.field(metadata={"static": True})


# Key as it is sent: the words of a raw key, or `Keys` for a typed key.
SentKey: TypeAlias = np.ndarray | Keys


def sent(tree: Any) -> Any:
    """Converts a pytree to NumPy arrays, and its typed PRNG keys to `Keys`."""

    def of_leaf(leaf):
        if not jnp.issubdtype(arrays.dtype_of(leaf), jax.dtypes.prng_key):
            return np.asarray(leaf)
        words = np.asarray(jax.random.key_data(leaf))
        return Keys(words=words, kind=str(jax.random.key_impl(leaf)))

    return jax.tree.map(of_leaf, tree)


def read(tree: Any) -> Any:
    """Converts `Keys` in a sent pytree back to typed PRNG keys."""

    def is_keys(node):
        return isinstance(node, Keys)

    def of_node(node):
        if is_keys(node):
            return jax.random.wrap_key_data(node.words, impl=node.kind)
        return node

    return jax.tree.map(of_node, tree, is_leaf=is_keys)
