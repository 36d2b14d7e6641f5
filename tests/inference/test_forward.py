import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from n2n_pipeline.errors import InputError
from n2n_pipeline.geometry import Range, Tiling, mirrored, plan_tiles, round_up
from n2n_pipeline.inference import forward
from n2n_pipeline.inference.forward import (
    ALL_TURNS,
    UPRIGHT,
    UPSIDE_DOWN,
    Canvas,
    denoise_frames,
    denoise_rows,
    run_network,
    turns_of,
)
from n2n_pipeline.model import exact_halo, stride

STRIDE = 4  # of the networks here, two levels deep


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(10, 2, shape).astype(np.float32)


def untiled(denoiser, values):
    """The whole image, mirrored up to the stride, through the network in one piece: no planner."""
    step = stride(denoiser.card.network)
    rows, columns = (mirrored(Range(0, round_up(size, step)), size) for size in values.shape[1:])
    padded = values[:, rows][:, :, columns]
    images = torch.from_numpy((padded - denoiser.card.mean) / denoiser.card.scale)[:, None]
    with torch.inference_mode():
        denoised = denoiser.network(images)[:, 0].numpy() * denoiser.card.scale + denoiser.card.mean
    return denoised[:, : values.shape[1], : values.shape[2]]


def tiled(denoiser, values, tiling, **options):
    plan = plan_tiles(values.shape[1:], tiling)
    return denoise_frames(denoiser, values, np.full_like(values, 2), plan, **options)


def assert_equal_to_1e5_of_std(actual, expected):
    assert np.abs(actual - expected).max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("network", [{"depth": 2}, {"depth": 2, "kind": "unet-transpose"}], ids=str)
@pytest.mark.parametrize("overlap", [0, 6, 16])
@pytest.mark.parametrize("core", [4, 32, 45, 1000])
@pytest.mark.parametrize(
    "shape",
    [
        (64, 64),  # multiples of the stride
        (96, 32),
        (61, 67),  # prime
        (101, 53),
        (33, 128),  # odd
        (99, 63),
        (64, 65),  # one pixel too many
        (3, 3),  # smaller than the stride
        (2, 90),
        (1, 97),  # a line
        (130, 1),
        (1, 1),
    ],
    ids=str,
)
def test_exact_tiles_are_the_untiled_network(make_denoiser, shape, core, overlap, network):
    denoiser = make_denoiser(**network)
    values = noise(1, *shape)
    tiling = Tiling(
        stride(denoiser.card.network), core, exact_halo(denoiser.card.network), min(overlap, core // 2)
    )
    assert_equal_to_1e5_of_std(tiled(denoiser, values, tiling), untiled(denoiser, values))


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    core=st.integers(8, 100),
    network=st.fixed_dictionaries({"depth": st.integers(1, 3), "fold": st.sampled_from([1, 2, 4])}),
)
def test_exact_tiles_are_the_untiled_network_for_any_size(make_denoiser, data, height, width, core, network):
    denoiser = make_denoiser(**network, kind=data.draw(st.sampled_from(["unet", "unet-transpose"])))
    values = noise(1, height, width, seed=height * width)
    overlap = data.draw(st.integers(0, core // 2))
    tiling = Tiling(stride(denoiser.card.network), core, exact_halo(denoiser.card.network), overlap)
    assert_equal_to_1e5_of_std(tiled(denoiser, values, tiling), untiled(denoiser, values))


def test_a_halo_short_of_exact_is_not_the_untiled_network(make_denoiser):
    denoiser = make_denoiser()
    values = noise(1, 96, 96)
    difference = tiled(denoiser, values, Tiling(STRIDE, 32, STRIDE)) - untiled(denoiser, values)
    assert np.abs(difference).max() > 1e-3


def test_a_region_comes_out_as_it_does_in_the_whole_image(make_denoiser):
    denoiser = make_denoiser()
    values = noise(2, 90, 101)
    region = Range(17, 50), Range(30, 101)
    plan = plan_tiles((90, 101), Tiling(STRIDE, 24, exact_halo(denoiser.card.network), 8), region)
    rows, columns = plan.source
    part = values[:, rows.start : rows.stop, columns.start : columns.stop]
    assert rows.size < 90
    assert_equal_to_1e5_of_std(
        denoise_frames(denoiser, part, part, plan), untiled(denoiser, values)[:, 17:50, 30:101]
    )


def test_a_mirrored_border_gives_edge_pixels_context(make_denoiser):
    denoiser = make_denoiser()
    halo = exact_halo(denoiser.card.network)
    values = noise(1, 40, 40)
    padded = np.pad(values, ((0, 0), (halo, halo), (halo, halo)), mode="reflect")
    expected = untiled(denoiser, padded)[:, halo:-halo, halo:-halo]
    assert_equal_to_1e5_of_std(tiled(denoiser, values, Tiling(STRIDE, 16, halo, border=halo)), expected)


def test_counts_reach_a_network_that_looks_at_them(make_denoiser):
    denoiser = make_denoiser(in_channels=2)
    values, counts = noise(1, 30, 30), np.full((1, 30, 30), 2, np.float32)
    plan = plan_tiles((30, 30), Tiling(STRIDE, 16, 16))
    sure, unsure = (denoise_frames(denoiser, values, many, plan) for many in (counts, 0 * counts))
    assert np.abs(sure - unsure).max() > 1e-2


@pytest.mark.parametrize("turn", ALL_TURNS)
def test_a_network_that_changes_nothing_changes_nothing_in_any_orientation(make_denoiser, turn):
    denoiser = dataclasses.replace(make_denoiser(), network=torch.nn.Identity())
    values = noise(1, 37, 50)
    np.testing.assert_allclose(tiled(denoiser, values, Tiling(STRIDE, 16, 8, 4), turns=(turn,)), values, rtol=1e-5)


def test_all_turns_make_any_network_indifferent_to_orientation(make_denoiser):
    denoiser = make_denoiser()
    values = noise(1, 32, 32)
    turned = np.ascontiguousarray(values[:, ::-1].transpose(0, 2, 1))
    tiling = Tiling(STRIDE, 64, 8)
    upright = tiled(denoiser, values, tiling, turns=ALL_TURNS)
    expected = upright[:, ::-1].transpose(0, 2, 1)
    np.testing.assert_allclose(tiled(denoiser, turned, tiling, turns=ALL_TURNS), expected, atol=1e-4)
    assert not np.allclose(tiled(denoiser, turned, tiling), tiled(denoiser, values, tiling)[:, ::-1].mT, atol=1e-2)


def test_turning_one_half_costs_no_pass():
    assert turns_of("halves") == ((UPRIGHT,), (UPSIDE_DOWN,))
    assert len(set(turns_of("all").even)) == 8


def test_a_canvas_blends_what_agrees_without_a_trace():
    plan = plan_tiles((50, 50), Tiling(8, 16, 8, 8))
    canvas = Canvas(plan, 1)
    for tile in plan.tiles:
        image = np.full((1, tile.y.read.size, tile.x.read.size), 7, np.float32)
        canvas.blend(tile, np.array_split(image, 3, axis=1))
    np.testing.assert_allclose(canvas.image, 7, rtol=1e-6)


@pytest.mark.parametrize("largest_px", [40 * 120, 50 * 50])
def test_out_of_memory_parts_are_halved_and_give_the_same_pixels(make_denoiser, monkeypatch, caplog, largest_px):
    denoiser = make_denoiser()
    values = noise(2, 64, 112)
    expected = run_network(denoiser, values, values)
    real = forward.forward

    def with_little_memory(network, images):
        if images[:, 0].numel() > largest_px:
            raise torch.OutOfMemoryError
        return real(network, images)

    monkeypatch.setattr(forward, "forward", with_little_memory)
    assert_equal_to_1e5_of_std(run_network(denoiser, values, values), expected)
    assert "half of that" in caplog.text


@pytest.mark.parametrize("bands_until_memory_is_out", [1, 3, 99])
def test_rows_come_as_bands_of_the_whole_and_go_on_when_memory_runs_out(
    make_denoiser, monkeypatch, bands_until_memory_is_out
):
    denoiser, values = make_denoiser(), noise(1, 64, 112)
    expected = run_network(denoiser, values, values)
    monkeypatch.setattr(forward, "rows_of_band", lambda network, width: 16)
    push, pushed = forward.Bands.push, []

    def with_memory_for_some(bands, rows, is_last):
        pushed.append(rows)
        if len(pushed) > bands_until_memory_is_out:
            raise torch.OutOfMemoryError
        return push(bands, rows, is_last)

    monkeypatch.setattr(forward.Bands, "push", with_memory_for_some)
    parts = list(denoise_rows(denoiser, values, values))
    assert len(parts) == min(bands_until_memory_is_out + 1, 4)
    assert all(part.shape[1] < 64 for part in parts[:-1])
    assert_equal_to_1e5_of_std(np.concatenate(parts, axis=1), expected)


IN_LITTLE_MEMORY = """
import re, resource, torch
import numpy as np
from pathlib import Path
from n2n_pipeline.checkpoint import Denoiser, ModelCard
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.inference.forward import run_network
from n2n_pipeline.model import UNet

torch.set_num_threads(1)
config = NetworkConfig(width=16, depth=2)
network = UNet(config).eval().requires_grad_(False).to(memory_format=torch.channels_last)
denoiser = Denoiser(network, ModelCard(network=config, mean=10, scale=2, window=4), torch.device("cpu"))
values = np.random.default_rng(0).normal(10, 2, (2, 1024, 512)).astype(np.float32)
run_network(denoiser, values[:, :64, :64], values[:, :64, :64])
held = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
limits = [(held + 110 * 2**20, resource.RLIM_INFINITY), resource.getrlimit(resource.RLIMIT_AS)]
found = []
for limit in limits:
    resource.setrlimit(resource.RLIMIT_AS, limit)
    found.append(run_network(denoiser, values, values))
print(float(np.abs(found[0] - found[1]).max() / found[1].std()))
"""


RETURNING_FREED_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}
"""For glibc: else, how large its heap has grown when a large block fails differs from run to run."""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by what Linux has for it")
def test_a_process_that_runs_out_of_memory_goes_on_with_less_and_gives_the_same_pixels(environment):
    env = environment | RETURNING_FREED_BLOCKS
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "out of memory at 2 images of 1024 x 512 px: going on with half of that" in done.stderr
    assert "out of memory at 1 images of 1024 x 512 px: going on with half of that" in done.stderr
    assert float(done.stdout) <= 1e-5


def test_a_network_that_fits_no_memory_is_one_line(make_denoiser, monkeypatch):
    def fail(network, images):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(forward, "forward", fail)
    with pytest.raises(InputError, match="no memory for the network"):
        run_network(make_denoiser(), noise(1, 64, 64), noise(1, 64, 64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(make_denoiser):
    denoiser = make_denoiser()
    device = torch.device("cuda")
    on_gpu = dataclasses.replace(denoiser, network=copy.deepcopy(denoiser.network).to(device), device=device)
    values, tiling = noise(4, 90, 130), Tiling(STRIDE, 48, exact_halo(denoiser.card.network), 8)
    expected = tiled(denoiser, values, tiling, turns=ALL_TURNS)
    assert np.abs(tiled(on_gpu, values, tiling, turns=ALL_TURNS) - expected).max() < 1e-2 * expected.std()
