"""Threads that read while another computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], ahead: int, threads: int = 1
) -> Generator[tuple[Item, Result]]:
    """Yield every item with what was read for it, in order, while threads read the next ``ahead`` of them.

    An error of the reader is raised where its item is due. When the consumer stops early, what is being read is
    finished and the rest is left.

    Examples
    --------
    >>> list(read_ahead(len, ["a", "bc"], ahead=1))
    [('a', 1), ('bc', 2)]
    """
    remaining = iter(items)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as reader:
        try:
            waiting.extend((item, reader.submit(read, item)) for item in islice(remaining, ahead))
            while waiting:
                item, result = waiting.popleft()
                ready = result.result()
                waiting.extend((later, reader.submit(read, later)) for later in islice(remaining, 1))
                yield item, ready
        finally:
            for _, result in waiting:
                result.cancel()
