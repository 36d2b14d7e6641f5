"""Camera file to store: raw counts, references and defects, in one pass and in bounded memory.

A unit of work is one span of frames, which is one shard (or, for very large frames, a few). Threads take units in
order; each reads, decodes, compresses, writes and records its own, so that all cores and the disk work at once and
no more than one unit per thread is in memory. While the frames pass by, their mean and variance over time are
gathered, from which defects are found. A run that was killed continues, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from n2n_pipeline import __version__
from n2n_pipeline.arrays import open_array
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.creation import References, create_store, write_references
from n2n_pipeline.defects import find_defects
from n2n_pipeline.errors import ExitCode, InputError, printable
from n2n_pipeline.files import digest_file, expect, require_space
from n2n_pipeline.frame_pass import Work, pass_with_threads, pass_with_workers
from n2n_pipeline.gathering import Statistics
from n2n_pipeline.layout import default_layout, estimate_bytes, fit_shuffle, plan_units
from n2n_pipeline.pyramid import Shard, plan_level_units, plan_levels, write_level_shard
from n2n_pipeline.records import Ledger, Unit
from n2n_pipeline.references import read_references, suggest_orientation
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.images import list_movie_files
from n2n_pipeline.sources.reduced import ReducedMovie

if TYPE_CHECKING:
    from distributed import Client

SAMPLES = 64
SAMPLE_BYTES = 1 << 16
MOST_NOT_FINITE = 0.01
MANY_SATURATED = 0.01
MOST_LISTED = 10  # frames, in a warning

_log = logging.getLogger(__name__)


def ingest_movie(
    movie: Path,
    output: Path,
    config: IngestConfig | None = None,
    restart: bool = False,
    *,
    threads: int | None = None,
    client: Client | None = None,
) -> Path:
    """Turn a camera's movie into a store of raw counts, continuing where a killed run stopped.

    Parameters
    ----------
    movie : pathlib.Path
        Anything that `sources.open_movie` reads.
    output : pathlib.Path
        Store to write; its name ends in ``.zarr``.
    config : IngestConfig, optional
        References, and what is kept of the movie.
    restart : bool
        Throw away a store that was begun with other settings.
    threads : int, optional
        Units in work at a time; by default one more than cores, as one waits for the disk.
    client : distributed.Client, optional
        Workers that do the work instead of threads; see `cluster.connect`.

    Returns
    -------
    pathlib.Path
        The store.

    Raises
    ------
    InputError
        If movie or references cannot be used, or the store not be written.
    Stopped
        If a signal asked to stop.
    """
    if output.suffix != ".zarr":
        raise InputError(output, "a store's name must end in .zarr", code=ExitCode.USAGE)
    config = config or IngestConfig()
    with closing(open_movie(movie, config)) as source:
        for warning in source.info.warnings:
            _log.warning("%s: %s", printable(movie), warning)
        reduced = ReducedMovie(source, config)
        references = read_references(config, reduced, source.info)
        plan = _plan(movie, output, config, reduced, references)
        with Ledger(output, plan.fingerprint, [*plan.spans, *plan.levels], restart) as ledger:
            if not ledger.finished:
                _write(plan, ledger, client or threads or _count_cores() + 1)
    return output


@dataclass(frozen=True)
class _Plan(Work):
    """What will be read and written, and what makes it what it is."""

    references: References
    levels: Mapping[Unit, Shard]
    """Parts of the halved copies of a large image."""
    fingerprint: Mapping[str, Any]
    estimated_bytes: int


class _Findings(NamedTuple):
    """What the frames themselves tell, by frame number."""

    constant: list[int]
    not_finite: list[int]
    duplicates: list[list[int]]


def _plan(movie: Path, output: Path, config: IngestConfig, reduced: ReducedMovie, references: References) -> _Plan:
    layout = default_layout(reduced.info.shape, reduced.info.dtype)
    middle = layout.shape[0] // 2  # the first frame may show a shutter
    sample = reduced.read_frames(middle, middle + 1)
    layout = fit_shuffle(layout, sample)
    fingerprint = {
        "stage": "ingest",
        "source": _identify(movie),
        "settings": _settings(config),
        "shards": list(layout.shards),
        "chunks": list(layout.chunks),
        "shuffle": layout.shuffle,
    }
    return _Plan(
        reduced,
        config,
        output,
        layout,
        dict(plan_units(layout)),
        references,
        plan_level_units(layout),
        fingerprint,
        estimate_bytes(layout, sample),
    )


def _settings(config: IngestConfig) -> dict[str, Any]:
    """Return settings as JSON, with the name and digest of each file instead of its path."""
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for name in ("dark", "gain", "defects"):
        file: Path | None = getattr(config, name)
        if file is not None:
            settings[name] = {"name": file.name, "blake3": digest_file(file)}
    return settings


def _identify(movie: Path) -> dict[str, Any]:
    """Tell a movie from another without reading all of it: its size and a digest of samples spread over it."""
    files = list_movie_files(movie)
    digest = hashlib.sha256()
    count = max(1, SAMPLES // len(files))
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode(errors="surrogateescape"))
        places = [max(0, size - SAMPLE_BYTES) * index // max(count - 1, 1) for index in range(count)]
        for place in places[1:]:  # all at once, as a disk far away is slow to answer
            expect(path, place, SAMPLE_BYTES)
        with path.open("rb") as file:
            for place in places:
                file.seek(place)
                digest.update(file.read(SAMPLE_BYTES))
    return {
        "name": printable(movie.name),
        "size_bytes": sum(path.stat().st_size for path in files),
        "sampled_sha256": digest.hexdigest(),
    }


def _write(plan: _Plan, ledger: Ledger, workers: Client | int) -> None:
    """Write what is pending, look at every frame, then add what only the whole movie tells."""
    require_space(plan.output, _bytes_left(plan, ledger))
    provenance = {
        "kind": "movie",
        "version": __version__,
        "source": plan.fingerprint["source"],
        "settings": plan.fingerprint["settings"],
    }
    levels = plan_levels(plan.layout)
    create_store(plan.output, plan.movie.info, plan.layout, provenance, levels)
    if isinstance(workers, int):
        statistics = pass_with_threads(plan, ledger, workers)
    else:
        statistics = pass_with_workers(plan, ledger, workers)
    findings = _judge(plan, [ledger.notes(unit) for unit in plan.spans])
    create_store(plan.output, plan.movie.info, plan.layout, {**provenance, "frames": findings._asdict()}, levels)
    for unit in ledger.pending:
        if unit in plan.levels:
            with ledger.writing(unit):
                write_level_shard(plan.output, plan.layout, plan.levels[unit])
    write_references(plan.output, _with_defects(plan, statistics))
    ledger.complete()


def _bytes_left(plan: _Plan, ledger: Ledger) -> int:
    """Estimate what is still to be written; halved copies add a third."""
    pending = sum(len(plan.spans[unit]) for unit in ledger.pending if unit in plan.spans)
    whole = plan.estimated_bytes * (4 / 3 if plan.levels else 1)
    return int(whole * pending / plan.layout.shape[0])


def _judge(plan: _Plan, notes: list[dict[str, Any]]) -> _Findings:
    """Refuse a movie that holds nothing to learn from; name frames and pixels that are odd."""
    path, pixels = plan.movie.path, int(np.prod(plan.layout.shape[1:]))
    by_frame = {key: [value for note in notes for value in note[key]] for key in notes[0]}
    constants = set(by_frame["constant"])
    if len(constants) == 1 and None not in constants:
        raise InputError(path, f"all pixels equal {constants.pop():g}; nothing to learn")
    lost = [t for t, count in enumerate(by_frame["not_finite"]) if count == pixels]
    partly = sum(count for count in by_frame["not_finite"] if count < pixels)
    share = partly / (pixels * len(by_frame["crc32c"]))
    if share > MOST_NOT_FINITE or len(lost) == len(by_frame["crc32c"]):
        raise InputError(path, f"{100 * max(share, len(lost) > 0):.1f}% of pixels are NaN or Inf")
    constant = [t for t, value in enumerate(by_frame["constant"]) if value is not None]
    findings = _Findings(constant, lost, _find_duplicates(by_frame, plan.output))
    for what, frames in _describe(findings).items():
        if frames:
            _log.warning("%s: frames %s %s", printable(path), _list_numbers(frames), what)
    saturated = sum(by_frame["saturated"]) / (pixels * len(by_frame["crc32c"]))
    if saturated > MANY_SATURATED:
        _log.warning("%s: %.1f%% of pixels are saturated", printable(path), 100 * saturated)
    return findings


def _describe(findings: _Findings) -> dict[str, list[int]]:
    """Say in words what frames are."""
    again = sorted(t for _, *later in findings.duplicates for t in later)
    return {
        "hold one value throughout": findings.constant,
        "hold no finite number: they are left out": findings.not_finite,
        "repeat earlier ones: they are left out": again,
    }


def _list_numbers(numbers: list[int]) -> str:
    """List numbers as people do.

    Examples
    --------
    >>> _list_numbers([3, 4]), _list_numbers(list(range(100)))
    ('3, 4', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 90 more')
    """
    more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
    return ", ".join(map(str, numbers[:MOST_LISTED])) + more


def _find_duplicates(by_frame: Mapping[str, list[Any]], store: Path) -> list[list[int]]:
    """Group frames that are equal, pixel by pixel; blank ones say nothing."""
    same: dict[int, list[int]] = {}
    for t, (checksum, constant) in enumerate(zip(by_frame["crc32c"], by_frame["constant"], strict=True)):
        if constant is None:
            same.setdefault(checksum, []).append(t)
    groups = [group for group in same.values() if len(group) > 1]
    return [group for group in groups if all(_equal(store, group[0], t) for t in group[1:])]


def _equal(store: Path, first: int, second: int) -> bool:
    array = open_array(store, "0")
    return bool(np.array_equal(np.asarray(array[first]), np.asarray(array[second])))


def _with_defects(plan: _Plan, statistics: Statistics) -> References:
    """Add the defects that the movie shows, and say if its gain is the wrong way up."""
    dark, gain, known = plan.references
    better = suggest_orientation(plan.config, plan.movie, statistics, dark)
    if better:
        _log.warning("%s: the gain fits the movie better with %s", printable(plan.config.gain), better)
    found = find_defects(statistics, dark, gain)
    return References(dark, gain, found if known is None else found | known)


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
