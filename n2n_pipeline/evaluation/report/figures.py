"""Pixels and curves as pictures that lie within the page itself, each with words for who cannot see it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from n2n_pipeline.evaluation.report.gather import Run
from n2n_pipeline.evaluation.report.scenes import (
    Image,
    Scene,
    main_store,
    overview_bin,
    overview_readers,
    spread_frames,
)
from n2n_pipeline.pictures import (
    Bytes,
    Limits,
    Panel,
    contrast_limits,
    draw_panels,
    encode_animation,
    encode_png,
    plan_scale_bar,
    time_stamp,
    to_grey,
)

PREVIEW_BYTES = 1_100_000  # as base64 it is a third more
PREVIEW_FRAMES = 48
PREVIEW_PX = 320
PREVIEW_READ_PX = 2**28  # a loop of large frames has fewer of them
PREVIEW_MS = 4000  # for the whole loop, as far as its frames can be told apart
SHEET_FRAMES = 12


class Picture(NamedTuple):
    """An image of the page."""

    source: str
    """Data URI."""
    alt: str
    width: int
    height: int
    label: str = ""
    caption: str = ""


class Slider(NamedTuple):
    """Two images of one field, one over the other."""

    before: Picture
    after: Picture
    caption: str


class Bar(NamedTuple):
    """A scale bar drawn by the page, sharp at every size."""

    percent: float
    """Of the image's width."""
    label: str


class Preview(NamedTuple):
    """The movie as a small loop."""

    picture: Picture
    still: Picture
    """For readers who asked for less motion."""


def data_uri(content: bytes, kind: str) -> str:
    """Wrap a file's bytes so that a page needs no other file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def grey_picture(image: Image, limits: Limits, alt: str, label: str = "", caption: str = "") -> Picture:
    """Turn an image ``(y, x)`` into a picture of the same number of pixels."""
    height, width = image.shape
    source = data_uri(encode_png(to_grey(image, limits)), "png")
    return Picture(source, alt, width, height, label, caption)


def plot_picture(png: bytes, alt: str, label: str, caption: str) -> Picture:
    """Take a plot into the page, with its size in pixels."""
    with PIL.Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    return Picture(data_uri(png, "png"), alt, width, height, label, caption)


def scene_pictures(scene: Scene, limits: Limits, t: int, window: int | None) -> list[Picture]:
    """Show one field as it goes through the pipeline, all with one contrast."""
    n = f"{window} frames" if window else "a window of frames"
    described = [
        (scene.raw, "Raw frame", f"frame {t} after dark, gain and defects"),
        (scene.average, "Window average", f"mean of {n}, aligned"),
        (scene.denoised, "Denoised", f"frame {t}, by the network"),
        (scene.truth, "Truth", "the noise-free image of the simulation"),
    ]
    return [
        grey_picture(image, limits, f"{label}: {caption}", label, caption)
        for image, label, caption in described
        if image is not None
    ]


def scene_slider(pictures: Iterable[Picture], shape: tuple[int, int], whole: tuple[int, int]) -> Slider | None:
    """Lay the raw frame over the denoised one, if there are both."""
    by_label = {picture.label: picture for picture in pictures}
    before, after = by_label.get("Raw frame"), by_label.get("Denoised")
    if before is None or after is None:
        return None
    part = (
        "The whole field"
        if shape == whole
        else f"The middle {shape[0]} × {shape[1]} px of {whole[0]} × {whole[1]} px"
    )
    return Slider(before, after, f"{part}, {before.caption} to the left and denoised to the right of the line.")


def page_bar(width: int, pixel_size: float | None) -> Bar | None:
    """Plan a scale bar for an image of so many pixels of so many Å; None if the pixel size is not known."""
    bar = plan_scale_bar(width, pixel_size)
    return None if bar is None or pixel_size is None else Bar(100 * bar.length_px / width, bar.label)


def movie_preview(run: Run, limits: Limits) -> Preview | None:
    """Draw the movie as a loop, raw beside denoised; as many frames as there is room for and time to read."""
    n_frames, height, width = main_store(run).info.shape
    frames = spread_frames(n_frames, min(PREVIEW_FRAMES, max(SHEET_FRAMES, PREVIEW_READ_PX // (height * width))))
    if len(frames) < 2:
        return None
    readers = overview_readers(run, PREVIEW_PX)
    room = PREVIEW_BYTES // len(encode_animation(_preview_frames(run, readers, frames[:1], limits)))
    frames = spread_frames(n_frames, max(2, min(len(frames), room)))
    drawn = _preview_frames(run, readers, frames, limits)
    what = " and ".join(readers)
    count = "Every frame" if len(frames) == n_frames else f"{len(frames)} of {n_frames} frames"
    loop = encode_animation(drawn, min(max(PREVIEW_MS // len(frames), 60), 400))
    still = encode_animation([drawn[len(drawn) // 2]])
    size = drawn[0].shape[1], drawn[0].shape[0]
    alt = f"The movie as a loop: {what}"
    return Preview(
        Picture(data_uri(loop, "webp"), alt, *size, caption=f"{count}, {what}."),
        Picture(data_uri(still, "webp"), alt, *size),
    )


def _preview_frames(
    run: Run, readers: Mapping[str, Callable[[int], Image]], frames: Sequence[int], limits: Limits
) -> list[Bytes]:
    info = main_store(run).info
    pixel_size = info.pixel_size and info.pixel_size * overview_bin(info.shape, PREVIEW_PX)
    drawn = []
    for t in frames:
        panels = [Panel(read(t), limits, name) for name, read in readers.items()]
        stamped = panels[-1]._replace(title=f"{panels[-1].title}, {time_stamp(t, info.frame_time)}")
        drawn.append(draw_panels([*panels[:-1], stamped], pixel_size))
    return drawn


def movie_sheet(run: Run, limits: Limits) -> list[Picture]:
    """Show frames spread over the movie, denoised if there is such a movie, otherwise raw."""
    info = main_store(run).info
    frames = spread_frames(info.shape[0], SHEET_FRAMES)
    if len(frames) < 2:
        return []
    *_, read = overview_readers(run, PREVIEW_PX).values()
    cells = []
    for t in frames:
        grey = to_grey(read(t), limits)
        buffer = io.BytesIO()
        PIL.Image.fromarray(grey).save(buffer, "webp", quality=80)
        stamp = time_stamp(t, info.frame_time)
        source = data_uri(buffer.getvalue(), "webp")
        cells.append(Picture(source, stamp, grey.shape[1], grey.shape[0], caption=stamp))
    return cells


def scene_limits(scene: Scene) -> Limits:
    """Choose the contrast that all pictures of a page share: that of the least noisy image."""
    return contrast_limits(np.asarray(scene.best))
