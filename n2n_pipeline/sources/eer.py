"""EER movies (``.eer``): electrons as events, a TIFF page a camera frame, summed into frames of useful dose.

A page lists the gaps between electrons, each with the sub-pixel that it hit, so that one file gives movies of 1, 2
or 4 sub-pixels per pixel. Camera frames, hundreds with an electron in every 50 pixels, are summed while they are
decoded, into small integers.

References
----------
Guo et al. (2020), IUCrJ 7, 860-869.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile

from n2n_pipeline import buffers
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, accept_cut, check_range, count_frames, explaining
from n2n_pipeline.sources.tiff_pages import EER_CODES, Page, check_page, count_held_bytes, list_pages, walk_pages
from n2n_pipeline.sources.units import known, to_angstrom, to_seconds

_ITEM = re.compile(r'<item name="([^"<]{1,80})"(?: unit="([^"<]{0,20})")?>([^<]{0,200})</item>')
_METADATA = 65001
_BITS = {65007: 7, 65008: 2, 65009: 2}  # tags of version 2, and what it means without them
_MAX_METADATA = 1 << 20  # characters that are searched
_COARSEST = 1e4  # Å; above 1 µm it is the sensor's own pixel, not the specimen's
_SAMPLED_FRAMES = 8


class _Coding(NamedTuple):
    """Bits of a gap, and of an electron's place within its pixel."""

    skip: int
    x: int
    y: int


class EerMovie:
    """An EER file, read as sums of camera frames.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    options : IngestConfig
        ``group`` or ``dose_per_frame`` says how many camera frames make a frame; ``superres`` how many sub-pixels
        a pixel has along y and x; ``allow_truncated`` keeps the whole camera frames of a cut file.

    Raises
    ------
    InputError
        If camera frames are cut, of an unknown version, or fewer than one group.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        self._file = InputFile(path)
        try:
            with explaining(path, "EER"):
                self._open(options)
        except InputError:
            self.close()
            raise

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        frames = buffers.frames.empty((stop - start, *self.info.shape[1:]), self.info.dtype)
        frames[...] = 0
        with explaining(self.path, "EER"):
            for t, frame in enumerate(frames, start):
                for page in self._pages[t * self._group : (t + 1) * self._group]:
                    _add_electrons(self._file, page, self._coding, frame)
        return frames

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _open(self, options: IngestConfig) -> None:
        chain = walk_pages(self._file)
        with tifffile.TiffFile(self.path) as tif:
            pages = [page for page in list_pages(tif, chain) if page.compression in EER_CODES]
            self._coding = _read_coding(self.path, pages[0], options.superres)
            items = _read_items(pages[0])
        for number, page in enumerate(pages, 1):
            check_page(self._file, page, pages[0], number)
        self._pages = _leading_whole(self._file, pages)
        n_exposed = int(_quantity(items, "numberOfFrames")[0] or len(pages))
        warnings = []
        if chain.is_cut or len(self._pages) < len(pages):
            what = f"frame {len(self._pages) + 1} cut; {count_frames(len(self._pages), 'whole ')}"
            n_promised = max(n_exposed, len(self._pages) + 1)
            warnings.append(accept_cut(self.path, len(self._pages), n_promised, options.allow_truncated, what))
        self._group = self._choose_group(options, items, n_exposed)
        shape = _movie_shape(self.path, self._pages, self._group, options.superres)
        warnings += _describe_choices(options, self._group, len(self._pages))
        facts = _read_facts(items, self._group / n_exposed, options.superres)
        dtype = np.dtype(np.uint8 if self._group <= 255 else np.uint16)  # a pixel has one electron at most
        self.info = MovieInfo(shape, dtype, "eer", warnings=tuple(warnings), **facts)

    def _choose_group(self, options: IngestConfig, items: _Items, n_exposed: int) -> int:
        """Return how many camera frames make a frame, from the dose as told or, untold, as counted."""
        if options.dose_per_frame is None:
            return options.group
        if options.group > 1:
            raise InputError(self.path, "group and dose per frame given", "give one of them", ExitCode.CONFIG)
        total, _ = _quantity(items, "totalDose")
        dose = total / n_exposed if total else self._count_dose()
        return max(1, round(options.dose_per_frame / dose)) if dose else 1

    def _count_dose(self) -> float:
        """Count electrons per pixel in a few camera frames, evenly spread."""
        sample = self._pages[:: max(1, len(self._pages) // _SAMPLED_FRAMES)]
        frame = np.zeros(self._pages[0].shape, np.uint16)
        for page in sample:
            _add_electrons(self._file, page, self._coding, frame)
        return float(frame.mean()) / len(sample)


_Items = dict[str, tuple[str, str]]
"""Value and unit of each item of the metadata, as written."""


def _read_coding(path: Path, page: Page, superres: int) -> _Coding:
    """Read how electrons are coded, and check that they are placed as finely as asked for."""
    version = page.compression - EER_CODES.start
    if version > 2:
        raise InputError(path, f"EER version {version} not known")
    coding = _Coding(7 if version else 8, 2, 2)
    if version == 2:
        coding = _Coding(*(int(page.tags.valueof(code, default=n)) for code, n in _BITS.items()))
    finest = 1 << min(coding.x, coding.y)
    if superres > finest:
        what = f"electrons are placed to 1/{finest} of a pixel"
        raise InputError(path, what, f"--superres {finest} is the most", ExitCode.CONFIG)
    return coding


def _leading_whole(file: InputFile, pages: list[Page]) -> list[Page]:
    for t, page in enumerate(pages):
        if count_held_bytes(page, file.size) < sum(page.databytecounts):
            return pages[:t]
    return pages


def _add_electrons(file: InputFile, page: Page, coding: _Coding, frame: Counts) -> None:
    """Add the electrons of a camera frame to ``(y, x)`` counts, whose shape says how finely."""
    data = file.read(page.dataoffsets[0], page.databytecounts[0])
    superres = (frame.shape[0] // page.imagelength).bit_length() - 1
    padded = data + bytes(2 + len(data) % 2)  # the decoder reads whole words, one ahead
    imagecodecs.eer_decode(padded, frame.shape, *coding, superres=superres, out=frame)


def _movie_shape(path: Path, pages: list[Page], group: int, superres: int) -> tuple[int, int, int]:
    n_frames = len(pages) // group
    if n_frames == 0:
        raise InputError(path, f"{count_frames(len(pages))}, a group needs {group}", "use a smaller --group")
    height, width = pages[0].shape
    return n_frames, height * superres, width * superres


def _describe_choices(options: IngestConfig, group: int, n_pages: int) -> list[str]:
    """Say how camera frames became frames, since one file gives many movies."""
    told = group > 1 or options.superres > 1 or options.dose_per_frame
    sentences = [
        f"EER read at {options.superres}x, {group} of {n_pages} camera frames summed into each frame"
        + ("" if told else " by default; --group, --dose-per-frame and --superres change that")
    ]
    if n_pages % group:
        sentences.append(f"{count_frames(n_pages % group, 'camera ')} at the end fill no group: left out")
    return sentences


def _read_items(page: Page) -> _Items:
    raw = page.tags.valueof(_METADATA, default=b"")
    text = bytes(raw).decode("utf-8", "replace")[:_MAX_METADATA] if isinstance(raw, bytes) else ""
    return {name: (value, unit) for name, unit, value in _ITEM.findall(text)}


def _quantity(items: _Items, name: str) -> tuple[float | None, str]:
    value, unit = items.get(name, ("", ""))
    try:
        return known(float(value)), unit
    except ValueError:
        return None, unit


def _read_facts(items: _Items, share: float, superres: int) -> dict[str, Any]:
    """Return what the metadata tells, of a frame that has this share of the exposure."""
    size = to_angstrom(*_quantity(items, "sensorPixelSize.width"))
    pixel_size = size if size and size < _COARSEST else None
    exposure = to_seconds(*_quantity(items, "exposureTime"))
    dose, unit = _quantity(items, "totalDose")
    per_area = dose / pixel_size**2 if dose and pixel_size and unit == "e/pixel" else None
    return {
        "pixel_size": known(pixel_size, 1 / superres),
        "frame_time": known(exposure, share),
        "dose_per_frame": known(per_area, share),
        "camera": items.get("commercialName", ("", ""))[0] or None,
    }
