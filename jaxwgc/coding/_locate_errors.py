"""Location of corrupted messages by parity checks."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import Array, norms_along, working_constant
from jaxwgc.codes import GradientCode
from jaxwgc.coding._decode import Arrived, ErrorLocation, Finished, Received
from jaxwgc.coding._decoding import check_messages_of
from jaxwgc.coding._evidence import UNCHECKED, Findings, Sample, parity_checks
from jaxwgc.coding._projection import project_in_units
from jaxwgc.coding._searches import find_in_turn

# Upper bound of norms of messages, relative to the median. Longer messages are clipped.
_LARGEST = 1e12
# Length of projections of copies. An error of twice the bound of honest differences is
# missed with probability 1 / 7e9.
_PROJECTION_DIM = 64
# Bound of the difference of honest copies, as a multiple of the noise.
_NOISE = 4.0


class Copies(NamedTuple):
    """Groups of messages that are copies of each other, up to their signs.

    Attributes:
      labels: Group of copies of each message, int (num_messages,).
      signs: Factor of each message relative to its group, of modulus 1,
        (num_messages,).
    """

    labels: Array
    signs: Array


class ErrorLocator(NamedTuple):
    """Constants of the location of errors in messages of a code.

    For many rounds of one code: `jaxwgc.locate_errors` computes them at every call.

    Attributes:
      code: Gradient code.
      checks: From `parity_checks`.
      norms: Norms of the rows of the encoding matrix.
      copies: Copies, if the only relation between messages is that some are copies of
        others; otherwise None.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(6, num_stragglers=2)
      >>> locator = jaxwgc.coding.ErrorLocator.of(code)
      >>> messages = jaxwgc.encode(code, jnp.ones((6, 3))).at[4].set(9.0)
      >>> everyone = jnp.ones(6, bool)
      >>> location = locator.locate(messages, everyone, jax.random.key(1))
      >>> location.wrong.nonzero()[0].tolist()
      [4]
    """

    code: GradientCode
    checks: Array
    norms: Array
    copies: Copies | None

    @classmethod
    def of(cls, code: GradientCode) -> "ErrorLocator":
        """Returns the locator of a code."""
        GradientCode.check(code)
        matrix = code.encoding_matrix
        checks, norms = parity_checks(matrix)
        copies = None
        if isinstance(matrix, np.ndarray):
            unchecked = np.linalg.norm(checks, axis=0) <= UNCHECKED
            if unchecked.any():
                raise ValueError(
                    "code must have parity checks for all messages, to correct errors; "
                    f"got none for messages {np.flatnonzero(unchecked).tolist()}"
                )
            copies = _find_copies(matrix)
        return cls(code=code, checks=checks, norms=norms, copies=copies)

    def checked_by_others(self, mask: np.ndarray) -> np.ndarray:
        """Returns which messages of a mask share a parity check with others.

        It computes in NumPy.

        Args:
          mask: Which messages arrived, bool (num_messages,). The code is not traced.
        """
        checked = np.zeros_like(mask)
        if mask.any():
            checks, _ = parity_checks(np.asarray(self.code.encoding_matrix)[mask])
            checked[mask] = np.linalg.norm(checks, axis=0) > UNCHECKED
        return checked

    def locate(
        self,
        messages: jax.Array,
        mask: jax.Array,
        key: jax.Array,
        noise: jax.typing.ArrayLike = 0.0,
        message_dtype: jax.typing.DTypeLike | None = None,
    ) -> ErrorLocation:
        """Finds corrupted messages like `locate_errors`, but does not check the mask.

        Args:
          messages: (num_messages, length).
          mask: Which messages arrived, bool (num_messages,).
          key: PRNG key of the projections.
          noise: Difference of honest copies of a message, relative to its norm.
          message_dtype: Dtype that messages were rounded to.
        """
        messages = check_messages_of(self.code, messages)
        rounding = rounding_noise(messages, message_dtype)
        # `lax.cond` outside of jit would compile its branches at every call, so this is
        # one program.
        working = jax.tree.map(working_constant, self)
        return _locate(working, messages, mask, key, noise, rounding)


@jax.jit
def _locate(
    locator: ErrorLocator,
    messages: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    noise: jax.typing.ArrayLike,
    rounding: jax.typing.ArrayLike,
) -> ErrorLocation:
    code = locator.code
    copies = locator.copies
    sample = _screen(locator, messages, mask, key, jnp.maximum(noise, rounding))
    if copies is None:
        findings = find_in_turn(locator.checks, sample, code.decoders)
    else:
        findings = _find_minorities(sample, copies)
    is_there = sample.mask
    # A message in no parity check cannot be verified, so its round is rejected.
    rejected = ~findings.is_explained | (findings.num_checks == 0)
    rejected |= jnp.any(is_there & ~findings.is_checked)
    shape = (code.num_workers, code.messages_per_worker)
    by_worker = (findings.wrong & ~rejected).reshape(shape).any(1)
    is_honest = ~jnp.repeat(by_worker, code.messages_per_worker)
    return ErrorLocation(
        wrong=by_worker,
        mask=is_there & is_honest & ~rejected,
        disputed=findings.disputed.reshape(shape).any(1),
        checks=findings.num_checks,
        rejected=rejected,
    )


def _screen(
    locator: ErrorLocator,
    messages: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    noise: jax.Array,
) -> Sample:
    """Projects and scales messages, and drops those that are not finite."""
    num_columns = _PROJECTION_DIM if locator.copies else 2 * len(locator.checks) + 8
    rows, units = project_in_units(key, messages, num_columns)
    norms = jnp.asarray(locator.norms, rows.real.dtype)
    lengths = norms_along(rows, axis=1)
    mask = mask & jnp.isfinite(lengths)
    rows = jnp.where(mask[:, None], rows, 0)
    lengths = jnp.where(mask, lengths, 0)
    # The median norm scales the rows, so that squares neither overflow nor underflow.
    # Norms are compared in the unit of one message.
    unit = _median(units[:, 0], lengths > 0)
    sizes = lengths / norms * (unit / units[:, 0])
    median = _median(sizes, sizes > 0)
    clipped = jnp.minimum(sizes / median, _LARGEST)
    rows *= (clipped / jnp.where(lengths > 0, lengths, 1))[:, None]
    # Products of tiny entries underflow. The noise therefore has a lower bound.
    tiny = jnp.finfo(norms.dtype).tiny * math.sqrt(messages.shape[1])
    noise = jnp.maximum(noise, locator.code.num_parts * (tiny * unit) / median)
    return Sample(rows=rows, mask=mask, noise=noise.astype(norms.dtype), norms=norms)


def _find_copies(matrix: np.ndarray) -> Copies | None:
    """Returns group and sign of each message among its copies.

    None unless the only relation between messages is that some are multiples of others.
    """
    norms = np.linalg.norm(matrix, axis=1)
    rows = matrix / np.where(norms > 0, norms, 1)[:, None]
    is_large = np.abs(rows) > 0.5 / np.sqrt(rows.shape[1])
    large_entries = rows[np.arange(len(rows)), is_large.argmax(axis=1)]
    sizes = np.where(large_entries == 0, 1, np.abs(large_entries))
    signs = np.where(norms > 0, large_entries / sizes, 1)
    aligned = np.round(rows / signs[:, None], 6)
    _, first, labels = np.unique(
        aligned, axis=0, return_index=True, return_inverse=True
    )
    if np.linalg.matrix_rank(rows[first]) < len(first):
        return None
    return Copies(labels=labels.reshape(-1), signs=signs)


def _find_minorities(sample: Sample, copies: Copies) -> Findings:
    """Finds the messages that differ from a majority of their copies.

    Args:
      sample: Projected messages.
      copies: Labels and signs from `_find_copies`.
    """
    labels = jnp.asarray(copies.labels)
    is_there = sample.mask
    noise = sample.noise
    rows = sample.rows / jnp.asarray(copies.signs, sample.rows.dtype)[:, None]
    rows = jnp.where(is_there[:, None], rows, 0)
    norms = jnp.linalg.norm(rows, axis=1)
    # Messages that were clipped are corrupted, also if their copies agree with them.
    can_be_right = norms < 0.99 * _LARGEST
    differences = jax.lax.map(
        lambda row: jnp.linalg.norm(rows - row, axis=1), rows, batch_size=32
    )
    smaller = jnp.minimum(norms[:, None], norms)
    # Messages have norm about one. Smaller ones result from cancellation, and are
    # equally noisy.
    agrees = differences <= _NOISE * noise * jnp.maximum(smaller, 1)
    agrees &= can_be_right[:, None] & can_be_right
    pairs = is_there[:, None] & is_there & (labels[:, None] == labels)
    votes = jnp.sum(agrees & pairs, axis=1)
    most_votes = jnp.max(jnp.where(pairs, votes, 0), axis=1)
    is_winner = (votes == most_votes) & (votes >= 2) & is_there
    # A group has a tie if two majorities are of equal size, or if no two messages
    # agree.
    is_tied = jnp.any(pairs & is_winner[:, None] & is_winner & ~agrees, axis=1)
    num_copies = jnp.sum(pairs, axis=1)
    has_no_majority = (most_votes < 2) & (num_copies > 1)
    disputed = jnp.any(pairs & is_tied, axis=1) | has_no_majority
    # All messages of a group with a tie are disputed.
    disputed = jnp.any(pairs & disputed, axis=1) & is_there
    has_winner = jnp.any(pairs & is_winner, axis=1)
    outvoted = is_there & has_winner & ~is_winner & ~disputed
    groups = jnp.zeros(len(labels), int).at[labels].add(is_there)
    num_checks = jnp.sum(jnp.maximum(groups - 1, 0))
    return Findings(
        wrong=outvoted,
        disputed=disputed,
        is_checked=is_there & (num_copies > 1),
        is_explained=~disputed.any(),
        num_checks=num_checks,
    )


def rounding_noise(
    messages: Array, message_dtype: jax.typing.DTypeLike | None = None
) -> float:
    """Returns the relative difference between correct copies that rounding explains.

    Args:
      messages: Messages of any shape; their dtype counts. Integers count as floats of
        default precision.
      message_dtype: Dtype that messages were rounded to. Defaults to their dtype.

    Returns:
      A few machine epsilons, e.g. for `noise` of `arbitrate`.
    """
    dtype = messages.dtype if message_dtype is None else message_dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    precision = jnp.finfo(dtype)
    # Projections have larger rounding than messages in double precision.
    return float(precision.eps) * (5 if precision.bits == 64 else 2)


def _median(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the lower median of masked values; 1 if there are none."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    middle = jnp.maximum(mask.sum() - 1, 0) >> 1
    return jnp.where(mask.any(), ordered[middle], 1)


def locate_errors(
    code: GradientCode,
    messages: jax.Array,
    received: Received | None = None,
    key: jax.Array | None = None,
    *,
    finished: Finished | None = None,
    noise: jax.typing.ArrayLike = 0.0,
) -> ErrorLocation:
    """Finds the workers that sent corrupted messages, by parity checks of the code.

    Messages of a code satisfy linear parity checks. Their number is the number of
    messages minus the rank of the encoding matrix. The checks are applied to random
    projections of the messages. Check values beyond rounding are explained by as few
    corrupted workers as possible:

    - Errors in general position, e.g. from independent faults, are found by the
      subspace that they span (MUSIC): up to one less than there are checks.
    - Errors that agree are found up to half the number of checks, and more if they span
      more dimensions. Codes evaluated at roots of unity use the geometric sequence that
      each error leaves. For other codes up to 20,000 guesses are tried.
    - Errors in copies of one message are found by majority if the code consists of
      copies.

    A message is noisy in proportion to its size, so large errors hide small ones.
    Therefore the largest errors are located first. The remaining messages are then
    judged by their own size.

    Small errors are not found: those close to the rounding error of the messages times
    the condition number of the remaining checks.

    Args:
      code: Gradient code with more messages than its rank. It should not be traced:
        otherwise copies of messages are not recognised, and checks are computed in
        every call.
      messages: (num_messages, length) of one round, in the form of `jaxwgc.encode`.
        Messages that are not finite count as missing, not as corrupted.
      received: Which workers responded with all of their messages, bool (num_workers,);
        or an `Arrivals` or a `Decoding` of the round.
      key: PRNG key of either kind, for the projections. If it is drawn after the
        messages arrived, workers cannot choose errors that the projections hide.
      finished: Number of parts that each worker has finished, int (num_workers,), in
        place of `received`; for codes with several messages per worker.
      noise: Difference of honest copies of a message, relative to its norm, if it is
        larger than rounding, e.g. between two kinds of processors.

    Returns:
      An `ErrorLocation`, accepted as `received` by `jaxwgc.decode` and others.

    Raises:
      ValueError: If the code has no checks, messages or received have the wrong shape,
        or noise is negative.
      TypeError: If code is not a GradientCode, messages are not numbers of the code's
        kind (real or complex), received is not bool, or key is not a PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(6, num_stragglers=3)
      >>> gradients = jnp.arange(24.0).reshape(6, 4)
      >>> messages = jaxwgc.encode(code, gradients).at[4].multiply(-1)
      >>> received = jnp.array([True, False, True, True, True, True])
      >>> located = jaxwgc.locate_errors(code, messages, received, jax.random.key(0))
      >>> located.wrong
      Array([False, False, False, False,  True, False], dtype=bool)
      >>> jaxwgc.decode(code, messages, located, params=jnp.zeros(4)).round()
      Array([60., 66., 72., 78.], dtype=float32)

    References:
      Chen, Wang, Charles, Papailiopoulos, "DRACO: Byzantine-resilient distributed
      training via redundant gradients", ICML 2018 (how many copies are needed);
      Schmidt, "Multiple emitter location and signal parameter estimation", 1986
      (MUSIC); Shan, Wax, Kailath, "On spatial smoothing for direction-of-arrival
      estimation of coherent signals", 1985.
    """
    locator = ErrorLocator.of(code)
    messages = check_messages_of(code, messages)
    mask = Arrived.of(code, received, finished).mask
    if messages.ndim != 2:
        raise ValueError(
            "messages must be of one round (use jax.vmap for more); got "
            f"{messages.shape}"
        )
    if mask.ndim != 1:
        raise ValueError(
            f"received must be of one round (use jax.vmap for more); got {mask.shape}"
        )
    array_validation.check_number("noise", noise, minimum=0, finite=True)
    return locator.locate(messages, mask, array_validation.check_key(key), noise)
