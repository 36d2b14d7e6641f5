from __future__ import annotations

import numpy as np
import pytest
from camera_files import PIXEL_SIZE, DmWriter, counts, write_dm, write_ser

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources import open_movie


def read(path, **options):
    source = open_movie(path, IngestConfig(**options))
    frames = source.read_frames(0, source.info.shape[0])
    source.close()
    return frames, source.info


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_gatan_files_of_windows_and_macintosh_are_read(tmp_path, version, order):
    frames, info = read(write_dm(tmp_path / "m.dm", counts(), version, order))
    assert np.array_equal(frames, counts())
    assert info.pixel_size == pytest.approx(PIXEL_SIZE)
    assert info.voltage == 300.0


def test_the_movie_of_a_gatan_file_is_its_largest_image_that_is_no_thumbnail(tmp_path):
    writer = DmWriter()
    small, large = (writer.image(frames, 4, 10) for frames in (counts()[:1], counts()))
    path = writer.write(tmp_path / "m.dm4", writer.group("ImageList", small, large))
    assert np.array_equal(read(path)[0], counts())


def test_tags_nested_without_end_are_refused(tmp_path):
    writer = DmWriter()
    tag = writer.number("leaf", 1)
    for _ in range(40):
        tag = writer.group("deeper", tag)
    with pytest.raises(InputError, match="nested more than 32 deep"):
        open_movie(writer.write(tmp_path / "m.dm4", tag))


@pytest.mark.parametrize("version", [0x210, 0x220])
def test_tia_series_with_short_and_long_offsets_are_read(tmp_path, version):
    assert np.array_equal(read(write_ser(tmp_path / "m_1.ser", counts(), version))[0], counts())


def test_an_emi_file_leads_to_its_series_and_tells_of_the_microscope(tmp_path):
    write_ser(tmp_path / "scan_1.ser", counts())
    emi = tmp_path / "scan.emi"
    emi.write_bytes(
        b"JK\0\2binary<AcceleratingVoltage>200000</AcceleratingVoltage><CameraNamePath>Orius</CameraNamePath>"
    )
    for path in (emi, tmp_path / "scan_1.ser"):
        frames, info = read(path)
        assert np.array_equal(frames, counts())
        assert (info.voltage, info.camera) == (200.0, "Orius")


def test_an_emi_file_with_two_series_asks_which(tmp_path):
    for number in (1, 2):
        write_ser(tmp_path / f"scan_{number}.ser", counts())
    (tmp_path / "scan.emi").write_bytes(b"JK\0\2")
    with pytest.raises(InputError, match=r"2 series beside it; name one of scan_1\.ser, scan_2\.ser"):
        open_movie(tmp_path / "scan.emi")


@pytest.mark.parametrize("missing", [1, 3])
def test_frames_of_a_series_past_the_end_are_left_out_when_asked(tmp_path, missing):
    path = write_ser(tmp_path / "m_1.ser", counts())
    raw = bytearray(path.read_bytes())
    table = int.from_bytes(raw[22:30], "little")
    for t in range(5 - missing, 5):
        raw[table + 8 * t : table + 8 * t + 8] = (len(raw) - 50).to_bytes(8, "little")
    path.write_bytes(raw)
    with pytest.raises(InputError, match=f"cut.*--allow-truncated keeps {5 - missing}"):
        open_movie(path)
    assert np.array_equal(read(path, allow_truncated=True)[0], counts()[: 5 - missing])
