import imagecodecs
import mrcfile
import numpy as np
import pytest
import tifffile

from n2n_pipeline.checkpoint import save_model
from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.geometry import Tiling, plan_tiles
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.inference.forward import denoise_frames
from n2n_pipeline.sources import open_movie

CONFIG = DenoiseConfig(augment="off")


@pytest.fixture
def model(tmp_path, make_denoiser, monkeypatch):
    monkeypatch.setattr("n2n_pipeline.checkpoint.autocast_dtype", lambda device: None)
    denoiser = make_denoiser()
    save_model(tmp_path / "model", denoiser.network, denoiser.card)
    return tmp_path / "model"


def noisy(*shape, seed=0):
    return np.random.default_rng(seed).poisson(9, shape).astype(np.uint8)


def expected(denoiser, image):
    plan = plan_tiles(image.shape, Tiling(4, 64, halo=4, border=4))
    return denoise_frames(
        denoiser, image[None].astype(np.float32), np.full((1, *image.shape), 2, np.float32), plan
    )[0]


def test_png_images_keep_their_names_and_type(tmp_path, model, make_denoiser):
    folder, images = tmp_path / "images", {}
    folder.mkdir()
    for name, shape in {"b 2.png": (40, 50), "a10.png": (33, 64)}.items():  # of two sizes
        images[name] = noisy(*shape)
        (folder / name).write_bytes(imagecodecs.png_encode(images[name]))
    assert denoise_store(folder, model, tmp_path / "out", CONFIG) == 2
    for name, image in images.items():
        written = imagecodecs.png_decode((tmp_path / "out" / name).read_bytes())
        assert written.dtype == np.uint8
        wanted = np.clip(expected(make_denoiser(), image), 0, 255)
        np.testing.assert_allclose(written, wanted, atol=0.51)


def test_a_stack_is_denoised_image_by_image(tmp_path, model, make_denoiser):
    stack = noisy(3, 40, 50)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "stack.tif", stack, photometric="minisblack")
    denoise_store(tmp_path / "images", model, tmp_path / "out", CONFIG)
    written = tifffile.imread(tmp_path / "out" / "stack.tif")
    assert written.dtype == np.float32
    for image, denoised in zip(stack, written, strict=True):
        np.testing.assert_allclose(denoised, expected(make_denoiser(), image), rtol=2e-3)


def test_mrc_images_keep_their_pixel_size(tmp_path, model):
    (tmp_path / "images").mkdir()
    with mrcfile.new(tmp_path / "images" / "a.mrc", noisy(40, 50).astype(np.int16)) as mrc:
        mrc.voxel_size = 1.25
    denoise_store(tmp_path / "images", model, tmp_path / "out", CONFIG)
    assert mrcfile.validate(tmp_path / "out" / "a.mrc")
    written = open_movie(tmp_path / "out" / "a.mrc").info
    assert written.shape == (1, 40, 50)
    assert written.pixel_size == pytest.approx(1.25)


def test_a_folder_that_was_begun_is_continued(tmp_path, model, monkeypatch):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(imagecodecs.png_encode(noisy(40, 40, seed=i)))
    denoise_store(tmp_path / "images", model, tmp_path / "out", CONFIG)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    (tmp_path / "out" / "1.png").unlink()
    assert denoise_store(tmp_path / "images", model, tmp_path / "out", CONFIG) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")} == before


def test_frames_of_a_folder_of_images_are_refused(tmp_path, model):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no frames or region"):
        denoise_store(tmp_path / "images", model, tmp_path / "out", DenoiseConfig(frames=(0, 1)))
