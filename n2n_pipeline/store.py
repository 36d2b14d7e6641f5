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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import read_json, replace_file, to_json, write_atomically
from n2n_pipeline.layout import Layout, codec_for, compressor, default_layout, halve, plan_units, round_mantissa
from n2n_pipeline.manifest import RECORDS, SHIFTS, check_complete
from n2n_pipeline.ome import describe, image_metadata, read_description
from n2n_pipeline.records import Ledger
from n2n_pipeline.shards import write_shard
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.sources.zarrs import ZarrMovie

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
__all__ = [
    "Layout",
    "MovieStore",
    "References",
    "Shifts",
    "add_array",
    "create_store",
    "default_layout",
    "open_array",
    "open_store",
    "plan_units",
    "round_mantissa",
    "write_frames",
    "write_movie",
    "write_references",
    "write_shifts",
]

ATTRIBUTE = "n2n_pipeline"


class References(NamedTuple):
    """What belongs to the camera, ``(y, x)`` each, or None."""

    dark: Floats | None = None
    """Mean dark frame, in counts."""
    gain: Floats | None = None
    """Factor per pixel."""
    defects: Bools | None = None
    """True where the pixel is bad."""


class Shifts(NamedTuple):
    """Whole-frame drift."""

    dy_dx: Floats
    """``(t, 2)`` px, added to a frame-0 coordinate to find it in frame t."""
    confidence: Floats
    """``(t,)`` in [0, 1]."""


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


# Writing


def create_store(
    path: Path, info: MovieInfo, layout: Layout, provenance: Mapping[str, Any], levels: int = 0
) -> zarr.Array[Any]:
    """Write the metadata of a store and open its array for writing; data that is there stays.

    Call it inside a `records.Ledger`, whose manifest makes the store complete.

    Parameters
    ----------
    path : pathlib.Path
        Folder of the store.
    info : MovieInfo
        Physical quantities; its shape and type are the layout's.
    layout : Layout
        Of array ``0``.
    provenance : mapping
        JSON values: ``kind``, ``source``, ``settings``; no clock and no host. ``origin_px``, if there, says where
        the first pixel lies ``(y, x)`` in the movie's first frame.
    levels : int
        Halved copies ``1``, ``2``, … besides, for `write_pyramid` to fill.

    Returns
    -------
    zarr.Array
        Array ``0``.
    """
    described = describe(replace(info, shape=layout.shape, dtype=layout.dtype))
    attributes = {
        "ome": image_metadata(
            info, str(provenance.get("kind", "movie")), levels, provenance.get("origin_px", (0.0, 0.0))
        ),
        ATTRIBUTE: {**provenance, "movie_info": described},
    }
    contents: dict[str, Any] = {}
    memory = MemoryStore(contents)
    root = zarr.create_group(memory, zarr_format=3, attributes=attributes)
    root.create_group(RECORDS)
    for level in range(levels + 1):
        _create_array(root, str(level), halve(layout, level))
    _write_contents(path, contents)
    return open_array(path, "0", "r+")


def add_array(path: Path, name: str, layout: Layout) -> zarr.Array[Any]:
    """Write the metadata of one more array beside array ``0`` and open it for writing; data there stays."""
    contents: dict[str, Any] = {}
    _create_array(zarr.create_group(MemoryStore(contents), zarr_format=3), name, layout)
    _write_contents(path, {key: content for key, content in contents.items() if key.startswith(f"{name}/")})
    return open_array(path, name, "r+")


def _write_contents(path: Path, contents: Mapping[str, Any]) -> None:
    for key, content in contents.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        replace_file(path / key, [content.to_bytes()])


def write_references(path: Path, references: References) -> None:
    """Store dark, gain and defects beside the counts."""
    images = {name: image for name, image in references._asdict().items() if image is not None}
    if not images:
        return
    group = zarr.open_group(path, mode="r+").require_group("references")
    for name, image in images.items():
        values = image.astype(np.uint8) if image.dtype == bool else image.astype(np.float32)
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            compressors=_codecs(values.dtype),
            dimension_names=("y", "x"),
            overwrite=True,
            config={"write_empty_chunks": True},
        )
        array[...] = values


def write_shifts(path: Path, shifts: Shifts | None) -> None:
    """Replace a store's table of shifts, or remove it."""
    if shifts is None:
        (path / SHIFTS).unlink(missing_ok=True)
        return
    table = {"dy_dx": shifts.dy_dx.tolist(), "confidence": shifts.confidence.tolist()}
    write_atomically(path / SHIFTS, to_json(table))


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
    layout = default_layout(_t_y_x(frames.shape), frames.dtype)
    known = info or MovieInfo(layout.shape, layout.dtype, "array")
    made_of = dict(provenance or {"kind": "movie"})
    plan = plan_units(layout)
    with Ledger(path, made_of, [unit for unit, _ in plan]) as ledger:
        if ledger.finished:
            return open_store(path)
        array = create_store(path, known, layout, made_of)
        spans = dict(plan)
        for unit in ledger.pending:
            with ledger.writing(unit):
                write_frames(array, spans[unit], frames[spans[unit].start : spans[unit].stop])
        write_references(path, references or References())
        ledger.complete()
    return open_store(path)


def write_frames(array: zarr.Array[Any], span: range, frames: npt.NDArray[Any]) -> None:
    """Write one unit of `plan_units`: all shards of a span of frames, ``(t, y, x)``, of an array made here."""
    if array.shards is None:
        raise ValueError("the array has no shards")
    layout = Layout(
        _t_y_x(array.shape), array.dtype, _t_y_x(array.shards), _t_y_x(array.chunks), codec_for(array.dtype)
    )
    _, shard_y, shard_x = layout.shards
    for y, x in itertools.product(range(0, frames.shape[1], shard_y), range(0, frames.shape[2], shard_x)):
        index = span.start // layout.shards[0], y // shard_y, x // shard_x
        write_shard(_folder(array), layout, index, frames[:, y : y + shard_y, x : x + shard_x])


def _t_y_x(sizes: Sequence[int]) -> tuple[int, int, int]:
    t, y, x = sizes
    return t, y, x


def _folder(array: zarr.Array[Any]) -> Path:
    if not isinstance(array.store, LocalStore):
        raise ValueError("the array is not on disk")
    return array.store.root / array.path


def _create_array(root: zarr.Group, name: str, layout: Layout) -> None:
    root.create_array(
        name,
        shape=layout.shape,
        chunks=layout.chunks,
        shards=layout.shards,
        dtype=layout.dtype,
        compressors=_codecs(layout.dtype),
        fill_value=layout.fill_value,
        dimension_names=("t", "y", "x"),
        config={"write_empty_chunks": True},
    )


def _codecs(dtype: np.dtype[Any]) -> tuple[BloscCodec, Crc32cCodec]:
    """Name, in Zarr's terms, what `layout.compressor` and `shards.write_shard` do."""
    same = compressor(dtype)
    shuffle: Literal["bitshuffle", "shuffle"] = "bitshuffle" if same.shuffle == same.BITSHUFFLE else "shuffle"
    return BloscCodec(cname=same.cname, clevel=same.clevel, shuffle=shuffle), Crc32cCodec()


def open_array(path: Path, name: str, mode: Literal["r", "r+"]) -> zarr.Array[Any]:
    """Open one of a store's arrays, whether the store is complete or not."""
    array = zarr.open_group(path, mode=mode)[name]
    if not isinstance(array, zarr.Array):
        raise InputError(path, f"{name} is not an array")
    return array.with_config({"write_empty_chunks": True})


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
    array = open_array(path, "0", "r")
    info = read_description(provenance["movie_info"], _t_y_x(array.shape), array.dtype)
    return MovieStore(path, info, array, _read_references(path), _read_shifts(path), provenance)


def _read_references(path: Path) -> References:
    if not (path / "references" / "zarr.json").exists():
        return References()
    group = zarr.open_group(path / "references", mode="r")
    images = {name: np.asarray(group[name]) for name in References._fields if name in group}
    if "defects" in images:
        images["defects"] = images["defects"].astype(bool)
    return References(**images)


def _read_shifts(path: Path) -> Shifts | None:
    if not (path / SHIFTS).exists():
        return None
    try:
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
