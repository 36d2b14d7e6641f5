"""Dark, gain and defect maps as the camera saved them, brought to the movie's orientation, field and binning.

A gain reference saved the other way up does harm that is hard to see later. So it is compared with the movie's
own mean, which shows the gain's inverse, in all eight orientations; a better one is offered by name.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.creation import Bools, Floats, References
from n2n_pipeline.defects import local_median
from n2n_pipeline.errors import InputError
from n2n_pipeline.gathering import Statistics
from n2n_pipeline.sources import read_image
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.sources.reduced import ReducedMovie

CLEARLY_BETTER = 0.1
"""Difference of correlation between two orientations that noise does not make."""
ENOUGH_PX = 512
"""Half the side of the square in the middle that is compared."""


def read_references(config: IngestConfig, movie: ReducedMovie, camera: MovieInfo) -> References:
    """Read the references that a user gave, as they apply to the movie that will be stored.

    Parameters
    ----------
    config : IngestConfig
        Which files, and how the gain is turned.
    movie : ReducedMovie
        What is kept of the camera's frames.
    camera : MovieInfo
        The camera's frames.

    Returns
    -------
    store.References
        ``(y, x)`` images of the stored movie's shape. Defects are what the files tell: pixels listed, and those
        whose gain is not a positive number.

    Raises
    ------
    InputError
        If a file cannot be read, or its shape is not the camera's.
    """
    shape = camera.shape[1:]
    dark = gain = None
    defects = np.zeros(shape, bool)
    if config.dark:
        dark = movie.reduce_image(_fit(config.dark, read_image(config.dark), shape), "sum")
    if config.gain:
        turned = turn_gain(read_image(config.gain), config.gain_rotate, config.gain_flip)
        full = _fit(config.gain, turned, shape).astype(np.float64)
        bad = ~(np.isfinite(full) & (full > 0))
        defects |= bad
        gain = movie.reduce_image(np.where(bad, 1.0, full), "mean")
    if config.defects:
        defects |= _read_defects(config.defects, shape)
    found = movie.reduce_image(defects, "any")
    return References(_single(dark), _single(gain), found if found.any() else None)


def turn_gain(gain: npt.NDArray[Any], rotate: int, flip: str) -> npt.NDArray[Any]:
    """Turn an image anticlockwise by ``rotate`` degrees, then mirror it along ``flip``.

    Examples
    --------
    >>> turn_gain(np.array([[1, 2]]), 90, "none").tolist()
    [[2], [1]]
    """
    turned = np.rot90(gain, rotate // 90)
    return turned if flip == "none" else np.flip(turned, "yx".index(flip))


def suggest_orientation(
    config: IngestConfig, movie: ReducedMovie, statistics: Statistics, dark: Floats | None
) -> str | None:
    """Say how the gain would have to be turned to fit the movie, if it clearly fits better so.

    Parameters
    ----------
    config : IngestConfig
        Which gain, and how it is turned now.
    movie : ReducedMovie
        What is kept of the camera's frames.
    statistics : Statistics
        Of the stored frames, over the whole movie.
    dark : numpy.ndarray, optional
        ``(y, x)`` counts that are in every frame.

    Returns
    -------
    str or None
        Command-line options.
    """
    if config.gain is None:
        return None
    saved = read_image(config.gain)
    rows, cols = (slice(max(0, side // 2 - ENOUGH_PX), side // 2 + ENOUGH_PX) for side in statistics.shape)
    mean = statistics.mean(rows, cols)
    detail = _detail(mean if dark is None else mean - dark[rows, cols])
    fits: dict[tuple[int, str], float] = {}
    for rotate, flip in itertools.product((0, 90, 180, 270), ("none", "y")):
        turned = movie.reduce_image(turn_gain(saved, rotate, flip), "mean")
        if turned.shape == statistics.shape:
            turned = turned[rows, cols]
            inverse = 1.0 / np.where(turned > 0, turned, 1.0)
            fits[rotate, flip] = float(np.mean(detail * _detail(inverse)))
    now = {"x": (config.gain_rotate + 180, "y")}.get(config.gain_flip, (config.gain_rotate, config.gain_flip))
    best = max(fits, key=lambda way: fits[way])
    if fits[best] < fits.get((now[0] % 360, now[1]), 0.0) + CLEARLY_BETTER:
        return None
    return f"--gain-rotate {best[0]} --gain-flip {best[1]}"


def _detail(image: Floats) -> Floats:
    """Return what is pixel-fine in an image, with mean 0 and standard deviation 1, outliers clipped."""
    fine = image - local_median(image)
    spread = max(1.4826 * float(np.median(np.abs(fine))), 1e-30)  # robust standard deviation
    fine = np.clip(fine, -4 * spread, 4 * spread)
    return (fine - fine.mean()) / max(float(fine.std()), 1e-30)  # type: ignore[no-any-return]


def _fit(path: Path, image: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Check a reference against the camera's frame; a gain of whole pixels is repeated for super-resolution."""
    for factor in (1, 2, 4):
        if tuple(side * factor for side in image.shape) == shape:
            return image.repeat(factor, 0).repeat(factor, 1)
    todo = "--gain-rotate 90 would fit" if image.shape == shape[::-1] else None
    raise InputError(path, f"shape {image.shape}, movie is {shape}", todo)


def _read_defects(path: Path, shape: tuple[int, ...]) -> Bools:
    """Read a mask image, or a text of bad pixels: ``x y`` or ``x y width height`` a line."""
    if path.suffix.lower() not in (".txt", ".csv", ".lst"):
        return np.asarray(_fit(path, read_image(path), shape) != 0)
    mask = np.zeros(shape, bool)
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        words = re.split(r"[\s,;]+", line.split("#")[0].strip())
        if words == [""]:
            continue
        if len(words) not in (2, 4) or not all(word.isdecimal() for word in words):
            raise InputError(path, f"line {number} is not 'x y' or 'x y width height'")
        x, y, width, height = map(int, [*words, "1", "1"][:4])
        if x + width > shape[1] or y + height > shape[0]:
            raise InputError(path, f"line {number} lies outside the movie's {shape[0]} x {shape[1]} pixels")
        mask[y : y + height, x : x + width] = True
    return mask


def _single(image: npt.NDArray[Any] | None) -> Floats | None:
    return None if image is None else image.astype(np.float32)
