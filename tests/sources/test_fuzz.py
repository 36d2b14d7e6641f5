"""Damaged files of every kind that we read: what they hold, or one line; never anything else, and soon."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from camera_files import WRITERS, counts, draw_electrons, write_eer, write_tiff

from n2n_pipeline.checkpoint import ModelCard, load_model, save_model
from n2n_pipeline.config import NetworkConfig, RunConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.model import UNet
from n2n_pipeline.settings_file import load_settings
from n2n_pipeline.sources import open_movie

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORK = NetworkConfig(width=2, depth=1)
SECONDS_EACH = 10.0
GROWTH_KB = 400_000
WORDS = "{ } [ ] : , - ? | > ' \" \t \n # & * ! &a *a << !!python/name:os.system "
WORDS += "no 1:30 010 1e999 .nan ~ -1 0x10 \x00 é"


def read_movie(path: Path) -> None:
    with closing(open_movie(path)) as source:
        frames = source.read_frames(0, min(2, source.info.shape[0]))
        assert frames.shape[1:] == source.info.shape[1:]
        assert frames.dtype == source.info.dtype


def read_settings(path: Path) -> None:
    assert isinstance(load_settings(path), RunConfig)


def write_settings(path: Path) -> Path:
    path.write_bytes((CONFIGS / "movie.yaml").read_bytes())
    return path


def read_weights(path: Path) -> None:
    assert load_model(path).card.network == NETWORK


def write_weights(path: Path) -> Path:
    return save_model(path.parent, UNet(NETWORK), ModelCard(network=NETWORK, mean=5.0, scale=2.0, window=4))


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


def garble(raw: bytes, random: np.random.Generator) -> bytes:
    """Damage a text as people do: words that mean something are put in, lines are lost, doubled or moved."""
    lines = raw.decode().splitlines(keepends=True)
    for _ in range(random.integers(1, 6)):
        here, there = random.integers(len(lines), size=2)
        match random.integers(4):
            case 0:
                del lines[here : here + 3]
                lines.append("\n")
            case 1:
                lines.insert(there, lines[here])
            case 2:
                lines[here] = lines[here][: random.integers(len(lines[here]) + 1)]
            case _:
                start = random.integers(len(lines[here]) + 1)
                lines[here] = lines[here][:start] + str(random.choice(WORDS.split(" "))) + lines[here][start:]
    return "".join(lines).encode()


class Subject(NamedTuple):
    write: Callable[[Path], Path]
    read: Callable[[Path], None]
    damage: Callable[[bytes, np.random.Generator], bytes]


MOVIES = WRITERS | {
    "lzw.tif": lambda path, frames: write_tiff(path, frames, compression="lzw", predictor=True),
    "movie.eer": lambda path, _frames: write_eer(path, draw_electrons(5, (12, 17)), (12, 17)),
}
SUBJECTS = {
    name: Subject(lambda path, write=write: write(path, counts()), read_movie, mutate)
    for name, write in MOVIES.items()
} | {
    "settings.yaml": Subject(write_settings, read_settings, garble),
    "weights.safetensors": Subject(write_weights, read_weights, mutate),
}


def mutants(path: Path, damage: Callable[[bytes, np.random.Generator], bytes], count: int) -> Iterator[Path]:
    """Yield what lies at a path over and over, a file of it damaged each time."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    originals = [file.read_bytes() for file in files]
    random = np.random.default_rng([count, *path.name.encode()])
    for _ in range(count):
        which = random.integers(len(files))
        files[which].write_bytes(damage(originals[which], random))
        yield path
        files[which].write_bytes(originals[which])


@pytest.mark.parametrize("count", [500, pytest.param(4500, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_damaged_file_is_read_or_one_line(name, count, ram, record_property):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_read = n_refused = 0
    slowest = 0.0
    subject = SUBJECTS[name]
    for path in mutants(subject.write(ram / name), subject.damage, count):
        start = time.perf_counter()
        try:
            subject.read(path)
            n_read += 1
        except InputError as error:
            n_refused += "\n" not in str(error)
        slowest = max(slowest, time.perf_counter() - start)
        assert slowest < SECONDS_EACH
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for key, value in (("mutants", count), ("refused", n_refused), ("slowest seconds", round(slowest, 3))):
        record_property(key, value)
    record_property("memory growth MB", growth // 1024)
    assert n_read + n_refused == count  # else a line was more than one
    assert n_refused > count // 50
    assert growth < GROWTH_KB
