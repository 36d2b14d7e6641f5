from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from camera_files import counts, patch_mrc, write_dm, write_mrc, write_tiff

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.images import list_movie_files, match_folders


def read(path, **options):
    source = open_movie(path, IngestConfig(**options))
    frames = source.read_frames(0, source.info.shape[0])
    source.close()
    return frames, source.info


def write_frames(folder, frames, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, frames, strict=True):
        tifffile.imwrite(folder / name, frame)
    return folder


NAMES = [f"f{t}.tif" for t in (1, 2, 9, 10, 11)]


def test_frames_come_in_natural_order(tmp_path):
    frames, info = read(write_frames(tmp_path / "movie", counts(), NAMES))
    assert np.array_equal(frames, counts())
    assert info.format == "images"


def test_a_pattern_chooses_among_files(tmp_path):
    folder = write_frames(tmp_path, counts(), NAMES)
    write_frames(folder, counts()[:2], ["gain.tif", ".f3.tif"])
    assert np.array_equal(read(folder / "f?*.tif")[0], counts())
    assert np.array_equal(read(folder / "f[12].tif")[0], counts()[:2])


def test_a_folder_with_one_movie_is_that_movie(tmp_path):
    write_mrc(tmp_path / "movie.mrc", counts())
    (tmp_path / "notes.txt").write_text("dark is in the other folder")
    assert np.array_equal(read(tmp_path)[0], counts())


def test_gatans_in_situ_folders_are_one_movie(tmp_path):
    places = [(0, 0, 0), (0, 0, 1), (0, 0, 10), (0, 1, 0), (1, 0, 0)]
    for (hour, minute, second), frame in zip(places, counts(), strict=True):
        folder = tmp_path / f"Hour_{hour:02}" / f"Minute_{minute:02}" / f"Second_{second:02}"
        folder.mkdir(parents=True)
        write_dm(folder / "movie_Frame_0.dm4", frame)
    assert np.array_equal(read(tmp_path)[0], counts())


def test_even_and_odd_images_take_turns(tmp_path):
    write_frames(tmp_path / "even", counts(), [f"{t}_even.tif" for t in range(5)])
    write_frames(tmp_path / "odd", counts(1), [f"{t}_odd.tif" for t in range(5)])
    frames, info = read(tmp_path)
    assert np.array_equal(frames[0::2], counts())
    assert np.array_equal(frames[1::2], counts(1))
    assert any("a window of 2 frames" in warning for warning in info.warnings)


def test_even_and_odd_movies_take_turns_frame_by_frame(tmp_path):
    for name, frames in (("even", counts()), ("odd", counts(1))):
        (tmp_path / name).mkdir()
        write_mrc(tmp_path / name / "a.mrc", frames)
    frames, _ = read(tmp_path)
    assert np.array_equal(frames[1::2], counts(1))


def test_every_image_without_a_partner_is_named(tmp_path):
    even = write_frames(tmp_path / "even", counts()[:3], ["a.tif", "b.tif", "c.tif"])
    odd = write_frames(tmp_path / "odd", counts()[:1], ["a.tif"])
    with pytest.raises(InputError, match=r"even has 3 movies, odd 1; missing in odd: b\.tif, c\.tif"):
        match_folders(even, odd)
    write_frames(odd, counts()[:2], ["d.tif", "e.tif"])
    with pytest.raises(InputError, match=r"no odd partner for even/b\.tif, even/c\.tif"):
        match_folders(even, odd)


def test_even_and_odd_of_different_shape_are_named(tmp_path):
    for name, frames in (("even", counts()), ("odd", counts()[:4])):
        (tmp_path / name).mkdir()
        write_mrc(tmp_path / name / "a.mrc", frames)
    with pytest.raises(InputError, match=r"a\.mrc: even \(5,12,17\) uint16, odd \(4,12,17\) uint16"):
        open_movie(tmp_path)


@pytest.mark.parametrize(
    ("odd_one", "line"),
    [
        (counts()[0][:, :-1], r"f11\.tif: 12x16, first movie was 12x17"),
        (counts()[0].astype(np.float32), r"f11\.tif: float32, first movie was uint16"),
    ],
)
def test_a_frame_that_does_not_fit_is_named_before_work_starts(tmp_path, odd_one, line):
    folder = write_frames(tmp_path, counts(), NAMES)
    tifffile.imwrite(folder / "f11.tif", odd_one)
    with pytest.raises(InputError, match=line):
        open_movie(folder)


def test_mixed_pixel_sizes_need_a_word_of_the_user(tmp_path):
    for t in range(3):
        write_mrc(tmp_path / f"{t}.mrc", counts()[t : t + 1])
    patch_mrc(tmp_path / "2.mrc", word=11, value=30.0)
    with pytest.raises(InputError, match=r"2\.mrc: 1\.765 Å/px, first was 1\.25; give the true one"):
        open_movie(tmp_path)
    assert read(tmp_path, pixel_size_angstrom=1.25)[1].pixel_size == 1.25


def test_a_folder_of_movies_is_not_a_movie(tmp_path):
    for name in ("a.mrc", "b.mrc"):
        write_mrc(tmp_path / name, counts())
    with pytest.raises(InputError, match="holds 2 movies; name one of them"):
        open_movie(tmp_path)


def test_a_folder_of_two_kinds_asks_which(tmp_path):
    write_frames(tmp_path, counts(), NAMES)
    write_mrc(tmp_path / "gain.mrc", counts()[:1])
    with pytest.raises(InputError, match=r"holds 5 \.tif and 1 \.mrc files; say which: '.*/\*\.tif'"):
        open_movie(tmp_path)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_followed(tmp_path):
    folder = write_frames(tmp_path / "movie", counts()[:2], ["a.tif", "b.tif"])
    (folder / "c.tif").symlink_to(folder / "a.tif")
    assert len(read(folder)[0]) == 3
    write_tiff(tmp_path / "other.tif", counts()[:1])
    (folder / "d.tif").symlink_to(tmp_path / "other.tif")
    with pytest.raises(InputError, match="links out of its folder") as caught:
        open_movie(folder)
    assert caught.value.code == ExitCode.REFUSED


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_counts_of_few_bits_are_not_stretched(tmp_path, bits):
    expected = (counts()[0] % 2**bits).astype(np.uint8)
    write_gray_png(tmp_path / "f.png", expected, bits)
    assert np.array_equal(read(tmp_path / "f.png")[0][0], expected)


def write_gray_png(path, image, bits):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    digits = ((image[..., None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)
    rows = np.packbits(digits.reshape(len(image), -1), axis=1)
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def test_a_movie_is_made_of_every_file_in_its_folder(tmp_path):
    files = [tmp_path / "even" / "f2.tif", tmp_path / "even" / "f10.tif", tmp_path / "odd" / "f2.tif"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert list_movie_files(tmp_path) == files
    assert list_movie_files(tmp_path / "even" / "*.tif") == files[:2]
    assert list_movie_files(files[0]) == files[:1]
