"""One pass over a movie's frames: units are written, every frame is looked at, statistics over time are gathered.

By threads of this process, which gather while they write; or by the workers of a cluster, which write first and
then read rows back for the statistics. Both sum in the same order, so both end with the same bytes.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError, Stopped
from n2n_pipeline.files import retry_transient, to_json, write_atomically
from n2n_pipeline.gathering import Gatherer, Statistics
from n2n_pipeline.layout import Layout
from n2n_pipeline.manifest import FAILED
from n2n_pipeline.progress import progress
from n2n_pipeline.records import Ledger, Unit, stop_requested, write_unit
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.images import list_movie_files
from n2n_pipeline.sources.reduced import ReducedMovie
from n2n_pipeline.store import open_array, write_frames

if TYPE_CHECKING:
    from distributed import Client

CHECKED_ROWS = 8  # of so many, one is looked at to find frames that may be equal
RETRIES = 2  # of a unit whose worker met an error or died


@dataclass(frozen=True)
class Work:
    """What is read, and where it goes."""

    movie: ReducedMovie
    config: IngestConfig
    output: Path
    layout: Layout
    spans: Mapping[Unit, range]
    """Frames of every unit, in order."""


def pass_with_threads(work: Work, ledger: Ledger, threads: int) -> Statistics:
    """Do all units, ``threads`` at a time; units that are done are read for their statistics only."""
    gatherer = Gatherer(work.layout.shape[1:])
    writer = _Writer(work, ledger, gatherer)
    with progress("ingest", work.layout.shape[0]) as step, ThreadPoolExecutor(threads) as pool:
        running: deque[Future[int]] = deque()
        try:
            for turn, unit in enumerate(work.spans):
                running.append(pool.submit(writer.do, turn, unit))
                if len(running) > threads:
                    step(running.popleft().result())
            while running:
                step(running.popleft().result())
        except CancelledError:
            raise _cause(running) from None
        finally:
            for future in running:
                future.cancel()
    return gatherer.statistics


class _Writer:
    """Does one unit at a time, in any of several threads."""

    def __init__(self, work: Work, ledger: Ledger, gatherer: Gatherer) -> None:
        self._work, self._ledger, self._gatherer = work, ledger, gatherer
        self._pending = set(ledger.pending)
        self._array = open_array(work.output, "0", "r+")
        self._before = _stat(work.movie.path)

    def do(self, turn: int, unit: Unit) -> int:
        """Read one unit's frames, and write them if that is still to be done; return how many."""
        span = self._work.spans[unit]
        try:
            frames = retry_transient(partial(self._work.movie.read_frames, span.start, span.stop))
            self._gatherer.accumulate(turn, frames)
            if unit in self._pending:
                retry_transient(partial(self._write, unit, span, frames))
        except BaseException:
            self._gatherer.give_up()
            raise
        return len(span)

    def _write(self, unit: Unit, span: range, frames: npt.NDArray[Any]) -> None:
        with self._ledger.writing(unit) as notes:
            write_frames(self._array, span, frames)
            notes.update(inspect_frames(frames))
            _check_unchanged(self._work.movie.path, self._before)


def _cause(futures: Iterable[Future[int]]) -> BaseException:
    """Find why one thread gave up, when others only stopped waiting for it."""
    for future in futures:
        error = None if future.cancel() else future.exception()
        if error is not None and not isinstance(error, CancelledError):
            return error
    return CancelledError()


def pass_with_workers(work: Work, ledger: Ledger, client: Client) -> Statistics:
    """Do what is pending on the workers of a cluster, then gather statistics from what is stored.

    Raises
    ------
    InputError
        If units failed on several workers; they are listed in the store's records, and all others are done [65].
    Stopped
        If a signal asked for it, or the cluster is gone.
    """
    movie, output = work.movie.path.absolute(), work.output.absolute()
    writes = {
        unit: partial(_write_remotely, movie, output, work.config, unit, work.spans[unit], ledger.stamp)
        for unit in ledger.pending
        if unit in work.spans
    }
    failed: dict[str, str] = {}
    with progress("ingest", sum(len(work.spans[unit]) for unit in writes)) as step:
        for unit, _, error in run_on(client, writes, output):
            if error is None:
                step(len(work.spans[unit]))
            else:
                failed[unit.name] = error
    if failed:
        write_atomically(output / FAILED, to_json(failed))
        name, error = next(iter(failed.items()))
        raise InputError(work.output, f"{len(failed)} parts failed, first {name}: {error}", "all others are done")
    return _gather_with_workers(work, client)


def _gather_with_workers(work: Work, client: Client) -> Statistics:
    """Read the stored movie once more, each worker some rows of all frames."""
    output, spans = work.output.absolute(), list(work.spans.values())
    height, rows = work.layout.shape[1], work.layout.chunks[1]
    bands = [slice(y, min(y + rows, height)) for y in range(0, height, rows)]
    reads = {number: partial(_gather_remotely, output, spans, band) for number, band in enumerate(bands)}
    statistics = Statistics(work.layout.shape[1:])
    for number, part, error in run_on(client, reads, output):
        if error:
            raise InputError(work.output, f"cannot be read back: {error}")
        statistics.insert(bands[number], part)
    return statistics


class Outcome(NamedTuple):
    """What became of a task on some worker."""

    key: Any
    result: Any
    error: str | None
    """Why it failed for good, on several workers."""


def run_on(client: Client, tasks: Mapping[Any, Callable[[], Any]], store: Path) -> Iterator[Outcome]:
    """Run tasks on the workers of a cluster, and yield the outcomes as they come.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    tasks : mapping
        What to run, by any key.
    store : pathlib.Path
        What the tasks work on, to be named when they are stopped.

    Raises
    ------
    Stopped
        If a signal asked for it, or the scheduler is gone.
    """
    with client.get_executor(pure=False, retries=RETRIES) as executor:
        keys = {executor.submit(task): key for key, task in tasks.items()}
        try:
            for future in as_completed(keys):
                if stop_requested():
                    raise Stopped(store)
                error = future.exception()
                yield Outcome(keys[future], None if error else future.result(), str(error) if error else None)
        except CancelledError as error:
            raise Stopped(store, "the scheduler is gone; run the same command again to continue") from error
        finally:
            for future in keys:
                future.cancel()


@lru_cache(maxsize=1)
def _opened(movie: Path, config: IngestConfig) -> ReducedMovie:
    return ReducedMovie(open_movie(movie, config), config)


def _write_remotely(movie: Path, output: Path, config: IngestConfig, unit: Unit, span: range, stamp: str) -> None:
    before = _stat(movie)
    frames = _opened(movie, config).read_frames(span.start, span.stop)
    with write_unit(output, unit, stamp) as notes:
        write_frames(open_array(output, "0", "r+"), span, frames)
        notes.update(inspect_frames(frames))
        _check_unchanged(movie, before)


def _gather_remotely(output: Path, spans: Iterable[range], rows: slice) -> Statistics:
    array = open_array(output, "0", "r")
    statistics = Statistics((rows.stop - rows.start, array.shape[2]))
    for span in spans:
        statistics.accumulate(np.asarray(array[span.start : span.stop, rows]))
    return statistics


def inspect_frames(frames: npt.NDArray[Any]) -> dict[str, Any]:
    """Note of every frame: checksum, its value if it has only one, pixels not finite, pixels at the type's end."""
    notes: dict[str, Any] = {"crc32": [], "constant": [], "not_finite": [], "saturated": []}
    for frame in frames:
        low, high = frame.min(), frame.max()
        notes["crc32"].append(zlib.crc32(np.ascontiguousarray(frame[::CHECKED_ROWS]).data))
        notes["constant"].append(low.item() if low == high and np.isfinite(low) else None)
        is_float = frame.dtype.kind == "f"
        notes["not_finite"].append(int(np.count_nonzero(~np.isfinite(frame))) if is_float else 0)
        full = not is_float and high == np.iinfo(frame.dtype).max
        notes["saturated"].append(int(np.count_nonzero(frame == high)) if full else 0)
    return notes


def _stat(movie: Path) -> tuple[int, int]:
    found = [file.stat() for file in list_movie_files(movie)]
    return sum(state.st_size for state in found), max(state.st_mtime_ns for state in found)


def _check_unchanged(movie: Path, before: tuple[int, int]) -> None:
    if _stat(movie) != before:
        raise InputError(movie, "changed while reading", "wait until it is written")
