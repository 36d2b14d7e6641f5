"""A movie of which a part is kept, binned or grouped on the way in; a movie source around another.

Pixels and frames are summed, never averaged, so that counts stay counts; the type widens so that no sum overflows.
What does not fill the last bin or group is left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import Counts, MovieInfo, MovieSource

OUTLIERS_PERCENT = 0.1


class ReducedMovie:
    """Frames ``config.frames`` and rectangle ``config.crop`` of a movie, summed over groups and bins.

    Parameters
    ----------
    source : MovieSource
        The whole movie; closed with this one.
    config : IngestConfig
        ``frames``, ``crop``, ``bin``, ``group`` (EER movies come grouped by their own reader), ``clip_outliers``.

    Raises
    ------
    InputError
        If frames or rectangle are not inside the movie, or smaller than one group or bin.
    """

    def __init__(self, source: MovieSource, config: IngestConfig) -> None:
        self.path = source.path
        self._source = source
        n_frames, height, width = source.info.shape
        self._first, stop = _span(source.path, config.frames or (0, n_frames), n_frames, "frames")
        y0, y1, x0, x1 = config.crop or (0, height, 0, width)
        self._group = 1 if source.info.format == "eer" else config.group
        self._bin = config.bin
        self._clip = config.clip_outliers
        (y0, y1), (x0, x1) = (
            _span(source.path, (y0, y1), height, "rows"),
            _span(source.path, (x0, x1), width, "columns"),
        )
        shape = ((stop - self._first) // self._group, (y1 - y0) // self._bin, (x1 - x0) // self._bin)
        if min(shape) < 1:
            raise InputError(source.path, f"nothing is left: shape {shape}", "use a smaller bin or group")
        self._rows = slice(y0, y0 + shape[1] * self._bin)
        self._cols = slice(x0, x0 + shape[2] * self._bin)
        self.info = self._reduce_info(source.info, shape)

    @property
    def n_summed(self) -> int:
        """Raw values that are summed into one."""
        return self._group * self._bin**2

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        first = self._first + start * self._group
        frames = self._source.read_frames(first, first + (stop - start) * self._group)
        frames = frames[:, self._rows, self._cols]
        if self._clip:
            frames = np.stack([_clip_outliers(frame) for frame in frames])
        if self.n_summed > 1:
            frames = _sum_blocks(frames, (self._group, self._bin, self._bin), self.info.dtype)
        return np.ascontiguousarray(frames)

    def reduce_image(self, image: npt.NDArray[Any], how: Literal["sum", "mean", "any"]) -> npt.NDArray[Any]:
        """Cut and bin an image of the whole camera, ``(y, x)``, as the frames are."""
        n = self._bin
        image = image[self._rows, self._cols]
        blocks = image.reshape(image.shape[0] // n, n, image.shape[1] // n, n)
        if how == "any":
            return np.asarray(blocks.any(axis=(1, 3)))
        mean: npt.NDArray[Any] = blocks.mean(axis=(1, 3), dtype=np.float64)
        return mean * self.n_summed if how == "sum" else mean

    def close(self) -> None:
        """Let go of the movie."""
        self._source.close()

    def _reduce_info(self, info: MovieInfo, shape: tuple[int, int, int]) -> MovieInfo:
        def times(value: float | None, factor: int) -> float | None:
            return None if value is None else value * factor

        return replace(
            info,
            shape=shape,
            dtype=_type_of_sums(info.dtype, self.n_summed),
            pixel_size=times(info.pixel_size, self._bin),
            frame_time=times(info.frame_time, self._group),
            dose_per_frame=times(info.dose_per_frame, self._group),
        )


def _span(path: Path, span: tuple[int, int], size: int, what: str) -> tuple[int, int]:
    start, stop = span
    if not 0 <= start < stop <= size:
        raise InputError(path, f"{what} {start}:{stop} are not inside 0:{size}", code=ExitCode.CONFIG)
    return start, stop


def _type_of_sums(dtype: np.dtype[Any], n_summed: int) -> np.dtype[Any]:
    """Return the smallest type that holds a sum of so many values."""
    if n_summed == 1:
        return dtype
    if dtype.kind == "f":
        return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    bits = 8 * dtype.itemsize + math.ceil(math.log2(n_summed))
    size = next(size for size in (1, 2, 4, 8) if bits <= 8 * size or size == 8)
    return np.dtype(f"{dtype.kind}{size}")


def _sum_blocks(frames: Counts, block: tuple[int, int, int], dtype: np.dtype[Any]) -> Counts:
    """Sum blocks of ``(t, y, x)`` values."""
    (group, tall, wide), (n_frames, height, width) = block, frames.shape
    parts = frames.reshape(n_frames // group, group, height // tall, tall, width // wide, wide)
    exact = np.float64 if dtype.kind == "f" else dtype
    sums: Counts = parts.sum(axis=(1, 3, 5), dtype=exact)
    return sums.astype(dtype)


def _clip_outliers(frame: Counts) -> Counts:
    """Clip a frame's darkest and brightest 0.1 % of pixels."""
    low, high = np.nanpercentile(frame, [OUTLIERS_PERCENT, 100 - OUTLIERS_PERCENT])
    return np.clip(frame, low, high).astype(frame.dtype)
