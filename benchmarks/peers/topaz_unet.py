"""Denoise averages with Topaz' pretrained U-Net as it is, with the defaults of `topaz denoise`.

    python topaz_unet.py FOLDER SECONDS OUTPUT.npy

FOLDER holds ``averages.npy``, ``(n, y, x)``. SECONDS has no meaning: nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from topaz.denoise import Denoise, denoise_image


def main(folder: Path, output: Path) -> None:
    """Do it."""
    models = [Denoise("unet")]
    averages = np.load(folder / "averages.npy")
    np.save(output, [denoise_image(image, models, patch_size=1024, padding=500) for image in averages])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[3]))
