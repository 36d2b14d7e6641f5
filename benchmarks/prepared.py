"""A movie with its truth, stored, aligned and averaged by the package, so that every method starts from the same.

A folder holds ``movie.mrc``, ``truth.mrc`` and, where the camera needs them, ``dark.mrc`` and ``gain.mrc``. What
is made of it goes into a folder of its own and is made once:

    movie.zarr, window.json      by `n2n-pipeline ingest`, `align` and `sweep`
    even.npy, odd.npy            (t, y, x) averages over half a window about each frame, aligned to it
    averages.npy, sigma.npy      (n, y, x) averages over whole windows about the frames that are scored, and their
                                 noise, from the difference of the halves: no truth
    scored.npy, truth.npy        those frames' numbers, and their truth
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
import numpy.typing as npt

import n2n_pipeline as n2n
from n2n_pipeline.averages import read_pairs
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.files import read_json
from n2n_pipeline.halving import window_frames
from n2n_pipeline.placing import move, offset_of
from n2n_pipeline.store import open_store, write_movie, write_shifts

SCORED_FRAMES = 12
MAD_TO_SIGMA = 1.4826

Floats = npt.NDArray[np.floating[Any]]


class Prepared(NamedTuple):
    """A movie that is ready for every method."""

    folder: Path
    work: Path

    @property
    def store(self) -> Path:
        """Counts, references and drift."""
        return self.work / "movie.zarr"

    @property
    def window(self) -> int:
        """Frames to average, as the sweep chose."""
        return int(read_json(self.work / "window.json")["window"])

    @property
    def scored(self) -> range:
        """Frames that are compared with their truth: spread over the movie."""
        n_frames = open_store(self.store).info.shape[0]
        step = max(1, n_frames // SCORED_FRAMES)
        return range(step // 2, n_frames, step)

    def place(self, frames: Floats, window: int) -> Floats:
        """Move what was made of averages over windows to where each of the scored frames has the scene."""
        movie = self.corrected()
        return np.stack([place(movie, t, window, frame) for t, frame in zip(self.scored, frames, strict=True)])

    def corrected(self) -> CorrectedMovie:
        """Open the movie."""
        return CorrectedMovie(open_store(self.store))

    def truth(self) -> Floats:
        """Return ``(n, y, x)`` the truth of the scored frames."""
        return np.asarray(np.load(self.work / "truth.npy"))

    def pixel_size(self) -> float | None:
        """Return Å per pixel."""
        return open_store(self.store).info.pixel_size


def place(movie: CorrectedMovie, t: int, window: int, image: Floats) -> Floats:
    """Move what was made of an average over frame t's window to where that has the scene."""
    members = window_frames(movie.store.info.shape[0], t, window)
    return move(image, offset_of(movie, t, members, "camera"))


def prepare(folder: Path, work: Path) -> Prepared:
    """Store, align, sweep and average a movie, unless it was done."""
    prepared = Prepared(folder, work)
    work.mkdir(parents=True, exist_ok=True)
    given = {name: folder / f"{name}.mrc" for name in ("dark", "gain") if (folder / f"{name}.mrc").is_file()}
    n2n.ingest(folder / "movie.mrc", prepared.store, IngestConfig(**given))
    if not (work / "window.json").exists():
        n2n.align(prepared.store)
        n2n.sweep(prepared.store, output=work / "window.json")
    if not (work / "truth.npy").exists():
        write_averages(prepared)
    return prepared


def write_averages(prepared: Prepared) -> None:
    """Write what methods read that know no stores."""
    movie, scored = prepared.corrected(), prepared.scored
    n_frames, height, width = movie.store.info.shape
    pair = read_pairs(movie, range(n_frames), (slice(0, height), slice(0, width)), prepared.window)
    # At an edge, one half may not have seen a pixel.
    even = np.where(pair.even_count > 0, pair.even, pair.odd)
    odd = np.where(pair.odd_count > 0, pair.odd, pair.even)
    count = np.maximum(pair.even_count + pair.odd_count, 1e-6)
    average = ((pair.even * pair.even_count + pair.odd * pair.odd_count) / count)[scored]
    apart = (even - odd)[scored] / 2
    centred = np.abs(apart - np.median(apart, axis=(1, 2), keepdims=True))
    np.save(prepared.work / "even.npy", even.astype(np.float32))
    np.save(prepared.work / "odd.npy", odd.astype(np.float32))
    np.save(prepared.work / "averages.npy", average.astype(np.float32))
    np.save(prepared.work / "sigma.npy", MAD_TO_SIGMA * np.median(centred, axis=(1, 2)))
    np.save(prepared.work / "scored.npy", np.array(scored))
    np.save(prepared.work / "truth.npy", mrcfile.read(prepared.folder / "truth.mrc")[scored].astype(np.float32))


def store_truth(prepared: Prepared) -> Path:
    """Store a movie's truth, in the movie's units and with its drift, for training towards it."""
    path = prepared.work / "truth.zarr"
    if path.exists():
        return path
    movie = prepared.corrected()
    counts, valid = movie.read(*(slice(0, side) for side in movie.store.info.shape))
    truth = mrcfile.read(prepared.folder / "truth.mrc").astype(np.float32)
    seen = np.broadcast_to(valid, counts.shape)
    slope, offset = np.polyfit(truth[seen].astype(float), counts[seen].astype(float), 1)
    write_movie(path, (slope * truth + offset).astype(np.float32))
    write_shifts(path, movie.store.shifts)
    return path
