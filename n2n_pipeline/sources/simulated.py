"""A movie whose truth is known: vesicles and particles in ice, moved, exposed and read out by a simple camera.

For tests, examples and benchmarks. Everything is drawn from analytic shapes, so that the truth is exact at any
sub-pixel position, and every random number comes from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import check_range

Floats = npt.NDArray[np.floating]
PIXEL_SIZE = 1.5  # Å, what every simulated movie claims
_HOT_RATE = 200.0  # counts per frame of a hot pixel


@dataclass(frozen=True)
class Detector:
    """What a camera adds to the electrons that hit it; by default nothing."""

    gain_spread: float = 0.0
    """Standard deviation of the pixels' sensitivity, which is 1 on average."""
    hot_pixels: int = 0
    """Pixels that count about 200 in every frame, light or not."""
    dead_pixels: int = 0
    """Pixels that always count 0."""
    lag: float = 0.0
    """Probability that an electron is counted once more in the next frame: noise shared by neighbouring frames."""


class Particle(NamedTuple):
    """A dark ring (a vesicle) or, with radius 0, a dark blob."""

    y: float
    x: float
    radius: float
    width: float
    contrast: float
    phase: float
    """Where in its own sway it starts, in radians."""


@dataclass(frozen=True)
class SimulatedMovie:
    """A movie in memory that reads like a file, with everything that went into it."""

    path: Path
    info: MovieInfo
    counts: Counts
    """``(t, y, x)`` uint16 as the camera wrote them."""
    truth: Floats
    """``(t, y, x)`` float32 expected electrons per pixel per frame, without noise."""
    shifts: Floats
    """``(t, 2)`` float64 px, added to a frame-0 coordinate ``(y, x)`` to find it in frame t."""
    gain_reference: Floats
    """``(y, x)`` float32 that multiplies the counts to make them electrons."""
    defects: npt.NDArray[np.bool_]
    """``(y, x)`` where the camera has hot or dead pixels."""

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        return self.counts[start:stop].copy()

    def close(self) -> None:
        """Do nothing: there is no file."""

    def write_mrc(self, path: Path) -> Path:
        """Write the counts as an MRC movie (mode 6) and return its path."""
        import mrcfile

        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(self.counts)
            mrc.set_image_stack()
            mrc.voxel_size = PIXEL_SIZE
        return path


def simulate_movie(
    shape: tuple[int, int, int] = (16, 64, 64),
    dose: float = 1.0,
    drift: tuple[float, float] | Floats = (0.0, 0.0),
    seed: int = 0,
    sway: float = 0.0,
    detector: Detector = Detector(),
) -> SimulatedMovie:
    """Simulate vesicles and particles in ice under an electron-counting camera.

    Parameters
    ----------
    shape : tuple of int
        Frames, height and width, ``(t, y, x)``.
    dose : float
        Electrons per pixel per frame where there is nothing.
    drift : tuple of float or numpy.ndarray
        ``(dy, dx)`` px per frame, or the whole path as ``(t, 2)`` px.
    seed : int
        Start of every random number; the same seed gives the same scene at any dose, drift and detector.
    sway : float
        Px that each particle moves to and fro on its own (local motion), once in the movie.
    detector : Detector
        The camera.

    Returns
    -------
    SimulatedMovie
        Counts, truth, shifts, gain reference and defects.

    Examples
    --------
    >>> movie = simulate_movie((4, 32, 48), dose=2.0, drift=(0.5, -1.0))
    >>> movie.info.shape, movie.counts.dtype.name, movie.shifts[3].tolist()
    ((4, 32, 48), 'uint16', [1.5, -3.0])
    """
    path = np.asarray(drift, np.float64)
    shifts = path * np.arange(shape[0])[:, None] if path.ndim == 1 else path
    scene, noise, pixels = (np.random.default_rng([seed, stream]) for stream in range(3))
    particles = _draw_particles(scene, shape[1:])
    turns = 2 * np.pi * np.arange(shape[0]) / shape[0]
    frames = [
        render_frame(particles, shape[1:], shift, sway, turn) for shift, turn in zip(shifts, turns, strict=True)
    ]
    truth = (dose * np.stack(frames)).astype(np.float32)
    gain_reference, hot, dead = _draw_pixels(pixels, shape[1:], detector)
    counts = _expose(noise, truth / gain_reference, detector.lag)
    counts[:, hot] = noise.poisson(_HOT_RATE, (shape[0], int(hot.sum())))
    counts[:, dead] = 0
    info = MovieInfo(shape, np.dtype(np.uint16), "simulated", pixel_size=PIXEL_SIZE, software="n2n-pipeline")
    return SimulatedMovie(Path("simulated.mrc"), info, counts, truth, shifts, gain_reference, hot | dead)


def render_frame(
    particles: list[Particle], shape: tuple[int, int], shift: Floats, sway: float, turn: float
) -> Floats:
    """Draw the transmission of a scene, ``(y, x)`` in (0, 1], at one moment.

    Parameters
    ----------
    particles : list of Particle
        The scene in frame 0.
    shape : tuple of int
        Height and width, ``(y, x)``.
    shift : numpy.ndarray
        ``(2,)`` px that the whole scene has moved.
    sway : float
        Px of each particle's own motion along y.
    turn : float
        Radians of that motion so far.
    """
    density = np.zeros(shape)
    for particle in particles:
        y = particle.y + shift[0] + sway * (np.sin(turn + particle.phase) - np.sin(particle.phase))
        x = particle.x + shift[1]
        reach = particle.radius + 5 * particle.width
        rows = np.arange(max(0, int(y - reach)), min(shape[0], int(y + reach) + 2))
        columns = np.arange(max(0, int(x - reach)), min(shape[1], int(x + reach) + 2))
        if not rows.size or not columns.size:
            continue
        distance = np.hypot(rows[:, None] - y, columns - x)
        profile = particle.contrast * np.exp(-0.5 * ((distance - particle.radius) / particle.width) ** 2)
        density[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += profile
    return np.exp(-density)


def _draw_particles(random: np.random.Generator, shape: tuple[int, int]) -> list[Particle]:
    """Scatter vesicles and small particles over the field and a margin from which they may drift in."""
    margin = 32
    area = (shape[0] + 2 * margin) * (shape[1] + 2 * margin)
    n_rings, n_blobs = max(3, area // 2500), max(6, area // 500)
    low, high = (-margin, -margin), (shape[0] + margin, shape[1] + margin)
    places = random.uniform(low, high, (n_rings + n_blobs, 2))
    radii = np.concatenate([random.uniform(5, 14, n_rings), np.zeros(n_blobs)])
    widths = np.concatenate([random.uniform(1.2, 2.0, n_rings), random.uniform(1.2, 3.0, n_blobs)])
    contrasts, phases = random.uniform(0.2, 0.8, radii.size), random.uniform(0, 2 * np.pi, radii.size)
    columns = zip(*places.T, radii, widths, contrasts, phases, strict=True)
    return [Particle(*map(float, values)) for values in columns]


def _draw_pixels(
    random: np.random.Generator, shape: tuple[int, int], detector: Detector
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Draw the gain reference of the detector and the masks of its hot and dead pixels."""
    sensitivity = np.clip(1 + detector.gain_spread * random.standard_normal(shape), 0.2, 5.0)
    order = random.permutation(shape[0] * shape[1])
    hot, dead = np.zeros((2, *shape), bool)
    hot.flat[order[: detector.hot_pixels]] = True
    dead.flat[order[detector.hot_pixels : detector.hot_pixels + detector.dead_pixels]] = True
    return (1 / sensitivity).astype(np.float32), hot, dead


def _expose(random: np.random.Generator, expected: Floats, lag: float) -> Counts:
    """Count electrons, some of them once more in the next frame; the expectation stays the same."""
    counts = random.poisson(expected / (1 + lag))
    if lag:
        counts[1:] += random.binomial(counts[:-1], lag)
    return counts.astype(np.uint16)
