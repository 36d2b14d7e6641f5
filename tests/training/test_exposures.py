"""Two exposures of one scene: found where they lie, read part by part, trained on by the command."""

import mrcfile
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.cli import main
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import References, write_movie
from n2n_pipeline.training.exposures import pair_exposures
from n2n_pipeline.training.stacks import Region

SIDES = (150, 180)
SHIFT = (7, -12)


@pytest.fixture(scope="module")
def scene():
    """Smooth blobs of about 20 counts, larger than an exposure."""
    y, x = np.mgrid[:200, :240]
    rng = np.random.default_rng(0)
    blobs = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 60) for cy, cx in rng.uniform(0, 240, (60, 2))]
    return 5 + 15 * np.sum(blobs, axis=0)


@pytest.fixture
def exposures(scene, tmp_path):
    """What a camera counts of the scene, twice, the stage having moved in between."""
    rng, paths = np.random.default_rng(1), []
    for name, (dy, dx) in {"a": (0, 0), "b": SHIFT}.items():
        shown = scene[20 - dy : 20 - dy + SIDES[0], 30 - dx : 30 - dx + SIDES[1]]
        paths.append(tmp_path / f"{name}.mrc")
        with mrcfile.new(paths[-1]) as file:
            file.set_data(rng.poisson(shown).astype(np.int16))
    return paths


def stored(path, **references):
    with mrcfile.open(path) as file:
        counts = file.data[None].copy()
    info = MovieInfo(counts.shape, counts.dtype, "mrc")
    return write_movie(path.with_suffix(".zarr"), counts, info, References(**references)).path


@pytest.mark.parametrize("as_stores", [False, True])
def test_the_second_exposure_is_read_where_it_shows_the_same(scene, exposures, as_stores):
    paths = [stored(path) for path in exposures] if as_stores else exposures
    pair, digests = pair_exposures(paths, 10**9)
    region = Region(range(2), range(40, 100), range(50, 130))
    stack = pair.read_stack(region, 1)
    assert (stack.counts == 1).all()
    assert pair.shift == SHIFT
    noise = stack.sums - scene[60:120, 80:160]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05  # nothing but counting noise is left
    assert digests[0] != digests[1]
    assert pair.typical_value == pytest.approx(scene.mean(), rel=0.2)


def test_what_the_second_exposure_does_not_show_counts_as_not_seen(exposures):
    pair, _ = pair_exposures(exposures, 10**9)
    counts = pair.read_stack(Region(range(2), range(SIDES[0]), range(SIDES[1])), 1).counts
    assert (counts[0] == 1).all()
    assert (counts[1] == 0).sum() == SIDES[0] * SIDES[1] - (SIDES[0] - SHIFT[0]) * (SIDES[1] + SHIFT[1])
    assert not counts[1, -SHIFT[0] :].any()


def test_defects_of_a_store_count_as_not_seen(exposures):
    defects = np.zeros(SIDES, bool)
    defects[30, 40] = True
    pair, _ = pair_exposures([stored(path, defects=defects) for path in exposures], 10**9)
    counts = pair.read_stack(Region(range(2), range(20, 100), range(20, 100)), 1).counts
    assert np.argwhere(counts == 0).tolist() == [[0, 10, 20], [1, 10 - SHIFT[0], 20 - SHIFT[1]]]


def test_only_the_part_that_is_wanted_is_read_from_a_store(exposures, monkeypatch):
    pair, _ = pair_exposures([stored(path) for path in exposures], 10**9)
    read, real = [], zarr.Array.__getitem__

    def note(array, region):
        read.append(real(array, region))
        return read[-1]

    monkeypatch.setattr(zarr.Array, "__getitem__", note)
    pair.read_stack(Region(range(2), range(10, 20), range(30, 60)), 1)
    assert [part.shape for part in read] == [(1, 10, 30), (1, 10, 30)]


def test_exposures_of_nothing_in_common_are_taken_as_they_lie(tmp_path, caplog):
    paths = []
    for seed in range(2):
        counts = np.random.default_rng(seed).poisson(9, (1, 128, 128)).astype(np.uint8)
        paths.append(write_movie(tmp_path / f"{seed}.zarr", counts).path)
    pair, _ = pair_exposures(paths, 10**9)
    assert (pair.read_stack(Region(range(2), range(128), range(128)), 1).counts == 1).all()
    assert "taken as they lie" in caplog.text


def test_what_is_no_pair_of_exposures_is_refused_with_what_to_do(exposures, tmp_path):
    with pytest.raises(InputError, match="takes two exposures, not 1") as refusal:
        pair_exposures(exposures[:1], 10**9)
    assert refusal.value.code is ExitCode.USAGE
    movie = write_movie(tmp_path / "movie.zarr", np.ones((3, *SIDES), np.uint8)).path
    with pytest.raises(InputError, match="3 frames; an exposure is one image"):
        pair_exposures([exposures[0], movie], 10**9)
    small = write_movie(tmp_path / "small.zarr", np.ones((1, 9, 9), np.uint8)).path
    with pytest.raises(InputError, match="150 x 180 px and 9 x 9 px"):
        pair_exposures([exposures[0], small], 10**9)
    with pytest.raises(InputError, match=r"n2n-pipeline ingest .*a\.mrc, and name the store"):
        pair_exposures(exposures, 10**4)


def test_the_command_trains_on_two_exposures(exposures, tmp_path):
    words = ["train", *exposures, "--pair", "-o", tmp_path / "model", "--steps", 2, "--device", "cpu", "--quiet"]
    words += ["--set", "network={width: 4, depth: 1}", "--set", "train.patch_px=32"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    card = load_model(tmp_path / "model").card
    assert card.window == 2
    assert 5 < card.mean < 25
