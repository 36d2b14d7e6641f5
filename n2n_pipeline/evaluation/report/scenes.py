"""The pixels a report shows: one field as it goes through the pipeline, and the movie from afar.

Everything is in the movie's own units; what was simulated without noise is scaled to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.averages import read_pairs
from n2n_pipeline.config import Frame
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.evaluation.report.gather import Run
from n2n_pipeline.shifted import read_filled
from n2n_pipeline.sources.movie import MovieSource
from n2n_pipeline.store import MovieStore

Image = npt.NDArray[np.floating[Any]]

FIELD_PX = 512
"""A larger frame is shown by its middle, pixel for pixel."""


class Region(NamedTuple):
    """Rows and columns of a frame."""

    rows: slice
    cols: slice


class Scene(NamedTuple):
    """One field of one frame, ``(y, x)`` each; None where the run has not come so far."""

    raw: Image | None
    average: Image | None
    denoised: Image | None
    truth: Image | None

    @property
    def best(self) -> Image:
        """The least noisy measured image: what contrast is taken from."""
        return next(image for image in (self.denoised, self.average, self.raw) if image is not None)


def main_store(run: Run) -> MovieStore:
    """Return the store whose frames the report shows: the denoised one, as soon as there is one."""
    store = run.denoised or run.movie
    if store is None:
        raise ValueError("a run without a store has nothing to show")
    return store


def central_region(shape: tuple[int, int, int], side: int = FIELD_PX) -> Region:
    """Return the middle of a frame, at most ``side`` px along y and x.

    Examples
    --------
    >>> central_region((48, 256, 1024))
    Region(rows=slice(0, 256, None), cols=slice(256, 768, None))
    """
    starts = [max((size - side) // 2, 0) for size in shape[1:]]
    rows, cols = (slice(start, min(start + side, size)) for start, size in zip(starts, shape[1:], strict=True))
    return Region(rows, cols)


def saw_all_windows(run: Run) -> bool:
    """Tell whether the network was given a ladder of windows."""
    return run.denoised is not None and isinstance(run.denoised.provenance.get("window"), list)


def used_window(run: Run) -> int | None:
    """Return the number of frames the network was given, or else the one that the sweep chose."""
    provenance = run.denoised.provenance if run.denoised else {}
    for window in (provenance.get("window"), run.window.get("window")):
        if isinstance(window, int):
            return window
    return None


def read_scene(run: Run, t: int, region: Region) -> Scene:
    """Read one field of frame ``t`` at every stage of the pipeline.

    Parameters
    ----------
    run : Run
        The run; stages that have not been give None.
    t : int
        Frame.
    region : Region
        Rows and columns to show.
    """
    denoised = None if run.denoised is None else run.denoised.read(slice(t, t + 1), *region)[0]
    raw = average = None
    if run.movie is not None:
        movie = CorrectedMovie(run.movie)
        raw = read_raw(run, movie, t, region)
        average = _read_average(run, movie, t, region)
    truth = None
    if run.truth is not None and denoised is not None:
        truth = _read_truth(run, run.truth, t, region)
        truth = None if truth is None else in_units_of(truth, denoised)
    return Scene(raw, average, denoised, truth)


def read_raw(run: Run, movie: CorrectedMovie, t: int, region: Region) -> Image:
    """Read what frame ``t`` of the shown store looked like to the camera, after dark, gain and defects."""
    first, there = in_movie(run, t, region)
    image: Image = read_filled(movie, slice(first, first + 1), there)[0]
    return image


def in_movie(run: Run, t: int, region: Region) -> tuple[int, Region]:
    """Find a place of the shown store in the movie; a store may hold only a part of it."""
    settings = run.denoised.provenance.get("settings", {}) if run.denoised else {}
    (t0, _), (y0, _, x0, _) = settings.get("frames") or (0, 0), settings.get("region") or (0, 0, 0, 0)
    rows, cols = (slice(part.start + by, part.stop + by) for part, by in zip(region, (y0, x0), strict=True))
    return t + t0, Region(rows, cols)


def _read_average(run: Run, movie: CorrectedMovie, t: int, region: Region) -> Image | None:
    window = used_window(run)
    if window is None or movie.store.info.shape[0] < 2:
        return None
    stable = run.denoised is not None and run.denoised.provenance.get("frame_of_reference") == "stable"
    first, (rows, cols) = in_movie(run, t, region)
    frame: Frame = "stable" if stable else "camera"
    pair = read_pairs(movie, range(first, first + 1), (rows, cols), window, frame_of_reference=frame)
    average: Image = (pair.even[0] + pair.odd[0]) / 2
    return average


def _read_truth(run: Run, truth: MovieSource, t: int, region: Region) -> Image | None:
    """Read the truth of the shown frame; it may be that of the whole movie, or of the part that was denoised."""
    if truth.info.shape != main_store(run).info.shape:
        t, region = in_movie(run, t, region)
        if run.movie is None or truth.info.shape != run.movie.info.shape:
            return None
    image: Image = truth.read_frames(t, t + 1)[0][region].astype(np.float64)
    return image


def in_units_of(truth: Image, image: Image) -> Image:
    """Scale a truth to an image's units by the least-squares line between them.

    The scores fit truth ≈ a·image + b; this is that line, read backwards.

    Examples
    --------
    >>> truth = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> in_units_of(truth, 10 * truth + 5)
    array([[15., 25.],
           [35., 45.]])
    """
    centred = image - image.mean(dtype=np.float64)
    variance = float(np.mean(np.square(centred)))
    slope = float(np.mean(centred * (truth - truth.mean()))) / variance if variance else 0.0
    if slope <= 0:
        return truth
    scaled: Image = (truth - truth.mean()) / slope + image.mean(dtype=np.float64)
    return scaled


def spread_frames(n_frames: int, count: int) -> list[int]:
    """Pick frames evenly over a movie, first and last included.

    Examples
    --------
    >>> spread_frames(9, 3), spread_frames(2, 8)
    ([0, 4, 8], [0, 1])
    """
    return sorted({round(t) for t in np.linspace(0, n_frames - 1, min(count, n_frames))})


def overview_bin(shape: tuple[int, int, int], side: int) -> int:
    """Return how many pixels along y and x are averaged into one, so that a frame fits into ``side`` px."""
    return -(-max(shape[1:]) // side)


def overview_readers(run: Run, side: int) -> dict[str, Callable[[int], Image]]:
    """Return, for each store there is, a function that reads a frame averaged down to at most ``side`` px."""
    shape = main_store(run).info.shape
    size = overview_bin(shape, side)
    whole = Region(slice(0, shape[1] // size * size), slice(0, shape[2] // size * size))
    readers: dict[str, Callable[[int], Image]] = {}
    if run.movie is not None:
        movie = CorrectedMovie(run.movie)
        readers["raw"] = lambda t: shrink(read_raw(run, movie, t, whole), size)
    if run.denoised is not None:
        denoised = run.denoised
        readers["denoised"] = lambda t: shrink(denoised.read(slice(t, t + 1), *whole)[0], size)
    return readers


def shrink(image: Image, size: int) -> Image:
    """Average ``size`` by ``size`` pixels of a ``(y, x)`` image whose sides they divide."""
    height, width = image.shape
    blocks = image.reshape(height // size, size, width // size, size)
    small: Image = blocks.mean(axis=(1, 3), dtype=np.float64)
    return small
