"""What is measured: some frames of a denoised movie, with the raw halves that they were made of.

The output alone cannot be judged, since both halves of each window went into it. So a few frames and regions are
denoised again, each half by itself: then the other half is an independent measurement of the same scene.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.geometry import Range, Tiling, plan_tiles
from n2n_pipeline.inference.forward import Canvas, Turns, denoise_rows
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.metrics.unsupervised import Copies
from n2n_pipeline.placing import move
from n2n_pipeline.shifted import ShiftedFrames, whole_shifts
from n2n_pipeline.store import MovieStore

Floats = npt.NDArray[np.float32]

REGION_PX = 512
LEAST_REGION_PX = 128
FRAME_BYTES = 192 * 2**20  # of the corrected frames of one window, held at once
MOST_FRAMES = 6


@dataclass(frozen=True)
class Subject:
    """A denoised movie, and all that it was made with."""

    output: MovieStore
    inputs: Inputs
    denoiser: Denoiser
    tiling: Tiling
    turns: Turns
    """Orientations in which the network saw each half."""
    part: tuple[Range, Range, Range]
    """Frames, rows and columns of the movie that the output holds."""

    @property
    def movie(self) -> CorrectedMovie:
        """The raw movie."""
        return self.inputs.movie

    @property
    def n_frames(self) -> int:
        """Frames of the raw movie."""
        return int(self.movie.store.info.shape[0])


class Place(NamedTuple):
    """One frame of the movie, and a region of it."""

    t: int
    rows: Range
    cols: Range

    @property
    def region(self) -> tuple[slice, slice]:
        """Rows and columns as slices of a frame."""
        return self.rows.within(0), self.cols.within(0)


class Sample(NamedTuple):
    """One place seen raw and denoised; images ``(y, x)`` in the movie's units."""

    place: Place
    raw: tuple[Floats, Floats]
    """Even and odd half of the window."""
    counts: tuple[Floats, Floats]
    """Frames that each of their pixels holds."""
    denoised: tuple[Floats, Floats]
    """What the network makes of each half."""
    copies: tuple[Copies, Copies] | None
    """For each half, three averages of frames that it does not hold; NaN where one is missing. None if too few."""
    stored: Floats
    """The same place in the output store."""
    placed: Floats
    """The mean of what the network makes of both halves, moved to where the output has it."""


def plan_places(subject: Subject) -> list[Place]:
    """Choose frames evenly over the output, and for each a region, of one shape, that memory can hold.

    Returns
    -------
    list of Place
        Two to six, one more than there are windows without a frame in common; the regions of a large image lie
        along its diagonal.
    """
    frames, rows, cols = subject.part
    window = min(subject.inputs.window, subject.n_frames)
    count = min(1 + math.ceil(frames.size / window), MOST_FRAMES, frames.size)
    side = max(LEAST_REGION_PX, min(REGION_PX, math.isqrt(FRAME_BYTES // (4 * window))))
    places = []
    for i in range(count):
        t = frames.start + (2 * i + 1) * frames.size // (2 * count)
        spans = [_cut(part, side, i / max(count - 1, 1)) for part in (rows, cols)]
        places.append(Place(t, *spans))
    return places


def _cut(part: Range, side: int, along: float) -> Range:
    """Return a range of at most ``side`` pixels, so far along a longer one."""
    size = min(side, part.size)
    start = part.start + round((part.size - size) * along)
    return Range(start, start + size)


def read_sample(subject: Subject, place: Place) -> Sample:
    """Read both halves of a window, denoise them, and make the copies that neither has seen."""
    inputs = subject.inputs
    one_frame = range(place.t, place.t + 1)
    around, inner = _look_around(subject, place)
    denoised = denoise_halves(subject, around)
    placed = np.mean([move(*one) for one in zip(denoised, inputs.list_offsets(place.t), strict=True)], axis=0)
    pair = inputs.read_pair(one_frame, place.region)
    first = [part.start for part in subject.part]
    stored = subject.output.read(
        slice(place.t - first[0], place.t - first[0] + 1), place.rows.within(first[1]), place.cols.within(first[2])
    )
    return Sample(
        place,
        (pair.even[0], pair.odd[0]),
        (pair.even_count[0], pair.odd_count[0]),
        (denoised[0][inner], denoised[1][inner]),
        _read_copies(subject, place),
        stored[0].astype(np.float32),
        placed[inner],
    )


def _look_around(subject: Subject, place: Place) -> tuple[Place, tuple[slice, slice]]:
    """Grow a place by what moving it needs; return the larger one and the place within it."""
    spans = (place.rows, place.cols)
    grown = [
        part.grown(subject.inputs.reach_px, size) for part, size in zip(spans, subject.inputs.shape, strict=True)
    ]
    rows, cols = (part.within(around.start) for part, around in zip(spans, grown, strict=True))
    return Place(place.t, *grown), (rows, cols)


def denoise_halves(subject: Subject, place: Place) -> tuple[Floats, Floats]:
    """Denoise each half as the output's halves were, with its tiles and turns."""
    plan = plan_tiles(subject.inputs.shape, subject.tiling, (place.rows, place.cols))
    canvases = Canvas(plan, 1), Canvas(plan, 1)
    for tile in plan.tiles:
        halves = subject.inputs.read(range(place.t, place.t + 1), tile)
        for canvas, half, turn in zip(canvases, halves, subject.turns, strict=True):
            canvas.blend(tile, denoise_rows(subject.denoiser, *half, turn))
    return canvases[0].image[0], canvases[1].image[0]


def deal_copies(
    n_frames: int, members: Sequence[int], unseen: list[int], seen: Collection[int] = ()
) -> list[list[int]] | None:
    """Deal frames that a half does not hold to three copies of equal size, so that their mean times agree.

    Parameters
    ----------
    n_frames : int
        Frames of the movie.
    members : sequence of int
        The frames of the window, ascending.
    unseen : list of int
        Its frames that are in the other half, ascending. If they are fewer than three, the frames nearest to the
        window help out.
    seen : collection of int
        Frames that the half holds, which never help out.

    Returns
    -------
    list of list of int, or None
        Three sets of as many frames each; None if the movie has too few.

    Examples
    --------
    >>> deal_copies(99, range(12), [1, 2, 4, 7, 8, 11])
    [[1, 11], [2, 8], [4, 7]]
    >>> deal_copies(99, range(10, 14), [11, 12])
    [[9], [11], [12]]
    >>> deal_copies(4, range(4), [1, 2]) is None
    True
    """
    if len(unseen) < 3:
        middle = (members[0] + members[-1]) / 2
        others = set(range(n_frames)) - {*members, *seen}
        around = sorted(others, key=lambda t: (abs(t - middle), t))
        unseen = sorted(unseen + around[: 3 - len(unseen)])
    size = len(unseen) // 3
    if size == 0:
        return None
    spare = len(unseen) - 3 * size
    kept = unseen[: len(unseen) // 2 - spare // 2] + unseen[len(unseen) // 2 - spare // 2 + spare :]
    copies: list[list[int]] = [[], [], []]
    for turn in range(size):
        order = (0, 1, 2) if turn % 2 == 0 else (2, 1, 0)
        for copy, frame in zip(order, kept[3 * turn : 3 * turn + 3], strict=True):
            copies[copy].append(frame)
    return copies


def _read_copies(subject: Subject, place: Place) -> tuple[Copies, Copies] | None:
    even, odd = subject.inputs.list_pair(place.t)
    seen = subject.inputs.list_seen(place.t)
    members = sorted(even + odd)
    dealt = [
        deal_copies(subject.n_frames, members, unseen, held)
        for unseen, held in zip((odd, even), seen, strict=True)
    ]
    if dealt[0] is None or dealt[1] is None:
        return None
    frames = sorted({f for copies in dealt if copies for copy in copies for f in copy})
    source = _shifted(subject, place, range(frames[0], frames[-1] + 1))
    first, second = (Copies(*(_average(source, place.t, copy) for copy in copies)) for copies in dealt if copies)
    return first, second


def _shifted(subject: Subject, place: Place, needed: range) -> ShiftedFrames:
    return ShiftedFrames(
        subject.movie,
        needed,
        range(place.t, place.t + 1),
        place.region,
        whole_shifts(subject.movie),
        subject.inputs.frame_of_reference,
    )


def _average(source: ShiftedFrames, t: int, members: list[int]) -> Floats:
    """Average frames; NaN where one of them is missing, since the copies' noise must be equal."""
    total, count = source.sum_frames(t, members)
    return np.where(count == len(members), total / len(members), np.nan).astype(np.float32)


def read_frames(subject: Subject, place: Place) -> tuple[Floats, Floats]:
    """Read the frames of both halves one by one, at the place: ``(n, y, x)`` each, NaN where invalid."""
    halves = subject.inputs.list_pair(place.t)
    members = sorted(halves[0] + halves[1])
    source = _shifted(subject, place, range(members[0], members[-1] + 1))
    even, odd = (np.stack([_average(source, place.t, [frame]) for frame in half]) for half in halves)
    return even, odd
