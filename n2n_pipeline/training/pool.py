"""What of the movies is in memory at which step: all of it, or regions that are replaced one after another.

Which regions are in memory is a function of (seed, step) alone, so a resumed run sees what it would have seen.
Regions are read in the background, one replacement ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from n2n_pipeline.training.detail import measure_detail
from n2n_pipeline.training.stacks import Frames, Region, Stack, group_size, stack_bytes, whole_region

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.uint16]

REGION_PX = 512
REGION_WINDOWS = 4
STEPS_PER_REGION = 25
POOL, VALIDATION, HELD_OUT, NORMALISATION, STEADINESS = 2**40, 2**41, 2**42, 2**43, 2**44
"""In place of a step: keys of random numbers that are no patch's."""


class Slot(NamedTuple):
    """One region in memory."""

    movie: int
    region: Region
    stack: Stack
    group_size: int
    typical_value: float
    detail: npt.NDArray[np.float64] | None = None
    """Share of draws by contrast, see `detail.measure_detail`; None where patches are drawn evenly."""

    def sum_groups(self, groups: Sequence[int], place: tuple[range, range]) -> tuple[Floats, Counts]:
        """Sum some groups of frames, and the frames in them, at rows and columns of the movie."""
        total, count = self.sum_levels([groups], place)
        return total[0], count[0]

    def sum_levels(self, levels: Sequence[Sequence[int]], place: tuple[range, range]) -> tuple[Floats, Counts]:
        """Sum what each level adds to the groups of the one before, ``(level, y, x)``."""
        first = [part.start - whole.start for part, whole in zip(place, self.region[1:], strict=True)]
        shape = (len(levels), len(place[0]), len(place[1]))
        totals, counts = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
        for level, groups in enumerate(levels):
            if level > 0:
                totals[level], counts[level] = totals[level - 1], counts[level - 1]
            members = np.asarray(groups, np.int64)
            _add_groups(*self.stack, members, first[0], first[1], totals[level], counts[level])
        return totals, counts


@numba.njit(nogil=True, cache=True)
def _add_groups(  # noqa: PLR0913  # compiled code takes no tuples of arrays of several types
    sums: Floats, counts: Counts, groups: Ints, row: int, col: int, total: Floats, count: Counts
) -> None:
    """Add some groups' sums and counts, from a row and column on, in one pass that lets other threads run."""
    height, width = total.shape
    for group in groups:
        for y in range(height):
            total_row, count_row = total[y], count[y]
            sums_row, counts_row = sums[group, row + y, col:], counts[group, row + y, col:]
            for x in range(width):
                total_row[x] += sums_row[x]
                count_row[x] += counts_row[x]


class Choice(NamedTuple):
    """Which region a slot holds: the movie and the region of it."""

    movie: int
    region: Region


class Pool:
    """Movies in memory within a budget.

    Parameters
    ----------
    movies : sequence of Frames
        The movies; each is drawn from in proportion to its frames.
    windows : sequence of int
        Frames per sample.
    seed : int
        Start of the random choice of regions.
    memory_bytes : int
        How much may be held; movies that fit together are held whole.
    with_detail : bool
        Measure where each region has contrast.
    """

    def __init__(
        self,
        movies: Sequence[Frames],
        windows: Sequence[int],
        seed: int,
        memory_bytes: int,
        with_detail: bool = False,
    ) -> None:
        self._with_detail = with_detail
        self._movies, self._seed, self._longest = movies, seed, max(windows)
        self._group_size = group_size(min(windows))
        frames = np.array([movie.n_frames for movie in movies], np.float64)
        self._shares = frames / frames.sum()
        wholes = [whole_region(movie) for movie in movies]
        self._is_whole = sum(stack_bytes(region, self._group_size) for region in wholes) <= memory_bytes
        self._wholes = [Choice(index, region) for index, region in enumerate(wholes)]
        largest = max(stack_bytes(self._limit(region), self._group_size) for region in wholes)
        self._n_slots = max(memory_bytes // largest - 2, 1)  # one is being read, one may still be in use
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training-regions")
        self._slots: dict[tuple[int, int], Future[Slot]] = {}
        self._lock = Lock()

    def choose(self, step: int, rng: np.random.Generator) -> Slot:
        """Draw one of the regions that are in memory at a step."""
        if self._is_whole:
            index = int(rng.choice(len(self._movies), p=self._shares))
            return self._fetch((index, 0)).result()
        return self._fetch(self._key(int(rng.integers(self._n_slots)), step)).result()

    def prepare(self, step: int) -> None:
        """Start reading what a step and the replacement after it need, and let go of what is long past."""
        if self._is_whole:
            return
        times = [step + turn * STEPS_PER_REGION for turn in (0, 1, -1) if step + turn * STEPS_PER_REGION >= 0]
        keys = [self._key(slot, at) for at in times[:2] for slot in range(self._n_slots)]
        for key in keys:
            self._fetch(key)
        keys += [self._key(slot, times[-1]) for slot in range(self._n_slots)]
        with self._lock:
            self._slots = {key: slot for key, slot in self._slots.items() if key in keys}

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _key(self, slot: int, step: int) -> tuple[int, int]:
        """Return a slot and how many times it has been refilled: every so many steps the next slot is."""
        refills = step // STEPS_PER_REGION
        return slot, (refills + self._n_slots - 1 - slot) // self._n_slots

    def _fetch(self, key: tuple[int, int]) -> Future[Slot]:
        with self._lock:
            if key not in self._slots:
                self._slots[key] = self._reader.submit(self._read, key)
            return self._slots[key]

    def _read(self, key: tuple[int, int]) -> Slot:
        choice = self._wholes[key[0]] if self._is_whole else self._draw_region(key)
        movie = self._movies[choice.movie]
        stack = movie.read_stack(choice.region, self._group_size)
        detail = measure_detail(stack) if self._with_detail else None
        return Slot(choice.movie, choice.region, stack, self._group_size, movie.typical_value, detail)

    def _draw_region(self, key: tuple[int, int]) -> Choice:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, POOL, *key))))
        index = int(rng.choice(len(self._movies), p=self._shares))
        whole = whole_region(self._movies[index])
        return Choice(
            index, Region(*(_draw_part(w, len(p), rng) for w, p in zip(whole, self._limit(whole), strict=True)))
        )

    def _limit(self, whole: Region) -> Region:
        frames, rows, cols = whole
        return Region(frames[: REGION_WINDOWS * self._longest], rows[:REGION_PX], cols[:REGION_PX])


def _draw_part(whole: range, size: int, rng: np.random.Generator) -> range:
    start = whole.start + int(rng.integers(len(whole) - size + 1))
    return range(start, start + size)
