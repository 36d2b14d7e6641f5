"""Stores: what is written is read, by us and by others, and damage never passes for data."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaozarrs
import zarr
from faults import in_memory
from hypothesis import given, settings
from hypothesis import strategies as st

import n2n_pipeline
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.layout import (
    BLOCK_BYTES,
    CLEARLY_SMALLER,
    Layout,
    default_layout,
    estimate_bytes,
    fit_shuffle,
    plan_units,
    round_mantissa,
)
from n2n_pipeline.manifest import SHIFTS
from n2n_pipeline.records import verify
from n2n_pipeline.shards import write_shard
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import (
    MovieStore,
    References,
    Shifts,
    add_array,
    create_store,
    open_store,
    write_frames,
    write_movie,
    write_shifts,
)

KNOWN = MovieInfo(
    (1, 1, 1),
    np.dtype("int16"),
    "mrc",
    pixel_size=1.06,
    frame_time=0.04,
    dose_per_frame=0.8,
    voltage=300.0,
    camera="K3",
    software="SerialEM",
    warnings=("odd",),
)


def counts(shape: tuple[int, int, int] = (10, 61, 67), dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(1).poisson(5, shape).astype(dtype)


@pytest.fixture
def movie(ram: Path) -> MovieStore:
    return write_movie(ram / "movie.zarr", counts(), KNOWN)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 5, 7),  # one frame, smaller than anything
        (9, 61, 67),  # odd everywhere, one shard
        (9, 530, 67),  # two chunks along y, the second hardly filled
    ],
)
def test_what_is_written_is_read_to_the_bit(ram, shape, dtype):
    frames = counts(shape, dtype)
    store = write_movie(ram / "movie.zarr", frames)
    assert store.array.dtype == frames.dtype
    np.testing.assert_array_equal(store.array[...], frames)
    np.testing.assert_array_equal(store.read(slice(0, 3), slice(2, 5), slice(1, 4)), frames[:3, 2:5, 1:4])


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)),
    chunks=st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)),
    times=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
@settings(max_examples=25, deadline=None)
def test_zarr_reads_our_shards_of_any_shape(shape, chunks, times):
    shards = tuple(chunk * n for chunk, n in zip(chunks, times, strict=True))
    frames = counts(shape, "float32")
    layout = Layout(shape, frames.dtype, shards, chunks, "float")
    with TemporaryDirectory(dir=in_memory()) as folder:
        create_store(Path(folder), KNOWN, layout, {})
        for start in range(0, shape[0], shards[0]):
            span = range(start, min(start + shards[0], shape[0]))
            write_frames(Path(folder) / "0", layout, span, frames[span.start : span.stop])
        np.testing.assert_array_equal(zarr.open_array(Path(folder) / "0", mode="r")[...], frames)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_our_metadata_are_those_that_zarr_writes(ram, dtype):
    layout = default_layout((9, 530, 40), dtype)
    add_array(ram / "store", "0", layout)
    same = zarr.open_array(ram / "store/0", mode="r")
    group = zarr.create_group(ram / "theirs")
    group.create_array(
        "0",
        shape=layout.shape,
        chunks=layout.chunks,
        shards=layout.shards,
        dtype=dtype,
        compressors=same.compressors,
        fill_value=layout.fill_value,
        dimension_names=("t", "y", "x"),
    )
    ours, theirs = (json.loads((ram / name / "0/zarr.json").read_text()) for name in ("store", "theirs"))
    assert ours == theirs
    assert same.compressors[0].blocksize == BLOCK_BYTES


def test_zarrs_own_writer_and_ours_store_the_same_values(ram):
    frames = counts((4, 530, 40))
    layout = default_layout(frames.shape, frames.dtype)
    for name in ("ours.zarr", "theirs.zarr"):
        create_store(ram / name, KNOWN, layout, {})
    ours, theirs = (zarr.open_array(ram / name / "0", mode="r+") for name in ("ours.zarr", "theirs.zarr"))
    write_frames(ram / "ours.zarr/0", layout, range(4), frames)
    theirs[...] = frames
    np.testing.assert_array_equal(ours[...], theirs[...])
    written = [(ram / name / "0/c/0/0/0").stat().st_size for name in ("ours.zarr", "theirs.zarr")]
    assert written[0] <= written[1]


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 4, 4)])
def test_a_block_that_is_not_a_whole_shard_is_refused(ram, shape):
    """Its other part would be another task's, and one of the two would be lost."""
    layout = Layout((6, 4, 5), np.dtype("int16"), (3, 4, 5), (3, 4, 5), "counts")
    with pytest.raises(ValueError, match=r"shard \(0, 0, 0\) holds \(3, 4, 5\)"):
        write_shard(ram, layout, (0, 0, 0), np.zeros(shape, "int16"))
    assert not list(ram.iterdir())


# Metadata


def test_no_flipped_bit_of_the_shifts_moves_a_frame(movie):
    write_shifts(movie.path, Shifts(np.random.default_rng(3).normal(size=(10, 2)), np.ones(10)))
    kept, whole = open_store(movie.path).shifts, (movie.path / SHIFTS).read_bytes()
    for place in np.random.default_rng(4).integers(8 * len(whole), size=100):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        (movie.path / SHIFTS).write_bytes(flipped)
        try:
            np.testing.assert_array_equal(open_store(movie.path).shifts.dy_dx, kept.dy_dx)
        except InputError as error:
            assert "run align again" in str(error)  # noqa: PT017 - it may also do no harm
            assert verify(movie.path)["changed"] == [SHIFTS]


def test_what_is_known_of_a_movie_survives(movie):
    again = open_store(movie.path).info
    assert again.shape == (10, 61, 67)
    for name in (
        "pixel_size",
        "frame_time",
        "dose_per_frame",
        "voltage",
        "camera",
        "software",
        "format",
        "warnings",
    ):
        assert getattr(again, name) == getattr(KNOWN, name)


def test_what_is_not_known_has_no_unit_and_is_not_claimed(ram):
    store = write_movie(ram / "movie.zarr", counts())
    assert store.info.pixel_size is None
    image = json.loads((store.path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert [axis.get("unit") for axis in image["axes"]] == [None, None, None]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("info", [KNOWN, None])
def test_stores_are_valid_ome_zarr(ram, info):
    store = write_movie(ram / "movie.zarr", counts(), info, References(gain=np.ones((61, 67))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yaozarrs.validate_zarr_store(str(store.path))


def test_ome_zarr_py_reads_a_store(movie):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        location = parse_url(str(movie.path))
        assert location is not None
        node = next(iter(Reader(location)()))
    np.testing.assert_array_equal(np.asarray(node.data[0]), counts())
    assert [axis["name"] for axis in node.metadata["axes"]] == ["t", "y", "x"]
    assert node.metadata["axes"][2]["unit"] == "angstrom"
    assert node.metadata["coordinateTransformations"][0][0]["scale"] == [0.04, 1.06, 1.06]


def test_every_member_of_the_root_group_is_zarr(movie):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = {name for name, _ in zarr.open_group(movie.path, mode="r").members()}
    assert names == {"0", "records"}


def test_references_and_shifts_are_kept_beside_the_counts(ram):
    rng = np.random.default_rng(2)
    defects = rng.random((61, 67)) < 0.01
    given = References(rng.normal(size=(61, 67)), rng.uniform(0.9, 1.1, (61, 67)), defects)
    path = write_movie(ram / "movie.zarr", counts(), references=given).path
    shifts = Shifts(rng.normal(size=(10, 2)), rng.random(10))
    write_shifts(path, shifts)
    store = open_store(path)
    assert store.shifts is not None
    np.testing.assert_array_equal(store.references.dark, given.dark.astype(np.float32))
    np.testing.assert_array_equal(store.references.gain, given.gain.astype(np.float32))
    np.testing.assert_array_equal(store.references.defects, defects)
    np.testing.assert_array_equal(store.shifts.dy_dx, shifts.dy_dx)
    np.testing.assert_array_equal(store.shifts.confidence, shifts.confidence)
    write_shifts(path, None)
    assert open_store(path).shifts is None


# Stores that are not whole


def test_a_store_that_was_not_completed_opens_only_when_partial(ram):
    layout = default_layout((8, 16, 16), "int16")
    create_store(ram / "movie.zarr", KNOWN, layout, {"kind": "movie"})
    with pytest.raises(InputError, match="not complete"):
        open_store(ram / "movie.zarr")
    assert open_store(ram / "movie.zarr", partial=True).array.shape == (8, 16, 16)


def test_a_shard_that_is_lost_is_named_and_never_read_as_zeros(movie):
    (movie.path / "0/c/0/0/0").unlink()
    with pytest.raises(InputError, match=r"1 of 3 files missing or cut \(first 0/c/0/0/0\)") as error:
        open_store(movie.path)
    assert error.value.code == ExitCode.BAD_DATA
    with pytest.raises(InputError, match="0/c/0/0/0 is missing or empty"):
        movie.read(slice(0, 1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "cut by a byte", "cut by half", "tail zeroed", "all zeroed"],
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])  # every codec
def test_a_damaged_shard_is_an_error_on_reading_and_verify_names_it(ram, dtype, damage):
    store = write_movie(ram / "movie.zarr", counts(dtype=dtype))
    shard = store.path / "0/c/0/0/0"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(InputError, match="0/c/0/0/0") as error:
        store.read(slice(None))
    assert error.value.code == ExitCode.CORRUPT
    found = verify(store.path)
    assert found["missing"] + found["changed"] == ["0/c/0/0/0"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"torn")])
def test_a_boundary_shard_that_is_torn_is_written_again(ram, monkeypatch, damage):
    """Where the movie is no multiple of the shard, a writer that reads the torn one first would fail for ever."""
    monkeypatch.setattr("n2n_pipeline.layout.SMALL_SHARD_BYTES", 0)
    whole = write_movie(ram / "movie.zarr", counts()).path
    shards = {path: path.read_bytes() for path in (whole / "0/c").rglob("*") if path.is_file()}
    last = max(shards)
    assert len(shards) * 4 > len(counts())
    damage(last)
    write_movie(whole, counts())
    assert {path: path.read_bytes() for path in shards} == shards
    assert verify(whole)["ok"]


@pytest.mark.parametrize(("dtype", "flips"), [("uint8", 50), ("int16", 200), ("float32", 50)])
def test_every_flipped_bit_is_found_by_verify_and_none_is_read_as_data(ram, dtype, flips, record_property):
    dark = np.random.default_rng(2).normal(size=(61, 67))
    store = write_movie(ram / "movie.zarr", counts(dtype=dtype), references=References(dark))
    files = {"0/c/0/0/0": (store.path / "0/c/0/0/0").read_bytes()}
    files |= {"references/dark/c/0/0": (store.path / "references/dark/c/0/0").read_bytes()}
    rng, found, refused = np.random.default_rng(0), 0, 0
    for number in range(flips):
        name = list(files)[number % 5 == 0]
        flipped = bytearray(files[name])
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        (store.path / name).write_bytes(flipped)
        found += verify(store.path)["changed"] == [name]
        try:
            open_store(store.path).read(slice(None))
        except InputError as error:
            refused += "damaged" in str(error)
        (store.path / name).write_bytes(files[name])
    record_property("flips", flips)
    record_property("found by verify", found)
    assert (found, refused) == (flips, flips)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("10,", "11,"),
        lambda text: text.replace("int16", "int32"),
        lambda text: text.replace('"shuffle": "shuffle"', '"shuffle": "noshuffle"'),
        lambda text: None,
    ],
    ids=["empty", "half", "shape", "dtype", "codec", "removed"],
)
def test_edited_metadata_is_refused(movie, edit):
    file = movie.path / "0/zarr.json"
    text = edit(file.read_text())
    assert text != file.read_text()
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(InputError, match=r"0/zarr.json"):
        open_store(movie.path)
    np.testing.assert_array_equal(write_movie(movie.path, counts(), KNOWN).array[...], counts())


# Stores of others


def _plain(path: Path, version: int) -> None:
    zarr.create_array(path, data=counts(), zarr_format=version)


def _image(path: Path, version: int) -> None:
    group = zarr.create_group(path, zarr_format=version)
    group.create_array("full", data=counts())
    axes = [
        {"name": "t", "type": "time", "unit": "millisecond"},
        *({"name": name, "type": "space", "unit": "nanometer"} for name in "yx"),
    ]
    scale = {"type": "scale", "scale": [40.0, 0.5, 0.5]}
    images = [{"axes": axes, "datasets": [{"path": "full", "coordinateTransformations": [scale]}]}]
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": images}} if version == 3 else {"multiscales": images}
    )


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("make", [_plain, _image])
def test_stores_of_others_open(ram, make, version):
    make(ram / "other.zarr", version)
    store = open_store(ram / "other.zarr")
    np.testing.assert_array_equal(store.read(slice(None)), counts())
    assert store.provenance == {}
    if make is _image:
        assert store.info.pixel_size == pytest.approx(5.0)
        assert store.info.frame_time == pytest.approx(0.04)


def test_metadata_that_leads_out_of_the_store_is_refused(ram):
    _plain(ram / "secret.zarr", 3)
    group = zarr.create_group(ram / "other.zarr")
    group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": "../secret.zarr"}]}]}
    with pytest.raises(InputError, match="leads out of the store") as error:
        open_store(ram / "other.zarr")
    assert error.value.code == ExitCode.REFUSED


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "no image array found (no zarr.json, no .zarray)"),
        (lambda path: zarr.create_group(path), "no image array found"),
        (lambda path: zarr.create_array(path, shape=(2, 2), dtype="i2"), "array of shape (2, 2)"),
        (lambda path: zarr.create_array(path, shape=(1, 2, 2), dtype="c8"), "complex data"),
    ],
    ids=["nothing", "empty", "group", "2-D", "complex"],
)
def test_what_is_no_movie_is_refused_in_one_line(ram, make, line):
    make(ram / "other.zarr")
    with pytest.raises(InputError) as error:
        open_store(ram / "other.zarr")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


# Layout


@pytest.mark.parametrize(
    ("shape", "dtype", "shards"),
    [
        ((48, 256, 256), "int16", (16, 256, 256)),  # small frames are gathered
        ((128, 4096, 4096), "uint8", (4, 4096, 4096)),
        ((128, 4092, 5760), "uint16", (4, 4096, 5760)),
        ((3, 61, 67), "uint8", (3, 61, 67)),  # shorter than a shard
        ((10, 61, 67), "uint8", (12, 61, 67)),  # whole chunks of 4
        ((96, 384, 384), "int16", (12, 384, 384)),
        ((20, 8192, 8192), "float32", (1, 4096, 8192)),  # one frame is too much
        ((1, 40000, 30000), "uint16", (1, 10240, 7680)),
    ],
)
def test_shards_are_a_few_whole_frames_or_parts_of_very_large_ones(shape, dtype, shards):
    layout = default_layout(shape, dtype)
    assert layout.shards == shards
    assert all(shard % chunk == 0 for shard, chunk in zip(layout.shards, layout.chunks, strict=True))


@pytest.mark.parametrize(
    ("dtype", "mean", "shuffle"),
    [
        ("uint8", 0.8, "bitshuffle"),
        ("uint8", 12, "noshuffle"),  # few bits are always 0
        ("int16", 0.8, "bitshuffle"),  # half as large as byte by byte
        ("int16", 10, "shuffle"),
        ("float32", 10, "shuffle"),
    ],
)
def test_how_bytes_are_sorted_is_chosen_by_what_compresses(dtype, mean, shuffle):
    sample = np.random.default_rng(0).poisson(mean, (1, 256, 256)).astype(dtype)
    layout = fit_shuffle(default_layout((8, 256, 256), dtype), sample)
    assert layout.shuffle == shuffle
    others = {layout._replace(shuffle=other) for other in ("noshuffle", "shuffle", "bitshuffle")}
    smallest = min(estimate_bytes(other, sample) for other in others)
    assert layout.codec == "float" or estimate_bytes(layout, sample) <= smallest / CLEARLY_SMALLER


def test_every_pixel_belongs_to_one_unit():
    layout = Layout((10, 61, 67), np.dtype("u1"), (4, 32, 32), (4, 16, 16), "counts")
    units = plan_units(layout)
    assert [list(span) for _, span in units] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    files = [name for unit, _ in units for name in unit.files]
    assert len(files) == len(set(files)) == 3 * 2 * 3


def test_the_size_on_disk_is_foreseen_within_five_percent(ram):
    frames = counts((16, 512, 512))
    store = write_movie(ram / "movie.zarr", frames)
    layout = default_layout(frames.shape, frames.dtype)
    used = sum(path.stat().st_size for path in (store.path / "0/c").rglob("*") if path.is_file())
    assert estimate_bytes(layout, frames[:4]) == pytest.approx(used, rel=0.05)


def test_counts_compress_as_promised(ram):
    rng = np.random.default_rng(0)
    for frames, most in (
        (rng.poisson(0.8, (8, 512, 512)).astype("uint8"), 0.30),
        (rng.poisson(10, (8, 512, 512)).astype("int16"), 0.26),
    ):
        path = write_movie(ram / f"{frames.dtype}.zarr", frames).path
        used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert used / frames.nbytes <= most


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_rounding_keeps_ten_bits_and_whatever_is_not_finite(values):
    exact = np.array(values, np.float32)
    rounded = round_mantissa(exact)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(rounded[~finite], exact[~finite])
    small = np.abs(exact) < np.finfo(np.float32).tiny
    kept = finite & ~small & np.isfinite(rounded)
    assert np.all(np.abs(rounded[kept] - exact[kept]) <= np.abs(exact[kept]) * 2.0**-11)
    assert not np.any(rounded[kept].view(np.uint32) & 0x1FFF)


# The public face


def test_any_movie_opens_as_a_labelled_lazy_array(movie):
    lazy = n2n_pipeline.open_movie(movie.path)
    assert lazy.dims == ("t", "y", "x")
    assert lazy.chunks is not None
    assert lazy.attrs["pixel_size_angstrom"] == 1.06
    np.testing.assert_array_equal(lazy[3:5, 10:20].values, counts()[3:5, 10:20])
