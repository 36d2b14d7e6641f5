"""Dark, gain and defects, applied lazily.

Corrected values are ``(counts - dark) * gain``, in the movie's own units (counts or electrons per pixel per
frame). A pixel that is a defect, or not finite, is *invalid*: its value is 0 and it carries no weight; nothing
is invented for it here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.store import MovieStore

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

TYPICAL_PX = 1024  # side of the part of a frame that is looked at for a typical value


class Corrected(NamedTuple):
    """Frames after correction, and where they hold something."""

    values: npt.NDArray[np.float32]
    """``(t, y, x)`` in the movie's units; 0 where invalid."""
    valid: Bools
    """``(t, y, x)``, or ``(1, y, x)`` when it is the same for every frame."""


class Raw(NamedTuple):
    """Counts as they are stored, and the references of the same pixels."""

    counts: npt.NDArray[Any]
    """``(t, y, x)``."""
    valid: Bools
    """``(y, x)``."""
    dark: Floats | None
    gain: Floats | None


@dataclass(frozen=True)
class CorrectedMovie:
    """A store's frames, corrected as they are read."""

    store: MovieStore
    brightest: float = math.inf
    """Values above it are invalid, in their frame alone; in the movie's units."""

    def read(self, frames: slice, rows: slice, cols: slice) -> Corrected:
        """Read and correct a part of the movie.

        Parameters
        ----------
        frames, rows, cols : slice
            Ranges of frames and of pixels, within the movie; no steps.
        """
        counts = self.store.read(frames, rows, cols)
        values = counts.astype(np.float32)
        dark, gain, defects = self.store.references
        if dark is not None:
            values -= dark[rows, cols].astype(np.float32)
        if gain is not None:
            values *= gain[rows, cols].astype(np.float32)
        valid = np.ones((1, *values.shape[1:]), bool) if defects is None else ~defects[None, rows, cols]
        if self.repeated[frames].any():
            valid = valid & ~self.repeated[frames, None, None]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            valid = valid & np.isfinite(values)
            values[~np.isfinite(values)] = 0.0
        if self.brightest < math.inf:
            valid = valid & (values <= self.brightest)
        np.multiply(values, valid, out=values)
        return Corrected(values, valid)

    def read_raw(self, frames: slice, rows: slice, cols: slice) -> Raw:
        """Read raw counts with what corrects them, for sums that are corrected once.

        Parameters
        ----------
        frames, rows, cols : slice
            As for `read`.

        Raises
        ------
        ValueError
            If some values may be too bright: which, is known of single frames only.
        """
        if self.brightest < math.inf:
            raise ValueError("raw sums hold values that are too bright; use read")
        counts = self.store.read(frames, rows, cols)
        dark, gain, defects = self.store.references
        valid = np.ones(counts.shape[1:], bool) if defects is None else ~defects[rows, cols]
        cut = (None if reference is None else reference[rows, cols] for reference in (dark, gain))
        return Raw(counts, valid, *cut)

    @cached_property
    def is_as_stored(self) -> bool:
        """Whether the stored counts are the corrected values, and all of them valid."""
        is_whole = self.store.info.dtype.kind in "iu"
        references = any(reference is not None for reference in self.store.references)
        return is_whole and not references and not self.repeated.any() and self.brightest == math.inf

    @cached_property
    def repeated(self) -> Bools:
        """``(t,)``: frames that ingest found to repeat an earlier one, in both halves of a window perhaps.

        Their noise is not their own, so they are left out, as if all their pixels were bad.
        """
        repeated = np.zeros(self.store.info.shape[0], bool)
        for _, *again in self.store.provenance.get("frames", {}).get("duplicates", []):
            repeated[again] = True
        return repeated

    @cached_property
    def typical_value(self) -> float:
        """Mean of the valid pixels in the middle of the middle frame, in the movie's units, for unseen pixels."""
        own = np.flatnonzero(~self.repeated)
        middle = int(own[len(own) // 2])
        rows, cols = (
            slice(max(0, (size - TYPICAL_PX) // 2), (size + TYPICAL_PX) // 2) for size in self.store.info.shape[1:]
        )
        values, valid = self.read(slice(middle, middle + 1), rows, cols)
        return float(values.sum(dtype=np.float64) / max(int(valid.sum()), 1))
