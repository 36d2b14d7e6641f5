"""Movies in: one file per format family, chosen by what the file holds, not by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.files import InputFile
from n2n_pipeline.sources.movie import Counts, MovieInfo, MovieSource

__all__ = ["Counts", "MovieInfo", "MovieSource", "open_movie", "read_image"]

Reader = Callable[[Path, IngestConfig], MovieSource]
_DEFAULTS = IngestConfig()
_SER_MAGIC, _EMI_MAGIC = b"II\x97\x01", b"JK\0\2"
_HEAD_BYTES = 216  # up to the end of MRC's stamps


def open_movie(path: Path, options: IngestConfig = _DEFAULTS) -> MovieSource:
    """Open a movie of any known format, lazily.

    Parameters
    ----------
    path : pathlib.Path
        A movie file, a folder of images, or a store.
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
    source = _choose_reader(path)(path, options)
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


def _choose_reader(path: Path) -> Reader:
    """Return the reader of a file's format; what it needs is imported only then."""
    file = InputFile(path)
    head = file.read(0, _HEAD_BYTES)
    file.close()
    if head[:4] in (_SER_MAGIC, _EMI_MAGIC):
        from n2n_pipeline.sources.ser import SerMovie

        return SerMovie
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        from n2n_pipeline.sources.emd import EmdMovie

        return EmdMovie
    if head[:2] in (b"II", b"MM"):
        return _choose_tiff_reader(path)
    from n2n_pipeline.sources.dm_tags import is_dm

    if is_dm(head):
        from n2n_pipeline.sources.dm import DmMovie

        return DmMovie
    from n2n_pipeline.sources.mrc import MrcMovie

    return MrcMovie


def _choose_tiff_reader(path: Path) -> Reader:
    from n2n_pipeline.sources.tiff_pages import is_eer

    file = InputFile(path)
    try:
        has_events = is_eer(file)
    finally:
        file.close()
    if has_events:
        from n2n_pipeline.sources.eer import EerMovie

        return EerMovie
    from n2n_pipeline.sources.tiff import TiffMovie

    return TiffMovie
