"""Make the movie that ``n2n-pipeline demo`` runs on, with Direct Electron's camera simulator.

    pip install de-twin==0.3.0 tifffile
    python benchmarks/demo_movie.py n2n_pipeline/data

Specimen (negatively stained vesicles on carbon), optics and camera (DE16: dark offset, gain, read noise, charge
shared between pixels, bad pixels) are de-twin's. This script moves the scene as a drifting stage does, exposes it
frame by frame, and keeps what the demo needs in compressed TIFF files:

    movie.tif   (t, y, x) uint16, raw frames as the camera would save them
    dark.tif    (y, x) float32, mean dark frame; gain.tif (y, x) float32, factor per pixel
    truth.tif   (t, y, x) uint8, the noise-free frames; 0 to 127 spans least to most electrons per pixel
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

FRAMES, SIZE, MARGIN, SEED = 40, 192, 64, 5
DOSE = 0.15  # electrons per pixel per frame
DRIFT = np.array([0.5, 0.9])  # px per frame, y and x
JITTER = 0.3  # px per frame

Floats = npt.NDArray[np.floating]


class Microscope:
    """A simulated camera and the noise-free scene before it."""

    def __init__(self) -> None:
        from de_twin import DigitalTwin, ManualClock

        self.twin = DigitalTwin("Negative stain on carbon", camera="DE16", clock=ManualClock(), seed=SEED)
        self.twin.column.set("Magnification", 20_000)
        self.twin.column.set_defocus_um(-1.0)
        self.sensor = self.twin.detector.roi(self.twin.request())
        self.shot = self.twin.request(hw_roi=self._centred(SIZE), frame_time_s=1.0)

    def _centred(self, side: int) -> Any:
        from de_twin.state import Roi

        return Roi((self.sensor.w - side) // 2, (self.sensor.h - side) // 2, side, side)

    def scene(self) -> tuple[Floats, float]:
        """Return ``(y, x)`` expected electrons per pixel, with a margin to move in, and the pixel size in Å."""
        request = self.twin.request(hw_roi=self._centred(SIZE + 2 * MARGIN), frame_time_s=1.0)
        flux = np.asarray(self.twin.flux(request), dtype=np.float64)
        pixel_size = 10 * float(self.twin.optics(request).specimen_pixel_nm)
        return flux * DOSE / flux.mean(), pixel_size

    def expose(self, electrons: Floats | None, number: int, seed: int = SEED) -> npt.NDArray[np.uint16]:
        """Read out one frame; None keeps the beam off."""
        flux = None if electrons is None else electrons.astype(np.float32)
        return self.twin.detector.expose(flux, 1.0, self.shot, number, seed=seed)[0]

    def mean_exposure(self, electrons: Floats | None, frames: int, first: int) -> Floats:
        """Average many frames, as one does for references."""
        total = np.zeros((SIZE, SIZE))
        for number in range(first, first + frames):
            total += self.expose(electrons, number, SEED + 1)
        return total / frames


def drift_path(rng: np.random.Generator) -> Floats:
    """Walk ``(t, 2)`` px, y and x, around its mean."""
    path = np.cumsum(DRIFT + JITTER * rng.standard_normal((FRAMES, 2)), axis=0)
    return path - path.mean(axis=0)


def references(microscope: Microscope) -> tuple[Floats, Floats]:
    """Measure dark frame and gain the way a camera's operator does."""
    dark = microscope.mean_exposure(None, 64, 10_000)
    flat = microscope.mean_exposure(np.full((SIZE, SIZE), 4.0), 256, 20_000) - dark
    alive = flat > 0.2 * np.median(flat)
    gain = np.where(alive, np.median(flat[alive]) / np.where(alive, flat, 1), 1)
    return dark, gain


def write(path: Path, pixels: npt.NDArray[np.generic], pixel_size: float) -> None:
    """Write a deflated TIFF that ImageJ opens with its scale."""
    per_cm = 1e8 / pixel_size
    tifffile.imwrite(
        path,
        pixels,
        photometric="minisblack",
        compression="zlib",
        compressionargs={"level": 9},
        predictor=pixels.dtype != np.uint16,  # it does not help counts
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        metadata={"axes": "TYX"[-pixels.ndim :]},
    )
    print(f"{path}: {pixels.shape} {pixels.dtype}, {path.stat().st_size} bytes")


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    microscope = Microscope()
    scene, pixel_size = microscope.scene()
    inside = slice(MARGIN, MARGIN + SIZE)
    path = drift_path(np.random.default_rng(SEED))
    clean = [np.clip(ndimage.shift(scene, step, mode="nearest"), 0, None)[inside, inside] for step in path]
    truth = np.stack(clean)
    low, high = truth.min(), truth.max()
    dark, gain = references(microscope)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "movie.tif", np.stack([microscope.expose(f, t) for t, f in enumerate(clean)]), pixel_size)
    write(folder / "truth.tif", np.round(127 * (truth - low) / (high - low)).astype(np.uint8), pixel_size)
    write(folder / "dark.tif", (np.round(dark * 8) / 8).astype(np.float32), pixel_size)
    write(folder / "gain.tif", (np.round(gain * 2048) / 2048).astype(np.float32), pixel_size)
    fastest = np.abs(np.diff(path, axis=0)).max()
    print(f"{DOSE} e/px/frame, {pixel_size:.3f} Å/px, drift {fastest:.2f} px/frame at most")


if __name__ == "__main__":
    main()
