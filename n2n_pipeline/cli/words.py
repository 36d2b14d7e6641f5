"""Words on the command line that stand for more than text: ranges, lists, times, amounts of memory."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from pathlib import Path

import click


def ranges(count: int) -> Callable[[str], tuple[int, ...]]:
    """Return a parser of ``count`` ranges of whole numbers: ``0:100`` or ``Y0:Y1,X0:X1``.

    Examples
    --------
    >>> ranges(2)("0:64,32:96")
    (0, 64, 32, 96)
    """
    pattern = re.compile(",".join([r"(\d+):(\d+)"] * count))

    def parse(text: str) -> tuple[int, ...]:
        match = pattern.fullmatch(text)
        if not match:
            raise click.BadParameter(f"{text!r} is not of the form {','.join(['A:B'] * count)}")
        return tuple(map(int, match.groups()))

    return parse


def numbers(text: str) -> tuple[int, ...]:
    """Parse whole numbers parted by commas: ``2,4,8``."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise click.BadParameter(f"{text!r} is not of the form 2,4,8")
    return tuple(map(int, text.split(",")))


def minutes(text: str) -> float:
    """Parse a time: ``90s``, ``10m``, ``2h``; a bare number is minutes.

    Examples
    --------
    >>> minutes("90s"), minutes("10m"), minutes("2h")
    (1.5, 10.0, 120.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise click.BadParameter(f"{text!r} is not of the form 90s, 10m or 2h")
    return float(match[1]) * {"s": 1 / 60, "h": 60}.get(match[2], 1)


def gigabytes(text: str) -> float:
    """Parse an amount of memory: ``4GB``, ``512MB``, or a number of GB.

    Examples
    --------
    >>> gigabytes("4GB"), gigabytes("512MB"), gigabytes("2.5")
    (4.0, 0.512, 2.5)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|MB|)", text, re.IGNORECASE)
    if not match:
        raise click.BadParameter(f"{text!r} is not of the form 4GB")
    return float(match[1]) * (1e-3 if match[2].upper() == "MB" else 1.0)


def beside(movie: Path, ending: str) -> Path:
    """Name what a movie becomes: its own name, or of a pattern of images that of their folder, with an ending.

    Examples
    --------
    >>> str(beside(Path("a/movie.mrc"), ".zarr")), str(beside(Path("frames/*.tif"), "_denoised"))
    ('a/movie.zarr', 'frames_denoised')
    """
    while glob.has_magic(movie.name) and not movie.exists():
        movie = movie.parent
    if movie.name in ("", ".."):  # the folder that one is in, or the one above
        movie = movie.resolve()
    is_folder = movie.is_dir() and movie.suffix != ".zarr"
    return movie.with_name((movie.name if is_folder else movie.stem) + ending)
