"""Train CAREamics' Noise2Noise on even and odd averages for so many seconds, and denoise some frames with it.

    python careamics_n2n.py FOLDER SECONDS OUTPUT.npy

FOLDER holds ``even.npy`` and ``odd.npy``, ``(t, y, x)``, and ``scored.npy``, the frames that are wanted. Its
default network, normalisation and augmentations, patches of 64 px as in its examples; batches of 16, so that it
gets as many updates as it can. Both halves are denoised and averaged: it was trained on halves.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from unused_torchvision import declare_operators


def main(folder: Path, seconds: float, output: Path) -> None:
    """Do it."""
    declare_operators()
    from careamics import CAREamist
    from careamics.config.factories import create_advanced_n2n_config

    warnings.filterwarnings("ignore")
    even, odd = (np.load(folder / f"{half}.npy") for half in ("even", "odd"))
    scored = np.load(folder / "scored.npy")
    with tempfile.TemporaryDirectory() as work:
        config = create_advanced_n2n_config(
            experiment_name="quality",
            data_type="array",
            axes="SYX",
            patch_size=(64, 64),
            batch_size=16,
            num_epochs=100_000,
            num_workers=0,
            seed=1,
            trainer_params={"max_time": {"seconds": seconds}, "accelerator": "cpu"},
        )
        careamist = CAREamist(config, work_dir=work, enable_progress_bar=False)
        careamist.train(train_data=even, train_data_target=odd)
        halves = [
            np.concatenate([np.asarray(part).reshape(-1, *even.shape[1:]) for part in denoised])
            for denoised, _ in (careamist.predict(half[scored], axes="SYX", batch_size=1) for half in (even, odd))
        ]
        np.save(output, (halves[0] + halves[1]) / 2)
        print(careamist.trainer.global_step, "updates")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
