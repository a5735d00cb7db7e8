"""Memory for the messages of a round, which rounds to come use again."""

import weakref

import numpy as np


class _Loan:
    """What an array from `Memory` and all views of it hold on to."""

    def __init__(self, block: np.ndarray):
        self.block = block
        self.__array_interface__ = block.__array_interface__


class Memory:
    """Arrays of one shape, whose memory is lent again once nobody looks at it.

    Fresh memory would cost more than what is copied into it: the system gives it page
    by page.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        self._shape, self._dtype = shape, dtype
        self._loans: list[tuple[np.ndarray, weakref.ref]] = []

    def borrow(self) -> np.ndarray:
        """An array with arbitrary entries, which nobody else has."""
        returned = [block for block, loan in self._loans if loan() is None]
        kept = [own for own in self._loans if own[1]() is not None]
        loan = _Loan(returned[0] if returned else self._fresh())
        # While one is looked at, another is filled.
        self._loans = [*kept[-1:], (loan.block, weakref.ref(loan))]
        return np.asarray(loan)

    def _fresh(self) -> np.ndarray:
        """JAX takes it on the CPU as it is, since it begins at 64 bytes."""
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        memory = np.empty(size + 64, np.uint8)
        start = -memory.ctypes.data % 64
        return memory[start : start + size].view(self._dtype).reshape(self._shape)
