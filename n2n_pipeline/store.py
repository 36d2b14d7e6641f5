"""Movies on disk: OME-Zarr 0.5 stores whose array ``0`` is the movie at full size, ``(t, y, x)``.

A *shard* (one file) is a few whole frames, or a rectangle of a frame too large for that; it is written by one
task. References and defects lie beside the raw counts as arrays, shifts as a small table, and what the store was
made from in the root group's attribute ``n2n_pipeline``, a sibling of ``ome``. A quantity that is not known has
scale 1 in the OME metadata and no unit. Stores made elsewhere (OME-Zarr or plain Zarr, v2 or v3) open as well.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from n2n_pipeline.arrays import open_array
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.creation import (
    ATTRIBUTE,
    Bools,
    Floats,
    References,
    Shifts,
    add_array,
    create_store,
    write_references,
    write_shifts,
)
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import read_json
from n2n_pipeline.layout import SHARD_FRAMES, Layout, default_layout, fit_shuffle, plan_units, round_mantissa
from n2n_pipeline.manifest import RECORDS, SHIFTS, check_complete, damaged_shifts
from n2n_pipeline.ome import read_description
from n2n_pipeline.records import Ledger
from n2n_pipeline.shards import write_frames
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.sources.zarrs import ZarrMovie

__all__ = [
    "Bools",
    "Floats",
    "Layout",
    "MovieStore",
    "References",
    "Shifts",
    "add_array",
    "create_store",
    "default_layout",
    "open_store",
    "plan_units",
    "round_mantissa",
    "write_frames",
    "write_movie",
    "write_references",
    "write_shifts",
]


@dataclass(frozen=True)
class MovieStore:
    """A store that is open for reading."""

    path: Path
    info: MovieInfo
    array: zarr.Array[Any]
    """``(t, y, x)``: raw counts, or denoised values."""
    references: References
    shifts: Shifts | None
    provenance: dict[str, Any]
    """The root group's own attribute; empty for a store made elsewhere."""

    def read(self, frames: slice, rows: slice = slice(None), cols: slice = slice(None)) -> npt.NDArray[Any]:
        """Read a block of the movie into memory.

        Raises
        ------
        InputError
            Naming the shard that is gone or damaged [76]; values are never made up for it.
        """
        region = (frames, rows, cols)
        for name in self._shards_in(region):
            shard = self.path / name
            if not shard.is_file() or not shard.stat().st_size:  # either would read as fill values
                raise InputError(self.path, f"{name} is missing or empty", _AGAIN, ExitCode.CORRUPT)
        try:
            return np.asarray(self.array[region])
        except (ValueError, RuntimeError, OSError) as error:
            names = ", ".join(itertools.islice(self._shards_in(region), 3)) or "a chunk"
            raise InputError(self.path, f"damaged at {names} ({error})", _AGAIN, ExitCode.CORRUPT) from error

    def made_from(self, name: str) -> Path | None:
        """Follow a denoised store's provenance to its ``movie`` or ``model``; None if it is not there any more."""
        link = self.provenance.get(name)
        path = link.get("path") if isinstance(link, Mapping) else link
        target = self.path / path if isinstance(path, str) else None
        return target.resolve() if target is not None and target.exists() else None

    def _shards_in(self, region: tuple[slice, slice, slice]) -> Iterator[str]:
        """Name the files of a store of ours that hold a region."""
        if not self.provenance or self.array.shards is None:
            return
        spans = []
        for cut, size, shard in zip(region, self.array.shape, self.array.shards, strict=True):
            start, stop, _ = cut.indices(size)
            spans.append(range(start // shard, -(-stop // shard)))
        for index in itertools.product(*spans):
            yield f"{self.array.basename}/c/{'/'.join(map(str, index))}"


_AGAIN = "delete what n2n-pipeline verify names, and run the command that made it again"


def write_movie(
    path: Path,
    frames: npt.NDArray[Any],
    info: MovieInfo | None = None,
    references: References | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> MovieStore:
    """Write a whole movie that is in memory as a complete store, and open it.

    Parameters
    ----------
    path : pathlib.Path
        Folder of the store; what a run with the same arguments has begun is continued.
    frames : numpy.ndarray
        ``(t, y, x)``.
    info : MovieInfo, optional
        Its shape and type are ignored.
    references : References, optional
        Stored beside the frames.
    provenance : mapping, optional
        By default ``{"kind": "movie"}``.
    """
    layout = fit_shuffle(default_layout(_t_y_x(frames.shape), frames.dtype), frames[:SHARD_FRAMES])
    known = info or MovieInfo(layout.shape, layout.dtype, "array")
    made_of = dict(provenance or {"kind": "movie"})
    plan = plan_units(layout)
    with Ledger(path, made_of, [unit for unit, _ in plan]) as ledger:
        if ledger.finished:
            return open_store(path)
        create_store(path, known, layout, made_of)
        spans = dict(plan)
        for unit in ledger.pending:
            with ledger.writing(unit):
                write_frames(path / "0", layout, spans[unit], frames[spans[unit].start : spans[unit].stop])
        write_references(path, references or References())
        ledger.complete()
    return open_store(path)


def _t_y_x(sizes: Sequence[int]) -> tuple[int, int, int]:
    t, y, x = sizes
    return t, y, x


# Reading


def open_store(path: Path, *, partial: bool = False) -> MovieStore:
    """Open a store for reading.

    Parameters
    ----------
    path : pathlib.Path
        A store of this package, or any OME-Zarr or Zarr array ``(t, y, x)``.
    partial : bool
        Take a store that is not complete; what was not written reads as fill values.

    Raises
    ------
    InputError
        If it is not there, not a movie, not complete or changed since.
    """
    if not path.exists():
        raise InputError(path, "no such file or folder", code=ExitCode.NO_INPUT)
    if path.is_file():
        raise InputError(path, "a file, not a store", f"n2n-pipeline ingest {path}")
    if (path / RECORDS).is_dir():
        if not partial:
            check_complete(path)
        return _open_own(path)
    return _open_foreign(path)


def _open_own(path: Path) -> MovieStore:
    root = read_json(path / "zarr.json")
    provenance = (root or {}).get("attributes", {}).get(ATTRIBUTE)
    if provenance is None:
        raise InputError(path, "zarr.json is missing or damaged", "make the store again", ExitCode.CORRUPT)
    array = open_array(path, "0")
    info = read_description(provenance["movie_info"], _t_y_x(array.shape), array.dtype)
    return MovieStore(path, info, array, _read_references(path), _read_shifts(path), provenance)


def _read_references(path: Path) -> References:
    if not (path / "references" / "zarr.json").exists():
        return References()
    group = zarr.open_group(path / "references", mode="r")
    try:
        images = {name: np.asarray(group[name]) for name in References._fields if name in group}
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(path, f"references are damaged ({error})", _AGAIN, ExitCode.CORRUPT) from error
    if "defects" in images:
        images["defects"] = images["defects"].astype(bool)
    return References(**images)


def _read_shifts(path: Path) -> Shifts | None:
    if not (path / SHIFTS).exists():
        return None
    try:
        if damaged_shifts(path):
            raise ValueError("not what was written")
        table = json.loads((path / SHIFTS).read_bytes())
        return Shifts(
            np.array(table["dy_dx"], np.float64).reshape(-1, 2), np.array(table["confidence"], np.float64)
        )
    except (ValueError, KeyError) as error:
        raise InputError(path, "the table of shifts is damaged", "run align again", ExitCode.CORRUPT) from error


def _open_foreign(path: Path) -> MovieStore:
    """Open what another program wrote."""
    movie = ZarrMovie(path, IngestConfig())
    if movie.array.shape != movie.info.shape:
        raise InputError(path, f"array of shape {movie.array.shape}; expected (t, y, x)", "ingest it")
    return MovieStore(path, movie.info, movie.array, References(), None, {})
