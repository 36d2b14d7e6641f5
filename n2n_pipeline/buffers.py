"""Large arrays whose memory is used again.

The C library maps a large block anew each time, and the system zeroes its pages one by one as they are written:
for the averages of a window that costs several times what computing them does. Here an array's memory comes back
when its last view is gone, and the next array of about that size takes it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEAST_BYTES = 1 << 20


class Pool:
    """Memory for arrays of one kind, which are about as large as each other and come and go in threads.

    Parameters
    ----------
    most_bytes : int
        Largest array whose memory is kept.
    kept : int
        How many blocks of memory may wait to be used again.
    always : bool
        Keep memory at any time, not only inside `keeping`.
    """

    def __init__(self, most_bytes: int, kept: int = 4, always: bool = True) -> None:
        self._most_bytes, self._kept = most_bytes, kept
        # Threads take and put single blocks, which needs no lock.
        self._free: deque[Array] = deque(maxlen=kept if always else 0)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an array of any content, as `numpy.empty` does, in memory that was used before if there is some.

        Examples
        --------
        >>> pool = Pool(1 << 25)
        >>> first = pool.empty((1024, 1024), np.float32)
        >>> address = first.ctypes.data
        >>> view = first[8:]
        >>> del first
        >>> pool.empty((1024, 1024), np.float32).ctypes.data == address  # a view is in use
        False
        >>> del view
        >>> pool.empty((2048, 512), np.int32).ctypes.data == address
        True
        """
        wanted = np.dtype(dtype)
        n_bytes = math.prod(shape) * wanted.itemsize
        if not LEAST_BYTES <= n_bytes <= self._most_bytes:
            return np.empty(shape, wanted)
        memory = self._take(_round_up_size(n_bytes))
        return np.asarray(_Loan(self._free, memory))[:n_bytes].view(wanted).reshape(shape)

    def contiguous(self, array: Array) -> Array:
        """Return an array in one piece: itself, or a copy."""
        if array.flags.c_contiguous:
            return array
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep memory inside the body only.

        Examples
        --------
        >>> pool = Pool(1 << 25, always=False)
        >>> with pool.keeping():
        ...     pool.empty((1024, 1024), np.float32).fill(7)
        ...     float(pool.empty((1024, 1024), np.float32).max())  # new memory is blank
        7.0
        """
        before, self._free = self._free, deque(maxlen=self._kept)
        try:
            yield
        finally:
            self._free = before  # what is still out comes back to no one

    def _take(self, n_bytes: int) -> Array:
        for _ in range(len(self._free)):
            try:
                memory = self._free.pop()  # the latest: a part of it is in a cache still
            except IndexError:  # another thread was faster
                break
            if memory.size == n_bytes:
                return memory
            self._free.appendleft(memory)
        return np.empty(n_bytes, np.uint8)


def _round_up_size(n_bytes: int) -> int:
    """Return a size that arrays of almost as many bytes have, too: one of eight between powers of two.

    Where a scene drifts, blocks of a movie differ by a few rows and columns.
    """
    step = 1 << max(n_bytes.bit_length() - 4, 0)
    return -(-n_bytes // step) * step


class _Loan:
    """Memory that an array made from this keeps, and that comes back with it."""

    def __init__(self, owner: deque[Array], memory: Array) -> None:
        self._owner, self._memory = owner, memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._owner.append(self._memory)


averages = Pool(52 << 20, kept=8)
"""For windows' averages: values and counts of two halves, as they are computed and as they are cut. The largest
are all levels of the frames that denoising reads together (`inference.choice`)."""
frames = Pool(192 << 20, always=False)
"""For raw counts on their way from a file to a store, while a whole movie is read."""
