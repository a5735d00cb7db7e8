"""Errors of ridge regression: a smooth guide in the search for the worst stragglers."""

import numpy as np

from jaxwgc.codes import GradientCode

# Ridge, in mean squared norms of the rows of B. Small, so that they follow the
# error of least squares; not so small that copies that are still there hide a lost one.
_RIDGE = 0.01


class RidgeErrors:
    """Errors of ridge regression in the place of least squares, on the host in float64.

    That of a set of stragglers is the least of the squared norm of aᵀB - target plus
    a ridge times the squared norm of a, over the a that are zero at them. It is never
    below the error of least squares, and grows with every straggler, also where that
    does not (a block of copies is lost with the last of them only). What a swap does to
    it is an update of rank two, so all swaps together cost one inverse.

    Attributes:
      num_workers: n.
      tolerance: errors that differ by less are equal.
    """

    def __init__(self, code: GradientCode):
        dtype = np.complex128 if code.is_complex else np.float64
        matrix = np.asarray(code.encoding_matrix, dtype)
        ridge = _RIDGE * np.mean(np.sum(np.abs(matrix) ** 2, axis=1))
        self.num_workers = code.num_workers
        # The messages of a worker come and go together.
        self._rows = (matrix / np.sqrt(ridge if ridge > 0 else 1)).reshape(
            self.num_workers, -1, matrix.shape[1]
        )
        # The segments of a part are decoded one by one, each from its own target; their
        # errors count as the mean.
        target = np.asarray(code.target, np.float64)[:, None]
        self._targets = np.kron(target, np.eye(code.num_segments)) / np.sqrt(
            code.num_segments
        )
        self.tolerance = 1e-9 * np.sum(self._targets**2)

    def of(self, lost: tuple[int, ...]) -> float:
        """The ridge error of a set of stragglers."""
        return float(np.sum(self._targets * (self._inverse(lost) @ self._targets)).real)

    def after_losing(self, lost: tuple[int, ...], others: np.ndarray) -> np.ndarray:
        """Errors (number,) with one more straggler each, of `others` (number,)."""
        return self._after(lost, others[:, None], np.array([-1.0]))

    def after_swaps(self, lost: tuple[int, ...], swaps: np.ndarray) -> np.ndarray:
        """Errors (number,) after each swap (number, 2): who is lost, who is back."""
        return self._after(lost, swaps, np.array([-1.0, 1.0]))

    def climb(self, lost: tuple[int, ...]) -> tuple[int, ...]:
        """Makes the swap of the largest error as long as that is larger."""
        error = self.of(lost)
        while True:
            swaps = all_swaps(lost, self.num_workers)
            errors = self.after_swaps(lost, swaps)
            best = int(np.argmax(errors))
            if not errors[best] > error + self.tolerance:
                return lost
            lost, error = swapped(lost, swaps[best]), errors[best]

    def _inverse(self, lost: tuple[int, ...]) -> np.ndarray:
        """Inverse of the identity plus B^H B, over the rows that are not lost."""
        kept = np.delete(self._rows, np.array(lost, int), axis=0)
        kept = kept.reshape(-1, kept.shape[-1])
        return np.linalg.inv(np.eye(kept.shape[-1]) + kept.conj().T @ kept)

    def _after(
        self, lost: tuple[int, ...], workers: np.ndarray, signs: np.ndarray
    ) -> np.ndarray:
        """Errors with workers (number, size) taken away (-1) or given back (1).

        By the Woodbury identity. Entry p of `workers` changes B^H B by U_p S U_p^H, U_p
        the rows of its workers.
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
        # Axes (number, size, size, message, message), then to square systems.
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
    """Every swap (number, 2) of a responder, who is lost, for a straggler, who is back.

    In the order of the stragglers, then of the responders.
    """
    back, gone = np.meshgrid(
        lost, np.setdiff1d(np.arange(num_workers), lost), indexing="ij"
    )
    return np.stack([gone.ravel(), back.ravel()], axis=1).astype(int)


def swapped(lost: tuple[int, ...], swap: np.ndarray) -> tuple[int, ...]:
    """The set after a swap, sorted."""
    gone, back = swap.tolist()
    return tuple(sorted({*lost, gone} - {back}))
