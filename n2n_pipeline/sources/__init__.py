"""Movies in: one file per format family, chosen by what the file holds, not by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.formats import has_pattern, is_zarr, open_file
from n2n_pipeline.sources.movie import Counts, MovieInfo, MovieSource

__all__ = ["Counts", "MovieInfo", "MovieSource", "open_movie", "read_image"]

_DEFAULTS = IngestConfig()


def open_movie(path: Path, options: IngestConfig = _DEFAULTS) -> MovieSource:
    """Open a movie of any known format, lazily.

    Parameters
    ----------
    path : pathlib.Path
        A movie file, a folder or pattern of images, folders ``even`` and ``odd`` in a folder, or a Zarr store.
    options : IngestConfig
        How to read it. ``unsigned``, ``allow_truncated``, ``dataset``, ``superres`` and ``pixel_size_angstrom``
        are obeyed wherever they mean something; ``group`` and ``dose_per_frame`` for EER only, whose frames are
        too thin to be handed on one by one. Cutting, binning and grouping other movies is left to the caller.

    Returns
    -------
    MovieSource
        What it holds, and how to read its frames.

    Raises
    ------
    InputError
        If there is no such file, or it holds no movie.
    """
    source = _open(path, options)
    pixel_size = options.pixel_size_angstrom or source.info.pixel_size
    warnings = source.info.warnings
    if pixel_size is None:
        warnings += ("the pixel size is unknown; give it with --pixel-size",)
    source.info = replace(source.info, pixel_size=pixel_size, warnings=warnings)
    return source


def read_image(path: Path) -> Counts:
    """Read a reference image (dark, gain, mask) of any known format.

    Parameters
    ----------
    path : pathlib.Path
        A file that holds one image, or a movie of one frame.

    Returns
    -------
    numpy.ndarray
        ``(y, x)`` in the file's own units.

    Raises
    ------
    InputError
        If it holds no image, or several.
    """
    source = open_movie(path)
    try:
        if source.info.shape[0] != 1:
            raise InputError(path, f"{source.info.shape[0]} frames; expected one image")
        image: Counts = source.read_frames(0, 1)[0]
        return image
    finally:
        source.close()


def _open(path: Path, options: IngestConfig) -> MovieSource:
    if is_zarr(path):
        from n2n_pipeline.sources.zarrs import ZarrMovie

        return ZarrMovie(path, options)
    if path.is_dir() or has_pattern(path):
        from n2n_pipeline.sources.images import open_images

        return open_images(path, options)
    return open_file(path, options)
