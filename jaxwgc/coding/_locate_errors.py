"""Which workers have sent something wrong: found by what a code has to spare."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import working_constants
from jaxwgc.codes import GradientCode
from jaxwgc.coding._arrivals import arrived_messages
from jaxwgc.coding._decoding import check_messages_of
from jaxwgc.coding._errors._checks import UNCHECKED, parity_checks
from jaxwgc.coding._errors._evidence import Sample
from jaxwgc.coding._errors._in_turn import find_in_turn
from jaxwgc.coding._errors._location import ErrorLocation
from jaxwgc.coding._errors._majority import NUM_COLUMNS, find_copies, find_minorities
from jaxwgc.coding._errors._projection import project

# Norm of a message, over that of most, from which on it counts as so large.
_LARGEST = 1e12


class ErrorLocator(NamedTuple):
    """The parts of error location that depend on the code alone.

    Attributes:
      code: the code.
      checks: of `parity_checks`.
      norms: of the rows of the encoding matrix.
      copies: labels and signs, where all that messages have in common is that some are
        copies of others.
    """

    code: GradientCode
    checks: Any
    norms: Any
    copies: tuple[Any, Any] | None

    @classmethod
    def of(cls, code: GradientCode) -> "ErrorLocator":
        """Returns that of a code."""
        GradientCode.check(code)
        matrix = code.encoding_matrix
        checks, norms = parity_checks(matrix)
        copies = None
        if isinstance(matrix, np.ndarray):
            unchecked = np.linalg.norm(checks, axis=0) <= UNCHECKED
            rule = "have parity checks of all its messages, to correct errors"
            given = f"none of messages {np.flatnonzero(unchecked).tolist()}"
            _validation.require(not unchecked.any(), "code", rule, given)
            copies = find_copies(matrix)
        return cls(code, checks, norms, copies)

    def checked_by_others(self, mask: np.ndarray) -> np.ndarray:
        """Returns which of some messages the others say something of, in NumPy.

        Args:
          mask: bool (num_messages,), those that are there; the code is known.
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
        """Returns what `locate_errors` does, of arrays that have been checked.

        Args:
          messages: (num_messages, length).
          mask: bool (num_messages,), those that are there.
          key: as for `locate_errors`.
          noise: as for `locate_errors`.
          message_dtype: what messages were rounded to on their way.
        """
        # As one program: conditions outside of one are compiled at every call.
        rounding = rounding_noise(messages, message_dtype)
        return _locate(working_constants(self), messages, mask, key, noise, rounding)


@jax.jit
def _locate(locator, messages, mask, key, noise, rounding):
    code, copies = locator.code, locator.copies
    sample = screen(locator, messages, mask, key, jnp.maximum(noise, rounding))
    if copies is None:
        findings = find_in_turn(locator.checks, sample, code.decoders)
    else:
        findings = find_minorities(sample, copies, _LARGEST)
    is_there = sample.mask
    # What nobody can say anything of is not believed.
    refused = ~findings.is_explained | (findings.num_checks == 0)
    refused |= jnp.any(is_there & ~findings.is_checked)
    shape = code.num_workers, code.messages_per_worker
    by_worker = (findings.wrong & ~refused).reshape(shape).any(1)
    is_right = ~jnp.repeat(by_worker, code.messages_per_worker)
    return ErrorLocation(
        wrong=by_worker,
        mask=is_there & is_right & ~refused,
        disputed=findings.disputed.reshape(shape).any(1),
        unique=findings.is_explained,
        checks=findings.num_checks,
        refused=refused,
    )


def screen(
    locator: ErrorLocator,
    messages: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    noise: jax.Array,
) -> Sample:
    """Projects messages, drops those that are not finite, and scales the others."""
    num_columns = NUM_COLUMNS if locator.copies else 2 * len(locator.checks) + 8
    rows = project(key, messages, num_columns)
    mask = mask & jnp.isfinite(rows).all(1)
    norms = jnp.asarray(locator.norms, rows.real.dtype)
    rows = jnp.where(mask[:, None], rows, 0) / norms[:, None]
    # In the size of most, so that no square overflows or vanishes.
    sizes = _norms(rows)
    median = _median(sizes, mask & (sizes > 0))
    clipped = jnp.minimum(sizes / median, _LARGEST)
    rows *= (clipped / jnp.where(sizes > 0, sizes, 1))[:, None]
    # Products of tiny entries underflow.
    tiny = jnp.finfo(norms.dtype).tiny * math.sqrt(messages.shape[1])
    noise = jnp.maximum(noise, locator.code.num_parts * tiny / median)
    return Sample(rows, mask, noise.astype(norms.dtype), norms, key)


def rounding_noise(messages: Any, message_dtype: Any) -> float:
    """Returns how much honest messages differ by rounding, relative to their norm.

    Those of integers like floats of default precision.
    """
    dtype = messages.dtype if message_dtype is None else message_dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    precision = jnp.finfo(dtype)
    # Projections of messages in double precision are rounded more than these.
    return float(precision.eps) * (5 if precision.bits == 64 else 2)


def _median(values, mask):
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    return jnp.where(mask.any(), ordered[jnp.maximum(mask.sum() - 1, 0) // 2], 1)


def _norms(rows):
    """Norms of rows whose squares may overflow."""
    largest = jnp.max(jnp.abs(rows), axis=1)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.linalg.norm(rows / scale[:, None], axis=1)


def locate_errors(
    code: GradientCode,
    messages: jax.Array,
    received: Any = None,
    key: jax.Array | None = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
    noise: jax.typing.ArrayLike = 0.0,
) -> ErrorLocation:
    """Finds the workers whose messages are wrong, by what the code has to spare.

    Messages of a code satisfy linear checks, as many as there are messages beyond the
    rank of its encoding matrix. Random projections of the messages, in one pass, are
    put into these. What is left beyond rounding is explained by as few workers as can
    be:

    - errors in general position, as independent faults are, by the directions that they
      span (MUSIC): up to one less than there are checks;
    - errors that agree, up to half as many as there are checks (and more, the more
      directions they span): for codes evaluated at roots of unity by the geometric
      sequences that each leaves; for others some of the workers are guessed, in up to
      20,000 ways;
    - errors in copies of one message, where a code has nothing else, by majority.

    Large errors hide smaller ones, since a message is noisy in proportion to its size.
    So the largest errors are located first, and without their messages the others are
    judged again by their own size.

    Errors that are too small to matter are not found: those near the rounding of the
    messages, times how badly the checks that are left are conditioned.

    Args:
      code: a gradient code with more messages than its rank. Known, not traced, or else
        copies of messages are not recognised and checks are found at every call.
      messages: (num_messages, length), as for `jaxwgc.decode`, of one round. Messages
        that are not finite count as missing, not as wrong.
      received: as for `jaxwgc.decoding`.
      key: PRNG key of either kind, for the projections. Drawn once messages are there,
        nobody can hide from them.
      finished: as for `jaxwgc.decoding`.
      noise: how much honest copies of a message differ, relative to its norm, where
        that is more than rounding: between two kinds of processors.

    Returns:
      An `ErrorLocation`, which `jaxwgc.decode` and all that takes `received` takes.

    Raises:
      ValueError: where the code has no checks, or an argument has the wrong shape or
        breaks its rule.
      TypeError: where an argument has the wrong type.

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
    mask = arrived_messages(code, received, finished)
    rule = "be those of one round (use jax.vmap for more)"
    for name, array, num_axes in (("messages", messages, 2), ("received", mask, 1)):
        _validation.require(array.ndim == num_axes, name, rule, array.shape)
    _validation.check_number("noise", noise, minimum=0, finite=True)
    return locator.locate(messages, mask, _validation.check_key(key), noise)
