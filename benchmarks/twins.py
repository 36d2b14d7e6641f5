"""Simulated movies of many specimens and cameras, whose noise-free truth is known.

    python benchmarks/twins.py DIR --count 100            # the movies that the starting weights were trained on
    python benchmarks/twins.py DIR --unseen               # movies for tests of these weights, of none of those

Needs ``pip install de-twin==0.3.0 mrcfile scipy``, best in a virtual environment of its own. `de-twin`, a camera
vendor's digital twin of a microscope, draws the specimen and exposes the frames with the camera's dark level,
gain, read noise, charge sharing, defects and counting; this script moves the scene. Each movie is a folder as
`benchmarks/quality.py` reads them: ``movie.mrc``, ``truth.mrc`` (electrons per pixel of each frame), ``dark.mrc``
and ``gain.mrc`` of integrating cameras, ``meta.json``. A folder that is whole is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]

FIRST_SEED = 50_000  # of the training movies; no test uses a seed above this
SPECIMENS = (
    "Negative stain on carbon",
    "Apoferritin in ice",
    "Dense Au on holey C",
    "Au clusters on lacey C",
    "Sparse Au on holey C",
    "Cross grating 2160 l/mm",
    "Au thin film 20 nm",
    "Al thin film 100 nm",
    "PN junction lamella",
    "Strained inclusion lamella",
)
"""In training. In-situ heating, droplet crystallisation, the steel lamella and all atomic resolution are not."""
INTEGRATING = ("DE16", "DE64", "LV16", "Celeritas", "Vision16")
COUNTING = ("Apollo", "ApolloXS", "Artemis", "Centuri")
BLANK_EVERY = 8  # one movie in so many shows nothing
ROOM_PX = 64  # for the scene to move in
DARK_FRAMES, FLOOD_FRAMES, FLOOD_ELECTRONS = 64, 256, 4.0


class Scene(NamedTuple):
    """What is filmed, and how."""

    specimen: str
    camera: str
    magnification: float
    defocus_um: float
    electrons_per_pixel_per_frame: float
    pace_px: tuple[float, float] = (0.0, 0.0)
    """Drift per frame, x and y."""
    walk_px: float = 0.05
    """Standard deviation of a random step per frame."""
    local_motion_px: float = 0.0
    """Peak of the motion of parts against each other."""
    is_blank: bool = False
    """Nothing but the beam."""


HEATING = "Virtual Specimen - In Situ Heating (Nanoparticles)"
UNSEEN = {
    "stain": Scene("Negative stain on carbon", "DE16", 40_000, -1.0, 0.15, (0.3, -0.2)),
    "ice": Scene("Apoferritin in ice", "Apollo", 60_000, -1.5, 0.6, (0.02, 0.03)),
    "breathing": Scene("Negative stain on carbon", "DE16", 40_000, -1.0, 0.15, (0.05, 0.05), local_motion_px=5.0),
    "heating": Scene(HEATING, "Celeritas", 30_000, -1.0, 0.3, (0.5, 0.1)),
    "droplet": Scene("Droplet crystallization", "DE16", 20_000, -1.0, 0.2, (0.1, 0.4)),
    "steel": Scene("Steel lamella with carbides", "Apollo", 30_000, -1.0, 0.4, (0.2, 0.1)),
}
"""For tests: other seeds of two specimens that were trained on, and three that were not."""


def draw_scene(seed: int) -> Scene:
    """Draw a training movie's scene."""
    rng = np.random.default_rng(seed)
    number = seed - FIRST_SEED
    cameras = COUNTING if number % 2 else INTEGRATING
    angle, speed = rng.uniform(0, 2 * np.pi), rng.choice((0.0, rng.uniform(0, 0.9)))
    return Scene(
        SPECIMENS[(number // 2) % len(SPECIMENS)],
        cameras[int(rng.integers(len(cameras)))],
        float(np.exp(rng.uniform(np.log(12_000), np.log(80_000)))),
        float(rng.uniform(-2.5, -0.4)),
        float(np.exp(rng.uniform(np.log(0.04), np.log(1.5)))),
        (float(speed * np.cos(angle)), float(speed * np.sin(angle))),
        float(rng.uniform(0.02, 0.2)),
        float(rng.choice((0.0, rng.uniform(0, 4)))),
        number % BLANK_EVERY == BLANK_EVERY - 1,
    )


def draw_flux(scene: Scene, side_px: int, seed: int) -> tuple[Floats, Any, Any, Callable[[int], Any]]:
    """Return the scene without noise, the twin and its request, and how to ask for its sensor's middle."""
    from de_twin import DigitalTwin  # not needed to read the scenes
    from de_twin.clock import ManualClock
    from de_twin.state import Roi

    twin = DigitalTwin(scene.specimen, camera=scene.camera, clock=ManualClock(), seed=seed)
    twin.column.set("Magnification", scene.magnification)
    twin.column.set("Intensity", twin._intensity_for_dose(twin.safe_dose_e_per_px_s()))
    twin.column.set_defocus_um(scene.defocus_um)
    sensor = twin.detector.roi(twin.request())

    def in_the_middle(side: int) -> Any:
        return Roi((sensor.w - side) // 2, (sensor.h - side) // 2, side, side)

    request = twin.request(hw_roi=in_the_middle(side_px), frame_time_s=0.025)
    return twin.flux(request).astype(np.float32), twin, request, in_the_middle


def make_movie(folder: Path, scene: Scene, frames: int, side_px: int, seed: int, room_px: int = ROOM_PX) -> None:
    """Write one movie, its truth and its references, unless they are there; with room on each side to move in."""
    if (folder / "meta.json").exists():
        return
    flux, twin, big, in_the_middle = draw_flux(scene, side_px + 2 * room_px, seed)
    if scene.is_blank:
        flux[:] = 1
    flux *= scene.electrons_per_pixel_per_frame / flux.mean()
    path, truth = move(flux, scene, frames, room_px, np.random.default_rng(seed))
    shot = twin.request(hw_roi=in_the_middle(side_px), frame_time_s=1.0)
    movie = np.stack([twin.detector.expose(frame, 1.0, shot, t, seed=seed)[0] for t, frame in enumerate(truth)])
    pixel_nm = float(twin.optics(big).specimen_pixel_nm)
    folder.mkdir(parents=True, exist_ok=True)
    counting = bool(twin.detector.model.hardware_counting)
    if not counting:
        dark, gain = measure_references(twin.detector, shot, side_px, seed + 1)
        write(folder / "dark.mrc", dark, pixel_nm)
        write(folder / "gain.mrc", gain, pixel_nm)
    write(folder / "movie.mrc", movie, pixel_nm)
    write(folder / "truth.mrc", truth, pixel_nm)
    known = scene._asdict() | {"seed": seed, "pixel_size_nm": pixel_nm, "drift_px": path.round(4).tolist()}
    (folder / "meta.json").write_text(json.dumps(known | {"is_counting": counting}, indent=1))


def move(
    flux: Floats, scene: Scene, frames: int, room_px: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], Floats]:
    """Return the path ``(t, 2)``, x and y in px, and the moved scene's middle ``(t, y, x)``."""
    steps = np.asarray(scene.pace_px) + scene.walk_px * rng.standard_normal((frames, 2))
    path = np.cumsum(steps, axis=0)
    path = np.clip(path - path.mean(axis=0), 8 - room_px, room_px - 8)
    field = ndimage.gaussian_filter(rng.standard_normal((2, *flux.shape)), (0, *np.divide(flux.shape, 12)))
    field *= scene.local_motion_px / np.abs(field).max()
    rows, cols = np.mgrid[: flux.shape[0], : flux.shape[1]]
    curve = ndimage.spline_filter(flux, 3)
    inside = tuple(slice(room_px, side - room_px) for side in flux.shape)
    truth = np.empty((frames, *flux[inside].shape), np.float32)
    for t, (dx, dy) in enumerate(path):
        swing = np.sin(2 * np.pi * t / frames)
        places = (rows - dy - swing * field[1], cols - dx - swing * field[0])
        moved = ndimage.map_coordinates(curve, places, order=3, mode="nearest", prefilter=False)
        truth[t] = np.clip(moved, 0, None)[inside]
    return path, truth


def measure_references(detector: Any, shot: Any, side_px: int, seed: int) -> tuple[Floats, Floats]:
    """Record the mean dark frame and, with a flood of electrons, the gain whose mean is 1."""

    def mean(flux: Floats | None, frames: int) -> npt.NDArray[np.float64]:
        first = 10_000 if flux is None else 20_000
        total = sum(detector.expose(flux, 1.0, shot, first + t, seed=seed)[0].astype(float) for t in range(frames))
        return np.asarray(total / frames)

    dark = mean(None, DARK_FRAMES)
    flood = mean(np.full((side_px, side_px), FLOOD_ELECTRONS, np.float32), FLOOD_FRAMES) - dark
    good = flood > 0.2 * np.median(flood)
    gain = np.where(good, np.median(flood[good]) / np.where(good, flood, 1), 1.0)
    return dark.astype(np.float32), gain.astype(np.float32)


def write(path: Path, array: npt.NDArray[Any], pixel_nm: float) -> None:
    """Write an MRC file with its pixel size; small counts as bytes."""
    fits = array.dtype == np.uint8 and array.max() < 128
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(array.astype(np.int8) if fits else array)
        if array.ndim == 3:
            mrc.set_image_stack()
        mrc.voxel_size = pixel_nm * 10


def main() -> None:
    """Make the movies that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100, help="of training movies")
    parser.add_argument("--unseen", action="store_true", help="movies for tests instead")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--side", type=int, default=320, help="in px")
    parser.add_argument("--seed", type=int, default=900, help="of the movies for tests")
    told = parser.parse_args()
    if told.unseen:
        wanted = {name: (scene, told.seed + n) for n, (name, scene) in enumerate(UNSEEN.items())}
    else:
        seeds = range(FIRST_SEED, FIRST_SEED + told.count)
        wanted = {str(seed): (draw_scene(seed), seed) for seed in seeds}
    for name, (scene, seed) in wanted.items():
        make_movie(told.folder / name, scene, told.frames, told.side, seed)
        print(name, *scene, flush=True)


if __name__ == "__main__":
    main()
