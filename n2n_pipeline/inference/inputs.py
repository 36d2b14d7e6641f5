"""What a tile's network sees: both halves of the windows of some frames, mirrored at the image's ends.

A movie of one frame, such as a montage, has no pair: the frame itself is the only half. Consecutive windows share
most of their frames, and tiles share their halos, so decoded chunks of raw counts are kept while memory allows.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import zarr

from n2n_pipeline.averages import Pair, read_ladder, read_pairs
from n2n_pipeline.checkpoint import ModelCard
from n2n_pipeline.config import Frame
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.filling import FILL_REACH, fill_unseen
from n2n_pipeline.geometry import Range, Tile
from n2n_pipeline.halving import split_window, window_frames
from n2n_pipeline.inference.forward import gather
from n2n_pipeline.ladder import level_frames, split_around
from n2n_pipeline.placing import REACH_PX, Offsets, offset_of, rounded_off
from n2n_pipeline.sides import Noise
from n2n_pipeline.store import MovieStore

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.number[Any]]
Index = tuple[int, int, int]


class Half(NamedTuple):
    """One average per output frame, as it enters the network."""

    values: Numbers
    """``(n, y, x)``, of a ladder ``(n, level, y, x)``, in the movie's units, finite everywhere: float32, or the
    counts of a single frame as they are stored."""
    counts: Floats
    """Frames that contributed; NaN where they are let go."""

    def without_counts(self) -> Half:
        """Return the averages alone, which take half of the memory."""
        return self._replace(counts=np.broadcast_to(np.float32(np.nan), self.counts.shape))


@dataclass(frozen=True)
class Inputs:
    """A movie as a network trained on windows of ``window`` frames, or on a ladder of windows, sees it."""

    movie: CorrectedMovie
    window: int
    frame_of_reference: Frame = "camera"
    typical_value: float = 0.0
    """What a pixel of a single frame is given that has no neighbour either; best the network's own mean."""
    ladder: tuple[int, ...] = ()
    """All windows, where a network sees several at once; ``window`` is then the one that it predicts."""
    noise: Noise | None = None
    """Of a movie in which not everything moves; where it is known, a ladder's levels keep their own side."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(y, x)`` of a frame."""
        return self.movie.store.info.shape[1:]

    @property
    def has_pairs(self) -> bool:
        """Whether there are two halves."""
        return self.movie.store.info.shape[0] > 1

    def read(self, frames: range, tile: Tile) -> tuple[Half, ...]:
        """Read what a tile needs of some output frames: two halves, or one where the movie is a single frame."""
        rows, columns = tile.source(self.shape)
        origin = (rows.start, columns.start)
        region = (rows.within(0), columns.within(0))
        halves = self.read_halves(frames, region) if self.has_pairs else self._read_frame(rows, columns)
        return tuple(
            Half(gather(values, tile, self.shape, origin), gather(counts, tile, self.shape, origin))
            for values, counts in halves
        )

    def read_halves(self, frames: range, region: tuple[slice, slice]) -> tuple[Half, Half]:
        """Read both halves of a region of some output frames."""
        if self.ladder:
            pair = read_ladder(self.movie, frames, region, self.ladder, self.frame_of_reference, self.noise)
        else:
            pair = self.read_pair(frames, region)
        return Half(pair.even, pair.even_count), Half(pair.odd, pair.odd_count)

    def read_pair(self, frames: range, region: tuple[slice, slice]) -> Pair:
        """Read the halves of ``window`` alone, ``(n, y, x)``: what is in one is in no level of the other."""
        if self.ladder:
            ladder = read_ladder(self.movie, frames, region, (self.window,), self.frame_of_reference)
            return Pair(*(part[:, 0] for part in ladder))
        return read_pairs(self.movie, frames, region, self.window, frame_of_reference=self.frame_of_reference)

    def list_pair(self, t: int) -> tuple[list[int], list[int]]:
        """Return the frames of the even and the odd half of ``window``, which `read_pair` averages."""
        n_frames = self.movie.store.info.shape[0]
        if self.ladder:
            return _part(level_frames(n_frames, t, self.window), split_around(n_frames, t))
        members = window_frames(n_frames, t, self.window)
        is_even = np.zeros(n_frames, bool)
        is_even[members.start : members.stop] = split_window(len(members), "balanced")
        return _part(members, is_even)

    def list_seen(self, t: int) -> tuple[list[int], list[int]]:
        """Return the frames that either half shows the network, at any level."""
        if not self.ladder:
            return self.list_pair(t)
        n_frames = self.movie.store.info.shape[0]
        return _part(level_frames(n_frames, t, self.ladder[-1]), split_around(n_frames, t))

    @property
    def reach_px(self) -> int:
        """How far beyond a region is denoised, for what comes out to be moved by fractions of a pixel."""
        return REACH_PX if self.has_pairs and rounded_off(self.movie).any() else 0

    def list_offsets(self, t: int) -> tuple[Offsets, Offsets]:
        """Return how far what each half is denoised to has to be moved, ``(2,)`` px (y, x)."""
        even, odd = (offset_of(self.movie, t, half, self.frame_of_reference) for half in self.list_seen(t))
        return even, odd

    def _read_frame(self, rows: Range, columns: Range) -> tuple[Half]:
        """Read the only frame; its pixels count as much as the network's half windows did in training."""
        grown = [part.grown(FILL_REACH, size) for part, size in zip((rows, columns), self.shape, strict=True)]
        region = (slice(0, 1), grown[0].within(0), grown[1].within(0))
        inner = (rows.within(grown[0].start), columns.within(grown[1].start))
        frames = np.float32(self.window / 2)
        # What needs no correction takes no memory for it: a montage's tile is as large as memory allows.
        seen = np.broadcast_to(frames, (1, rows.size, columns.size))
        if self.movie.is_as_stored:
            return (Half(self.movie.store.read(*region)[:, *inner], seen),)
        (image,), (valid,) = self.movie.read(*region)
        if valid.all():
            return (Half(image[inner][None], seen),)
        filled = fill_unseen(image.astype(np.float64), valid.astype(np.int64), self.typical_value)
        return (Half(filled[inner][None], (frames * valid[inner])[None]),)


def _part(members: range, is_even: npt.NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Part frames into two halves; ``is_even`` is of every frame of the movie."""
    return [t for t in members if is_even[t]], [t for t in members if not is_even[t]]


def inputs_for(
    movie: CorrectedMovie, card: ModelCard, frame_of_reference: Frame = "camera", window: int | None = None
) -> Inputs:
    """Return a movie as a network sees it.

    Parameters
    ----------
    movie : CorrectedMovie
        The movie, or a single image.
    card : ModelCard
        The network's.
    frame_of_reference : str
        ``camera`` or ``stable``.
    window : int, optional
        Frames to average, where not as many as the network was trained on.

    Raises
    ------
    InputError
        If the network sees several windows, but the movie is a single frame, or one window is asked for.
    """
    if not card.ladder:
        return Inputs(movie, window or card.window, frame_of_reference, card.mean)
    what = f"sees windows of {', '.join(map(str, card.ladder))} frames at once"
    if window is not None:
        raise InputError("the model", f"{what}, not {window} alone", "leave out denoise.window", ExitCode.CONFIG)
    if movie.store.info.shape[0] < 2:
        todo = "use a model that was trained on a window"
        raise InputError("the model", f"{what}, this is a single frame", todo, ExitCode.CONFIG)
    return Inputs(movie, card.target, frame_of_reference, card.mean, card.ladder)


def keep_chunks(store: MovieStore, budget_bytes: int, back_frames: int) -> MovieStore:
    """Return a store that keeps chunks it has decoded; any thread may read from it.

    Parameters
    ----------
    store : MovieStore
        The movie.
    budget_bytes : int
        How much is kept.
    back_frames : int
        How far reading goes back at most; what lies further before the frames that are read is let go.
    """
    kept = _KeptChunks(store.array, budget_bytes, back_frames)
    return replace(store, array=cast("zarr.Array[Any]", kept))


class _KeptChunks:
    """A Zarr array that remembers the chunks used last; everything but reading is the array's own."""

    def __init__(self, array: zarr.Array[Any], budget_bytes: int, back_frames: int) -> None:
        self._array, self._back = array, back_frames
        self._chunks: OrderedDict[Index, npt.NDArray[Any]] = OrderedDict()
        self._bytes, self._budget = 0, budget_bytes
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)

    def __getitem__(self, region: tuple[slice, slice, slice]) -> npt.NDArray[Any]:
        wanted = [Range(*cut.indices(size)[:2]) for cut, size in zip(region, self._array.shape, strict=True)]
        indices = [
            range(part.start // chunk, -(-part.stop // chunk))
            for part, chunk in zip(wanted, self._array.chunks, strict=True)
        ]
        found = self._load(indices)
        self._let_go(wanted[0].start - self._back)
        result = np.empty([part.size for part in wanted], self._array.dtype)
        for index, chunk in found.items():
            target, source = zip(*map(_meet, wanted, index, self._array.chunks, chunk.shape), strict=True)
            result[target] = chunk[source]
        return result

    def _load(self, indices: list[range]) -> dict[Index, npt.NDArray[Any]]:
        """Return all chunks of a box; of a single frame what is missing is read a row of chunks at a time.

        A montage's tile holds many chunks, which would be in memory twice while they are read.
        """
        box = cast("list[Index]", list(itertools.product(*indices)))
        with self._lock:
            found = {index: self._chunks[index] for index in box if index in self._chunks}
        missing = [index for index in box if index not in found]
        for _, row in itertools.groupby(missing, lambda index: index[1] if self._array.shape[0] == 1 else 0):
            found |= self._read_chunks(list(row))
        with self._lock:
            for index, chunk in found.items():
                self._keep(index, chunk)
        return found

    def _read_chunks(self, wanted: list[Index]) -> dict[Index, npt.NDArray[Any]]:
        """Read the smallest box around some chunks, and cut them out of it."""
        low, high = np.min(wanted, axis=0), np.max(wanted, axis=0) + 1
        sides = np.array(self._array.chunks)
        block = np.asarray(self._array[tuple(map(slice, low * sides, high * sides))])
        parts = {}
        for index in wanted:
            starts = (np.array(index) - low) * sides
            part = block[tuple(map(slice, starts, starts + sides))]
            parts[index] = part.copy() if len(wanted) > 1 else part
        return parts

    def _keep(self, index: Index, chunk: npt.NDArray[Any]) -> None:
        if index not in self._chunks:
            self._bytes += chunk.nbytes
        self._chunks[index] = chunk
        self._chunks.move_to_end(index)
        while self._bytes > self._budget and self._chunks:
            self._bytes -= self._chunks.popitem(last=False)[1].nbytes

    def _let_go(self, frame: int) -> None:
        """Forget chunks that end before a frame."""
        with self._lock:
            for index in [index for index in self._chunks if (index[0] + 1) * self._array.chunks[0] <= frame]:
                self._bytes -= self._chunks.pop(index).nbytes


def _meet(wanted: Range, index: int, side: int, size: int) -> tuple[slice, slice]:
    """Where a chunk meets a region along one axis: slices into the region and into the chunk."""
    first = index * side
    start, stop = max(wanted.start, first), min(wanted.stop, first + size)
    return slice(start - wanted.start, stop - wanted.start), slice(start - first, stop - first)
