"""Denoise averages with BM3D.

    python bm3d_filter.py FOLDER SECONDS OUTPUT.npy

FOLDER holds ``average.npy``, ``(n, y, x)``, and ``sigma.npy``, the standard deviation of the noise in each, which
was estimated from the difference of even and odd averages. SECONDS has no meaning: nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from bm3d import bm3d


def main(folder: Path, output: Path) -> None:
    """Do it."""
    averages, sigmas = np.load(folder / "average.npy"), np.load(folder / "sigma.npy")
    np.save(output, [bm3d(image, sigma) for image, sigma in zip(averages.astype(float), sigmas, strict=True)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[3]))
