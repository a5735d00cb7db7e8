"""Why rounds do not decode, by who has answered in them."""

import numpy as np

from jaxwgc import coding
from jaxwgc.codes import GradientCode


def are_undecodable(code: GradientCode, received: np.ndarray) -> np.ndarray:
    """Returns which rounds, bool (rounds, num_workers), cannot be decoded."""
    return np.asarray(coding.decoding(code, received).failed())


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
            f"{answers}. The model waits for too few, such as stragglers.fastest("
            f"{counts[0]}), or until_decodable of another code: take stragglers."
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
