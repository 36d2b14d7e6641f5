"""What a run may be told: one frozen model per stage, read from YAML, every name and range checked.

Field names carry their unit where they have one. The resolved configuration is saved beside every output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Split = Literal["balanced", "interleaved", "adjacent", "random"]
Frame = Literal["camera", "stable"]
Window = Literal["auto", "all"] | Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
Passes = Literal["off", "halves", "flips", "all"]
Loss = Literal["l2", "l1", "huber", "l0"]
Precision = Literal["auto", "float32", "bfloat16"]


class Settings(BaseModel):
    """Frozen; an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class IngestConfig(Settings):
    """How a camera's file becomes ``movie.zarr``."""

    dark: Path | None = None
    """Mean dark frame, in the movie's own counts. Give it for an integrating camera."""
    gain: Path | None = None
    """Gain reference that multiplies each dark-corrected frame."""
    gain_flip: Literal["none", "y", "x"] = "none"
    """Mirror the gain reference, when the camera saved it the other way up."""
    gain_rotate: Literal[0, 90, 180, 270] = 0
    """Turn the gain reference by so many degrees, anticlockwise, before mirroring it."""
    defects: Path | None = None
    """Mask image (non-zero is bad) or text list of bad pixels; those found by statistics are added."""
    frames: tuple[int, int] | None = None
    """First frame and the one after the last, to keep a part of the movie."""
    crop: tuple[int, int, int, int] | None = None
    """``y0, y1, x0, x1`` in pixels of the camera, to keep a part of the field of view."""
    bin: Positive = 1
    """Sum so many by so many pixels into one."""
    group: Positive = 1
    """Sum so many frames into one (EER has hundreds of very thin ones)."""
    dose_per_frame: float | None = Field(default=None, gt=0)
    """EER only: group so that a frame holds about so many electrons per pixel."""
    superres: Literal[1, 2, 4] = 1
    """EER only: sub-pixels per pixel along y and x."""
    unsigned: bool = False
    """MRC mode 0 bytes are 0..255, against the standard (IMOD's old files)."""
    allow_truncated: bool = False
    """Keep the whole frames of a file that was cut."""
    dataset: str | None = None
    """Which dataset of an EMD/HDF5 file, when it holds several."""
    pixel_size_angstrom: float | None = Field(default=None, gt=0)
    """Å per pixel, when the file does not tell or tells it wrong."""
    clip_outliers: bool = False
    """Clip the brightest and darkest 0.1 % of pixels, as the student project did. Off: it biases counts."""


class AlignConfig(Settings):
    """How whole-frame drift is estimated."""

    max_frequency_per_px: float = Field(default=0.25, gt=0, le=0.5)
    """Highest spatial frequency used, in cycles per pixel; lower it for very faint movies."""
    iterations: Positive = 8
    """Most rounds of reference and path at each level of detail; it stops when the path has settled."""


class SweepConfig(Settings):
    """How averaging windows are compared."""

    windows: tuple[Positive, ...] | None = None
    """Windows to score, in frames; by default 2, 4, 8, … up to the movie."""
    sample_frames: Positive = 24
    """Frames that are held out and predicted; more narrows the interval."""


class NetworkConfig(Settings):
    """Shape of the U-Net (Noise2Noise paper, Table 2, at ``width: 48`` and ``depth: 5``)."""

    kind: Literal["unet", "unet-transpose"] = "unet"
    """``unet-transpose`` is the student project's variant, kept for its checkpoints."""
    width: int = Field(default=48, ge=1, le=1024)
    """Channels of the encoder; the rest of the network scales with it."""
    depth: int = Field(default=5, ge=1, le=10)
    """Times the image is halved; the network's stride is ``fold * 2 ** depth`` px."""
    fold: Literal[1, 2, 4] = 1
    """So many by so many pixels become channels of the first layer: faster, and as good where noise is strong."""
    in_channels: int = Field(default=1, ge=1, le=64)
    """Images it sees at once."""


class TrainConfig(Settings):
    """How the network is trained; a budget in steps, not epochs."""

    steps: Positive | None = None
    """Optimiser updates; by default 350 from weights that were trained before and 800 from random ones. More helps
    movies of rich detail; the schedule follows."""
    time_minutes: float | None = Field(default=None, gt=0)
    """Stop after so long instead, with the schedule following the clock (not repeatable to the bit)."""
    batch: Positive = 8
    """Patches per step over all ranks."""
    patch_px: Positive = 128
    """Side of a training patch."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 0.001 from weights that were trained before and 0.003 from random ones."""
    loss: Loss = "l2"
    """L2 learns the mean and is right for counts; l1 and l0 are not at low dose."""
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    """Weights are averaged over the last third of the steps, or with this memory where that is shorter; 0 turns
    it off."""
    window: Window = "auto"
    """Frames per sample: a number, or as the sweep found. Of several, ``4,8,16``, each sample draws one, and the
    network then says itself, on frames kept from it, which of them it does best with. ``all``: the network sees
    a ladder of windows at once, and chooses among them pixel by pixel. ``auto`` takes that where the sweep is sure
    that it predicts better than any one window."""
    target: Literal["auto"] | Annotated[int, Field(ge=3)] = "auto"
    """With ``all``: frames about an output frame whose other half is to be predicted, 5, 9, 17 or 33. A wider
    target is less noisy to learn from, and blurs what changes within it. ``auto``: 5, 9, 17 or 33, by how much
    longer averages of the movie blur."""
    held_out_frames: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Frames of each movie that are not trained on, so that ``sweep -m`` can score windows on them.
    ``auto``: every eighth, up to 24, where several windows are given; else none."""
    split: Split = "random"
    """How a window is halved: a fresh random half per sample, or a fixed rule."""
    detail: float = Field(default=0.0, ge=0, le=1)
    """Share of patches drawn where the scene has most contrast, for fields that are mostly empty. Others are drawn
    evenly over the image."""
    outliers: Literal["keep", "drop"] = "keep"
    """``drop`` leaves out single values too bright for electrons, such as hits by X-rays."""
    validate_every: Positive = 100
    """Steps between validations on held-out patches."""
    save_every: Positive = 200
    """Steps between resume states, two of which are kept."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Validations without a lower loss after which training ends early; 0 uses the whole budget."""
    init: Literal["starting", "none"] | Path = "starting"
    """What training starts from: the weights that come with the package, where they are of this network; ``none``:
    random weights; or a model, whose network is then used."""
    pair: bool = False
    """The two stores or files are two exposures of one field of view, such as a montage: one is the target of the
    other."""
    memory_gb: float = Field(default=2.0, gt=0)
    """Memory for frames; a movie that is larger is sampled from regions that are replaced as training goes on."""
    precision: Precision = "auto"
    """``bfloat16`` where the device computes faster in it, else ``float32``."""
    tensorboard: bool = False
    """Write losses for TensorBoard too; needs the extra ``tensorboard``."""

    @field_validator("window", mode="before")
    @classmethod
    def _several_windows(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else []
        return (
            tuple(map(int, parts)) if len(parts) > 1 and all(part.strip().isdigit() for part in parts) else value
        )


class TileConfig(Settings):
    """How inference cuts a frame; memory grows with (core_px + 2 halo_px)²."""

    core_px: Positive | Literal["auto"] = "auto"
    """Side of the part of a tile that is kept; by default as large as memory allows, up to 4096."""
    halo_px: Annotated[int, Field(ge=0)] | Literal["auto", "exact"] = "auto"
    """Context on each side: as measured on the network, or what makes tiles exact."""
    halo_error: float = Field(default=0.01, gt=0)
    """For ``auto``: how far tiled may be from untiled anywhere, in standard deviations of the output's noise."""
    overlap_px: Annotated[int, Field(ge=0)] = 0
    """Extent two cores share and blend over; at most half a core."""

    @model_validator(mode="after")
    def _cores_hold_their_overlaps(self) -> Self:
        if self.core_px != "auto" and self.overlap_px > self.core_px // 2:
            raise ValueError(f"overlap_px is {self.overlap_px}, more than half of core_px, {self.core_px}")
        return self


class DenoiseConfig(Settings):
    """How a store is denoised."""

    tile: TileConfig = TileConfig()
    frame_of_reference: Frame = "camera"
    """``camera``: output frame t shows what input frame t shows. ``stable``: drift taken out."""
    halves: bool = False
    """Keep both denoised halves beside their mean."""
    window_map: bool = False
    """With a model of all windows, keep an array ``window``: the frames that each pixel was averaged over.
    Denoising then takes several times as long."""
    dtype: Literal["float32", "float16", "source"] = "float32"
    """Type of the output's pixels; ``source`` rounds to the movie's counts."""
    augment: Literal["auto"] | Passes = "auto"
    """Average over flips (4 passes) or flips and turns (8); ``halves`` turns only one half, at no cost.
    ``auto`` takes the most that a small movie's denoising can afford."""
    frames: tuple[int, int] | None = None
    """First frame and the one after the last, for a quick look."""
    region: tuple[int, int, int, int] | None = None
    """``y0, y1, x0, x1`` in pixels, for a quick look."""
    window: Annotated[int, Field(ge=2)] | None = None
    """Frames averaged for each output frame, both halves together; by default as the model was trained."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory that may be used, in GB; by default up to half of what is free."""


class SlurmConfig(Settings):
    """What SLURM is asked for: workers of a stage (``--cluster slurm:F``), or one job (``--slurm F``)."""

    jobs: Positive = 2
    """Workers, each a job of its own; a single job ignores it."""
    nodes: Positive = 1
    """Nodes of a single job; workers ignore it."""
    processes_per_node: Positive = 1
    """Processes of a single job on each node: as many as it has GPUs. Workers ignore it."""
    partition: str | None = Field(default=None, pattern=r"^[\w.,-]+$")
    account: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    cores: Positive = 2
    """Cores of a job; a worker uses them for one task at a time."""
    memory_gb: float = Field(default=8, gt=0)
    """Memory of a job, in GB."""
    time: str = Field(default="04:00:00", pattern=r"^(\d+-)?\d+:\d\d:\d\d$")
    """Longest time of a job, as ``hours:minutes:seconds``; what is not done by then is continued by another."""
    interface: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """Network between the nodes, such as ``ib0``; by default the one of the host's name."""
    directives: tuple[Annotated[str, Field(pattern=r"^--[^\n]+$")], ...] = ()
    """Further words for ``#SBATCH``, such as ``--gres=gpu:1``."""
    setup: tuple[Annotated[str, Field(pattern=r"^[^\n]+$")], ...] = ()
    """Shell lines that come first, such as ``module load cuda``."""


class ExportConfig(Settings):
    """What part of a store is exported, and how."""

    frames: tuple[int, int] | None = None
    """First frame and the one after the last."""
    region: tuple[int, int, int, int] | None = None
    """``y0, y1, x0, x1`` in pixels of the store."""
    bin: Positive = 1
    """Average so many by so many pixels into one; rows and columns left over are dropped."""
    half: bool = False
    """MRC mode 12 (16-bit floats) instead of mode 2."""
    fps: float = Field(default=12, gt=0, le=240)
    """Frames shown per second in a video."""
    scale_bar: bool = True
    """Draw a scale bar into pictures and videos, when the pixel size is known."""


class RunConfig(Settings):
    """Everything that ``n2n-pipeline run`` may be told."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Start of every random choice."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Positive | None = None
    """CPU threads; by default as many as there are cores to use."""
    ingest: IngestConfig = IngestConfig()
    align: AlignConfig = AlignConfig()
    sweep: SweepConfig = SweepConfig()
    network: NetworkConfig | None = None
    """By default the paper's network on a GPU and a narrower one on a CPU."""
    train: TrainConfig = TrainConfig()
    denoise: DenoiseConfig = DenoiseConfig()

    @field_validator("threads", mode="before")
    @classmethod
    def _auto_threads(cls, value: object) -> object:
        return None if value == "auto" else value
