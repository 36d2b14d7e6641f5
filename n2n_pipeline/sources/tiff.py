"""TIFF movies: TIFF, BigTIFF, OME-TIFF and ImageJ stacks, a page a frame, in any codec that imagecodecs knows.

The chain of pages is walked and held against the file's size before a pixel is decoded. ``tifffile`` parses tags
and makes the decoders; bytes are read here by offset, so that threads decode side by side. An uncompressed stack
may have one page only (ImageJ above 4 GiB, tifffile when cut): its frames are taken as they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile

from n2n_pipeline import buffers
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, RawFrames, accept_cut, check_range, explaining
from n2n_pipeline.sources.tiff_pages import (
    Page,
    check_page,
    count_held_bytes,
    decode_page,
    lies_raw,
    list_pages,
    walk_pages,
)
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
            if self._raw:
                return self._raw.read(start, stop)
            frames = buffers.frames.empty((stop - start, *self.info.shape[1:]), self.info.dtype)
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
            may_stack = len(self._pages) == 1 and bool(sizes) and not tif.is_ome
        if not self._pages:
            raise InputError(self.path, "no frames")
        first = self._pages[0]
        for number, page in enumerate(self._pages, 1):
            check_page(self._file, page, first, number)
        if len(sizes) > 1:
            shape = (*sizes, *first.shape)
            raise InputError(self.path, f"{len(shape)}-D data {shape}; expected T,Y,X")
        n_promised = len(self._pages) + chain.is_cut
        is_stack = may_stack and lies_raw(first)
        if is_stack or (sizes and chain.is_cut):
            n_promised = max(n_promised, sizes[0])
        self._raw = _locate_frames(self._file, self._pages, n_promised if is_stack else 1)
        n_frames, warnings = self._count_whole(n_promised, options.allow_truncated)
        height, width = first.shape
        dtype = np.dtype("u1") if first.dtype == np.dtype("?") else first.dtype.newbyteorder("=")
        facts["warnings"] += warnings
        self.info = MovieInfo((n_frames, height, width), dtype, "tiff", **facts)

    def _count_whole(self, n_promised: int, allow_truncated: bool) -> tuple[int, tuple[str, ...]]:
        """Count the leading frames that the file holds whole; fewer than promised need the user's consent."""
        size, n_whole, left = self._file.size, 0, f"the file ends at byte {self._file.size}"
        for n_bytes, n_held in self._iter_frame_bytes(size):
            if n_held < n_bytes:
                left = f"{n_held} of {n_bytes} bytes"
                break
            n_whole += 1
        if n_whole == n_promised:
            return n_whole, ()
        what = f"page {n_whole + 1} of {n_promised} cut: {left}"
        return n_whole, (accept_cut(self.path, n_whole, n_promised, allow_truncated, what),)

    def _iter_frame_bytes(self, file_size: int) -> Iterator[tuple[int, int]]:
        """Yield the bytes that each frame takes, and how many of them lie inside the file."""
        if self._raw:
            for offset in self._raw.offsets:
                yield self._raw.frame_bytes, min(self._raw.frame_bytes, max(0, file_size - offset))
        else:
            for page in self._pages:
                yield sum(page.databytecounts), count_held_bytes(page, file_size)


def _locate_frames(file: InputFile, pages: list[Page], n_stacked: int) -> RawFrames | None:
    """Find frames that lie in the file uncompressed: one on each page, or several behind the first page's."""
    if not all(map(lies_raw, pages)):
        return None
    first = pages[0]
    offsets: Sequence[int] = [page.dataoffsets[0] for page in pages]
    if n_stacked > 1:
        offsets = range(offsets[0], offsets[0] + n_stacked * first.nbytes, first.nbytes)
    dtype = np.dtype(first.dtype).newbyteorder(first.parent.byteorder)
    return RawFrames(file, offsets, first.shape, dtype)
