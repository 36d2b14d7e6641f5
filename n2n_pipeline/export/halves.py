"""The even and odd averages as files, for other programs to train on: one Zarr store, or two folders of images."""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import uuid4

import tifffile
import xarray as xr

from n2n_pipeline.config import Split
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import PARTIAL
from n2n_pipeline.pairs import pairs
from n2n_pipeline.progress import progress

HALVES = ("even", "odd")


def export_pairs(store: Path, output: Path, window: int = 8, stride: int = 1, split: Split = "balanced") -> Path:
    """Write the even and odd averages of a movie's sliding windows.

    Parameters
    ----------
    store : pathlib.Path
        A movie's store.
    output : pathlib.Path
        A name that ends in ``.zarr`` for a Zarr store with the arrays ``even`` and ``odd``, ``(t, y, x)`` float32
        and their counts, as `pairs` gives them; any other for a folder with ``even/00000.tif`` and so on, which
        `train_model` reads too. Must not exist.
    window, stride : int
        Frames per window, and from one output to the next.
    split : str
        How a window is halved.

    Returns
    -------
    pathlib.Path
        The output; it appears under its name only when it is whole.

    Raises
    ------
    InputError
        If the output exists, or the movie is shorter than the window.
    """
    if output.exists():
        raise InputError(output, "exists", "remove it or choose another name", ExitCode.CANNOT_CREATE)
    halves = pairs(store, window, stride, split)
    partial = output.with_name(f"{output.name}.{uuid4().hex}{PARTIAL}")
    partial.mkdir(parents=True)
    try:
        _write_zarr(halves, partial) if output.suffix == ".zarr" else _write_images(halves, partial)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _write_zarr(halves: xr.Dataset, folder: Path) -> None:
    halves.to_zarr(folder, zarr_format=3, consolidated=False, mode="w")


def _write_images(halves: xr.Dataset, folder: Path) -> None:
    pixel_size = halves.attrs["pixel_size_angstrom"]
    scale = None if pixel_size == "unknown" else (1e8 / pixel_size, 1e8 / pixel_size)  # pixels per cm
    for name in HALVES:
        (folder / name).mkdir()
    with progress("pairs", halves.sizes["t"]) as step:
        start = 0
        for size in halves.chunks["t"]:
            block = halves[list(HALVES)].isel(t=slice(start, start + size)).compute()
            for i, t in enumerate(block["t"].to_numpy()):
                for name in HALVES:
                    image = block[name].to_numpy()[i]
                    tifffile.imwrite(
                        folder / name / f"{t:05d}.tif", image, resolution=scale, resolutionunit="CENTIMETER"
                    )
            start += size
            step(size)
