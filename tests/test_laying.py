"""Frames laid strip by strip against frames corrected whole and then moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_pairs import references_for, store_of

from n2n_pipeline import laying
from n2n_pipeline.corrections import CorrectedMovie

SHAPE = (6, 21, 30)


def movie_of(dtype, references):
    rng = np.random.default_rng(5)
    counts = rng.poisson(5.0, SHAPE).astype(dtype)
    if counts.dtype.kind == "f":
        counts[1, 2, 3], counts[2, 4, 5] = np.nan, np.inf
    store = store_of(counts, references_for(SHAPE[1:], rng) if references else None)
    return replace(store, provenance={"frames": {"duplicates": [[0, 4]]}})


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("strip_bytes", [1, 4 * 5 * 30 * 8, 1 << 22], ids=["a row", "8 rows", "the whole"])
@pytest.mark.parametrize("canvas", [(range(-4, 27), range(-9, 33)), (range(5, 14), range(3, 20))])
def test_strips_are_the_corrected_frames_each_moved(dtype, references, strip_bytes, canvas, monkeypatch):
    monkeypatch.setattr(laying, "STRIP_BYTES", strip_bytes)
    movie = CorrectedMovie(movie_of(dtype, references), brightest=9.0)
    moves = np.random.default_rng(0).integers(-3, 4, (5, 2))
    height, width = len(canvas[0]), len(canvas[1])
    values, seen = np.full((5, height, width), 7, "f4"), np.full((5, height, width), 7)
    for strip in laying.lay_frames(movie, range(1, 6), canvas, moves):
        rows = slice(strip.rows.start, strip.rows.stop)
        values[:, rows], seen[:, rows] = strip.values, strip.seen

    corrected, valid = movie.read(slice(1, 6), slice(0, 21), slice(0, 30))
    room = 20  # around the image, where nothing is seen
    around = ((room, room), (room, room))
    for t, (down, right) in enumerate(moves):
        part = tuple(
            slice(c.start + m + room, c.stop + m + room) for c, m in zip(canvas, (down, right), strict=True)
        )
        was_seen = np.pad(np.broadcast_to(valid, corrected.shape)[t], around)[part]
        np.testing.assert_array_equal(seen[t], was_seen)
        np.testing.assert_array_equal(values[t], np.pad(corrected[t], around)[part] * was_seen)
    assert not seen[3].any()  # it repeats an earlier frame
