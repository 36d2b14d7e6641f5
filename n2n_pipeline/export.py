"""A store out as a file that other programs open: MRC, TIFF, PNG or MP4, by the file's extension.

Pixels keep the store's units. Stacks stream through a bounded buffer, so that a movie larger than memory can be
exported; the file appears under its own name only when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4

import mrcfile
import mrcfile.dtypes
import numpy as np
import numpy.typing as npt
import tifffile

from n2n_pipeline import __version__
from n2n_pipeline.config import ExportConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import PARTIAL, sync
from n2n_pipeline.progress import progress
from n2n_pipeline.store import MovieStore, open_store

Values = npt.NDArray[Any]
Writer = Callable[[MovieStore, "Selection", Path, ExportConfig], None]

BUFFER_BYTES = 64 * 2**20
IMAGEJ_BYTES = 2**32 - 2**24  # what a classic TIFF can address, less room for its tags
HALF_MAX = float(np.finfo(np.float16).max)
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


class Selection(NamedTuple):
    """The part of a store that goes out; rows and columns span multiples of ``bin`` pixels."""

    frames: range
    rows: slice
    cols: slice
    bin: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(t, y, x)`` of what comes out."""
        height, width = self.rows.stop - self.rows.start, self.cols.stop - self.cols.start
        return len(self.frames), height // self.bin, width // self.bin


class Block(NamedTuple):
    """Pixels ``(t, y, x)`` and where they go in the output; they fill its whole width."""

    t: int
    y: int
    values: Values


def export_store(store: Path, file: Path, config: ExportConfig | None = None) -> Path:
    """Write a store, or a part of it, in the format that the file's extension names.

    Parameters
    ----------
    store : Path
        A movie or denoised store, or any OME-Zarr of axes ``t y x``.
    file : Path
        Ends in ``.mrc``, ``.mrcs``, ``.tif``, ``.tiff``, ``.png`` or ``.mp4``; an existing file is replaced.
    config : ExportConfig, optional
        Which frames and region, and how; by default all.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If the extension is unknown, the part asked for is not in the store, or the file cannot be written.
    """
    config = config or ExportConfig()
    write = _writer(file)
    movie = open_store(store)
    selection = plan_selection(movie.info.shape, config)
    with _written_whole(file) as temporary:
        write(movie, selection, temporary, config)
    return file


def plan_selection(shape: tuple[int, int, int], config: ExportConfig) -> Selection:
    """Check what was asked for against the store's ``(t, y, x)`` shape.

    Raises
    ------
    InputError
        If frames or region are empty or lie outside, or a bin is larger than the region.

    Examples
    --------
    >>> plan_selection((48, 65, 64), ExportConfig(frames=(8, 16), bin=2)).shape
    (8, 32, 32)
    """
    n_frames, height, width = shape
    start, stop = config.frames or (0, n_frames)
    if not 0 <= start < stop <= n_frames:
        raise InputError("--frames", f"{start}:{stop} is not a part of frames 0:{n_frames}", code=ExitCode.USAGE)
    y0, y1, x0, x1 = config.region or (0, height, 0, width)
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        what = f"{y0}:{y1},{x0}:{x1} is not a part of the {height}x{width} image"
        raise InputError("--region", what, code=ExitCode.USAGE)
    rows, cols = (y1 - y0) // config.bin, (x1 - x0) // config.bin
    if not rows or not cols:
        what = f"{config.bin} px is more than the {y1 - y0}x{x1 - x0} region has"
        raise InputError("--bin", what, code=ExitCode.USAGE)
    return Selection(
        range(start, stop),
        slice(y0, y0 + rows * config.bin),
        slice(x0, x0 + cols * config.bin),
        config.bin,
    )


def iter_blocks(movie: MovieStore, selection: Selection, buffer_bytes: int = BUFFER_BYTES) -> Iterator[Block]:
    """Read a selection a buffer at a time, along whole chunks of frames so that none is decoded twice."""
    depth = movie.array.chunks[0]
    width = selection.cols.stop - selection.cols.start
    row_bytes = width * max(movie.array.dtype.itemsize, 4) * depth
    height = max(1, buffer_bytes // (row_bytes * selection.bin)) * selection.bin
    frames, rows = selection.frames, selection.rows
    frame_cuts = [frames.start, *range((frames.start // depth + 1) * depth, frames.stop, depth), frames.stop]
    row_cuts = [*range(rows.start, rows.stop, height), rows.stop]
    for t0, t1 in pairwise(frame_cuts):
        for y0, y1 in pairwise(row_cuts):
            values = movie.read(slice(t0, t1), slice(y0, y1), selection.cols)
            binned = bin_pixels(values, selection.bin)
            yield Block(t0 - frames.start, (y0 - rows.start) // selection.bin, binned)


def bin_pixels(values: Values, size: int) -> Values:
    """Average ``size`` by ``size`` pixels of ``(t, y, x)`` values into one, as float32; 1 changes nothing.

    Examples
    --------
    >>> bin_pixels(np.array([[[1, 3], [5, 7]]]), 2)
    array([[[4.]]], dtype=float32)
    """
    if size == 1:
        return values
    n, y, x = values.shape
    blocks = values.reshape(n, y // size, size, x // size, size)
    mean: Values = blocks.mean(axis=(2, 4), dtype=np.float64).astype(np.float32)
    return mean


@contextmanager
def _written_whole(file: Path) -> Iterator[Path]:
    """Give a temporary name beside ``file`` to write to; it takes its place when the body succeeds."""
    if file.is_dir():
        raise InputError(file, "is a folder", "name a file", code=ExitCode.CANNOT_CREATE)
    temporary = file.with_name(f"{file.name}.{uuid4().hex}{PARTIAL}")
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise InputError(file, f"cannot be created: {error.strerror}", code=ExitCode.CANNOT_CREATE) from error
    try:
        yield temporary
        sync(temporary)
        temporary.replace(file)
    except OSError as error:
        raise InputError(file, f"cannot be written: {error.strerror or error}", code=ExitCode.IO) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_mrc(movie: MovieStore, selection: Selection, file: Path, config: ExportConfig) -> None:
    dtype = np.dtype("<f2" if config.half else "<f4")
    header = _mrc_header(selection, movie.info.pixel_size, mode=12 if config.half else 2)
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    with file.open("r+b") as handle:
        for block in _with_progress(movie, selection):
            if config.half and np.abs(block.values).max() > HALF_MAX:
                raise InputError("--half", f"the store holds values above {HALF_MAX:.0f}", "leave it out")
            values = block.values.astype(dtype)
            _place(handle, block._replace(values=values), selection.shape, header.nbytes)
            exact = values.astype(np.float64)
            low, high = min(low, float(exact.min())), max(high, float(exact.max()))
            total, squares = total + float(exact.sum()), squares + float(np.square(exact).sum())
        mean, mean_square = total / np.prod(selection.shape), squares / np.prod(selection.shape)
        header["dmin"], header["dmax"], header["dmean"] = low, high, mean
        header["rms"] = np.sqrt(max(mean_square - mean**2, 0.0))
        handle.seek(0)
        handle.write(header.tobytes())


def _mrc_header(selection: Selection, pixel_size: float | None, mode: int) -> npt.NDArray[np.void]:
    """Fill an MRC2014 header that calls the data a stack of images, not a volume."""
    header = np.zeros((), dtype=mrcfile.dtypes.HEADER_DTYPE.newbyteorder("<"))
    n_frames, height, width = selection.shape
    header["nx"], header["ny"], header["nz"] = width, height, n_frames
    header["mx"], header["my"], header["mz"] = width, height, 1  # with space group 0: a stack
    header["mode"], header["nversion"], header["map"], header["machst"] = mode, 20141, b"MAP ", (0x44, 0x44, 0, 0)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    if pixel_size is not None:
        binned = pixel_size * selection.bin
        header["cella"] = (binned * width, binned * height, binned)
    header["cellb"] = (90, 90, 90)
    header["label"][0], header["nlabl"] = f"n2n_pipeline {__version__}".encode(), 1
    return header


def _write_tiff(movie: MovieStore, selection: Selection, file: Path, config: ExportConfig) -> None:
    source = movie.array.dtype.name
    dtype = np.dtype(source if source in IMAGEJ_TYPES and selection.bin == 1 else "float32").newbyteorder("<")
    size = int(np.prod(selection.shape)) * dtype.itemsize
    tags = _imagej_tags if size <= IMAGEJ_BYTES else _ome_tags
    offset, _ = tifffile.imwrite(
        file,
        shape=selection.shape,
        dtype=dtype,
        byteorder="<",
        photometric="minisblack",
        returnoffset=True,
        **tags(movie, selection, config),
    )
    with file.open("r+b") as handle:
        for block in _with_progress(movie, selection):
            _place(handle, block._replace(values=block.values.astype(dtype)), selection.shape, offset)


def _imagej_tags(movie: MovieStore, selection: Selection, config: ExportConfig) -> dict[str, Any]:
    """Describe the stack as ImageJ does: unit in the description, pixels per unit as resolution."""
    metadata: dict[str, Any] = {"axes": "TYX", "fps": config.fps}
    if movie.info.frame_time is not None:
        metadata["finterval"] = movie.info.frame_time
    if movie.info.pixel_size is None:
        return {"imagej": True, "metadata": metadata}
    per_nm = 10 / (movie.info.pixel_size * selection.bin)
    return {
        "imagej": True,
        "resolution": (per_nm, per_nm),
        "resolutionunit": "NONE",
        "metadata": metadata | {"unit": "nm"},
    }


def _ome_tags(movie: MovieStore, selection: Selection, config: ExportConfig) -> dict[str, Any]:
    """Describe the stack as OME-XML in a BigTIFF, for what ImageJ's own format cannot address."""
    metadata: dict[str, Any] = {"axes": "TYX"}
    if movie.info.pixel_size is not None:
        size = movie.info.pixel_size * selection.bin
        metadata |= {"PhysicalSizeX": size, "PhysicalSizeXUnit": "Å"}
        metadata |= {"PhysicalSizeY": size, "PhysicalSizeYUnit": "Å"}
    if movie.info.frame_time is not None:
        metadata |= {"TimeIncrement": movie.info.frame_time, "TimeIncrementUnit": "s"}
    return {"ome": True, "bigtiff": True, "metadata": metadata}


def _place(handle: BinaryIO, block: Block, shape: tuple[int, int, int], offset: int) -> None:
    """Write a block into a file of contiguous ``(t, y, x)`` pixels that start at ``offset``."""
    row_bytes = shape[2] * block.values.itemsize
    for t, rows in enumerate(block.values, start=block.t):
        handle.seek(offset + (t * shape[1] + block.y) * row_bytes)
        handle.write(np.ascontiguousarray(rows).tobytes())


def _with_progress(movie: MovieStore, selection: Selection) -> Iterator[Block]:
    with progress("export", len(selection.frames)) as step:
        for block in iter_blocks(movie, selection):
            yield block
            if block.y + block.values.shape[1] == selection.shape[1]:
                step(len(block.values))


def _writer(file: Path) -> Writer:
    writers: dict[str, Writer] = {
        ".mrc": _write_mrc,
        ".mrcs": _write_mrc,
        ".tif": _write_tiff,
        ".tiff": _write_tiff,
    }
    writer = writers.get(file.suffix.lower())
    if writer is None:
        raise InputError(
            file, f"cannot export to '{file.suffix}'", f"use one of {', '.join(writers)}", ExitCode.USAGE
        )
    return writer
