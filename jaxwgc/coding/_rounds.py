"""Why rounds do not decode, by who has answered in them."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._targets import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.coding._arrivals import arrived_messages
from jaxwgc.coding._decoding import decoding
from jaxwgc.stragglers import StragglerModel

# On which a model is tried, and entries of codes for which that would take too long.
_NUM_ROUNDS = 32
_MOST_ENTRIES = 2**16


def are_undecodable(code: GradientCode, received: np.ndarray) -> np.ndarray:
    """Returns which rounds, bool (rounds, num_workers), cannot be decoded."""
    return np.asarray(decoding(code, received).failed())


def warn_where_undecodable(code: GradientCode, model: StragglerModel) -> None:
    """Warns where hardly a round of a model decodes. Not of what is traced."""
    if _validation.is_traced(code) or code.encoding_matrix.size > _MOST_ENTRIES:
        return
    # A rule that asks the code itself, which takes long to compile.
    if getattr(getattr(model, "wait", None), "code", None) is code:
        return
    try:
        hash(model)
    except TypeError:
        # A field is an array, or traced.
        return
    # The model may be made while something else is traced.
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), _NUM_ROUNDS)
        loads = np.asarray(code.loads, jnp.result_type(float))
        drawn = _draw(model, keys, loads)
        if _validation.is_traced(drawn):
            return
        rounds = jax.device_get(drawn)
        _validation.check_number("elapsed of model", rounds.elapsed.min(), minimum=0)
        masks = np.asarray(arrived_messages(code, rounds, None))
        missing = np.sum(~rounds.received, axis=1)
        failed = np.array([not _is_enough(code, *one) for one in zip(masks, missing)])
        problem = None
        if failed.mean() >= 7 / 8:
            problem = rounds_problem(code, rounds.received, failed, rounds.elapsed)
    if problem is not None:
        warnings.warn(f"of model, {problem}", stacklevel=3)


@functools.partial(jax.jit, static_argnums=0)
def _draw(model, keys, loads):
    """First rounds, side by side; equal models share the program."""
    state = model.init(len(loads))
    return jax.vmap(lambda key: model.sample(key, state, loads)[0])(keys)


def _is_enough(code, mask, num_missing):
    """Whether a round decodes. In NumPy: nothing is compiled for it."""
    if not code.num_stragglers:
        # An approximate code may decode no round exactly.
        return mask.any()
    if num_missing <= code.num_stragglers:
        return True
    rows = np.asarray(code.encoding_matrix)[mask].T
    targets = np.asarray(code.segment_targets).T
    miss = rows @ np.linalg.lstsq(rows, targets, rcond=None)[0] - targets
    return np.linalg.norm(miss) <= DECODES * np.linalg.norm(targets)


def rounds_problem(
    code: GradientCode,
    received: np.ndarray,
    failed: np.ndarray,
    elapsed: np.ndarray | None,
) -> str | None:
    """Explains why rounds do not decode, where at least half of them do not.

    Args:
      code: a gradient code.
      received: bool (rounds, num_workers), who has answered.
      failed: bool (rounds,), which rounds could not be decoded.
      elapsed: (rounds,), how long each took; None where nobody knows.
    """
    if failed.mean() < 0.5:
        return None
    counts = received.sum(1)
    num_rounds, num_workers = received.shape
    enough = num_workers - code.num_stragglers
    lost = f"{failed.sum()} of {num_rounds} rounds cannot be decoded: "
    is_same = (received == received[0]).all()
    if not counts.any():
        took = "" if elapsed is None else f" in a round of {elapsed.mean():.3g}"
        return (
            f"{lost}nobody answers{took}. A deadline that nobody meets, or a mask that "
            "is inverted: received and stragglers.fixed are True for who has answered"
        )
    if is_same and not are_undecodable(code, ~received[:1]).any():
        return (
            f"{lost}the same {counts[0]} of {num_workers} workers answer in each, and "
            f"the {num_workers - counts[0]} others would decode: the mask is inverted? "
            "received and stragglers.fixed are True for who has answered"
        )
    # Approximate codes do not say how many answers are enough.
    if not code.num_stragglers:
        return None
    answers = (
        f"{lost}{_range(counts)} of {num_workers} workers answer, and any {enough} "
        "are enough"
    )
    if (counts == counts[0]).all():
        return (
            f"{answers}. It waits for too few, such as stragglers.fastest({counts[0]}) "
            "or until_decodable of another code, or loses too many: take stragglers."
            f"fastest({enough}) or stragglers.until_decodable(code)"
        )
    if elapsed is not None and np.allclose(elapsed, elapsed[0]):
        return (
            f"{answers}; every round takes {elapsed[0]:.3g}. A deadline that too few "
            "meet, or workers that are lost too often"
        )
    return (
        f"{answers}. The waiting rule ends rounds too early: one of another code? take "
        f"stragglers.fastest({enough}) or stragglers.until_decodable(code)"
    )


def _range(counts: np.ndarray) -> str:
    least, most = counts.min(), counts.max()
    return f"{least}" if least == most else f"{least} to {most}"
