"""Denoise averages with BM3D, told the power spectrum of their noise.

    python bm3d_filter.py FOLDER SECONDS OUTPUT.npy

FOLDER holds ``averages.npy``, ``(n, y, x)``, and ``even.npy``, ``odd.npy`` and ``scored.npy``, from which the
spectrum is estimated: a camera's noise is not white, and half the difference of even and odd averages is that of
the average. Told a standard deviation alone, BM3D leaves some 5 dB more of it. SECONDS has no meaning: nothing is
trained.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

vars(np).setdefault("trapz", np.trapezoid)  # BM3D calls it by the name that NumPy 2.4 has removed

from bm3d import bm3d  # noqa: E402


def main(folder: Path, output: Path) -> None:
    """Do it, on all cores."""
    scored = np.load(folder / "scored.npy")
    even, odd = (np.load(folder / f"{half}.npy")[scored] for half in ("even", "odd"))
    noise = (even - odd) / 2
    noise -= noise.mean(axis=(1, 2), keepdims=True)
    spectrum = np.mean(np.abs(np.fft.fft2(noise)) ** 2, axis=0)
    with ProcessPoolExecutor() as pool:
        denoised = pool.map(partial(bm3d, sigma_psd=spectrum), np.load(folder / "averages.npy").astype(float))
        np.save(output, list(denoised))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[3]))
