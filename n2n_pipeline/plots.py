"""Plots as PNG bytes, as microscopists read them: intervals shaded, frequencies in 1/Å.

They are drawn with Matplotlib's Agg canvas, which needs no screen, nor keeps any state between calls.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from n2n_pipeline.pictures import contrast_limits

Values = npt.NDArray[Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with any colour vision: Okabe & Ito; Wong (2011), Nat. Methods 8, 441."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
"""One for each colour, so that a plot can be read without colour."""


class Line(NamedTuple):
    """One line of a plot."""

    x: Values
    y: Values
    """Gaps where it is not a number."""
    label: str
    low: Values | None = None
    """Lower end of a shaded interval."""
    high: Values | None = None


class Frame(NamedTuple):
    """What is written around a plot."""

    x_label: str
    """With its unit."""
    y_label: str
    x_scale: Literal["linear", "log", "log2"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    x_mark: float | None = None
    """A vertical line here: the choice that was made."""
    y_range: tuple[float, float] | None = None


def _figure(frame: Frame, size: tuple[float, float] = (4.8, 3.0), columns: int = 1) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, columns, 1)
    axes.set_xlabel(frame.x_label)
    axes.set_ylabel(frame.y_label)
    if frame.x_scale == "log2":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    elif frame.x_scale == "log":
        axes.set_xscale("log")
    axes.set_yscale(frame.y_scale)
    if frame.y_range:
        axes.set_ylim(*frame.y_range)
    if frame.x_mark is not None:
        axes.axvline(frame.x_mark, color="0.6", linewidth=1, zorder=0)
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _encode(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for number, line in enumerate(lines):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        mark = "o" if len(line.x) <= 12 else None
        axes.plot(line.x, line.y, color=colour, linestyle=dash, marker=mark, markersize=4, label=line.label)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    if len(lines) > 1 or (lines and lines[0].label):
        axes.legend(frameon=False, fontsize="small")


def line_plot(lines: Sequence[Line], frame: Frame) -> bytes:
    """Plot lines with their intervals, as PNG.

    Parameters
    ----------
    lines : sequence of Line
        Each has a colour and a dash of its own; points are marked where there are few.
    frame : Frame
        Labels and scales.
    """
    figure, axes = _figure(frame)
    _draw_lines(axes, lines)
    return _encode(figure)


def frequency_plot(lines: Sequence[Line], y_label: str, pixel_size: float | None) -> bytes:
    """Plot against spatial frequency, with the length it stands for along the top, as PNG.

    Parameters
    ----------
    lines : sequence of Line
        ``x`` in 1/Å, or in cycles per pixel where the pixel size is not known.
    y_label : str
        What is plotted.
    pixel_size : float or None
        Å per pixel.
    """
    unit = "1/Å" if pixel_size else "cycles per pixel"
    figure, axes = _figure(Frame(f"spatial frequency ({unit})", y_label, y_range=(-0.1, 1.1)))
    _draw_lines(axes, lines)
    axes.set_xlim(0, 0.5 / (pixel_size or 1.0))
    above = axes.secondary_xaxis("top")
    ticks = [tick for tick in axes.get_xticks() if 0 < tick <= axes.get_xlim()[1]]
    above.set_xticks(ticks, [f"{1 / tick:.3g}" for tick in ticks])
    above.set_xlabel("Å" if pixel_size else "pixels")
    return _encode(figure)


def path_plot(dy_dx: Values, label: str = "drift (px)") -> bytes:
    """Plot a drift path as it lies in the image: x to the right, y downwards, time in colour; as PNG.

    Parameters
    ----------
    dy_dx : numpy.ndarray
        ``(t, 2)`` px.
    label : str
        Name and unit of both axes.
    """
    figure, axes = _figure(Frame(f"x {label}", f"y {label}"), (3.9, 3.2))
    axes.plot(dy_dx[:, 1], dy_dx[:, 0], color="0.7", linewidth=0.8, zorder=1)
    points = axes.scatter(dy_dx[:, 1], dy_dx[:, 0], c=np.arange(len(dy_dx)), cmap="cividis", s=14, zorder=2)
    figure.colorbar(points, ax=axes, label="frame")
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_yaxis()
    return _encode(figure)


def histogram_plot(images: Sequence[tuple[str, Values]], x_label: str, bins: int = 100) -> bytes:
    """Plot how often each intensity occurs, images over one another; as PNG.

    Parameters
    ----------
    images : sequence of (str, numpy.ndarray)
        Name and values of each.
    x_label : str
        What the values are, with their unit.
    bins : int
        Over the range of percentiles 0.1 to 99.9 of all values.
    """
    everything = np.concatenate([np.asarray(values, np.float32).ravel() for _, values in images])
    edges = np.linspace(*contrast_limits(everything, 0.1, 99.9), bins + 1)
    figure, axes = _figure(Frame(x_label, "pixels", y_scale="log"))
    for number, (label, values) in enumerate(images):
        axes.stairs(np.histogram(values, edges)[0], edges, color=COLOURS[number % len(COLOURS)], label=label)
    axes.legend(frameon=False, fontsize="small")
    return _encode(figure)


def map_plot(image: Values, label: str) -> bytes:
    """Plot a map ``(y, x)`` of pixels in colour, as PNG.

    Parameters
    ----------
    image : numpy.ndarray
        One value a pixel.
    label : str
        What they are.
    """
    figure, axes = _figure(Frame("x (px)", "y (px)"), (4.2, 3.2))
    axes.grid(visible=False)
    drawn = axes.imshow(image, cmap="cividis", vmin=0, interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label=label)
    return _encode(figure)


def sweep_plot(found: Mapping[str, Any], used: int | None) -> bytes:
    """Plot what a sweep found: the error of each window and, beside it, the window of each field, as PNG.

    Parameters
    ----------
    found : mapping
        ``scores`` and ``fields``, as `sweep_windows` returns them.
    used : int or None
        The window to mark.
    """
    names = ("window", "risk", "low", "high")
    window, risk, low, high = (np.array([score[name] for score in found["scores"]], float) for name in names)
    frame = Frame("window (frames)", "squared error on held-out frames", "log2", x_mark=used)
    figure, axes = _figure(frame, (7.6, 3.0), columns=2)
    _draw_lines(axes, [Line(window, risk, "one window" if found.get("all") else "", low, high)])
    if found.get("all"):
        axes.axhline(found["all"]["risk"], color=COLOURS[1], linestyle=DASHES[1], label="all at once")
        axes.legend(frameon=False, fontsize="small")
    _draw_fields(figure, found["fields"], window.astype(int).tolist())
    return _encode(figure)


def _draw_fields(figure: Figure, fields: Sequence[Mapping[str, Any]], windows: list[int]) -> None:
    """Draw the fields where they lie in the image, in the colours of their windows."""
    axes = figure.add_subplot(1, 2, 2)
    corners = [
        [(x, y) for y, x in ((ys[0], xs[0]), (ys[0], xs[1]), (ys[1], xs[1]), (ys[1], xs[0]))]
        for ys, xs in ((field["y"], field["x"]) for field in fields)
    ]
    edges = np.arange(len(windows) + 1) - 0.5
    colours = colormaps["cividis_r"].resampled(len(windows))
    drawn = PolyCollection(corners, cmap=colours, norm=BoundaryNorm(edges, len(windows)), edgecolors="white")
    drawn.set_array(np.array([windows.index(field["window"]) for field in fields]))
    axes.add_collection(drawn)
    axes.autoscale_view()
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xlabel("x (px)")
    axes.set_ylabel("y (px)")
    bar = figure.colorbar(drawn, ax=axes, ticks=range(len(windows)), label="best window there (frames)")
    bar.ax.set_yticklabels(list(map(str, windows)))
