"""How far a stage has come: a bar on a terminal, otherwise a plain line every few seconds; always on stderr.

Lines are what ends up in a batch system's log, so they hold no control characters and no more than one is
written per :data:`LINE_INTERVAL`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Step = Callable[[int], None]

LINE_INTERVAL = 5.0  # seconds
_quiet = False


def set_quiet(quiet: bool = True) -> None:
    """Show no progress from now on, or show it again."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Tell whether progress is hidden."""
    return _quiet


@lru_cache(maxsize=1)
def terminal() -> Console:
    """Return the one console that bars and notices share, so that they do not overwrite each other."""
    from rich.console import Console  # loaded by whoever has something to show

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(label: str, total: int | None, unit: str = "frames") -> Iterator[Step]:
    """Show how much of a job is done while the block runs.

    Parameters
    ----------
    label : str
        What is being done, in a word or two.
    total : int or None
        How many units there are; None if nobody knows.
    unit : str
        What is counted, in the plural.

    Yields
    ------
    callable
        ``step(n)`` tells that ``n`` more units are done; any thread may call it.

    Examples
    --------
    >>> with progress("align", total=3) as step:
    ...     step(3)
    """
    if _quiet:
        yield lambda n: None
    elif sys.stderr.isatty():
        with _bar(label, total, unit) as step:
            yield step
    else:
        lines = _Lines(label, total, unit)
        yield lines.step
        lines.finish()


class _Lines:
    """Counts, and writes a line when the last one is old enough."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.told = 0
        self.start = self.written = time.monotonic()
        self.lock = threading.Lock()

    def step(self, n: int) -> None:
        with self.lock:
            self.done += n
            if time.monotonic() - self.written >= LINE_INTERVAL:
                self.write()

    def finish(self) -> None:
        if self.told not in (0, self.done):  # a job that ended before its first line was due needs none
            self.write()

    def write(self) -> None:
        self.written, self.told = time.monotonic(), self.done
        print(describe(self, self.written - self.start), file=sys.stderr, flush=True)  # noqa: T201


def describe(lines: _Lines, seconds: float) -> str:
    """Put a count, its rate and the time left into one line.

    Examples
    --------
    >>> lines = _Lines("denoise", 48, "frames")
    >>> lines.step(12)
    >>> describe(lines, 6.0)
    'denoise: 12 of 48 frames, 2 frames/s, 18 s left'
    """
    count = f"{lines.done} of {lines.total}" if lines.total else f"{lines.done}"
    text = f"{lines.label}: {count} {lines.unit}"
    if not lines.done or seconds <= 0:
        return text
    rate = lines.done / seconds
    text += f", {rate:.3g} {lines.unit}/s"
    return f"{text}, {duration((lines.total - lines.done) / rate)} left" if lines.total else text


def duration(seconds: float) -> str:
    """Say a time the way a person would.

    Examples
    --------
    >>> duration(8.2), duration(247), duration(7500)
    ('8 s', '4 min 7 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@lru_cache(maxsize=1)
def _bars() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]} {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=terminal(),
        transient=True,
    )


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Step]:
    bars = _bars()
    outermost = not bars.live.is_started
    if outermost:
        bars.start()
    task = bars.add_task(label, total=total, unit=unit, rate="")

    def step(n: int) -> None:
        bars.advance(task, n)
        speed = bars.tasks[bars.task_ids.index(task)].speed
        bars.update(task, rate=f"{speed:.3g}/s" if speed else "")

    try:
        yield step
    finally:
        bars.remove_task(task)
        if outermost:
            bars.stop()
