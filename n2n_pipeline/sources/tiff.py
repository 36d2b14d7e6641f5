"""TIFF movies: TIFF, BigTIFF, OME-TIFF and ImageJ stacks, a page a frame, in any codec that imagecodecs knows.

The chain of pages is walked and held against the file's size before a pixel is decoded. ``tifffile`` parses tags
and makes the decoders; bytes are read here by offset, so that threads decode side by side. An uncompressed stack
may have one page only (ImageJ above 4 GiB, tifffile when cut): its frames are taken as they lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, RawFrames, accept_cut, check_range, explaining
from n2n_pipeline.sources.tiff_pages import Page, check_page, count_held_bytes, decode_page, list_pages, walk_pages
from n2n_pipeline.sources.tiff_tags import read_facts, read_leading_sizes


class TiffMovie:
    """A TIFF file, read page by page.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    options : IngestConfig
        ``allow_truncated`` keeps the whole pages of a cut file.

    Raises
    ------
    InputError
        If pages are cut, differ, are coloured, or claim what the file cannot hold.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        self._file = InputFile(path)
        try:
            with explaining(path, "TIFF"):
                self._open(options)
        except InputError:
            self.close()
            raise

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        with explaining(self.path, "TIFF"):
            if self._stack:
                return self._stack.read(start, stop)
            frames = np.empty((stop - start, *self.info.shape[1:]), self.info.dtype)
            for frame, page in zip(frames, self._pages[start:stop], strict=True):
                decode_page(self._file, page, frame)
            return frames

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _open(self, options: IngestConfig) -> None:
        chain = walk_pages(self._file)
        with tifffile.TiffFile(self.path) as tif:
            self._pages = [page for page in list_pages(tif, chain) if not page.is_reduced]
            sizes = read_leading_sizes(tif)
            facts = read_facts(tif)
            may_stack = len(self._pages) == 1 and bool(sizes) and not tif.is_ome and self._pages[0].is_memmappable
        if not self._pages:
            raise InputError(self.path, "no frames")
        for number, page in enumerate(self._pages, 1):
            check_page(self._file, page, self._pages[0], number)
        first = self._pages[0]
        if len(sizes) > 1:
            shape = (*sizes, *first.shape)
            raise InputError(self.path, f"{len(shape)}-D data {shape}; expected T,Y,X")
        self._stack = _raw_stack(self._file, first) if may_stack else None
        n_promised = len(self._pages) + chain.is_cut
        if sizes and (self._stack or chain.is_cut):
            n_promised = max(n_promised, sizes[0])
        cut = self._find_cut(n_promised)
        warnings = facts.pop("warnings")
        if cut:
            warnings += (accept_cut(self.path, cut.n_whole, cut.n_promised, options.allow_truncated, str(cut)),)
        n_frames = cut.n_whole if cut else n_promised
        height, width = first.shape
        dtype = np.dtype("u1") if first.dtype == np.dtype("?") else first.dtype.newbyteorder("=")
        self.info = MovieInfo((n_frames, height, width), dtype, "tiff", warnings=warnings, **facts)

    def _find_cut(self, n_promised: int) -> _Cut | None:
        """Find the first page that the file does not hold whole."""
        if self._stack:
            return _find_stack_cut(self._stack, n_promised)
        for t, page in enumerate(self._pages):
            n_bytes = sum(page.databytecounts)
            n_held = count_held_bytes(page, self._file.size)
            if n_held < n_bytes:
                return _Cut(t, n_promised, f"{n_held} of {n_bytes} bytes")
        if len(self._pages) < n_promised:
            return _Cut(len(self._pages), n_promised, f"the file ends at byte {self._file.size}")
        return None


class _Cut(NamedTuple):
    """Where a file was cut."""

    n_whole: int
    n_promised: int
    left: str

    def __str__(self) -> str:
        return f"page {self.n_whole + 1} of {self.n_promised} cut: {self.left}"


def _raw_stack(file: InputFile, page: Page) -> RawFrames:
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    return RawFrames(file, page.dataoffsets[0], page.nbytes, page.shape, dtype)


def _find_stack_cut(stack: RawFrames, n_promised: int) -> _Cut | None:
    n_held = stack.file.size - stack.offset
    n_whole = n_held // stack.stride
    if n_whole >= n_promised:
        return None
    return _Cut(n_whole, n_promised, f"{n_held - n_whole * stack.stride} of {stack.stride} bytes")
