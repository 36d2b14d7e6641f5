"""Still scenes of the specimens that starting weights are trained on, without any noise, for `pretrain_ladder.py`.

    python benchmarks/scenes.py FILE.npz [--count 144] [--side 448]

Needs ``pip install de-twin==0.3.0 mrcfile scipy``, best in a virtual environment of its own. Each is what one of
the training movies of `twins.py` would show, by its seed, as electrons per pixel with a mean of one; blank ones
are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from twins import FIRST_SEED, draw_flux, draw_scene


def main() -> None:
    """Draw the scenes, and write them with their seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=144)
    parser.add_argument("--side", type=int, default=448, help="in px")
    told = parser.parse_args()
    seeds, scenes, seed = [], [], FIRST_SEED
    while len(scenes) < told.count:
        scene = draw_scene(seed)
        if not scene.is_blank:
            flux = draw_flux(scene, told.side, seed)[0]
            flux /= flux.mean()
            scenes.append(flux.astype(np.float16))
            seeds.append(seed)
            print(seed, scene.specimen, round(float(flux.std()), 3), flush=True)
        seed += 1
    np.savez_compressed(told.file, scenes=np.stack(scenes), seeds=np.array(seeds))


if __name__ == "__main__":
    main()
