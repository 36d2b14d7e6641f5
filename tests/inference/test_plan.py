import numpy as np
import pytest

from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.inference.choice import choose
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.inference.plan import fit_layout, plan_blocks, resolve_part
from n2n_pipeline.layout import default_layout
from n2n_pipeline.sources.movie import MovieInfo


class Movie:
    """Only what a plan asks of one."""

    def __init__(self, *shape):
        self.info = MovieInfo(shape, np.dtype("uint8"), "mrc")
        self.store = self


@pytest.mark.parametrize(
    ("shape", "gigabytes", "shards"),
    [
        ((48, 256, 256), 4, (16, 256, 256)),  # small frames stay together
        ((1000, 4096, 4096), 4, (2, 4096, 4096)),
        ((1000, 4096, 4096), 1, (1, 4096, 4096)),
        ((1000, 4096, 4096), 0.25, (1, 2048, 2048)),  # parts of frames
        ((1, 32768, 32768), 4, (1, 4096, 8192)),
    ],
)
def test_shards_shrink_with_the_memory(shape, gigabytes, shards):
    layout = fit_layout(default_layout(shape, "float32"), gigabytes * 2**30)
    assert layout.shards == shards
    assert all(shard % chunk == 0 for shard, chunk in zip(layout.shards, layout.chunks, strict=True))


def test_blocks_own_every_shard_of_every_array_once():
    layout = default_layout((10, 30, 40), "float32")._replace(shards=(4, 16, 16), chunks=(2, 8, 8))
    blocks = plan_blocks(layout, ("0", "even"))
    seen = np.zeros(layout.shape, int)
    for _, _, frames, (rows, columns) in blocks:
        seen[frames.start : frames.stop, slice(*rows), slice(*columns)] += 1
    assert (seen == 1).all()
    files = [name for block in blocks for name in block.unit.files]
    assert len(files) == len(set(files)) == 2 * 3 * 2 * 3
    assert "even/c/2/1/2" in files


@pytest.mark.parametrize(
    ("n_pixels", "width", "passes"),
    [
        (48 * 256**2, 24, "all"),  # seconds
        (64 * 1024**2, 12, "flips"),  # minutes
        (500 * 4096**2, 48, "halves"),  # hours: only what is free
    ],
)
def test_a_small_movie_is_seen_in_all_orientations_a_large_one_in_no_more(make_denoiser, n_pixels, width, passes):
    choice = choose(make_denoiser(width=width), Inputs(Movie(1, 8, 8), 4), DenoiseConfig(), n_pixels)
    assert choice.passes == passes


@pytest.mark.parametrize("gigabytes", [0.01, 0.5, 4, 64])
def test_the_core_follows_the_memory(make_denoiser, monkeypatch, gigabytes):
    monkeypatch.setattr(
        "n2n_pipeline.inference.choice.choose_border", lambda *_: 0
    )  # there are no pixels to look at
    config = DenoiseConfig(memory_gb=gigabytes, tile=TileConfig(halo_px=8))
    choice = choose(make_denoiser(width=48), Inputs(Movie(9, 9000, 9000), 32), config, 1)
    side = choice.core_px + 2 * choice.halo_px
    assert choice.core_px == 4 or side**2 * 32 * 4 <= gigabytes * 1e9 / 4
    assert choice.core_px <= 4096


def test_the_device_precision_and_threads_are_part_of_the_choice(make_denoiser):
    choice = choose(make_denoiser(), Inputs(Movie(1, 8, 8), 4), DenoiseConfig(), 64)
    assert (choice.device, choice.precision, choice.halo_error) == ("cpu", "float32", 0)


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="5:12: not within the movie's 10 frames") as refusal:
        resolve_part((5, 12), 10, "frames")
    assert refusal.value.code is ExitCode.CONFIG
