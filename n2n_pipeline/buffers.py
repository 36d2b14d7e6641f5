"""Large arrays whose memory is used again.

The C library maps a large block anew each time, and the system zeroes its pages one by one as they are written:
for the averages of a window that costs several times what computing them does. Here an array's memory comes back
when its last view is gone, and the next array of that size takes it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEAST_BYTES, MOST_BYTES = 1 << 20, 33 << 20
KEPT = 4  # blocks that wait to be used again: 132 MiB at most

_free: deque[Array] = deque(maxlen=KEPT)  # threads take and put single blocks, which needs no lock


class _Loan:
    """Memory that an array made from this keeps, and that comes back with it."""

    def __init__(self, memory: Array) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        _free.append(self._memory)


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an array of any content, as `numpy.empty` does, in memory that was used before if there is some.

    Examples
    --------
    >>> first = empty((1024, 1024), np.float32)
    >>> address = first.ctypes.data
    >>> view = first[8:]
    >>> del first
    >>> empty((1024, 1024), np.float32).ctypes.data == address  # a view is in use
    False
    >>> del view
    >>> empty((2048, 512), np.int32).ctypes.data == address
    True
    """
    wanted = np.dtype(dtype)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
    if not LEAST_BYTES <= n_bytes <= MOST_BYTES:
        return np.empty(shape, wanted)
    return np.asarray(_Loan(_take(n_bytes))).view(wanted).reshape(shape)


def contiguous(array: Array) -> Array:
    """Return an array in one piece: itself, or a copy."""
    if array.flags.c_contiguous:
        return array
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _take(n_bytes: int) -> Array:
    for _ in range(len(_free)):
        try:
            memory = _free.pop()  # the latest: a part of it is in a cache still
        except IndexError:  # another thread was faster
            break
        if memory.size == n_bytes:
            return memory
        _free.appendleft(memory)
    return np.empty(n_bytes, np.uint8)
