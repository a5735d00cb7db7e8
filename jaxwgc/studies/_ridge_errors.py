"""Ridge regression errors, a smooth objective in the search for worst stragglers."""

import numpy as np

from jaxwgc.codes import GradientCode

# Ridge in mean squared norms of the rows of B. Small, so that ridge errors follow those
# of least squares; large enough that remaining copies do not hide a lost one.
_RIDGE = 0.01


class RidgeErrors:
    """Decoding errors of ridge regression, on the host in float64.

    The error of a set of stragglers is the minimum of ‖aᵀB - target‖² + ridge ‖a‖² over
    weights a that are zero at the stragglers. It is an upper bound of the least-squares
    error, and grows with every straggler, even if the latter does not (a block of
    copies is lost only with its last copy). A swap changes it by an update of rank two,
    so that all swaps together need one inverse.

    Attributes:
      num_workers: n.
      tolerance: Errors that differ by less count as equal.
    """

    def __init__(self, code: GradientCode):
        dtype = np.complex128 if code.is_complex else np.float64
        matrix = np.asarray(code.encoding_matrix, dtype)
        ridge = _RIDGE * np.mean(np.sum(np.abs(matrix) ** 2, axis=1))
        self.num_workers = code.num_workers
        # The messages of a worker are removed together.
        self._rows = (matrix / np.sqrt(ridge if ridge > 0 else 1)).reshape(
            self.num_workers, -1, matrix.shape[1]
        )
        # The segments of a part have separate targets; their errors are averaged.
        target = np.asarray(code.target, np.float64)[:, None]
        self._targets = np.kron(target, np.eye(code.num_segments)) / np.sqrt(
            code.num_segments
        )
        self.tolerance = 1e-9 * np.sum(self._targets**2)

    def of(self, lost: tuple[int, ...]) -> float:
        """Computes the ridge error of a set of stragglers."""
        return float(np.sum(self._targets * (self._inverse(lost) @ self._targets)).real)

    def after_losing(self, lost: tuple[int, ...], others: np.ndarray) -> np.ndarray:
        """Computes errors (number,) with one more straggler from `others` (number,)."""
        return self._after(lost, others[:, None], np.array([-1.0]))

    def after_swaps(self, lost: tuple[int, ...], swaps: np.ndarray) -> np.ndarray:
        """Computes errors (number,) after each swap (number, 2): lost, restored."""
        return self._after(lost, swaps, np.array([-1.0, 1.0]))

    def climb(self, lost: tuple[int, ...]) -> tuple[int, ...]:
        """Applies the swap with the largest error until no swap increases the error."""
        error = self.of(lost)
        while True:
            swaps = all_swaps(lost, self.num_workers)
            errors = self.after_swaps(lost, swaps)
            best = int(np.argmax(errors))
            if not errors[best] > error + self.tolerance:
                return lost
            lost, error = swapped(lost, swaps[best]), errors[best]

    def _inverse(self, lost: tuple[int, ...]) -> np.ndarray:
        """Returns the inverse of the identity plus B^H B, over the remaining rows."""
        kept = np.delete(self._rows, np.array(lost, int), axis=0)
        kept = kept.reshape(-1, kept.shape[-1])
        return np.linalg.inv(np.eye(kept.shape[-1]) + kept.conj().T @ kept)

    def _after(
        self, lost: tuple[int, ...], workers: np.ndarray, signs: np.ndarray
    ) -> np.ndarray:
        """Computes errors with workers (number, size) removed (-1) or restored (1).

        Uses the Woodbury identity. Entry p of `workers` changes B^H B by U_p S U_p^H,
        with U_p the rows of its workers.
        """
        rows = self._rows.reshape(-1, self._rows.shape[-1])
        num_workers, num_messages = self._rows.shape[:2]
        solved = self._inverse(lost) @ np.concatenate(
            [self._targets, rows.conj().T], axis=1
        )
        num_targets = self._targets.shape[1]
        error = np.sum(self._targets * solved[:, :num_targets]).real
        products = (rows @ solved).reshape(num_workers, num_messages, -1)
        reached = products[..., :num_targets][workers]
        gram = products[..., num_targets:].reshape(
            num_workers, num_messages, num_workers, num_messages
        )
        # Axes (number, size, size, message, message), then square systems.
        blocks = gram.transpose(0, 2, 1, 3)[workers[:, :, None], workers[:, None, :]]
        size = workers.shape[1] * num_messages
        systems = blocks.transpose(0, 1, 3, 2, 4).reshape(-1, size, size)
        systems = systems + np.diag(np.repeat(signs, num_messages))
        reached = reached.reshape(-1, size, num_targets)
        changes = np.sum(
            reached.conj() * np.linalg.solve(systems, reached), axis=(1, 2)
        )
        return error - changes.real


def all_swaps(lost: tuple[int, ...], num_workers: int) -> np.ndarray:
    """Returns every swap (number, 2) of a responder for a straggler.

    Swaps are ordered by straggler, then by responder.
    """
    back, gone = np.meshgrid(
        lost, np.setdiff1d(np.arange(num_workers), lost), indexing="ij"
    )
    return np.stack([gone.ravel(), back.ravel()], axis=1).astype(int)


def swapped(lost: tuple[int, ...], swap: np.ndarray) -> tuple[int, ...]:
    """Returns the sorted set after a swap."""
    gone, back = swap.tolist()
    return tuple(sorted({*lost, gone} - {back}))
