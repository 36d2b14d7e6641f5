import io

import numpy as np
import pytest
from PIL import Image

from n2n_pipeline.pictures import (
    Limits,
    Panel,
    before_after,
    contact_sheet,
    contrast_limits,
    draw_panels,
    encode_animation,
    encode_png,
    plan_scale_bar,
    to_grey,
)
from n2n_pipeline.plots import Frame, Line, frequency_plot, histogram_plot, line_plot, path_plot, sweep_plot


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_hot_pixels_do_not_decide_the_contrast():
    image = np.random.default_rng(0).normal(100, 10, (128, 128))
    plain = contrast_limits(image)
    image[::40, ::40] = 65535
    assert contrast_limits(image) == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((4, 4), 7), (6.5, 7.5)),  # nothing to see, and no division by zero
        (np.array([np.nan, np.inf]), (0, 1)),  # nothing known
        (np.array([0, 10, np.nan]), (0, 10)),
    ],
)
def test_contrast_of_images_without_range_is_still_a_range(values, expected):
    assert contrast_limits(values, 0, 100) == expected


@pytest.mark.parametrize("width", [64, 100, 256, 1000, 4096])
@pytest.mark.parametrize("pixel_size", [0.1, 0.5, 1.06, 1.625, 20, 300])
def test_a_scale_bar_is_a_round_length_between_a_tenth_and_a_quarter_of_the_width(width, pixel_size):
    bar = plan_scale_bar(width, pixel_size)
    number, unit = bar.label.split()
    assert number.strip("0.")[0] in "125"
    length = float(number) * {"Å": 1, "nm": 10, "µm": 1e4}[unit]
    assert bar.length_px == round(length / pixel_size)
    assert 0.09 * width <= bar.length_px <= 0.25 * width + 1


@pytest.mark.parametrize("pixel_size", [None, 0.0])
def test_there_is_no_scale_bar_without_a_pixel_size(pixel_size):
    assert plan_scale_bar(256, pixel_size) is None


def test_the_bar_drawn_is_as_long_as_it_says():
    blank = np.zeros((128, 256))
    drawn = draw_panels([Panel(blank, Limits(0, 1))], pixel_size=10.0)
    longest = max(int(row.sum()) // 255 for row in drawn if set(np.unique(row)) == {0, 255})
    assert longest == plan_scale_bar(256, 10.0).length_px


def test_panels_lie_in_rows_and_keep_their_pixels():
    images = [np.full((32, 48), value) for value in (0.2, 0.4, 0.6)]
    sheet = draw_panels([Panel(image, Limits(0, 1)) for image in images], columns=2)
    assert sheet.shape == (68, 100)
    assert [sheet[5, 5], sheet[5, 60], sheet[40, 5], sheet[40, 60]] == [51, 102, 153, 255]


def test_panels_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        draw_panels([Panel(np.zeros((8, 8)), Limits(0, 1)), Panel(np.zeros((8, 9)), Limits(0, 1))])


def test_pngs_hold_the_pixels_they_were_given():
    grey = to_grey(np.random.default_rng(1).random((40, 50)), Limits(0, 1))
    assert np.array_equal(np.asarray(opened(encode_png(grey))), grey)


def test_sheets_and_comparisons_are_pngs_of_the_right_size():
    images = np.random.default_rng(2).random((5, 64, 64))
    sheet = opened(contact_sheet(list(images), [f"frame {t}" for t in range(5)], pixel_size=2.0, columns=3))
    assert (sheet.format, sheet.size) == ("PNG", (200, 132))
    assert opened(before_after(images[0], images[1])).size == (132, 64)


def test_an_animation_has_every_frame_and_loops():
    frames = [np.full((32, 32), value, np.uint8) for value in (0, 100, 200)]
    animation = opened(encode_animation(frames, frame_ms=50))
    assert (animation.n_frames, animation.info["loop"]) == (3, 0)


def test_plots_are_pngs_and_equal_calls_give_equal_bytes():
    x = np.linspace(0, 0.25, 30)
    line = Line(x, np.cos(x), "FRC", np.cos(x) - 0.1, np.cos(x) + 0.1)
    frame = Frame("window (frames)", "risk", x_scale="log2", x_mark=0.125)
    gap = line._replace(y=np.where(x > 0.1, np.nan, x))
    scores = [{"window": 2**k, "risk": k, "low": k - 0.5, "high": k + 0.5} for k in (1, 2, 3)]
    fields = [{"y": [0, 50], "x": [x, x + 40], "window": window} for x, window in ((0, 2), (40, 8))]
    plots = [
        lambda: sweep_plot({"scores": scores, "fields": fields}, 4),
        lambda: line_plot([line._replace(x=x + 1), gap], frame),
        lambda: frequency_plot([line], "correlation", pixel_size=2.0),
        lambda: frequency_plot([line], "correlation", pixel_size=None),
        lambda: path_plot(np.random.default_rng(3).random((9, 2))),
        lambda: histogram_plot([("raw", x), ("denoised", x**2)], "electrons per pixel"),
    ]
    for plot in plots:
        data = plot()
        assert opened(data).format == "PNG"
        assert plot() == data
