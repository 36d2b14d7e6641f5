"""What a movie is before it is stored: frames that can be read a few at a time, and what its file tells of them.

Axes are ``t y x``. A quantity that the file does not tell is ``None``: never 0, never 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[Any]


@dataclass(frozen=True)
class MovieInfo:
    """Shape, type and, where the file tells them, the physical quantities of a movie."""

    shape: tuple[int, int, int]
    """Frames, height and width: ``(t, y, x)``."""
    dtype: np.dtype[Any]
    """Type of the counts as they are read, in native byte order."""
    format: str
    """``"mrc"``, ``"tiff"``, ``"eer"``, ``"dm"``, ``"emd"``, ``"ser"``, ``"images"`` or ``"zarr"``."""
    pixel_size: float | None = None
    """Å per pixel."""
    frame_time: float | None = None
    """Seconds per frame."""
    dose_per_frame: float | None = None
    """Electrons per Å² per frame."""
    voltage: float | None = None
    """Acceleration voltage in kV."""
    camera: str | None = None
    software: str | None = None
    warnings: tuple[str, ...] = field(default=())
    """What is odd about the file though it can be read, one sentence each."""


class MovieSource(Protocol):
    """A movie file (or folder) that is read frame by frame; reading is safe from several threads."""

    path: Path
    info: MovieInfo

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array of ``info.dtype``."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...
