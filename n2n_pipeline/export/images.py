"""Pixels as people look at them: one frame or a contact sheet as PNG, raw beside denoised as a video."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import ExportConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.export.selection import Pixels, Selection, iter_frames, read_frame, shrink, stored_pixels
from n2n_pipeline.pictures import Panel, contact_sheet, contrast_limits, draw_panels, encode_png, time_stamp
from n2n_pipeline.progress import progress
from n2n_pipeline.shifted import read_filled
from n2n_pipeline.store import MovieStore, open_store

SHEET_FRAMES = 16
SHEET_PX = 384  # longest side of an image on a contact sheet
VIDEO_PX = 1024  # longest side of one of a video's two panels
PICTURE_PX = 16384


def write_png(movie: MovieStore, selection: Selection, file: Path, config: ExportConfig) -> None:
    """Draw one frame pixel for pixel, or several as a contact sheet."""
    frames = spread(selection.frames, SHEET_FRAMES)
    if len(frames) > 1:
        selection = shrink(selection, SHEET_PX)
    height, width = selection.shape[1:]
    if max(height, width) > PICTURE_PX:
        what = f"a picture of {height}x{width} px is larger than most programs open"
        raise InputError(file, what, "use --bin or --region", ExitCode.USAGE)
    images = [read_frame(stored_pixels(movie), selection, t) for t in frames]
    pixel_size = _shown_pixel_size(movie, selection, config)
    if len(images) == 1:
        picture = draw_panels([Panel(images[0], contrast_limits(images[0]))], pixel_size)
        file.write_bytes(encode_png(picture))
    else:
        file.write_bytes(contact_sheet(images, [time_stamp(t, movie.info.frame_time) for t in frames], pixel_size))


def write_mp4(movie: MovieStore, selection: Selection, file: Path, config: ExportConfig) -> None:
    """Encode H.264 video that players, browsers and slide shows take: even sides, 4:2:0."""
    try:
        import imageio_ffmpeg  # noqa: PLC0415  an extra, for video alone
    except ImportError as error:
        todo = "install it: pip install 'n2n-pipeline[video]'"
        raise InputError(file, "video needs imageio-ffmpeg", todo, ExitCode.UNAVAILABLE) from error
    pictures = _iter_pictures(movie, shrink(selection, VIDEO_PX), config)
    first = next(pictures)
    encoder = imageio_ffmpeg.write_frames(
        file.absolute(),
        (first.shape[1], first.shape[0]),
        pix_fmt_in="gray",
        fps=config.fps,
        quality=6,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=["-f", "mp4", "-movflags", "+faststart"],
    )
    encoder.send(None)
    try:
        for picture in chain([first], pictures):
            encoder.send(picture.tobytes())
    finally:
        encoder.close()


def _iter_pictures(
    movie: MovieStore, selection: Selection, config: ExportConfig
) -> Iterator[npt.NDArray[np.uint8]]:
    """Draw frames, raw beside denoised, with the contrast of the middle denoised one; small ones are magnified."""
    shown = stored_pixels(movie)
    raw = _raw_pixels(movie)
    sources = {"{time}": shown} if raw is None else {"raw": raw, "denoised, {time}": shown}
    times = max(1, VIDEO_PX // 2 // max(selection.shape[1:]))
    pixel_size = _shown_pixel_size(movie, selection, config)
    middle = selection.frames[len(selection.frames) // 2]
    limits = contrast_limits(read_frame(shown, selection, middle))
    with progress("export", len(selection.frames)) as step:
        rows = zip(*(iter_frames(pixels, selection) for pixels in sources.values()), strict=True)
        for t, images in zip(selection.frames, rows, strict=True):
            titles = [title.format(time=time_stamp(t, movie.info.frame_time)) for title in sources]
            large = [image.repeat(times, 0).repeat(times, 1) for image in images]
            panels = [Panel(image, limits, title) for image, title in zip(large, titles, strict=True)]
            picture = draw_panels(panels, pixel_size and pixel_size / times)
            yield np.pad(picture, [(0, side % 2) for side in picture.shape])
            step(1)


def _raw_pixels(movie: MovieStore) -> Pixels | None:
    """Read what a denoised store was made from, corrected, if it is still there and shows the same."""
    origin = movie.made_from("movie")
    raw = None if origin is None else CorrectedMovie(open_store(origin))
    if raw is None or raw.store.info.shape != movie.info.shape:
        return None
    return Pixels(lambda frames, rows, cols: read_filled(raw, frames, (rows, cols)), raw.store.array.chunks[0])


def spread(frames: range, count: int) -> list[int]:
    """Pick frames evenly, first and last included.

    Examples
    --------
    >>> spread(range(10, 19), 3)
    [10, 14, 18]
    """
    return sorted({frames[round(i)] for i in np.linspace(0, len(frames) - 1, count)})


def _shown_pixel_size(movie: MovieStore, selection: Selection, config: ExportConfig) -> float | None:
    known = movie.info.pixel_size if config.scale_bar else None
    return None if known is None else known * selection.bin
