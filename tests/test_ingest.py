"""Ingest: the same counts, whatever stops it; what is odd about a movie is said, what cannot be used refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import multiprocessing.pool
import os
import subprocess
import sys
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import yaozarrs
import zarr

from n2n_pipeline import frame_pass
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.defects import find_defects
from n2n_pipeline.errors import ExitCode, InputError, Stopped
from n2n_pipeline.gathering import Gatherer, Looks, Statistics
from n2n_pipeline.ingest import ingest_movie
from n2n_pipeline.layout import default_layout
from n2n_pipeline.records import is_complete, verify
from n2n_pipeline.store import open_store

SHAPE = (10, 40, 48)


def counts(shape: tuple[int, ...] = SHAPE, mean: float = 5.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(mean, shape).astype(np.int16)


def save(path: Path, data: np.ndarray, pixel_size: float = 1.25) -> Path:
    with mrcfile.new(path, overwrite=True) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NaN
        file.set_data(data)
        file.voxel_size = pixel_size
    return path


def tree(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.fixture
def movie(ram: Path) -> Path:
    return save(ram / "movie.mrc", counts())


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Several units even for a tiny movie: shards of 4 frames, 3 of them; the last one not full."""
    monkeypatch.setattr("n2n_pipeline.layout.SMALL_SHARD_BYTES", 0)


# What is stored


def test_counts_arrive_unchanged_with_what_the_file_tells(movie, ram):
    store = open_store(ingest_movie(movie, ram / "out.zarr"))
    np.testing.assert_array_equal(store.array[...], counts())
    assert store.array.shards == (4, 40, 48)
    assert store.info.pixel_size == pytest.approx(1.25)
    assert store.provenance["kind"] == "movie"
    assert store.provenance["source"]["name"] == "movie.mrc"
    assert store.provenance["source"]["size_bytes"] == movie.stat().st_size
    assert verify(store.path)["ok"]


def test_the_bytes_depend_neither_on_the_name_nor_on_the_number_of_threads(movie, ram):
    stores = [ingest_movie(movie, ram / f"{threads}.zarr", threads=threads) for threads in (1, 2, 5)]
    assert tree(stores[0]) == tree(stores[1]) == tree(stores[2])


def test_a_movie_of_one_frame_is_a_montage_and_is_taken(ram):
    movie = save(ram / "montage.mrc", counts((1, 40, 48)))
    store = open_store(ingest_movie(movie, ram / "out.zarr"))
    np.testing.assert_array_equal(store.array[...], counts((1, 40, 48)))


def test_frames_rectangle_bins_and_groups_are_summed_exactly(movie, ram):
    config = IngestConfig(frames=(1, 10), crop=(2, 39, 4, 48), bin=3, group=2)
    store = open_store(ingest_movie(movie, ram / "out.zarr", config))
    kept = counts()[1:9, 2:38, 4:46].astype(np.int64)  # what does not fill a bin or a group is left out
    expected = kept.reshape(4, 2, 12, 3, 14, 3).sum(axis=(1, 3, 5))
    np.testing.assert_array_equal(store.array[...], expected)
    assert store.info.pixel_size == pytest.approx(3 * 1.25)


def test_sums_do_not_overflow(ram):
    movie = save(ram / "movie.mrc", np.random.default_rng(0).integers(100, 128, SHAPE).astype(np.int8))
    store = open_store(ingest_movie(movie, ram / "out.zarr", IngestConfig(bin=2)))
    assert store.info.dtype == np.int16
    assert store.array[...].min() >= 400


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (IngestConfig(frames=(5, 11)), "frames 5:11 are not inside 0:10"),
        (IngestConfig(crop=(0, 41, 0, 48)), "rows 0:41 are not inside 0:40"),
        (IngestConfig(bin=50), "nothing is left"),
    ],
)
def test_what_lies_outside_the_movie_is_refused_before_anything_is_written(movie, ram, config, line):
    with pytest.raises(InputError, match=line):
        ingest_movie(movie, ram / "out.zarr", config)
    assert not (ram / "out.zarr").exists()


def test_clipped_outliers_are_an_option(ram):
    frames = counts()
    frames[:, 0, 0] = 30_000
    movie = save(ram / "movie.mrc", frames)
    assert open_store(ingest_movie(movie, ram / "raw.zarr")).array[...].max() == 30_000
    clipped = open_store(ingest_movie(movie, ram / "clipped.zarr", IngestConfig(clip_outliers=True)))
    assert clipped.array[...].max() < 100


def test_an_output_must_be_named_zarr(movie, ram):
    with pytest.raises(InputError, match=r"must end in \.zarr") as error:
        ingest_movie(movie, ram / "out")
    assert error.value.code == ExitCode.USAGE


@pytest.mark.parametrize("shape", [(1, 4100, 70), (1, 4101, 71)])
def test_a_montage_gets_halved_copies_that_viewers_find(ram, shape):
    movie = save(ram / "montage.mrc", counts(shape))
    store = open_store(ingest_movie(movie, ram / "out.zarr"))
    group = zarr.open_group(store.path, mode="r")
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert [dataset["path"] for dataset in datasets] == ["0", "1", "2"]
    assert datasets[1]["coordinateTransformations"][0]["scale"] == [1.0, 2.5, 2.5]
    yaozarrs.validate_zarr_store(str(store.path))
    full = np.pad(counts(shape)[0], [(0, shape[1] % 2), (0, shape[2] % 2)], mode="edge")
    halved = full.reshape(full.shape[0] // 2, 2, full.shape[1] // 2, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(group["1"][0], np.rint(halved))
    assert group["2"].shape == (1, 1025 if shape[1] == 4100 else 1026, 18)
    assert verify(store.path)["ok"]


# References and defects


def test_references_are_stored_cut_and_binned_as_the_movie_is(movie, ram):
    rng = np.random.default_rng(3)
    dark, gain = rng.normal(2, 0.1, SHAPE[1:]).astype("f4"), rng.uniform(0.8, 1.2, SHAPE[1:]).astype("f4")
    gain[4, 6] = 0.0  # no gain: a defect
    config = IngestConfig(
        dark=save(ram / "dark.mrc", dark), gain=save(ram / "gain.mrc", gain), crop=(0, 40, 2, 46), bin=2
    )
    kept = open_store(ingest_movie(movie, ram / "out.zarr", config)).references
    blocks = dark[:, 2:46].reshape(20, 2, 22, 2)
    assert kept.dark is not None
    assert kept.gain is not None
    assert kept.defects is not None
    np.testing.assert_allclose(kept.dark, blocks.sum(axis=(1, 3)), rtol=1e-6)
    assert kept.gain[0, 0] == pytest.approx(gain[:2, 2:4].mean(), rel=1e-6)
    assert kept.defects[2, 2]


@pytest.mark.parametrize(("rotate", "flip"), [(0, "none"), (0, "y"), (0, "x"), (180, "none")])
def test_a_gain_the_wrong_way_up_is_noticed_and_the_right_way_named(ram, rotate, flip, caplog):
    rng = np.random.default_rng(4)
    gain = rng.uniform(0.7, 1.4, (64, 64)).astype("f4")
    movie = save(ram / "movie.mrc", rng.poisson(30 / gain, (16, 64, 64)).astype("i2"))
    saved = gain if flip == "none" else np.flip(gain, "yx".index(flip))
    config = IngestConfig(gain=save(ram / "gain.mrc", np.rot90(saved, -rotate // 90)))
    ingest_movie(movie, ram / "out.zarr", config)
    if (rotate, flip) == (0, "none"):
        assert "the gain fits" not in caplog.text
    else:
        named = {"x": "--gain-rotate 180 --gain-flip y"}.get(flip, f"--gain-rotate {rotate} --gain-flip {flip}")
        assert named in caplog.text


def test_a_gain_of_another_shape_is_refused(movie, ram):
    gain = save(ram / "gain.mrc", np.ones((48, 40), "f4"))
    with pytest.raises(
        InputError, match=r"gain.mrc: shape \(48, 40\), movie is \(40, 48\); --gain-rotate 90"
    ) as error:
        ingest_movie(movie, ram / "out.zarr", IngestConfig(gain=gain))
    assert error.value.code == ExitCode.BAD_DATA
    turned = IngestConfig(gain=gain, gain_rotate=90)
    assert open_store(ingest_movie(movie, ram / "out.zarr", turned)).references.gain.shape == (40, 48)


def test_listed_defects_are_kept(movie, ram):
    (ram / "bad.txt").write_text("# x y\n3 5\n10 20 2 4\n")
    mask = open_store(
        ingest_movie(movie, ram / "out.zarr", IngestConfig(defects=ram / "bad.txt"))
    ).references.defects
    assert mask[5, 3]
    assert mask[20:24, 10:12].all()
    assert mask.sum() == 9


@pytest.mark.parametrize("line", ["3", "3 x", "48 0", "0 39 1 2"])
def test_a_list_of_defects_that_makes_no_sense_is_refused_by_line(movie, ram, line):
    (ram / "bad.txt").write_text(f"1 1\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        ingest_movie(movie, ram / "out.zarr", IngestConfig(defects=ram / "bad.txt"))


def test_bad_pixels_and_a_dead_column_are_found_and_good_ones_kept(ram):
    frames = counts((32, 128, 128), mean=2.0)
    rng = np.random.default_rng(5)
    rows, cols = rng.integers(128, size=20), rng.integers(128, size=20)
    frames[:, rows, cols] = np.iinfo(np.int16).max
    frames[:, :, 70] = 0
    movie = save(ram / "movie.mrc", frames)
    found = open_store(ingest_movie(movie, ram / "out.zarr")).references.defects
    true = np.zeros((128, 128), bool)
    true[rows, cols] = True
    true[:, 70] = True
    assert found[true].all()
    assert np.count_nonzero(found & ~true) <= 2


def test_statistics_of_counts_are_exact_in_every_type():
    rng = np.random.default_rng(6)
    for dtype, most in (
        ("uint8", 255),
        ("int16", 9),
        ("int16", 3000),
        ("int16", 32767),
        ("uint16", 65535),
        ("int32", 10**6),
        ("uint32", 3),  # sums fit in fewer bits than the counts have
        ("int8", 3),
        ("int8", 127),
        ("uint8", 7),  # sums of four frames fit in 8 bits, of all of them they do not
        ("int16", 40),  # carried over after some units
    ):
        least = -most if dtype.startswith("int") else 0
        frames = rng.integers(least, most, (90, 5, 7), endpoint=True).astype(dtype)
        statistics = Statistics((5, 7))
        for start in range(0, 90, 4):
            statistics.accumulate(frames[start : start + 4])
        np.testing.assert_allclose(statistics.mean(), frames.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(statistics.variance(), frames.var(axis=0, ddof=1, dtype=float), rtol=1e-9)


def test_threads_sum_floats_in_the_order_of_the_frames():
    frames = np.random.default_rng(7).normal(size=(40, 300, 64)).astype("f4")
    alone = Statistics((300, 64))
    for start in range(0, 40, 4):
        alone.accumulate(frames[start : start + 4])
    together = Gatherer((300, 64))
    context = multiprocessing.pool.ThreadPool(6)
    context.map(lambda turn: together.accumulate(turn, frames[4 * turn : 4 * turn + 4]), range(10), chunksize=1)
    context.close()
    np.testing.assert_array_equal(together.statistics.variance(), alone.variance())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_what_is_seen_of_a_frame_does_not_depend_on_the_bands_it_is_seen_in(dtype):
    frames = np.random.default_rng(8).integers(0, 100, (3, 40, 9)).astype(dtype)
    frames[1] = 7
    frames[2, 5] = np.nan if dtype == "float32" else np.iinfo(dtype).max
    whole = Looks(3)
    whole.see(frames)
    for rows in (1, 3, 8, 17):  # 1 where a line alone is wider than a band
        looks = Looks(3)
        peaks = [looks.see(frames[:, y : y + rows]) for y in range(0, 40, rows)]
        assert looks.notes() == whole.notes()
        assert max(peaks) == (0 if dtype == "float32" else np.iinfo(dtype).max)
    notes = whole.notes()
    assert notes["constant"] == [None, 7, None]
    assert notes["not_finite" if dtype == "float32" else "saturated"] == [0, 0, 9]


def test_a_movie_that_never_changes_has_no_defects():
    statistics = Statistics((20, 20))
    statistics.accumulate(np.full((4, 20, 20), 3, "i2"))
    assert not find_defects(statistics).any()


# Odd and useless movies


def test_a_movie_that_is_constant_has_nothing_to_learn_from(ram):
    movie = save(ram / "movie.mrc", np.full(SHAPE, 7, "i2"))
    with pytest.raises(InputError, match=r"movie\.mrc: all pixels equal 7; nothing to learn") as error:
        ingest_movie(movie, ram / "out.zarr")
    assert error.value.code == ExitCode.BAD_DATA
    assert not is_complete(ram / "out.zarr")


def _spoil(frames: np.ndarray, share: float) -> np.ndarray:
    frames.flat[:: int(1 / share)] = np.nan
    return frames


@pytest.mark.parametrize(
    ("share", "line"), [(0.05, "5.0% of pixels are NaN or Inf"), (1.0, "100.0% of pixels are NaN or Inf")]
)
def test_too_many_pixels_that_are_not_finite_are_refused(ram, share, line):
    movie = save(ram / "movie.mrc", _spoil(counts().astype("f4"), share))
    with pytest.raises(InputError, match=line):
        ingest_movie(movie, ram / "out.zarr")


def test_a_lost_frame_is_named_and_a_few_lost_pixels_are_kept_as_they_are(ram, caplog):
    frames = counts().astype("f4")
    frames[3] = np.nan
    frames[5, 1, 2] = np.inf
    store = open_store(ingest_movie(save(ram / "movie.mrc", frames), ram / "out.zarr"))
    np.testing.assert_array_equal(store.array[...], frames)
    assert store.provenance["frames"]["not_finite"] == [3]
    assert "frames 3 hold no finite number: they are left out" in caplog.text


def test_blank_and_repeated_frames_are_named(ram, caplog):
    frames = counts()
    frames[2] = 0
    frames[6] = 0
    frames[8] = frames[7]
    frames[9] = frames[4]
    frames[9, 3, 3] += 1  # not the same
    store = open_store(ingest_movie(save(ram / "movie.mrc", frames), ram / "out.zarr"))
    assert store.provenance["frames"] == {"constant": [2, 6], "not_finite": [], "duplicates": [[7, 8]]}
    assert "frames 8 repeat earlier ones: they are left out" in caplog.text


def test_saturation_is_told_in_percent(ram, caplog):
    frames = counts()
    frames[:, :10] = np.iinfo(np.int16).max
    ingest_movie(save(ram / "movie.mrc", frames), ram / "out.zarr")
    assert "25.0% of pixels are saturated" in caplog.text


def test_a_movie_that_is_still_being_written_is_refused(movie, ram, monkeypatch):
    real = frame_pass.write_frames

    def grow(*args: object) -> None:
        real(*args)
        with movie.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(frame_pass, "write_frames", grow)
    with pytest.raises(InputError, match=r"movie\.mrc: changed while reading"):
        ingest_movie(movie, ram / "out.zarr")
    assert not is_complete(ram / "out.zarr")


def test_the_disks_room_is_checked_first(movie, ram, monkeypatch):
    monkeypatch.setattr("n2n_pipeline.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"need .*, .* has 1 kB; --force-space to go on") as error:
        ingest_movie(movie, ram / "out.zarr")
    assert error.value.code == ExitCode.IO


# A run that was stopped is continued


def test_a_rerun_with_other_settings_or_another_movie_is_refused_unless_told(movie, ram):
    ingest_movie(movie, ram / "out.zarr")
    with pytest.raises(InputError, match=r"settings.bin unset -> 2.*--restart") as error:
        ingest_movie(movie, ram / "out.zarr", IngestConfig(bin=2))
    assert error.value.code == ExitCode.CANNOT_CREATE
    save(movie, counts(seed=1))
    with pytest.raises(InputError, match=r"source\.sampled_sha256"):
        ingest_movie(movie, ram / "out.zarr")
    ingest_movie(movie, ram / "out.zarr", restart=True)
    np.testing.assert_array_equal(open_store(ram / "out.zarr").array[...], counts(seed=1))


def test_a_movies_date_decides_nothing(movie, ram):
    whole = tree(ingest_movie(movie, ram / "out.zarr"))
    os.utime(movie, (0, 0))
    assert tree(ingest_movie(movie, ram / "out.zarr")) == whole


def test_done_parts_are_not_written_again(movie, ram, monkeypatch):
    whole = tree(ingest_movie(movie, ram / "whole.zarr"))
    _stop_after(1, monkeypatch)
    with pytest.raises(Stopped):
        ingest_movie(movie, ram / "out.zarr", threads=1)
    first = ram / "out.zarr/0/c/0/0/0"
    before = first.stat().st_ino
    monkeypatch.undo()
    monkeypatch.setattr("n2n_pipeline.layout.SMALL_SHARD_BYTES", 0)
    ingest_movie(movie, ram / "out.zarr")
    assert first.stat().st_ino == before
    assert tree(ram / "out.zarr") == whole


def _stop_after(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done = iter([False] * units)
    monkeypatch.setattr("n2n_pipeline.records.stop_requested", lambda: next(done, True))


def test_what_one_thread_met_is_told_not_that_others_stopped(movie, ram, monkeypatch):
    def fail(folder: Path, layout: object, span: range, frames: np.ndarray) -> None:
        if span.start == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "disk")

    monkeypatch.setattr(frame_pass, "write_frames", fail)
    with pytest.raises((InputError, RuntimeError), match=r"disk: input/output error|did not write"):
        ingest_movie(movie, ram / "out.zarr", threads=3)


def test_what_a_network_disk_refuses_for_a_moment_is_tried_again(movie, ram, monkeypatch, caplog):
    monkeypatch.setattr("n2n_pipeline.files.RETRY_SECONDS", (0, 0, 0))
    real, failures = frame_pass.write_frames, iter([errno.EIO, errno.ESTALE, errno.EAGAIN])

    def stutter(*args: object) -> None:
        number = next(failures, None)
        if number is not None:
            raise OSError(number, os.strerror(number), "shard")
        real(*args)

    monkeypatch.setattr(frame_pass, "write_frames", stutter)
    ingest_movie(movie, ram / "out.zarr", threads=1)
    assert caplog.text.count("trying again") == 3
    np.testing.assert_array_equal(open_store(ram / "out.zarr").array[...], counts())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_or_a_missing_right_is_not_tried_again(movie, ram, monkeypatch, number):
    tried = []

    def refuse(*args: object) -> None:
        tried.append(1)
        raise OSError(number, os.strerror(number), "shard")

    monkeypatch.setattr(frame_pass, "write_frames", refuse)
    with pytest.raises(InputError, match="shard: "):
        ingest_movie(movie, ram / "out.zarr", threads=1)
    assert len(tried) <= 2  # the next unit was under way


def test_a_shard_lost_later_is_named_and_made_again(movie, ram):
    whole = tree(ingest_movie(movie, ram / "out.zarr"))
    (ram / "out.zarr/0/c/1/0/0").unlink()
    with pytest.raises(InputError, match="first 0/c/1/0/0"):
        open_store(ram / "out.zarr")
    ingest_movie(movie, ram / "out.zarr")
    assert tree(ram / "out.zarr") == whole


# The command


def test_ingest_loads_nothing_that_it_does_not_need(movie, ram):
    script = (
        "import sys; from n2n_pipeline.cli import main; main(['ingest', *sys.argv[1:]], standalone_mode=False); "
        "heavy = {'torch', 'xarray', 'dask', 'distributed', 'matplotlib', 'numba', 'zarr', 'scipy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(movie), str(ram / "out.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"


def test_size_and_layout_of_a_large_camera_stay_bounded_in_memory():
    layout = default_layout((1000, 8184, 11520), "uint8")
    assert np.prod(layout.shards) <= 200 << 20


def test_records_hold_what_each_unit_noted(movie, ram):
    ingest_movie(movie, ram / "out.zarr")
    record = json.loads((ram / "out.zarr/records/units/frames-0000000.json").read_text())
    assert len(record["notes"]["crc32c"]) == 4
