"""Denoise averages with scikit-image's non-local means, with the settings of its gallery's example.

    python nlm_filter.py FOLDER SECONDS OUTPUT.npy

FOLDER holds ``averages.npy``, ``(n, y, x)``, and ``sigma.npy``, the standard deviation of the noise in each, which
was estimated from the difference of even and odd averages. SECONDS has no meaning: nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from skimage.restoration import denoise_nl_means

PATCHES = {"patch_size": 5, "patch_distance": 6, "fast_mode": True}


def main(folder: Path, output: Path) -> None:
    """Do it."""
    averages, sigmas = np.load(folder / "averages.npy"), np.load(folder / "sigma.npy")
    pairs = zip(averages.astype(float), sigmas, strict=True)
    np.save(output, [denoise_nl_means(image, h=0.8 * sigma, sigma=sigma, **PATCHES) for image, sigma in pairs])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[3]))
