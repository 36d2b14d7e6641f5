"""A store out as a file that other programs open: MRC, TIFF, PNG or MP4, by the file's extension.

Pixels keep the store's units. Stacks stream through a bounded buffer, so that a movie larger than memory can be
exported; the file appears under its own name only when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from n2n_pipeline.config import ExportConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.export.images import write_mp4, write_png
from n2n_pipeline.export.selection import Selection, plan_selection
from n2n_pipeline.export.stacks import write_mrc, write_tiff
from n2n_pipeline.files import PARTIAL, sync
from n2n_pipeline.store import MovieStore, open_store

__all__ = ["export_store"]

WRITERS: dict[str, Callable[[MovieStore, Selection, Path, ExportConfig], None]] = {
    ".mrc": write_mrc,
    ".mrcs": write_mrc,
    ".tif": write_tiff,
    ".tiff": write_tiff,
    ".png": write_png,
    ".mp4": write_mp4,
}


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
    write = WRITERS.get(file.suffix.lower())
    if write is None:
        todo = f"use one of {', '.join(WRITERS)}"
        raise InputError(file, f"cannot export to '{file.suffix}'", todo, ExitCode.USAGE)
    movie = open_store(store)
    selection = plan_selection(movie.info.shape, config)
    with _written_whole(file) as temporary:
        write(movie, selection, temporary, config)
    return file


@contextmanager
def _written_whole(file: Path) -> Iterator[Path]:
    """Give a temporary name beside ``file`` to write to; it takes its place when the body succeeds."""
    if file.is_dir():
        raise InputError(file, "is a folder", "name a file", code=ExitCode.CANNOT_CREATE)
    temporary = file.with_name(f"{file.name}.{uuid4().hex}{PARTIAL}")
    try:
        temporary.open("xb").close()
    except OSError as error:
        what = str(error.strerror).lower() if file.parent.is_dir() else f"there is no folder {file.parent}"
        raise InputError(file, what, "choose another name", ExitCode.CANNOT_CREATE) from error
    try:
        yield temporary
        sync(temporary)
        temporary.replace(file)
    except OSError as error:
        raise InputError(file, f"cannot be written: {error.strerror or error}", code=ExitCode.IO) from error
    finally:
        temporary.unlink(missing_ok=True)
