"""Two exposures of one field of view, a montage say, to be trained on as they are: a movie of two frames.

Stores are read part by part, however large they are. Files are read whole. The stage moves between exposures: how
far, in whole pixels, is found from the middle of both, and the second is read so much further on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import zarr

from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.drift import estimate_drift
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import digest_file, digest_json
from n2n_pipeline.manifest import content_digest
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.formats import is_zarr
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import MovieStore, References, open_store
from n2n_pipeline.training.stacks import Region, Stack

Floats = npt.NDArray[np.float32]

MIDDLE_PX = 2048  # side of what is compared
ROUNDS = 4
AGREEING_PX = 2

_log = logging.getLogger(__name__)


class Shift(NamedTuple):
    """How many pixels further down and right the second exposure shows what the first does."""

    dy: int
    dx: int


class Exposures:
    """Two exposures, as training sees a movie.

    Parameters
    ----------
    first, second : CorrectedMovie
        Each of one frame, of the same size.
    shift : Shift
        Of the second.
    """

    n_frames = 2

    def __init__(self, first: CorrectedMovie, second: CorrectedMovie, shift: Shift) -> None:
        self.path, self.shift = first.store.path, shift
        self._exposures = ((first, Shift(0, 0)), (second, shift))
        height, width = first.store.info.shape[1:]
        self.shape = (height, width)

    @property
    def typical_value(self) -> float:
        """Mean of the middle of the first exposure."""
        return self._exposures[0][0].typical_value

    def read_stack(self, region: Region, group_size: int) -> Stack:
        """Read a region of both; what the second does not show counts as not seen."""
        if group_size != 1:
            raise ValueError(f"two exposures cannot be grouped by {group_size}")
        shape = (len(region.frames), len(region.rows), len(region.cols))
        stack = Stack(np.zeros(shape, np.float32), np.zeros(shape, np.uint16))
        for target, frame in enumerate(region.frames):
            movie, shift = self._exposures[frame]
            (rows, inner_rows), (cols, inner_cols) = (
                _meet(part, move, size) for part, move, size in zip(region[1:], shift, self.shape, strict=True)
            )
            values, valid = movie.read(slice(0, 1), rows, cols)
            stack.sums[target, inner_rows, inner_cols] = values[0]
            stack.counts[target, inner_rows, inner_cols] = valid[0]
        return stack


def pair_exposures(paths: Sequence[Path], memory_bytes: int) -> tuple[Exposures, list[str]]:
    """Open two exposures of one field of view, and find how far one is moved against the other.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        Two stores or files, each of one image.
    memory_bytes : int
        Files that are larger together are refused; stores may have any size.

    Returns
    -------
    Exposures
        Both.
    list of str
        A digest of each.

    Raises
    ------
    InputError
        If there are not two, or they are not single images of one size.
    """
    if len(paths) != 2:
        raise InputError("--pair", f"takes two exposures, not {len(paths)}", code=ExitCode.USAGE)
    first, second = (_open(path, memory_bytes // 2) for path in paths)
    shapes = [movie.store.info.shape[1:] for movie in (first, second)]
    if shapes[0] != shapes[1]:
        found = " and ".join("{} x {} px".format(*shape) for shape in shapes)
        raise InputError(paths[1], f"the exposures have {found}; they must show one field of view")
    digests = [digest_json(content_digest(path)) if is_zarr(path) else digest_file(path) for path in paths]
    return Exposures(first, second, find_shift(first, second)), digests


def find_shift(first: CorrectedMovie, second: CorrectedMovie) -> Shift:
    """Find the whole-pixel shift of the second exposure, as drift between two frames is found, from their middles.

    Once found, the second's middle is cut there and compared again, until that changes nothing. It is believed if
    the upper and the lower half of the middle, each by itself, then lie where they should.
    """
    sides = tuple(min(side, MIDDLE_PX) for side in first.store.info.shape[1:])
    reference, shift = _middle(first, sides, Shift(0, 0)), Shift(0, 0)
    for _ in range(ROUNDS):
        moved = _compare(reference, _middle(second, sides, shift))
        shift = Shift(shift.dy + moved.dy, shift.dx + moved.dx)
        if moved == (0, 0):
            break
    there = _middle(second, sides, shift)
    halves = slice(sides[0] // 2), slice(sides[0] // 2, None)
    if max(abs(off) for half in halves for off in _compare(reference[half], there[half])) > AGREEING_PX:
        _log.warning("the exposures are too faint or too different to be aligned; they are taken as they lie")
        return Shift(0, 0)
    _log.info("the second exposure is moved by %d, %d px (y, x)", *shift)
    return shift


def _compare(first: Floats, second: Floats) -> Shift:
    frames = np.stack([first, second])
    array = zarr.create_array({}, data=frames, chunks=(1, *first.shape))
    info = MovieInfo((2, *first.shape), frames.dtype, "exposures")
    found = estimate_drift(MovieStore(Path(), info, array, References(), None, {}))
    return Shift(*np.rint(found.dy_dx[1]).astype(int).tolist())


def _middle(movie: CorrectedMovie, sides: tuple[int, ...], shift: Shift) -> Floats:
    """Read the middle of an exposure, so much further on; not a number where nothing was seen."""
    ranges = []
    for whole, side, move in zip(movie.store.info.shape[1:], sides, shift, strict=True):
        start = (whole - side) // 2
        ranges.append(_meet(range(start, start + side), move, whole))
    (rows, inner_rows), (cols, inner_cols) = ranges
    values, valid = movie.read(slice(0, 1), rows, cols)
    middle = np.full(sides, np.nan, np.float32)
    middle[inner_rows, inner_cols] = np.where(valid[0], values[0], np.nan)
    return middle


def _open(path: Path, memory_bytes: int) -> CorrectedMovie:
    """Open one exposure: a store lazily, a file whole."""
    store = open_store(path) if is_zarr(path) else _read_file(path, memory_bytes)
    if store.info.shape[0] != 1:
        raise InputError(path, f"{store.info.shape[0]} frames; an exposure is one image", "train without --pair")
    return CorrectedMovie(store)


def _read_file(path: Path, memory_bytes: int) -> MovieStore:
    with closing(open_movie(path)) as source:
        info = source.info
        if info.shape[1] * info.shape[2] * info.dtype.itemsize > memory_bytes:
            todo = f"n2n-pipeline ingest {path}, and name the store"
            raise InputError(path, "too large to be held in train.memory_gb as a file", todo)
        image = source.read_frames(0, 1) if info.shape[0] == 1 else np.empty((0, *info.shape[1:]), info.dtype)
    return MovieStore(path, info, cast("zarr.Array[Any]", image), References(), None, {})


def _meet(part: range, move: int, size: int) -> tuple[slice, slice]:
    """Where an exposure that is moved shows a part of an axis: pixels of its own, and their place in the part."""
    start, stop = (min(max(end + move, 0), size) for end in (part.start, part.stop))
    first = start - part.start - move
    return slice(start, stop), slice(first, first + stop - start)
