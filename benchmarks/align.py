"""Drift found against the true path, beside what plain phase correlation makes of the same movies.

    python benchmarks/align.py [FOLDER...]

A folder holds ``movie.mrc``, ``dark.mrc`` and ``gain.mrc`` where the camera needs them, and ``meta.json`` with the
true path in ``drift_px`` (x, y). Without one, the folders in the one named by ``N2N_DATA`` are taken. Movies that
this package simulates come last. The error is the root mean square length of the difference from the true path, a
constant removed, in px. One to three minutes.

    n2n-pipeline   `n2n-pipeline ingest` and `align`
    scikit-image   `phase_cross_correlation` of every corrected frame with the mean of all, to a tenth of a pixel
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
from skimage.registration import phase_cross_correlation

import n2n_pipeline as n2n
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.sources.simulated import simulate_movie

RESULTS = Path(__file__).parent / "results" / "align.json"
SIMULATED = {
    "simulated, still, 0.5 e/px": {"drift": (0.0, 0.0)},
    "simulated, 0.9 px per frame, 0.5 e/px": {"drift": (0.8, -0.4)},
    "simulated, 0.9 px per frame, 0.1 e/px": {"drift": (0.8, -0.4), "dose": 0.1},
}


class Case(NamedTuple):
    """A movie whose path is known."""

    name: str
    movie: Path
    references: IngestConfig
    path: np.ndarray
    """``(t, 2)`` px, y and x."""


def cases_in(folder: Path) -> Iterator[Case]:
    """Find the movie of a folder made with a camera's digital twin."""
    meta = folder / "meta.json"
    if meta.is_file():
        given = {name: folder / f"{name}.mrc" for name in ("dark", "gain") if (folder / f"{name}.mrc").is_file()}
        path = np.array(json.loads(meta.read_text())["drift_px"])[:, ::-1]
        yield Case(folder.name, folder / "movie.mrc", IngestConfig(**given), path)


def simulated_cases(folder: Path) -> Iterator[Case]:
    """Write simulated movies."""
    for number, (name, options) in enumerate(SIMULATED.items()):
        movie = simulate_movie((48, 256, 256), seed=number, **{"dose": 0.5, **options})  # type: ignore[arg-type]
        yield Case(name, movie.write_mrc(folder / f"{number}.mrc"), IngestConfig(), movie.shifts)


def error_px(found: np.ndarray, true: np.ndarray) -> float:
    """Return the root mean square length of the difference, a constant removed."""
    difference = found - true
    return float(np.sqrt(np.square(difference - difference.mean(axis=0)).sum(axis=1).mean()))


def phase_correlation(case: Case) -> np.ndarray:
    """Lay every frame on the mean of all."""
    frames = mrcfile.read(case.movie).astype(np.float32)
    if case.references.dark is not None:
        frames -= mrcfile.read(case.references.dark)
    if case.references.gain is not None:
        frames *= mrcfile.read(case.references.gain)
    mean = frames.mean(axis=0)
    return np.array([-phase_cross_correlation(mean, frame, upsample_factor=10)[0] for frame in frames])


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Align one movie both ways."""
    store = n2n.ingest(case.movie, folder / f"{abs(hash(case.name))}.zarr", case.references)
    start = time.perf_counter()
    shifts = n2n.align(store)
    seconds = time.perf_counter() - start
    return {
        "movie": case.name,
        "range_px": round(float(np.hypot(*np.ptp(case.path, axis=0))), 1),
        "n2n_error_px": round(error_px(shifts.dy_dx, case.path), 3),
        "n2n_seconds": round(seconds, 2),
        "frames_claimed": int((shifts.confidence >= 0.5).sum()),
        "frames": len(case.path),
        "scikit_image_error_px": round(error_px(phase_correlation(case), case.path), 2),
    }


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    folders: list[Path] = parser.parse_args().folders
    if not folders and "N2N_DATA" in os.environ:
        folders = sorted(path for path in Path(os.environ["N2N_DATA"]).iterdir() if path.is_dir())
    set_quiet(True)
    rows = []
    print(f"{'movie':40} {'range':>7} {'error':>7} {'claimed':>9} {'seconds':>8} {'scikit-image':>13}")
    with tempfile.TemporaryDirectory() as scratch:
        cases = [case for folder in folders for case in cases_in(folder)]
        for case in [*cases, *simulated_cases(Path(scratch))]:
            row = measure(case, Path(scratch))
            rows.append(row)
            print(
                f"{row['movie']:40} {row['range_px']:7.1f} {row['n2n_error_px']:7.3f} "
                f"{row['frames_claimed']:4d}/{row['frames']:<4d} {row['n2n_seconds']:8.2f} "
                f"{row['scikit_image_error_px']:13.2f}"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "n2n_pipeline": n2n.__version__}
    RESULTS.write_text(json.dumps({"machine": machine, "movies": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
