"""Pages of a TIFF file: walked, checked against the file's size, decoded from bytes read by offset."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import tifffile

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import Counts
from n2n_pipeline.sources.raw import InputFile, check_real, format_bytes

_MAX_RATIO = 10_000  # claimed over stored bytes; no codec comes near it on counts
_MAX_SMALL = 1 << 24  # bytes that any page may claim, however well it compressed
_MAX_TAGS = 4096
_COMPRESSION = 259
_PALETTE = 3
EER_CODES = range(65000, 65100)
"""Compressions of electron events: version 0, 1, 2 and, some day, others."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would log is checked and said here

Page = Any
"""A ``tifffile.TiffPage``."""


class Chain(NamedTuple):
    """The linked list of page directories in a file."""

    n_pages: int
    is_cut: bool
    """Whether the list points past the end of the file."""


class _Flavour(NamedTuple):
    """How TIFF (42) or BigTIFF (43) lays out a directory, in bytes, and its byte order."""

    first: int
    counter: int
    tag: int
    pointer: int
    order: Literal["little", "big"] = "little"


_FLAVOURS = {42: _Flavour(4, 2, 12, 4), 43: _Flavour(8, 8, 20, 8)}


def walk_pages(file: InputFile) -> Chain:
    """Follow the chain of directories to its end.

    Raises
    ------
    InputError
        If this is no TIFF file, has no page, or the chain bites its tail.
    """
    offsets = list(_iter_directories(file, _read_flavour(file)))
    is_cut = offsets[-1:] == [None]
    if offsets == [None]:
        raise InputError(file.path, f"page 1 cut: the file ends at byte {file.size}")
    if not offsets:
        raise InputError(file.path, "no frames")
    return Chain(len(offsets) - is_cut, is_cut)


def list_pages(tif: tifffile.TiffFile, chain: Chain) -> list[Page]:
    """List the pages whose directories are whole; tifffile itself would stumble over one that is cut."""
    return [tif.pages[number] for number in range(chain.n_pages)]


def is_eer(file: InputFile) -> bool:
    """Tell whether the first page, or the one after an integrated image, is coded as electron events."""
    flavour = _read_flavour(file)
    first_two = itertools.islice(_iter_directories(file, flavour), 2)
    return any(_read_compression(file, flavour, offset) in EER_CODES for offset in first_two if offset)


def _read_flavour(file: InputFile) -> _Flavour:
    head = file.read(0, 8)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    flavour = _FLAVOURS.get(int.from_bytes(head[2:4], order))
    if head[:2] not in (b"II", b"MM") or len(head) < 8 or flavour is None:
        raise InputError(file.path, f"not a TIFF ({file.size} bytes)")
    return flavour._replace(order=order)


def _iter_directories(file: InputFile, flavour: _Flavour) -> Iterator[int | None]:
    """Yield the offset of each directory, and None at last if the chain leaves the file."""
    seen: set[int] = set()
    where = flavour.first
    while where + flavour.pointer <= file.size:
        offset = int.from_bytes(file.read(where, flavour.pointer), flavour.order)
        if offset == 0:
            return
        if offset in seen:
            raise InputError(file.path, f"page {len(seen)} points back to an earlier page")
        n_tags = int.from_bytes(file.read(offset, flavour.counter), flavour.order)
        if n_tags > _MAX_TAGS:
            raise InputError(file.path, f"page {len(seen) + 1} claims {n_tags} tags")
        where = offset + flavour.counter + n_tags * flavour.tag
        if where + flavour.pointer <= file.size:
            seen.add(offset)
            yield offset
    yield None


def _read_compression(file: InputFile, flavour: _Flavour, directory: int) -> int:
    """Read the compression tag of a page; 1, uncompressed, is the default."""
    n_tags = int.from_bytes(file.read(directory, flavour.counter), flavour.order)
    raw = file.read(directory + flavour.counter, n_tags * flavour.tag)
    for start in range(0, len(raw), flavour.tag):
        if int.from_bytes(raw[start : start + 2], flavour.order) == _COMPRESSION:
            value = start + flavour.tag - flavour.pointer
            return int.from_bytes(raw[value : value + 2], flavour.order)
    return 1


def check_page(file: InputFile, page: Page, first: Page, number: int) -> None:
    """Refuse a page that is not gray, not like the first, or claims what the file cannot hold.

    Parameters
    ----------
    file : InputFile
        The file that holds the page.
    page, first : tifffile.TiffPage
        The page, and the one that it must be like.
    number : int
        The page's, from 1.
    """
    path = file.path
    if page.samplesperpixel != 1:
        raise InputError(path, f"{page.samplesperpixel} samples per pixel; expected gray")
    if page.photometric == _PALETTE:
        raise InputError(path, "palette colours; expected gray")
    if len(page.shape) != 2 or min(page.shape) < 1:
        raise InputError(path, f"page {number} has shape {page.shape}; expected Y,X")
    if page.dtype is None:
        raise InputError(path, f"{page.bitspersample}-bit sample format {page.sampleformat} not supported")
    check_real(path, page.dtype)
    if page.shape != first.shape or page.dtype != first.dtype:
        raise InputError(path, f"page {number} is {_describe(page, first)}, page 1 is {_describe(first, page)}")
    if page.compression not in (1, first.compression) or page is first:
        _check_codec(file, page)
    _check_claim(file, page)


def _check_codec(file: InputFile, page: Page) -> None:
    if page.compression != 1 and page.compression not in tifffile.TIFF.DECOMPRESSORS:
        what = f"compression {int(page.compression)} needs imagecodecs"
        raise InputError(file.path, what, "pip install -U imagecodecs", code=ExitCode.UNAVAILABLE)


def _check_claim(file: InputFile, page: Page) -> None:
    """Refuse a page or tile that would be larger than its bytes can mean, before it is allocated."""
    segment = page.tile if page.is_tiled else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
    claimed = page.dtype.itemsize * max(page.shape[0] * page.shape[1], segment[-1] * segment[-2])
    if claimed > max(_MAX_SMALL, _MAX_RATIO * min(file.size, sum(page.databytecounts))):
        raise InputError(file.path, f"claims {format_bytes(claimed)} in a {format_bytes(file.size)} file")


def _describe(page: Page, other: Page) -> str:
    height, width = page.shape
    size = f"{height}x{width}"
    return size if page.shape != other.shape else f"{size} {page.dtype}"


def lies_raw(page: Page) -> bool:
    """Tell whether the pixels of a page are stored as they are, in one piece."""
    return bool(page.is_final and sum(page.databytecounts) >= page.nbytes)


def count_held_bytes(page: Page, file_size: int) -> int:
    """Count the stored bytes of a page that lie inside the file."""
    segments = zip(page.dataoffsets, page.databytecounts, strict=False)
    return sum(min(count, max(0, file_size - offset)) for offset, count in segments)


def decode_page(file: InputFile, page: Page, out: Counts) -> None:
    """Decode the strips or tiles of a page into ``(y, x)`` `out`; those that were never written stay 0."""
    out[...] = 0
    for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        if count == 0:
            continue
        data = file.read(offset, count)
        segment, (_, _, row, column, _), shape = page.decode(data, index, jpegtables=page.jpegtables)
        height = min(shape[1], out.shape[0] - row)
        width = min(shape[2], out.shape[1] - column)
        out[row : row + height, column : column + width] = segment[0, :height, :width, 0]
