"""Is Noise2Noise allowed here? What a raw movie must be for it, each with a plain sentence and what to do.

Noise2Noise rests on two halves of a window that show the same scene with independent noise. Detector lag breaks
the independence, a pattern of the camera is shared by both and kept, motion within a window blurs, and a frame
that is stored twice may be in both halves. All are measured on the raw movie, before a network is trained.

``pass``: nothing to see to. ``look``: usable, but look at this first. ``fail``: do not trust the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.averages import read_pairs
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.filling import fill_unseen
from n2n_pipeline.metrics.motion import displacement
from n2n_pipeline.metrics.noise import FixedPattern, Independence, fixed_pattern, frame_independence

Floats = npt.NDArray[np.floating[Any]]
Region = tuple[slice, slice]
Level = Literal["pass", "look", "fail"]
_ORDER: tuple[Level, ...] = ("pass", "look", "fail")

REGION_PX = 512
RAW_FRAMES = 64
STRAY = 10.0
"""Robust standard deviations by which a frame's mean brightness may differ from the others'."""
DEPENDENT_Z = 5.0
DEPENDENT = (0.02, 0.2)
"""Correlation of successive frames, if it is so many standard errors beyond chance."""
PATTERN = (0.1, 1.0)
"""Variance of a fixed pattern over that of the noise in the window average."""
MOVED_PX = 1.0
FINEST = 0.4
"""Cycles per pixel beyond which a camera's point spread leaves little of any object."""


class Verdict(NamedTuple):
    """One check."""

    check: str
    verdict: Level
    sentence: str


def worst(verdicts: Sequence[Verdict]) -> Level:
    """Return the most serious of the verdicts.

    Examples
    --------
    >>> worst([Verdict("seams", "pass", ""), Verdict("error", "look", "")])
    'look'
    """
    return max((verdict.verdict for verdict in verdicts), key=_ORDER.index, default="look")


class CameraFrames(NamedTuple):
    """Consecutive corrected frames as the camera saw them: nothing is moved."""

    first: int
    """Which frame of the movie they begin with."""
    frames: Floats
    """``(t, y, x)``; 0 where invalid."""
    halves: tuple[Floats, Floats]
    """``(y, x)`` mean of every other frame; invalid pixels are filled from their neighbours."""
    n_repeated: int
    """How many frames of the movie repeat another; they are not among these."""


def read_camera_frames(movie: CorrectedMovie, t: int, region: Region) -> CameraFrames:
    """Read up to 64 consecutive frames about frame ``t``, drift and all."""
    n_frames = movie.store.info.shape[0]
    first = min(max(t - RAW_FRAMES // 2, 0), max(n_frames - RAW_FRAMES, 0))
    span = slice(first, min(first + RAW_FRAMES, n_frames))
    values, valid = movie.read(span, *region)
    own = ~movie.repeated[span]
    values, valid = values[own], np.broadcast_to(valid, values.shape)[own]
    means = []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        total, count = values[half].sum(axis=0, dtype=np.float64), valid[half].sum(axis=0)
        means.append(fill_unseen(total, count, movie.typical_value))
    return CameraFrames(first, values, (means[0], means[1]), int(movie.repeated.sum()))


def measure_independence(camera_frames: CameraFrames, limit: float = 0.0) -> Independence | None:
    """Test whether frames are independent; None for a short movie.

    Parameters
    ----------
    camera_frames : CameraFrames
        Consecutive frames.
    limit : float
        Cycles per pixel up to which the scene is seen; noise is looked at beyond it, and beyond 0.25.
    """
    if len(camera_frames.frames) < 4:
        return None
    return frame_independence(camera_frames.frames, cutoff=min(max(limit, 0.25), FINEST))


class Pattern(NamedTuple):
    """What stays with the camera in every frame."""

    found: FixedPattern
    share: float
    """Its variance over that of the noise in a window's average."""


def measure_pattern(camera_frames: CameraFrames, noise_variance: float) -> Pattern | None:
    """Look for a pattern that stays with the camera, and hold it against the noise; None for a single frame.

    It is in every copy of the scene, so that no error estimated from copies knows of it.

    Parameters
    ----------
    camera_frames : CameraFrames
        Consecutive frames.
    noise_variance : float
        Of a window's average, in squared units of the movie.
    """
    if len(camera_frames.frames) < 2:
        return None
    found = fixed_pattern(*camera_frames.halves, cutoff=FINEST)
    return Pattern(found, found.amplitude**2 / noise_variance if noise_variance > 0 else 0.0)


class Motion(NamedTuple):
    """How far the scene moves between the two halves, in time, of a window; drift has been taken out."""

    moved_px: float
    """Median over the samples."""
    error_px: float
    """The same between halves that are interleaved, which cannot have moved."""
    frames_apart: float


def measure_motion(movie: CorrectedMovie, places: Sequence[tuple[int, Region]], window: int) -> Motion:
    """Compare the earlier with the later half of the windows at some frames and regions."""
    moved, error = [], []
    for t, region in places:
        in_time = read_pairs(movie, range(t, t + 1), region, window, "adjacent")
        in_turn = read_pairs(movie, range(t, t + 1), region, window, "balanced")
        moved.append(np.hypot(*displacement(in_time.even[0], in_time.odd[0])))
        error.append(np.hypot(*displacement(in_turn.even[0], in_turn.odd[0])))
    size = min(window, movie.store.info.shape[0])
    return Motion(float(np.median(moved)), float(np.median(error)), size / 2)


def judge_halves(independence: Independence | None) -> Verdict:
    """Ask whether the noise of successive frames is independent, on which Noise2Noise rests."""
    if independence is None:
        text = "The movie has fewer than 4 frames, so it cannot be tested whether their noise is independent."
        return Verdict("halves", "look", text)
    strength = abs(independence.lag_two)
    if abs(independence.z) <= DEPENDENT_Z or strength <= DEPENDENT[0]:
        text = f"The noise of successive frames is independent (correlation {independence.lag_two:+.3f})."
        return Verdict("halves", "pass", text)
    text = (
        f"The noise of successive frames is correlated ({independence.lag_two:+.2f}): detector lag, "
        "interpolated frames or fast motion. The network may keep part of the noise; use raw frames, or "
        "group frames at ingest."
    )
    return Verdict("halves", "fail" if strength > DEPENDENT[1] else "look", text)


def judge_pattern(pattern: Pattern | None, has_references: bool) -> Verdict:
    """Ask whether a pattern of the camera is in both halves, where the network would keep it."""
    if pattern is None:
        return Verdict("fixed_pattern", "look", "One frame cannot tell a pattern of the camera from the object.")
    if pattern.found.z <= DEPENDENT_Z or pattern.share <= PATTERN[0]:
        text = "No pattern of the camera that matters beside the noise is left in the frames."
        return Verdict("fixed_pattern", "pass", text)
    remedy = "check that dark and gain reference belong to it" if has_references else "give --dark and --gain"
    text = (
        f"A pattern that stays with the camera (rms {pattern.found.amplitude:.3g} per pixel) is in every "
        f"frame, and the network keeps it: ingest the movie again and {remedy}. Until then pixel-sized "
        "detail means nothing."
    )
    return Verdict("fixed_pattern", "fail" if pattern.share > PATTERN[1] else "look", text)


def judge_motion(motion: Motion) -> Verdict:
    """Ask whether the scene moves within a window, once drift is taken out."""
    if motion.moved_px <= max(MOVED_PX, 3 * motion.error_px):
        text = (
            f"Within a window the scene moves {motion.moved_px:.1f} px or less over {motion.frames_apart:g} "
            "frames."
        )
        return Verdict("motion", "pass", text)
    text = (
        f"Within a window the scene still moves {motion.moved_px:.1f} px over {motion.frames_apart:g} "
        "frames, which blurs the output: run align, or choose a smaller window."
    )
    return Verdict("motion", "look", text)


def judge_frames(camera_frames: CameraFrames) -> Verdict:
    """Look for frames that are stored twice, and for blank or odd ones."""
    frames, first = camera_frames.frames, camera_frames.first
    twins = [
        first + t for t in range(1, len(frames)) if frames[t].any() and np.array_equal(frames[t], frames[t - 1])
    ]
    means = frames.mean(axis=(1, 2), dtype=np.float64)
    strays = np.abs(means - np.median(means))
    spread = 1.4826 * float(np.median(strays))
    odd = [
        first + int(t) for t in np.flatnonzero(strays > np.maximum(STRAY * spread, 0.1 * abs(np.median(means))))
    ]
    if twins:
        text = (
            f"Frame {twins[0]} is the same as the one before it ({len(twins)} such): the halves then share their "
            "noise. Take such frames out before ingest."
        )
        return Verdict("frames", "fail", text)
    if odd:
        text = (
            f"Frame {odd[0]} is far brighter or darker than the others ({len(odd)} such; mean "
            f"{means[odd[0] - first]:.3g} instead of {np.median(means):.3g}): leave it out with --frames."
        )
        return Verdict("frames", "look", text)
    if camera_frames.n_repeated:
        return Verdict("frames", "look", f"{camera_frames.n_repeated} frames repeat another: they are left out.")
    return Verdict("frames", "pass", "No frame is stored twice, blank, or of another brightness than the rest.")


def judge_dose(movie: CorrectedMovie, window: int) -> Verdict:
    """Say how much a window holds, where the dose is known."""
    dose, size = movie.store.info.dose_per_frame, movie.store.info.pixel_size
    if dose is None:
        return Verdict("dose", "pass", f"The dose is not known; a window is {window} frames.")
    per_pixel = f", {dose * window * size**2:.3g} electrons per pixel" if size else ""
    return Verdict(
        "dose", "pass", f"A window of {window} frames holds {dose * window:.3g} electrons per Å²{per_pixel}."
    )


def diagnose(movie: CorrectedMovie, window: int) -> list[Verdict]:
    """Say whether a movie is fit for Noise2Noise with windows of so many frames.

    Returns
    -------
    list of Verdict
        Checks ``halves``, ``fixed_pattern``, ``frames``, ``motion`` and ``dose``.
    """
    n_frames, height, width = movie.store.info.shape
    region = _middle(height), _middle(width)
    camera_frames = read_camera_frames(movie, n_frames // 2, region)
    pair = read_pairs(movie, range(n_frames // 2, n_frames // 2 + 1), region, window)
    noise_variance = float(np.var(pair.even - pair.odd, dtype=np.float64)) / 4
    references = movie.store.references
    has_references = references.dark is not None or references.gain is not None
    places = [(t, region) for t in (n_frames // 4, n_frames // 2, 3 * n_frames // 4)]
    return [
        judge_halves(measure_independence(camera_frames)),
        judge_pattern(measure_pattern(camera_frames, noise_variance), has_references),
        judge_frames(camera_frames),
        judge_motion(measure_motion(movie, places, window)),
        judge_dose(movie, window),
    ]


def _middle(size: int) -> slice:
    start = max(size - REGION_PX, 0) // 2
    return slice(start, min(start + REGION_PX, size))
