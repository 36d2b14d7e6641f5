"""How files are read: in how much memory, with the interpreter left to others, and what a failing disk does."""

from __future__ import annotations

import errno
import os
import threading
import time
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
from camera_files import draw_electrons, write_eer, write_mrc, write_tiff

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources import open_movie, raw
from n2n_pipeline.sources.raw import InputFile, explaining

FRAMES = np.random.default_rng(0).poisson(5.0, (16, 256, 256)).astype(np.uint16)
WRITERS = {
    "raw.mrc": write_mrc,
    "raw.tif": write_tiff,
    "lzw.tif": lambda path, frames: write_tiff(path, frames, compression="lzw"),
    "movie.eer": lambda path, frames: write_eer(path, draw_electrons(16, (256, 256)), (256, 256)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_frame_takes_the_memory_of_a_frame_however_long_the_movie(name, tmp_path):
    source = open_movie(WRITERS[name](tmp_path / name, FRAMES))
    source.read_frames(0, 1)  # what a codec needs once
    tracemalloc.start()
    source.read_frames(3, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * FRAMES[0].nbytes  # the frame, its coded bytes, a decoded strip
    source.close()


@pytest.mark.parametrize(("name", "options"), [("lzw.tif", {}), ("movie.eer", {"superres": 4})])
def test_decoding_leaves_the_interpreter_to_other_threads(name, options, tmp_path):
    wide = np.tile(FRAMES[:2], (1, 8, 8))
    write = {"lzw.tif": lambda path: write_tiff(path, wide, compression="lzw", rowsperstrip=2048)}
    write["movie.eer"] = lambda path: write_eer(path, draw_electrons(2, (1024, 1024)), (1024, 1024))
    source = open_movie(write[name](tmp_path / name), IngestConfig(**options))
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0002)

    other = threading.Thread(target=tick)
    other.start()
    start = time.perf_counter()
    source.read_frames(0, 1)
    stop = time.perf_counter()
    done.set()
    other.join()
    source.close()
    assert sum(start < now < stop for now in ticks) >= 3


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
@pytest.mark.parametrize(
    ("share", "let_go"), [(0.0, [1024 + t * FRAMES[0].nbytes for t in range(16)]), (1 / 8, [])]
)
def test_a_movie_does_not_drive_all_else_out_of_memory_if_it_is_huge(share, let_go, tmp_path, monkeypatch):
    advised = []
    monkeypatch.setattr(raw, "_SHARE_OF_MEMORY", share)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *advice: advised.append(advice))
    with closing(open_movie(write_mrc(tmp_path / "movie.mrc", FRAMES))) as source:
        np.testing.assert_array_equal(source.read_frames(0, 16), FRAMES)
    dropped = [(start, size) for start, size, what in advised if what == os.POSIX_FADV_DONTNEED]
    assert dropped == [(start, FRAMES[0].nbytes) for start in let_go]


def test_a_device_that_fails_is_not_called_a_bad_file(tmp_path):
    with pytest.raises(InputError) as caught, explaining(tmp_path, "TIFF"):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.code == ExitCode.IO


def test_a_library_that_gives_up_is_quoted_in_one_line(tmp_path):
    with (
        pytest.raises(InputError, match=r"damaged or not a readable TIFF file \(first\)$"),
        explaining(tmp_path, "TIFF"),
    ):
        raise RuntimeError("first\nsecond")


def test_bytes_past_the_end_are_not_read(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    file = InputFile(tmp_path / "f")
    assert (file.read(8, 5), file.read(10, 5), file.read(50, 5)) == (b"89", b"", b"")
    file.close()
    file.close()
