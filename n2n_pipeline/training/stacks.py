"""Parts of movies held in memory for training: sums of a few frames each, in the stable frame of reference.

A *stack* holds a part of one movie, ``(group, y, x)``. Each group is the sum of ``group_size`` consecutive
corrected frames, moved by whole pixels so that drift is undone; one frame, unless the window is so long that
halving it group by group leaves more than enough different halves. Sums and counts travel together, so that a
pixel that some frames lack is averaged over fewer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import InputError, Stopped
from n2n_pipeline.records import stop_requested
from n2n_pipeline.shifted import ShiftedFrames, whole_shifts
from n2n_pipeline.sources import open_movie

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.uint16]

GROUPS_PER_WINDOW = 64
"""A window is halved in at most so many groups; 64 have 10^18 halves."""
READ_FRAMES = 16


class Region(NamedTuple):
    """A part of a movie: frames, and rows and columns of the stable frame of reference."""

    frames: range
    rows: range
    cols: range


class Stack(NamedTuple):
    """A region in memory."""

    sums: Floats
    """``(group, y, x)`` in the movie's units times frames; 0 where no frame was valid."""
    counts: Counts
    """``(group, y, x)`` frames that were."""


class Frames(Protocol):
    """A movie as training sees it."""

    path: Path
    """What the user calls it."""
    n_frames: int
    shape: tuple[int, int]
    """``(y, x)``."""

    @property
    def typical_value(self) -> float:
        """What a pixel with no valid neighbour is given."""
        ...

    def read_stack(self, region: Region, group_size: int) -> Stack:
        """Read a region into memory; frames beyond the last whole group are left out."""
        ...


class MovieFrames:
    """A stored movie, corrected and with its drift undone.

    Parameters
    ----------
    movie : CorrectedMovie
        Where the frames come from.
    held_out : collection of int
        Frames that are not there for training: those on either side of one are taken to be consecutive.
    """

    def __init__(self, movie: CorrectedMovie, held_out: Collection[int] = ()) -> None:
        self._movie, self.path = movie, movie.store.path
        n_frames, *sides = movie.store.info.shape
        self._kept = [t for t in range(n_frames) if t not in held_out]
        self.n_frames = len(self._kept)
        self.shape = (sides[0], sides[1])
        self._shifts = whole_shifts(movie)

    @property
    def typical_value(self) -> float:
        """Mean of the movie's middle frame, in its units."""
        return self._movie.typical_value

    def read_stack(self, region: Region, group_size: int) -> Stack:
        """Read and correct frames, undo their drift and sum them group by group."""
        frames, rows, cols = region
        stack = _empty_stack(region, group_size)
        place = (slice(rows.start, rows.stop), slice(cols.start, cols.stop))
        groups_at_once = max(READ_FRAMES // group_size, 1)
        for first in range(0, len(stack.sums), groups_at_once):
            if stop_requested():  # a long movie takes minutes to read
                raise Stopped(self.path)
            last = min(first + groups_at_once, len(stack.sums))
            block = self._kept[frames[first * group_size] : frames[last * group_size - 1] + 1]
            span = range(block[0], block[-1] + 1)
            source = ShiftedFrames(self._movie, span, span, place, self._shifts, "stable")
            for group in range(first, last):
                members = block[(group - first) * group_size : (group - first + 1) * group_size]
                stack.sums[group], stack.counts[group] = source.sum_frames(span[0], members)
        return stack


class ImagePair:
    """Two images of one scene with independent noise: a movie of two frames.

    Parameters
    ----------
    even, odd : pathlib.Path
        The files they are in.
    index : int
        Which frame of both files.
    shape : tuple of int
        ``(y, x)``.
    """

    n_frames = 2

    def __init__(self, even: Path, odd: Path, index: int, shape: tuple[int, int]) -> None:
        self.path, self._paths, self._index, self.shape = even, (even, odd), index, shape

    @cached_property
    def typical_value(self) -> float:
        """Mean of the even image."""
        return float(np.nanmean(self._read(self._paths[0])))

    def read_stack(self, region: Region, group_size: int) -> Stack:
        """Cut a region out of both images; pixels that are not finite count as not seen."""
        if group_size != 1:
            raise ValueError(f"a pair of images cannot be grouped by {group_size}")
        stack = _empty_stack(region, 1)
        for target, frame in enumerate(region.frames):
            image = self._read(self._paths[frame])[region.rows.start : region.rows.stop]
            image = image[:, region.cols.start : region.cols.stop]
            stack.counts[target] = np.isfinite(image)
            stack.sums[target] = np.where(np.isfinite(image), image, 0)
        return stack

    def _read(self, path: Path) -> Floats:
        source = open_movie(path)
        try:
            image: Floats = source.read_frames(self._index, self._index + 1)[0].astype(np.float32)
            return image
        finally:
            source.close()


def pair_images(folder: Path) -> list[ImagePair]:
    """Pair the images of ``folder/even`` and ``folder/odd`` by their names.

    A file may hold several images, which are then paired in their order.

    Raises
    ------
    InputError
        If an image has no partner, or partners differ in shape or type.
    """
    even, odd = ({path.name: path for path in _list_files(folder / half)} for half in ("even", "odd"))
    if len(even) != len(odd):
        missing = sorted(even.keys() ^ odd.keys())[0]
        side = "odd" if missing in even else "even"
        raise InputError(folder, f"even has {len(even)} images, odd {len(odd)}; missing in {side}: {missing}")
    for name in sorted(even.keys() - odd.keys()):
        raise InputError(folder, f"no odd partner for even/{name}")
    if not even:
        raise InputError(folder, "even and odd hold no images")
    return [pair for name in sorted(even) for pair in _pair_files(even[name], odd[name])]


def _pair_files(even: Path, odd: Path) -> list[ImagePair]:
    infos = []
    for path in (even, odd):
        source = open_movie(path)
        infos.append(source.info)
        source.close()
    if (infos[0].shape, infos[0].dtype) != (infos[1].shape, infos[1].dtype):
        found = ", ".join(
            f"{half} {info.shape} {info.dtype}" for half, info in zip(("even", "odd"), infos, strict=True)
        )
        raise InputError(even.name, found)
    count, height, width = infos[0].shape
    return [ImagePair(even, odd, index, (height, width)) for index in range(count)]


def group_size(window: int) -> int:
    """Return how many frames are summed at once for a window.

    Examples
    --------
    >>> [group_size(window) for window in (2, 32, 64, 128, 1000)]
    [1, 1, 1, 2, 15]
    """
    return max(window // GROUPS_PER_WINDOW, 1)


def stack_bytes(region: Region, size: int) -> int:
    """Return the memory that a region takes in groups of ``size`` frames."""
    pixels = len(region.rows) * len(region.cols)
    return len(region.frames) // size * pixels * (np.dtype(np.float32).itemsize + np.dtype(np.uint16).itemsize)


def whole_region(frames: Frames) -> Region:
    """Return all there is of a movie."""
    return Region(range(frames.n_frames), range(frames.shape[0]), range(frames.shape[1]))


def _empty_stack(region: Region, size: int) -> Stack:
    shape = (len(region.frames) // size, len(region.rows), len(region.cols))
    return Stack(np.zeros(shape, np.float32), np.zeros(shape, np.uint16))


def _list_files(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
