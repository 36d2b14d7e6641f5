"""Stores begun and filled: metadata, shards, references and shifts; nothing here reads a store, nor loads Zarr.

Call it all inside a `records.Ledger`: it flushes what a unit wrote before it records the unit, and all the rest
before its manifest makes the store complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.files import digest_json, to_json, write_atomically
from n2n_pipeline.layout import Layout, Shuffle, halve
from n2n_pipeline.manifest import RECORDS, SHIFTS
from n2n_pipeline.nodes import group_node, image_node, movie_node, write_node
from n2n_pipeline.ome import describe, image_metadata
from n2n_pipeline.shards import write_image
from n2n_pipeline.sources.movie import MovieInfo

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

ATTRIBUTE = "n2n_pipeline"


class References(NamedTuple):
    """What belongs to the camera, ``(y, x)`` each, or None."""

    dark: Floats | None = None
    """Mean dark frame, in counts."""
    gain: Floats | None = None
    """Factor per pixel."""
    defects: Bools | None = None
    """True where the pixel is bad."""


class Shifts(NamedTuple):
    """Whole-frame drift."""

    dy_dx: Floats
    """``(t, 2)`` px, added to a frame-0 coordinate to find it in frame t."""
    confidence: Floats
    """``(t,)`` in [0, 1]."""


def create_store(
    path: Path, info: MovieInfo, layout: Layout, provenance: Mapping[str, Any], levels: int = 0
) -> None:
    """Write the metadata of a store; data that is there stays.

    Parameters
    ----------
    path : pathlib.Path
        Folder of the store.
    info : MovieInfo
        Physical quantities; its shape and type are the layout's.
    layout : Layout
        Of array ``0``.
    provenance : mapping
        JSON values: ``kind``, ``source``, ``settings``; no clock and no host. ``origin_px``, if there, says where
        the first pixel lies ``(y, x)`` in the movie's first frame.
    levels : int
        Halved copies ``1``, ``2``, … besides, for `pyramid.write_level_shard` to fill.
    """
    described = describe(replace(info, shape=layout.shape, dtype=layout.dtype))
    attributes = {
        "ome": image_metadata(
            info, str(provenance.get("kind", "movie")), levels, provenance.get("origin_px", (0.0, 0.0))
        ),
        ATTRIBUTE: {**provenance, "movie_info": described},
    }
    write_node(path, group_node(attributes))
    write_node(path / RECORDS, group_node())
    for level in range(levels + 1):
        add_array(path, str(level), halve(layout, level))


def add_array(path: Path, name: str, layout: Layout) -> None:
    """Write the metadata of one more array beside array ``0``; data that is there stays."""
    write_node(path / name, movie_node(layout))


def write_references(path: Path, references: References) -> None:
    """Store dark, gain and defects beside the counts."""
    images = {name: image for name, image in references._asdict().items() if image is not None}
    if not images:
        return
    write_node(path / "references", group_node())
    for name, image in images.items():
        values, shuffle = _as_stored(image)
        write_node(path / "references" / name, image_node(values.shape, values.dtype, shuffle))
        write_image(path / "references" / name, values, shuffle)


def _as_stored(image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Shuffle]:
    return (image.astype(np.uint8), "bitshuffle") if image.dtype == bool else (image.astype("<f4"), "shuffle")


def write_shifts(path: Path, shifts: Shifts | None) -> None:
    """Replace a store's table of shifts, or remove it."""
    if shifts is None:
        (path / SHIFTS).unlink(missing_ok=True)
        return
    table = {"dy_dx": shifts.dy_dx.tolist(), "confidence": shifts.confidence.tolist()}
    write_atomically(path / SHIFTS, to_json({**table, "sha256": digest_json(table)}))
