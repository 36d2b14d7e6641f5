"""One pass over a movie's frames: units are written, every frame is looked at, statistics over time are gathered.

By threads of this process, which gather while they write; or by the workers of a cluster, which write first and
then read rows back for the statistics. Both sum in the same order, so both end with the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline import buffers
from n2n_pipeline.arrays import open_array
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError, Stopped
from n2n_pipeline.files import retry_transient, to_json, write_atomically
from n2n_pipeline.gathering import Gatherer, Looks, Statistics, look
from n2n_pipeline.layout import Layout
from n2n_pipeline.manifest import FAILED
from n2n_pipeline.progress import progress
from n2n_pipeline.records import Ledger, Unit, stop_requested, write_unit
from n2n_pipeline.shards import write_frames
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.images import list_movie_files
from n2n_pipeline.sources.reduced import ReducedMovie

if TYPE_CHECKING:
    from distributed import Client

FEW_FILES = 8
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
            with buffers.frames.keeping():
                for turn, unit in enumerate(work.spans):
                    running.append(pool.submit(writer.do, turn, unit))
                    if len(running) > threads:
                        step(running.popleft().result())
                while running:
                    step(running.popleft().result())
            gatherer.statistics.settle(pool)  # not before, as the memory of units is free now
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
        self._seen = _share_files(work)

    def do(self, turn: int, unit: Unit) -> int:
        """Read one unit's frames, and write them if that is still to be done; return how many."""
        span = self._work.spans[unit]
        try:
            frames = retry_transient(partial(self._work.movie.read_frames, span.start, span.stop))
            looks = self._gatherer.accumulate(turn, frames)
            if unit in self._pending:
                retry_transient(partial(self._write, unit, span, frames, looks))
        except BaseException:
            self._gatherer.give_up()
            raise
        return len(span)

    def _write(self, unit: Unit, span: range, frames: npt.NDArray[Any], looks: Looks) -> None:
        with self._ledger.writing(unit) as notes:
            write_frames(self._work.output / "0", self._work.layout, span, frames)
            notes.update(looks.notes())
            _check_unchanged(self._work.movie.path, self._seen[unit])


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
    errand, seen = _Errand(movie, output, work.config, work.layout), _share_files(work)
    writes = {
        unit: partial(_write_remotely, errand, unit, work.spans[unit], seen[unit], ledger.stamp)
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


class _Errand(NamedTuple):
    """What a worker elsewhere must know of the work."""

    movie: Path
    output: Path
    config: IngestConfig
    layout: Layout


@lru_cache(maxsize=1)
def _opened(movie: Path, config: IngestConfig) -> ReducedMovie:
    return ReducedMovie(open_movie(movie, config), config)


def _write_remotely(errand: _Errand, unit: Unit, span: range, seen: Sequence[_Seen], stamp: str) -> None:
    frames = _opened(errand.movie, errand.config).read_frames(span.start, span.stop)
    with write_unit(errand.output, unit, stamp) as notes:
        write_frames(errand.output / "0", errand.layout, span, frames)
        notes.update(look(frames).notes())
        _check_unchanged(errand.movie, seen)


def _gather_remotely(output: Path, spans: Iterable[range], rows: slice) -> Statistics:
    array = open_array(output, "0")
    statistics = Statistics((rows.stop - rows.start, array.shape[2]))
    for span in spans:
        statistics.accumulate(np.asarray(array[span.start : span.stop, rows]))
    return statistics


class _Seen(NamedTuple):
    """A file of the movie as it was when work began."""

    path: Path
    size: int
    mtime_ns: int


def _share_files(work: Work) -> dict[Unit, list[_Seen]]:
    """Say which files are looked at again after each unit: every one if they are few, else each one once.

    A camera's folder may hold 100 000 files, and a look at all of them take longer than a unit.
    """
    seen = [_see(path) for path in list_movie_files(work.movie.path.absolute())]
    if len(seen) <= FEW_FILES:
        return dict.fromkeys(work.spans, seen)
    step = len(seen) / len(work.spans)
    return {unit: seen[round(n * step) : round((n + 1) * step)] for n, unit in enumerate(work.spans)}


def _see(path: Path) -> _Seen:
    status = path.stat()
    return _Seen(path, status.st_size, status.st_mtime_ns)


def _check_unchanged(movie: Path, files: Iterable[_Seen]) -> None:
    if any(_see(file.path) != file for file in files):
        raise InputError(movie, "changed while reading", "wait until it is written")
