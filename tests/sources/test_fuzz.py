"""Damaged files of every format: a movie or one line, never anything else, and soon."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from camera_files import WRITERS, counts, draw_electrons, write_eer, write_tiff

from n2n_pipeline.errors import InputError
from n2n_pipeline.sources import open_movie

SUBJECTS = WRITERS | {
    "lzw.tif": lambda path, frames: write_tiff(path, frames, compression="lzw", predictor=True),
    "movie.eer": lambda path, frames: write_eer(path, draw_electrons(5, (12, 17)), (12, 17)),
}
MUTANTS = 500
SECONDS_EACH = 10.0
GROWTH_KB = 400_000


def mutate(raw: bytes, random: np.random.Generator) -> bytes:
    """Damage a file as disks, networks and malice do; headers, where it hurts, more often."""
    damaged = bytearray(raw)
    reach = len(damaged) if random.random() < 0.5 else min(len(damaged), 1024)
    for _ in range(random.integers(1, 6)):
        start = int(random.integers(reach))
        match random.integers(5):
            case 0:
                damaged[start] ^= 1 << random.integers(8)
            case 1:
                damaged[start : start + 4] = b"\xff" * len(damaged[start : start + 4])
            case 2:
                damaged[start : start + 8] = bytes(len(damaged[start : start + 8]))
            case 3:
                damaged[start : start + 4] = random.bytes(len(damaged[start : start + 4]))
            case _:
                del damaged[start + 1 :]
                reach = len(damaged)
    return bytes(damaged)


def mutants(name: str, folder: Path) -> Iterator[Path]:
    """Yield the movie over and over, a file of it damaged each time."""
    path = SUBJECTS[name](folder / name, counts())
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    originals = [file.read_bytes() for file in files]
    random = np.random.default_rng(list(name.encode()))
    for _ in range(MUTANTS):
        which = random.integers(len(files))
        files[which].write_bytes(mutate(originals[which], random))
        yield path
        files[which].write_bytes(originals[which])


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_damaged_file_is_a_movie_or_one_line(name, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_refused = 0
    for path in mutants(name, tmp_path):
        start = time.perf_counter()
        try:
            with closing(open_movie(path)) as source:
                frames = source.read_frames(0, min(2, source.info.shape[0]))
                assert frames.shape[1:] == source.info.shape[1:]
                assert frames.dtype == source.info.dtype
        except InputError:
            n_refused += 1
        assert time.perf_counter() - start < SECONDS_EACH
    assert n_refused > MUTANTS // 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KB
