"""Make the movies that ``quality.py`` compares methods on, with Direct Electron's simulated microscope.

    pip install de-twin==0.3.0
    python benchmarks/quality_movies.py FOLDER                # seven movies, 400 MB: 6 minutes

Specimen, optics and camera are de-twin's: charge shared between pixels, read noise, dark, gain and bad pixels of
an integrating camera, or counted electrons. This script moves the scene, as a whole (drift and a random walk) and
in parts, and exposes it frame by frame. Each movie is a folder:

    movie.mrc            (t, y, x) as the camera saves them
    truth.mrc            (t, y, x) electrons per pixel without noise
    dark.mrc, gain.mrc   (y, x) of an integrating camera
    meta.json            what was simulated; ``drift_px`` is (t, 2), x before y
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
from scipy import ndimage

MARGIN_PX = 96


class Scenario(NamedTuple):
    """What is looked at, by which camera, and how it moves."""

    specimen: str
    camera: str
    magnification: int
    defocus_um: float
    dose: float
    """Electrons per pixel and frame."""
    drift_px: tuple[float, float]
    """Per frame, x and y."""
    walk_px: float
    parts_px: float = 0.0
    """How far parts of the scene swing on their own."""


class Movie(NamedTuple):
    """One movie."""

    scenario: str
    seed: int
    n_frames: int
    side_px: int


SCENARIOS = {
    "vesicles": Scenario("Negative stain on carbon", "DE16", 40_000, -1.0, 0.15, (0.04, -0.02), 0.05),
    "drifting": Scenario("Negative stain on carbon", "DE16", 40_000, -1.0, 0.15, (0.90, 0.50), 0.30),
    "breathing": Scenario("Negative stain on carbon", "DE16", 40_000, -1.0, 0.15, (0.05, 0.05), 0.05, 6.0),
    "apoferritin": Scenario("Apoferritin in ice", "Apollo", 60_000, -1.5, 0.60, (0.02, 0.03), 0.05),
}
MOVIES = {
    "vesicles": Movie("vesicles", 11, 48, 256),
    "drifting": Movie("drifting", 11, 48, 256),
    "apoferritin": Movie("apoferritin", 11, 48, 256),
    "drifting21": Movie("drifting", 21, 96, 384),
    "breathing31": Movie("breathing", 23, 64, 384),
    "vesicles31": Movie("vesicles", 31, 64, 384),
    "apoferritin31": Movie("apoferritin", 31, 64, 384),
}


class Bench:
    """A simulated microscope, set up for a movie."""

    def __init__(self, movie: Movie) -> None:
        from de_twin import DigitalTwin, ManualClock

        self.scenario = SCENARIOS[movie.scenario]
        self.side, self.seed = movie.side_px, movie.seed
        self.twin = DigitalTwin(
            self.scenario.specimen, camera=self.scenario.camera, clock=ManualClock(), seed=movie.seed
        )
        self.twin.column.set("Magnification", self.scenario.magnification)
        self.twin.column.set("Intensity", self.twin._intensity_for_dose(self.twin.safe_dose_e_per_px_s()))
        self.twin.column.set_defocus_um(self.scenario.defocus_um)
        self.sensor = self.twin.detector.roi(self.twin.request())
        self.shot = self.twin.request(hw_roi=self._centred(self.side), frame_time_s=1.0)

    def _centred(self, side: int) -> Any:
        from de_twin.state import Roi

        return Roi((self.sensor.w - side) // 2, (self.sensor.h - side) // 2, side, side)

    def scene(self) -> tuple[np.ndarray, float]:
        """Return ``(y, x)`` electrons per pixel and frame, with a margin to move in, and nm per pixel."""
        request = self.twin.request(hw_roi=self._centred(self.side + 2 * MARGIN_PX), frame_time_s=0.025)
        flux = self.twin.flux(request).astype(np.float32)
        flux *= self.scenario.dose / flux.mean()
        return flux, float(self.twin.optics(request).specimen_pixel_nm)

    def expose(self, electrons: np.ndarray | None, number: int, seed: int) -> np.ndarray:
        """Read out one frame; None keeps the beam off."""
        return np.asarray(self.twin.detector.expose(electrons, 1.0, self.shot, number, seed=seed)[0])

    def references(self) -> dict[str, np.ndarray]:
        """Measure dark and gain; none for a camera that counts."""
        if self.twin.detector.model.hardware_counting:
            return {}
        flat = np.full((self.side, self.side), 4.0, np.float32)
        dark, bright = (
            (sum(self.expose(beam, first + i, self.seed + 1).astype(np.float64) for i in range(n)) / n).astype(
                np.float32
            )
            for beam, n, first in ((None, 64, 10_000), (flat, 256, 20_000))
        )
        flood = bright - dark
        good = flood > 0.2 * np.median(flood)
        gain = np.where(good, np.median(flood[good]) / np.where(good, flood, 1), 1.0)
        return {"dark": dark, "gain": gain.astype(np.float32)}


def move(scene: np.ndarray, scenario: Scenario, n_frames: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return ``(y, x)`` truths and the ``(t, 2)`` path, x before y, around its mean."""
    rng = np.random.default_rng(seed)
    steps = np.asarray(scenario.drift_px)[None] + scenario.walk_px * rng.standard_normal((n_frames, 2))
    path = np.cumsum(steps, axis=0) - steps[0]
    path -= path.mean(axis=0)
    side = len(scene)
    field = ndimage.gaussian_filter(rng.standard_normal((2, side, side)), (0, side / 12, side / 12))
    field *= scenario.parts_px / max(np.abs(field).max(), 1e-9)
    rows, cols = np.mgrid[0:side, 0:side].astype(np.float32)
    inside = slice(MARGIN_PX, side - MARGIN_PX)
    truths = []
    for t, (dx, dy) in enumerate(path):
        swing = np.sin(2 * np.pi * t / max(n_frames, 2))
        places = (rows - dy - swing * field[1], cols - dx - swing * field[0])
        moved = ndimage.map_coordinates(scene, places, order=3, mode="nearest")
        truths.append(np.clip(moved, 0, None)[inside, inside])
    return truths, path


def write(path: Path, pixels: np.ndarray, pixel_nm: float) -> None:
    """Write an MRC file; bytes that hold no more than 127 become the standard's signed ones."""
    with mrcfile.new(path, overwrite=True) as file:
        small = pixels.dtype == np.uint8 and pixels.max() < 128
        file.set_data(pixels.astype(np.int8) if small else pixels)
        if pixels.ndim == 3:
            file.set_image_stack()
        file.voxel_size = 10 * pixel_nm


def make(name: str, folder: Path) -> Path:
    """Make one movie, unless it is there."""
    out = folder / name
    if (out / "meta.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    movie = MOVIES[name]
    bench = Bench(movie)
    scene, pixel_nm = bench.scene()
    truths, path = move(scene, bench.scenario, movie.n_frames, movie.seed)
    frames = [bench.expose(truth, t, movie.seed) for t, truth in enumerate(truths)]
    write(out / "movie.mrc", np.stack(frames), pixel_nm)
    write(out / "truth.mrc", np.stack(truths).astype(np.float32), pixel_nm)
    for reference, pixels in bench.references().items():
        write(out / f"{reference}.mrc", pixels, pixel_nm)
    meta = {**bench.scenario._asdict(), **movie._asdict(), "pixel_size_nm": pixel_nm, "drift_px": path.tolist()}
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(out, frames[0].dtype, f"{movie.n_frames} x {movie.side_px} x {movie.side_px}", flush=True)
    return out


def make_all(folder: Path) -> list[Path]:
    """Make all movies that are not there yet; return their folders."""
    return [make(name, folder) for name in MOVIES]


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    make_all(parser.parse_args().folder)


if __name__ == "__main__":
    main()
