"""What the tags of a TIFF file tell of a movie: its axes, pixel size and frame time, in each dialect's words."""

from __future__ import annotations

import re
from typing import Any

import tifffile

_ANGSTROM = {
    "m": 1e10, "cm": 1e8, "mm": 1e7, "um": 1e4, "µm": 1e4, "μm": 1e4, "\\u00b5m": 1e4, "micron": 1e4,
    "microns": 1e4, "nm": 10.0, "nanometer": 10.0, "pm": 0.01, "å": 1.0, "a": 1.0, "angstrom": 1.0, "inch": 2.54e8,
}  # fmt: skip
_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0}
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
    pixel_size = _ome_length(tif) or _fei_pixel_size(tif) or _resolution(tif)
    warnings = [] if pixel_size else ["the pixel size is unknown; give it with --pixel-size"]
    if page.photometric == 0 and page.bitspersample > 1:
        warnings.append("the file asks to be shown with white for 0; counts are taken as stored")
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


def _ome_length(tif: tifffile.TiffFile) -> float | None:
    unit = _ome_attribute(tif, "PhysicalSizeXUnit") or "µm"
    return _scaled(_ome_number(tif, "PhysicalSizeX"), _ANGSTROM.get(unit.lower()))


def _fei_pixel_size(tif: tifffile.TiffFile) -> float | None:
    if not tif.is_fei:
        return None
    scan = (tif.fei_metadata or {}).get("Scan", {})
    return _scaled(scan.get("PixelWidth"), 1e10)


def _resolution(tif: tifffile.TiffFile) -> float | None:
    """Read pixels per unit; in ImageJ the unit is named, elsewhere it is inch or centimetre."""
    page: _Page = tif.pages[0]
    numerator, denominator = page.tags.valueof("XResolution", default=(0, 0))
    unit = _RESOLUTION_UNITS.get(page.tags.valueof("ResolutionUnit", default=2))
    if tif.is_imagej:
        unit = str((tif.imagej_metadata or {}).get("unit", ""))
    size = _scaled(denominator / numerator if numerator else None, _ANGSTROM.get((unit or "").lower()))
    return size if size and size < _COARSEST else None


def _frame_time(tif: tifffile.TiffFile) -> float | None:
    if tif.is_imagej:
        return _scaled((tif.imagej_metadata or {}).get("finterval"), 1.0)
    unit = _ome_attribute(tif, "TimeIncrementUnit") or "s"
    return _scaled(_ome_number(tif, "TimeIncrement"), _SECONDS.get(unit))


def _scaled(value: Any, factor: float | None) -> float | None:
    """Multiply a number that may be missing, 0 or nonsense by its unit."""
    if not isinstance(value, int | float) or factor is None:
        return None
    scaled = value * factor
    return scaled if 0 < scaled < float("inf") else None
