import json
import threading
import time

import numpy as np
import pytest
import torch
import zarr

from n2n_pipeline.averages import read_pairs
from n2n_pipeline.checkpoint import save_model
from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import ExitCode, InputError, Stopped
from n2n_pipeline.geometry import Tiling, plan_tiles
from n2n_pipeline.inference import denoise
from n2n_pipeline.inference.choice import MOST_FRAMES
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.inference.forward import denoise_frames
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.layout import round_mantissa
from n2n_pipeline.manifest import RECORDS
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import References, Shifts, open_store, write_movie, write_shifts

SHAPE = (7, 45, 62)  # no multiple of a stride, and several shards
WHOLE = Tiling(stride=4, core=64, halo=4)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("n2n_pipeline.layout.SMALL_SHARD_BYTES", 1)  # 4 frames each


@pytest.fixture
def movie(tmp_path):
    counts = np.random.default_rng(0).poisson(9, SHAPE).astype(np.uint8)
    counts[:, 5, 6] = 255
    defects = counts[0] == 255
    info = MovieInfo(SHAPE, counts.dtype, "mrc", pixel_size=1.5)
    return write_movie(tmp_path / "movie.zarr", counts, info, References(defects=defects)).path


@pytest.fixture
def model(tmp_path, make_denoiser):
    denoiser = make_denoiser()
    save_model(tmp_path / "model", denoiser.network, denoiser.card)
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setattr("n2n_pipeline.checkpoint.autocast_dtype", lambda device: None)


def config(core=24, halo="exact", **settings):
    return DenoiseConfig(**{"augment": "off"} | settings, tile=TileConfig(core_px=core, halo_px=halo))


def denoised(path, name="0"):
    open_store(path)
    return np.asarray(zarr.open_group(path, mode="r")[name])


def files(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "lock.json"
    }


def test_every_frame_is_the_mean_of_both_halves_through_the_network(movie, model, make_denoiser, tmp_path):
    denoise_store(movie, model, tmp_path / "out.zarr", config())
    pair = read_pairs(CorrectedMovie(open_store(movie)), range(7), (slice(0, 45), slice(0, 62)), window=4)
    plan = plan_tiles(SHAPE[1:], WHOLE)
    halves = [
        denoise_frames(make_denoiser(), values, counts, plan)
        for values, counts in ((pair.even, pair.even_count), (pair.odd, pair.odd_count))
    ]
    expected = round_mantissa((halves[0] + halves[1]) / 2)
    np.testing.assert_allclose(denoised(tmp_path / "out.zarr"), expected, rtol=1e-3)


def test_the_output_has_the_movies_shape_pixel_size_and_provenance(movie, model, tmp_path):
    denoise_store(movie, model, tmp_path / "out.zarr", config())
    opened = open_store(tmp_path / "out.zarr")
    assert opened.info.shape == SHAPE
    assert opened.info.dtype == np.float32
    assert opened.info.pixel_size == 1.5
    assert opened.provenance["kind"] == "denoised"
    assert opened.provenance["movie"] == "../movie.zarr"
    assert opened.provenance["window"] == 4
    assert opened.provenance["choice"]["core_px"] == 24


@pytest.mark.parametrize(
    ("threads", "memory_gb", "expected"),
    [(2, 1.0, True), (1, 1.0, False), (2, 0.01, False)],
    ids=["two threads", "one thread", "no memory for two"],
)
def test_halves_are_the_same_side_by_side_and_one_after_another(
    movie, model, tmp_path, monkeypatch, threads, memory_gb, expected
):
    names, real = set(), denoise.run_network

    def note(*args):
        names.add(threading.current_thread().name)
        return real(*args)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        denoise_store(movie, model, tmp_path / "alone.zarr", config())
        torch.set_num_threads(threads)
        monkeypatch.setattr(denoise, "run_network", note)
        denoise_store(movie, model, tmp_path / "out.zarr", config(memory_gb=memory_gb))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(names) == 1 + expected
    assert open_store(tmp_path / "out.zarr").provenance["choice"]["side_by_side"] is expected
    np.testing.assert_allclose(denoised(tmp_path / "out.zarr"), denoised(tmp_path / "alone.zarr"), rtol=1e-3)


def test_halves_are_kept_and_their_mean_is_the_output(movie, model, tmp_path):
    denoise_store(movie, model, tmp_path / "out.zarr", config(halves=True))
    even, odd, mean = (denoised(tmp_path / "out.zarr", name) for name in ("even", "odd", "0"))
    assert not np.allclose(even, odd)
    np.testing.assert_allclose(mean, (even + odd) / 2, rtol=2e-3)


@pytest.mark.parametrize("frame_of_reference", ["camera", "stable"])
def test_the_scene_lies_where_each_frame_has_it_to_a_small_part_of_a_pixel(
    model, tmp_path, monkeypatch, frame_of_reference
):
    monkeypatch.setattr(denoise, "run_network", lambda _denoiser, values, *_: values)
    monkeypatch.setattr("n2n_pipeline.layout.CHUNK_PX", 16)
    dy_dx = np.cumsum(np.random.default_rng(1).normal(0.3, 0.5, (12, 2)), axis=0)
    rows, columns = np.arange(48)[:, None], np.arange(80)
    scene = [100 + 40 * np.sin(0.3 * (rows - dy)) + 40 * np.cos(0.25 * (columns - dx)) for dy, dx in dy_dx]
    movie = write_movie(tmp_path / "movie.zarr", np.array(scene, np.float32)).path
    write_shifts(movie, Shifts(dy_dx - dy_dx[0], np.ones(12)))
    found = {}
    for way, reach in (("placed", None), ("not placed", 0)):
        with monkeypatch.context() as patch:
            if reach is not None:
                patch.setattr(Inputs, "reach_px", reach)
            settings = config(16, window=8, frame_of_reference=frame_of_reference)
            denoise_store(movie, model, tmp_path / f"{way}.zarr", settings)
        frames = denoised(tmp_path / f"{way}.zarr")[:, 8:-8, 8:-8]
        expected = np.array(scene)[:, 8:-8, 8:-8] if frame_of_reference == "camera" else frames.mean(axis=0)
        found[way] = float(np.sqrt(np.mean((frames - expected) ** 2)))
    assert found["placed"] < 0.3 * found["not placed"]
    assert found["placed"] < 1.5


def test_frames_and_region_come_out_as_they_do_in_the_whole_movie(movie, model, tmp_path):
    denoise_store(movie, model, tmp_path / "whole.zarr", config())
    denoise_store(movie, model, tmp_path / "part.zarr", config(frames=(2, 6), region=(10, 40, 0, 33)))
    expected = denoised(tmp_path / "whole.zarr")[2:6, 10:40, 0:33]
    np.testing.assert_allclose(denoised(tmp_path / "part.zarr"), expected, rtol=1e-3)


def test_frames_are_read_together_where_there_is_memory_and_come_out_the_same(movie, model, tmp_path):
    found = {}
    for name, gigabytes in (("tight", 1e-3), ("ample", 1)):
        output = tmp_path / name
        denoise_store(movie, model, output, config(memory_gb=gigabytes))
        choice = json.loads((output / RECORDS / "plan.json").read_text())["fingerprint"]["choice"]
        found[choice["frames"]] = denoised(output)
    assert list(found) == [1, MOST_FRAMES[0]]
    np.testing.assert_array_equal(*found.values())


@pytest.mark.parametrize("frame_of_reference", ["camera", "stable"])
def test_a_drifting_scene_is_followed(model, make_denoiser, tmp_path, frame_of_reference):
    scene = np.random.default_rng(1).poisson(9, (60, 60)).astype(np.uint8)
    drift = np.stack([np.arange(6), -np.arange(6)], axis=1)
    frames = np.stack([scene[10 - dy : 50 - dy, 10 - dx : 50 - dx] for dy, dx in drift])
    path = write_movie(tmp_path / "movie.zarr", frames).path
    write_shifts(path, Shifts(drift.astype(float), np.ones(6)))
    denoise_store(path, model, tmp_path / "out.zarr", config(frame_of_reference=frame_of_reference))
    output = denoised(tmp_path / "out.zarr")
    inner = slice(12, 28)  # away from where the window loses frames at the edge
    if frame_of_reference == "stable":
        np.testing.assert_allclose(output[:, inner, inner], output[:1, inner, inner].repeat(6, 0), rtol=0.02)
        placed = zarr.open_group(tmp_path / "out.zarr").attrs["ome"]["multiscales"][0]["datasets"][0]
        (dy, dx) = placed["coordinateTransformations"][1]["translation"][1:]
        assert (dy, dx) == (-2.0, 3.0)  # the middle of the drift's range, less whole pixels of size 1

        denoise_store(path, model, tmp_path / "camera.zarr", config())
        seen = denoised(tmp_path / "camera.zarr")[0]

        def likeness(dy, dx):
            first = seen[inner.start + dy : inner.stop + dy, inner.start + dx : inner.stop + dx]
            return np.corrcoef(output[0, inner, inner].ravel(), first.ravel())[0, 1]

        assert max(np.ndindex(7, 7), key=lambda by: likeness(by[0] - 5, by[1])) == (3, 3)
    else:
        shown = denoise_frames(
            make_denoiser(),
            frames.astype(np.float32),
            2 * np.ones_like(frames),
            plan_tiles((40, 40), WHOLE),
        )
        np.testing.assert_allclose(output[:, inner, inner], shown[:, inner, inner], rtol=0.02)


def test_a_single_frame_is_itself_the_input_and_its_bad_pixels_are_filled(model, make_denoiser, tmp_path):
    image = np.random.default_rng(2).normal(10, 1, (1, 50, 40)).astype(np.float32)
    image[0, 20, 20] = np.nan
    path = write_movie(tmp_path / "montage.zarr", image).path
    denoise_store(path, model, tmp_path / "out.zarr", config(halves=True))
    output = denoised(tmp_path / "out.zarr")
    image[0, 20, 20] = 10
    expected = denoise_frames(make_denoiser(), image, 0 * image, plan_tiles((50, 40), WHOLE._replace(border=4)))
    assert np.isfinite(output).all()
    far = np.hypot(*np.mgrid[-20:30, -20:20]) > 20
    np.testing.assert_allclose(output[0, far], expected[0, far], rtol=2e-3)
    assert "even" not in zarr.open_group(tmp_path / "out.zarr")


@pytest.mark.parametrize(("dtype", "expected"), [("float16", np.float16), ("source", np.uint8)])
def test_pixels_may_be_stored_in_another_type(movie, model, tmp_path, dtype, expected):
    denoise_store(movie, model, tmp_path / "wide.zarr", config())
    denoise_store(movie, model, tmp_path / "out.zarr", config(dtype=dtype))
    output = denoised(tmp_path / "out.zarr")
    assert output.dtype == expected
    wanted = np.clip(denoised(tmp_path / "wide.zarr"), 0 if dtype == "source" else None, None)
    np.testing.assert_allclose(output.astype(float), wanted, rtol=1e-3, atol=0.51 if dtype == "source" else 0)


def test_blocks_of_a_large_image_make_the_same_image(model, tmp_path, monkeypatch):
    image = np.random.default_rng(3).poisson(9, (1, 90, 130)).astype(np.uint8)
    path = write_movie(tmp_path / "montage.zarr", image).path
    denoise_store(path, model, tmp_path / "one.zarr", config())
    monkeypatch.setattr("n2n_pipeline.layout.CHUNK_PX", 32)
    monkeypatch.setattr("n2n_pipeline.layout.LARGE_SHARD_BYTES", 50 * 70 * 4)
    assert denoise_store(path, model, tmp_path / "many.zarr", config()) > 4
    np.testing.assert_allclose(denoised(tmp_path / "many.zarr"), denoised(tmp_path / "one.zarr"), rtol=1e-3)


@pytest.mark.parametrize("tile", [(1000, 0), (16, 0), (40, 12)])
def test_tile_plans_differ_by_less_than_their_rounding(movie, model, tmp_path, monkeypatch, tile):
    monkeypatch.setattr("n2n_pipeline.inference.pixels.round_mantissa", lambda pixels: pixels)
    denoise_store(movie, model, tmp_path / "one.zarr", config())
    other = TileConfig(core_px=tile[0], overlap_px=tile[1], halo_px="exact")
    denoise_store(movie, model, tmp_path / "other.zarr", DenoiseConfig(augment="off", tile=other))
    one, other = denoised(tmp_path / "one.zarr"), denoised(tmp_path / "other.zarr")
    assert np.abs(other - one).max() <= 1e-5 * one.std()


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 5, 7])
def test_a_run_that_died_ends_in_the_same_bytes_when_run_again(movie, model, tmp_path, monkeypatch, after):
    settings = config(halves=True)
    denoise_store(movie, model, tmp_path / "whole" / "out.zarr", settings)
    calls = iter(range(1000))
    real = denoise.run_network

    def die(*args):
        if next(calls) == after:
            raise Killed
        return real(*args)

    monkeypatch.setattr(denoise, "run_network", die)
    with pytest.raises(Killed):
        denoise_store(movie, model, tmp_path / "died" / "out.zarr", settings)
    with pytest.raises(InputError, match="not complete"):
        open_store(tmp_path / "died" / "out.zarr")
    denoise_store(movie, model, tmp_path / "died" / "out.zarr", settings)
    assert files(tmp_path / "died" / "out.zarr") == files(tmp_path / "whole" / "out.zarr")


def test_a_finished_output_is_left_alone(movie, model, tmp_path):
    assert denoise_store(movie, model, tmp_path / "out.zarr", config()) == 2
    before = files(tmp_path / "out.zarr")
    assert denoise_store(movie, model, tmp_path / "out.zarr", config()) == 0
    assert files(tmp_path / "out.zarr") == before


def test_a_run_that_is_continued_computes_with_the_threads_it_began_with(movie, model, tmp_path, monkeypatch):
    used, calls, real = [], iter(range(1000)), denoise.run_network

    def note(*args):
        used.append(torch.get_num_threads())
        if next(calls) == 0:
            raise Killed
        return real(*args)

    monkeypatch.setattr(denoise, "run_network", note)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with pytest.raises(Killed):
            denoise_store(movie, model, tmp_path / "out.zarr", config())
        torch.set_num_threads(1)
        denoise_store(movie, model, tmp_path / "out.zarr", config())
    finally:
        torch.set_num_threads(before)
    assert set(used) == {2}  # for each of two halves


def test_other_settings_are_refused_unless_the_output_is_restarted(movie, model, tmp_path):
    denoise_store(movie, model, tmp_path / "out.zarr", config())
    with pytest.raises(InputError, match=r"augment off -> flips") as refusal:
        denoise_store(movie, model, tmp_path / "out.zarr", config(augment="flips"))
    assert refusal.value.code is ExitCode.CANNOT_CREATE
    assert denoise_store(movie, model, tmp_path / "out.zarr", config(augment="flips"), restart=True) == 2


def test_a_signal_stops_it_between_tiles(movie, model, tmp_path, monkeypatch):
    monkeypatch.setattr(denoise, "stop_requested", lambda: True)
    with pytest.raises(Stopped):
        denoise_store(movie, model, tmp_path / "out.zarr", config())


def test_nan_from_the_network_is_refused_not_written(movie, model, tmp_path, monkeypatch):
    monkeypatch.setattr(denoise, "run_network", lambda _d, values, *_: np.full_like(values, np.nan))
    with pytest.raises(InputError, match="NaN"):
        denoise_store(movie, model, tmp_path / "out.zarr", config())


@pytest.mark.parametrize("part", [{"frames": (3, 99)}, {"region": (0, 10, 40, 40)}])
def test_a_part_outside_the_movie_is_refused(movie, model, tmp_path, part):
    with pytest.raises(InputError, match="not within the movie's"):
        denoise_store(movie, model, tmp_path / "out.zarr", config(**part))


def test_a_cameras_file_is_refused_with_what_to_do(model, tmp_path):
    (tmp_path / "movie.mrc").write_bytes(b"...")
    with pytest.raises(InputError, match="n2n-pipeline ingest"):
        denoise_store(tmp_path / "movie.mrc", model, tmp_path / "out.zarr")


def test_each_input_chunk_is_decoded_once(movie, model, tmp_path, monkeypatch):
    decoded = []
    real = zarr.Array.__getitem__

    def count(array, region):
        if array.name == "/0":
            decoded.append(region)
        return real(array, region)

    monkeypatch.setattr(zarr.Array, "__getitem__", count)
    denoise_store(movie, model, tmp_path / "out.zarr", config())
    frames = [t for region in decoded for t in range(region[0].start, region[0].stop)]
    assert sorted(frames) == list(range(8))  # chunks of 4 frames


def test_reading_computing_and_writing_overlap(movie, model, tmp_path, monkeypatch):
    def delayed(real, seconds):
        def call(*args):
            time.sleep(seconds)
            return real(*args)

        return call

    monkeypatch.setattr(Inputs, "read", delayed(Inputs.read, 0.05))
    monkeypatch.setattr(denoise, "run_network", delayed(denoise.run_network, 0.025))  # twice a tile: both halves
    monkeypatch.setattr(denoise, "as_stored", delayed(denoise.as_stored, 0.05 * 4))  # once a block of 4 frames
    config = DenoiseConfig(tile=TileConfig(core_px=64, halo_px="exact"), augment="off")
    frames = np.random.default_rng(0).poisson(9, (40, 24, 24)).astype(np.uint8)
    path = write_movie(tmp_path / "long.zarr", frames).path
    start = time.perf_counter()
    denoise_store(path, model, tmp_path / "out.zarr", config)
    assert time.perf_counter() - start < 2 * 40 * 0.05  # one after another they take 3
