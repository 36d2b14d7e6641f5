"""Quantities as files write them, turned into Å, seconds and kV; what is 0, negative or no number is unknown."""

from __future__ import annotations

import math
from typing import Any

_ANGSTROM = {
    "m": 1e10, "meter": 1e10, "cm": 1e8, "mm": 1e7, "millimeter": 1e7, "picometer": 0.01,
    "um": 1e4, "µm": 1e4, "μm": 1e4, "\\u00b5m": 1e4, "micron": 1e4,
    "microns": 1e4, "micrometer": 1e4, "nm": 10.0, "nanometer": 10.0, "pm": 0.01, "å": 1.0, "a": 1.0,
    "angstrom": 1.0, "ångström": 1.0, "ångstrom": 1.0, "inch": 2.54e8,
}  # fmt: skip
_SECONDS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "millisecond": 1e-3, "us": 1e-6, "µs": 1e-6,
    "μs": 1e-6, "ns": 1e-9, "min": 60.0, "minute": 60.0,
}  # fmt: skip
_SAME_SIZE = 0.01


def known(value: Any, factor: float | None = 1.0) -> float | None:
    """Multiply a number that may be missing or nonsense by its unit.

    Examples
    --------
    >>> known(3e5, 1e-3), known(0), known(float("nan")), known("300"), known(2.0, None)
    (300.0, None, None, None, None)
    """
    if factor is None or isinstance(value, str | bytes | bool):
        return None
    try:
        scaled = float(value) * factor
    except (TypeError, ValueError, OverflowError):
        return None
    return scaled if 0 < scaled < math.inf else None


def to_angstrom(value: Any, unit: str) -> float | None:
    """Turn a length into Å; reciprocal and unheard-of units are unknown.

    Examples
    --------
    >>> to_angstrom(0.1, "nm"), to_angstrom(2, "[n_m]"), to_angstrom(1, "1/nm"), to_angstrom(1, "")
    (1.0, 20.0, None, None)
    """
    return known(value, _ANGSTROM.get(_plain(unit)))


def to_seconds(value: Any, unit: str) -> float | None:
    """Turn a time into seconds.

    Examples
    --------
    >>> to_seconds(25, "ms"), to_seconds(25, "nm")
    (0.025, None)
    """
    return known(value, _SECONDS.get(_plain(unit)))


def warn_if_oblong(x_size: float | None, y_size: float | None) -> tuple[str, ...]:
    """Say if pixels are not square; later stages know one pixel size, that along x."""
    if x_size is None or y_size is None or math.isclose(x_size, y_size, rel_tol=_SAME_SIZE):
        return ()
    return (f"pixels are {y_size:.4g} Å high and {x_size:.4g} Å wide; the width is taken for both",)


def _plain(unit: str) -> str:
    return unit.strip(" []\0").replace("_", "").lower()
