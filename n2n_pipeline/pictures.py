"""Pictures as PNG bytes, as microscopists read them: grey images, drawn pixel for pixel, with scale bars."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Values = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

GAP_PX = 4
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


class Limits(NamedTuple):
    """What is shown black and what white, in the image's unit."""

    black: float
    white: float


class ScaleBar(NamedTuple):
    """A length that is drawn into a picture."""

    length_px: int
    label: str


class Panel(NamedTuple):
    """One image of a picture."""

    image: Values
    """``(y, x)``."""
    limits: Limits
    title: str = ""
    """Drawn into the upper left corner."""


def contrast_limits(images: Values, low: float = 0.5, high: float = 99.5) -> Limits:
    """Choose contrast from percentiles, so that a few hot or dead pixels do not decide it.

    Parameters
    ----------
    images : numpy.ndarray
        Of any shape; values that are not finite are left out.
    low, high : float
        Percentiles shown black and white.

    Returns
    -------
    Limits
        One unit apart where all values are equal.

    Examples
    --------
    >>> contrast_limits(np.arange(201), 5, 95)
    Limits(black=10.0, white=190.0)
    """
    values = np.asarray(images, np.float32).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Limits(0.0, 1.0)
    black, white = (float(value) for value in np.percentile(values, [low, high]))
    return Limits(black, white) if white > black else Limits(black - 0.5, black + 0.5)


def to_grey(image: Values, limits: Limits) -> Bytes:
    """Map values to grey levels; what is not finite is black.

    Examples
    --------
    >>> to_grey(np.array([-1.0, 0.0, 0.5, 1.0, 9.0, np.nan]), Limits(0, 1)).tolist()
    [0, 0, 128, 255, 255, 0]
    """
    scaled = (np.asarray(image, np.float32) - limits.black) / (limits.white - limits.black)
    grey: Bytes = np.rint(np.clip(np.nan_to_num(scaled, posinf=1.0), 0, 1) * 255).astype(np.uint8)
    return grey


def plan_scale_bar(width_px: int, pixel_size: float | None) -> ScaleBar | None:
    """Choose the longest round length, 1, 2 or 5 times a power of ten, within a quarter of the picture.

    Parameters
    ----------
    width_px : int
        Width of the image.
    pixel_size : float or None
        Å per pixel; without it there is no bar.

    Examples
    --------
    >>> plan_scale_bar(256, 1.625), plan_scale_bar(1024, 0.2)
    (ScaleBar(length_px=62, label='10 nm'), ScaleBar(length_px=250, label='5 nm'))
    """
    if pixel_size is None or pixel_size <= 0:
        return None
    longest = width_px * pixel_size / 4
    power = 10.0 ** np.floor(np.log10(longest))
    length = next(step * power for step in (5, 2, 1) if step * power <= longest * (1 + 1e-9))
    unit, size = next((unit, size) for unit, size in (("µm", 1e4), ("nm", 10.0), ("Å", 0.0)) if length >= size)
    return ScaleBar(round(length / pixel_size), f"{length / (size or 1.0):g} {unit}")


def time_stamp(t: int, frame_time: float | None) -> str:
    """Name a frame by its time, with the digits that tell frames apart, or by its number if that is not known.

    ``frame_time`` is in seconds per frame.

    Examples
    --------
    >>> time_stamp(12, 0.05), time_stamp(3, 0.0025), time_stamp(12, None)
    ('0.60 s', '0.0075 s', 'frame 12')
    """
    if not frame_time:
        return f"frame {t}"
    digits = next((n for n in range(9) if abs(round(frame_time, n) / frame_time - 1) < 0.01), 9)
    return f"{t * frame_time:.{digits}f} s"


def _font(height_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONT), max(9, min(28, height_px // 20)))


def _draw_panel(panel: Panel, bar: ScaleBar | None) -> Image.Image:
    """Draw one image with its title and scale bar; text is white with a dark edge, to be read on any grey."""
    picture = Image.fromarray(to_grey(panel.image, panel.limits))
    width, height = picture.size
    draw, font = ImageDraw.Draw(picture), _font(height)
    edge = max(1, int(font.size) // 8)
    margin = max(4, height // 40)
    if panel.title:
        draw.text((margin, margin), panel.title, 255, font, stroke_width=edge, stroke_fill=0)
    if bar:
        thick = max(2, height // 100)
        right, bottom = width - margin, height - margin
        box = (right - bar.length_px, bottom - thick, right - 1, bottom - 1)
        draw.rectangle([box[0] - edge, box[1] - edge, box[2] + edge, box[3] + edge], fill=0)
        draw.rectangle(box, fill=255)
        middle = ((box[0] + right) / 2, box[1] - 2 * edge)
        draw.text(middle, bar.label, 255, font, anchor="mb", stroke_width=edge, stroke_fill=0)
    return picture


def draw_panels(panels: Sequence[Panel], pixel_size: float | None = None, columns: int | None = None) -> Bytes:
    """Set images side by side, row after row, with one scale bar in the last of them.

    Parameters
    ----------
    panels : sequence of Panel
        Images of one shape.
    pixel_size : float or None
        Å per pixel of the images as they are given.
    columns : int or None
        Images in a row; all of them by default.

    Returns
    -------
    numpy.ndarray
        ``(y, x)`` grey levels, white between the images.

    Raises
    ------
    ValueError
        If there is no image, or if they are not of one shape.
    """
    if len({panel.image.shape for panel in panels}) != 1:
        raise ValueError("panels must be images of one shape")
    height, width = panels[0].image.shape
    across = min(columns or len(panels), len(panels))
    down = -(-len(panels) // across)
    size = across * (width + GAP_PX) - GAP_PX, down * (height + GAP_PX) - GAP_PX
    sheet = Image.new("L", size, 255)
    for number, panel in enumerate(panels):
        bar = plan_scale_bar(width, pixel_size) if number == len(panels) - 1 else None
        row, column = divmod(number, across)
        sheet.paste(_draw_panel(panel, bar), (column * (width + GAP_PX), row * (height + GAP_PX)))
    return np.asarray(sheet)


def encode_png(grey: Bytes) -> bytes:
    """Compress grey levels ``(y, x)`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def encode_animation(frames: Sequence[Bytes], frame_ms: int = 100) -> bytes:
    """Compress grey frames ``(y, x)`` as a WebP animation that loops for ever.

    Parameters
    ----------
    frames : sequence of numpy.ndarray
        Of one shape.
    frame_ms : int
        Milliseconds that each is shown.
    """
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(frame).convert("RGB") for frame in frames)
    first.save(
        buffer, "webp", save_all=True, append_images=others, duration=frame_ms, loop=0, quality=60, method=4
    )
    return buffer.getvalue()


def contact_sheet(
    images: Sequence[Values],
    titles: Sequence[str],
    pixel_size: float | None = None,
    limits: Limits | None = None,
    columns: int = 4,
) -> bytes:
    """Lay frames ``(y, x)`` of a movie out on one sheet, as PNG, all with the same contrast.

    Parameters
    ----------
    images : sequence of numpy.ndarray
        Of one shape.
    titles : sequence of str
        One for each image, as ``"frame 12"``.
    pixel_size : float or None
        Å per pixel.
    limits : Limits or None
        Contrast; by default that of all the images together.
    columns : int
        Images in a row.
    """
    shared = limits or contrast_limits(np.stack(images))
    panels = [Panel(image, shared, title) for image, title in zip(images, titles, strict=True)]
    return encode_png(draw_panels(panels, pixel_size, columns))


def before_after(before: Values, after: Values, pixel_size: float | None = None) -> bytes:
    """Set a raw frame ``(y, x)`` beside the denoised one, as PNG; ``pixel_size`` is in Å.

    Each has its own contrast: in a shared one either the noise would be clipped or the object could not be seen.
    """
    panels = Panel(before, contrast_limits(before), "raw"), Panel(after, contrast_limits(after), "denoised")
    return encode_png(draw_panels(panels, pixel_size))
