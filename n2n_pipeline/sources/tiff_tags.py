"""What the tags of a TIFF file tell of a movie: its axes, pixel size and frame time, in each dialect's words."""

from __future__ import annotations

import re
from typing import Any

import tifffile

from n2n_pipeline.sources.units import known, to_angstrom, to_seconds, warn_if_oblong

_COARSEST = 1e4  # Å; a pixel above 1 µm is a printer's resolution, not a microscope's
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}
_MAX_XML = 1 << 20  # characters of OME-XML that are searched; the image's own attributes come first


_Page = Any
"""A ``tifffile.TiffPage``."""


def read_leading_sizes(tif: tifffile.TiffFile) -> list[int]:
    """Return the sizes above 1 of the axes in front of y and x, as ImageJ, OME or tifffile describe them."""
    if tif.is_ome:
        sizes = [int(_ome_number(tif, f"Size{axis}") or 1) for axis in "TCZ"]
    elif tif.is_imagej:
        tags = tif.imagej_metadata or {}
        sizes = [int(tags.get(name, 1)) for name in ("frames", "slices", "channels")]
        if max(sizes) == 1:
            sizes = [int(tags.get("images", 1))]
    elif tif.is_shaped:
        sizes = [int(size) for size in (tif.shaped_metadata or ({},))[0].get("shape", ())[:-2]]
    else:
        sizes = []
    return [size for size in sizes if size > 1]


def read_facts(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return the fields of `MovieInfo` that the file tells, and ``warnings``."""
    page: _Page = tif.pages[0]
    pixel_size = _ome_length(tif, "X") or _fei_pixel_size(tif) or _resolution(tif)
    warnings = warn_if_oblong(pixel_size, _ome_length(tif, "Y"))
    if page.photometric == 0 and page.bitspersample > 1:
        warnings += ("the file asks to be shown with white for 0; counts are taken as stored",)
    return {
        "pixel_size": pixel_size,
        "frame_time": _frame_time(tif),
        "software": str(page.software).strip() or None,
        "warnings": warnings,
    }


def _ome_attribute(tif: tifffile.TiffFile, name: str) -> str | None:
    """Find the first attribute of that name in the OME-XML, which is never parsed: it may be hostile."""
    if not tif.is_ome:
        return None
    match = re.search(rf'\b{name}="([^"<]*)"', (tif.ome_metadata or "")[:_MAX_XML])
    return match[1] if match else None


def _ome_number(tif: tifffile.TiffFile, name: str) -> float | None:
    try:
        return float(_ome_attribute(tif, name) or "")
    except ValueError:
        return None


def _ome_length(tif: tifffile.TiffFile, axis: str) -> float | None:
    unit = _ome_attribute(tif, f"PhysicalSize{axis}Unit") or "µm"
    return to_angstrom(_ome_number(tif, f"PhysicalSize{axis}"), unit)


def _fei_pixel_size(tif: tifffile.TiffFile) -> float | None:
    scan = (tif.fei_metadata or {}).get("Scan", {}) if tif.is_fei else {}
    return to_angstrom(scan.get("PixelWidth"), "m")


def _resolution(tif: tifffile.TiffFile) -> float | None:
    """Read pixels per unit; in ImageJ the unit is named, elsewhere it is inch or centimetre."""
    page: _Page = tif.pages[0]
    numerator, denominator = page.tags.valueof("XResolution", default=(0, 0))
    unit = _RESOLUTION_UNITS.get(page.tags.valueof("ResolutionUnit", default=2), "")
    if tif.is_imagej:
        unit = str((tif.imagej_metadata or {}).get("unit", ""))
    size = to_angstrom(denominator / numerator if numerator else None, unit)
    return size if size and size < _COARSEST else None


def _frame_time(tif: tifffile.TiffFile) -> float | None:
    if tif.is_imagej:
        return known((tif.imagej_metadata or {}).get("finterval"))
    unit = _ome_attribute(tif, "TimeIncrementUnit") or "s"
    return to_seconds(_ome_number(tif, "TimeIncrement"), unit)
