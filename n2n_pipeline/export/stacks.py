"""Pixels as other programs compute with them: MRC and TIFF stacks, a header and then frame after frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import mrcfile.dtypes
import numpy as np
import numpy.typing as npt
import tifffile

from n2n_pipeline import __version__
from n2n_pipeline.config import ExportConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.export.selection import Block, Selection, iter_blocks, stored_pixels
from n2n_pipeline.files import require_space
from n2n_pipeline.progress import progress
from n2n_pipeline.store import MovieStore

HALF_MAX = float(np.finfo(np.float16).max)
IMAGEJ_BYTES = 2**32 - 2**24  # what a classic TIFF can address, less room for its tags
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def write_mrc(movie: MovieStore, selection: Selection, file: Path, config: ExportConfig) -> None:
    """Write a stack of images as MRC2014, in 32- or 16-bit floats; extremes and mean go into the header last."""
    dtype = np.dtype("<f2" if config.half else "<f4")
    require_space(file, int(np.prod(selection.shape)) * dtype.itemsize)
    header = _mrc_header(selection, movie.info.pixel_size, mode=12 if config.half else 2)
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    with file.open("r+b") as handle:
        for block in _with_progress(movie, selection):
            if config.half and np.abs(block.values).max() > HALF_MAX:
                raise InputError("--half", f"the store holds values above {HALF_MAX:.0f}", "leave it out")
            values = block.values.astype(dtype)
            _place(handle, block._replace(values=values), selection.shape, header.nbytes)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            total += float(values.sum(dtype=np.float64))
            squares += float(np.square(values, dtype=np.float64).sum())
        mean, mean_square = total / np.prod(selection.shape), squares / np.prod(selection.shape)
        header["dmin"], header["dmax"], header["dmean"] = low, high, mean
        header["rms"] = np.sqrt(max(mean_square - mean**2, 0.0))
        handle.seek(0)
        handle.write(header.tobytes())


def _mrc_header(selection: Selection, pixel_size: float | None, mode: int) -> npt.NDArray[Any]:
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


def write_tiff(movie: MovieStore, selection: Selection, file: Path, config: ExportConfig) -> None:
    """Write a stack as ImageJ does, or as an OME BigTIFF when it is too large for that; bytes stay bytes."""
    source = movie.array.dtype.name
    dtype = np.dtype(source if source in IMAGEJ_TYPES and selection.bin == 1 else "float32").newbyteorder("<")
    size = int(np.prod(selection.shape)) * dtype.itemsize
    require_space(file, size)
    tags = _imagej_tags if size <= IMAGEJ_BYTES else _ome_tags
    placed = tifffile.imwrite(
        file,
        shape=selection.shape,
        dtype=dtype,
        byteorder="<",
        photometric="minisblack",
        returnoffset=True,
        **tags(movie, selection, config),
    )
    offset, _ = cast("tuple[int, int]", placed)
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
        for block in iter_blocks(stored_pixels(movie), selection):
            yield block
            if block.y + block.values.shape[1] == selection.shape[1]:
                step(len(block.values))
