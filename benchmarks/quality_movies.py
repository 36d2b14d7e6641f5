"""Make the movies that ``quality.py`` compares methods on, as `twins.py` makes movies.

pip install de-twin==0.3.0
python benchmarks/quality_movies.py FOLDER                # seven movies, 400 MB: 6 minutes
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from twins import Scene, make_movie

ROOM_PX = 96
VESICLES = Scene("Negative stain on carbon", "DE16", 40_000, -1.0, 0.15, (0.04, -0.02), 0.05)
DRIFTING = VESICLES._replace(pace_px=(0.90, 0.50), walk_px=0.30)
BREATHING = VESICLES._replace(pace_px=(0.05, 0.05), local_motion_px=6.0)
APOFERRITIN = Scene("Apoferritin in ice", "Apollo", 60_000, -1.5, 0.60, (0.02, 0.03), 0.05)


class Movie(NamedTuple):
    """One movie."""

    scene: Scene
    seed: int
    n_frames: int
    side_px: int


MOVIES = {
    "vesicles": Movie(VESICLES, 11, 48, 256),
    "drifting": Movie(DRIFTING, 11, 48, 256),
    "apoferritin": Movie(APOFERRITIN, 11, 48, 256),
    "drifting21": Movie(DRIFTING, 21, 96, 384),
    "breathing31": Movie(BREATHING, 23, 64, 384),
    "vesicles31": Movie(VESICLES, 31, 64, 384),
    "apoferritin31": Movie(APOFERRITIN, 31, 64, 384),
}


def make_all(folder: Path) -> list[Path]:
    """Make all movies that are not there yet; return their folders."""
    for name, (scene, seed, n_frames, side_px) in MOVIES.items():
        make_movie(folder / name, scene, n_frames, side_px, seed, ROOM_PX)
        print(folder / name, flush=True)
    return [folder / name for name in MOVIES]


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    make_all(parser.parse_args().folder)


if __name__ == "__main__":
    main()
