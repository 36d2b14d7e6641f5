"""What a training leaves for people to look at: ``metrics.csv``, sheets of validation patches, TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import write_atomically
from n2n_pipeline.pictures import contact_sheet, contrast_limits
from n2n_pipeline.training.validation import ValidationSet

SHEET_SAMPLES = 4


class Row(NamedTuple):
    """One line of ``metrics.csv``; an empty field was not measured, or not finite."""

    step: float
    learning_rate: float
    training_loss: float | None
    """Mean over the steps since the last line, in normalised units."""
    validation_loss: float | None
    """Noise2Noise loss on held-out squares: squared error plus a constant, in normalised units."""
    umse: float | None
    """Squared error on held-out squares, in squared units of the movie."""
    umse_low: float | None
    umse_high: float | None
    skipped_steps: float


def write_metrics(folder: Path, rows: Sequence[Sequence[float | None]]) -> None:
    """Write ``metrics.csv`` anew; holds no clock, so a resumed run writes the same file."""
    lines = [",".join(Row._fields)]
    lines += [",".join("" if value is None else f"{value:.8g}" for value in row) for row in rows]
    write_atomically(folder / "metrics.csv", "\n".join(lines) + "\n")


def write_sheet(folder: Path, step: int, validation: ValidationSet, denoised: npt.NDArray[np.float32]) -> None:
    """Draw some validation patches, noisy, denoised and target, as ``validation/step-N.png``."""
    count = min(SHEET_SAMPLES, len(denoised))
    chosen = np.linspace(0, len(denoised) - 1, count).round().astype(int)
    images, titles = [], []
    for number in chosen:
        images += [_input(validation.batch.values[number]), denoised[number], validation.batch.target[number]]
        titles += [f"input {number}", f"denoised, step {step}", f"target {number}"]
    sheets = folder / "validation"
    sheets.mkdir(exist_ok=True)
    limits = contrast_limits(np.stack(images))
    write_atomically(sheets / f"step-{step:09d}.png", contact_sheet(images, titles, None, limits, 3))


def _input(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what the network saw, of a ladder the level in the middle."""
    return values if values.ndim == 2 else values[len(values) // 2]


def write_tensorboard(folder: Path, row: Row) -> None:
    """Add a line of metrics to TensorBoard's event files in ``tensorboard/``.

    Raises
    ------
    InputError
        If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra, and slow to import
    except ImportError as error:
        todo = "pip install 'n2n-pipeline[tensorboard]'"
        raise InputError(
            "train.tensorboard", "TensorBoard is not installed", todo, ExitCode.UNAVAILABLE
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))
    for name, value in row._asdict().items():
        if name != "step" and value is not None:
            writer.add_scalar(name, value, int(row.step))
    writer.close()
