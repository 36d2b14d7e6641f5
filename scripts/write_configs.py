"""Write ``configs/*.yaml``: every setting, with what suits the use, explained in the words of its model.

    python scripts/write_configs.py

Run it after a setting was added, changed or explained better; a test compares the files with what this writes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml

from n2n_pipeline import config
from n2n_pipeline.config import RunConfig, Settings, SlurmConfig
from n2n_pipeline.settings_file import load_settings

CONFIGS = Path(__file__).parent.parent / "configs"
WIDTH = 115


class Example(NamedTuple):
    """A file to write."""

    head: str
    settings: Settings


EXAMPLES = {
    "demo": Example(
        """\
        What n2n-pipeline demo uses: the defaults, which are those of every other command too.

            n2n-pipeline demo --config configs/demo.yaml
        """,
        RunConfig(),
    ),
    "movie": Example(
        """\
        A movie from a camera, with its references. Put in the names of your files, seen from where the command is
        run, or null for what you do not have.

            n2n-pipeline run movie.mrc results --config configs/movie.yaml
        """,
        load_settings(assignments=["ingest.dark=dark.mrc", "ingest.gain=gain.mrc", "denoise.dtype=float16"]),
    ),
    "montage": Example(
        """\
        A montage, one large image in two exposures of the same field: a movie of two frames, each half of every
        pair. It is cut into tiles; memory_gb bounds how many are in work.

            n2n-pipeline run exposures.tif results --config configs/montage.yaml

        Two exposures in files of their own, between which the stage may have moved; one of them is denoised, as
        any single image is with a model that was trained elsewhere:

            n2n-pipeline train a.mrc b.mrc --pair -o model --config configs/montage.yaml
            n2n-pipeline ingest a.mrc
            n2n-pipeline denoise a.zarr -m model --config configs/montage.yaml
        """,
        load_settings(
            assignments=[
                "sweep.windows=[2]",
                "train.window=2",
                "denoise.augment=off",
                "denoise.dtype=float16",
                "denoise.memory_gb=8",
            ]
        ),
    ),
    "gpu": Example(
        """\
        A long movie on a GPU: the paper's full network, trained longer than by default, and every frame averaged
        over eight orientations.

            n2n-pipeline run movie.eer results --config configs/gpu.yaml
        """,
        load_settings(
            assignments=[
                "device=cuda",
                "network={width: 48, depth: 5}",
                "train={steps: 3000, batch: 16, patch_px: 256, memory_gb: 16}",
                "denoise={augment: all, dtype: float16}",
            ]
        ),
    ),
    "student": Example(
        """\
        The run of the student project denoise-tem, on its folders of even and odd images:

            n2n-pipeline train raw_dataset -o model --config configs/student.yaml

        where raw_dataset holds even/ and odd/, whose images are paired by name. Its settings are called
        here: crop_img_size train.patch_px; learning_rate train.lr; save_per_epoch train.save_every; cuda device;
        max_epoch train.steps, which is epochs times pairs over train.batch (100 epochs of 240 pairs: 6000).
        Images of several channels (img_channel) are not read. Values are scaled by their own mean and spread
        instead of 1/255. Turns, flips and a learning rate that ends at nothing are new, and always on.
        """,
        load_settings(
            assignments=[
                "network={kind: unet-transpose, width: 48, depth: 5}",
                "train={steps: 6000, batch: 4, patch_px: 256, lr: 0.001, ema_decay: 0}",
                "train.save_every=600",
                "train.init=none",
            ]
        ),
    ),
    "slurm": Example(
        """\
        What SLURM is asked for. One job, which requeues itself until the training is done:

            n2n-pipeline train movie.zarr -o model --config configs/gpu.yaml --slurm configs/slurm.yaml

        Or several workers, each a job of its own:

            n2n-pipeline ingest movie.mrc --cluster slurm:configs/slurm.yaml
        """,
        SlurmConfig(cores=8, memory_gb=32, directives=("--gres=gpu:1",), setup=("module load cuda",)),
    ),
}


def read_explanations() -> dict[str, str]:
    """Collect the docstring of every model, ``Model``, and of every field, ``Model.field``."""
    found: dict[str, str] = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = ast.get_docstring(node) or ""
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    name = ast.unparse(field.target)
                    found[f"{node.name}.{name}"] = " ".join(ast.literal_eval(text.value).split())
    return found


def list_choices(annotation: Any) -> list[str]:
    """Name the values that a field takes, where these are few."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in list_choices(part)]


def write_lines(settings: Settings, explanations: dict[str, str], margin: str = "") -> list[str]:
    """Write settings as YAML, a comment above each."""
    lines: list[str] = []
    model = type(settings)
    for name, field in model.model_fields.items():
        value = getattr(settings, name)
        is_group = isinstance(value, Settings)
        text = explanations.get(type(value).__name__ if is_group else f"{model.__name__}.{name}", "")
        choices = list_choices(field.annotation)
        if len(choices) > 1 and not all(choice in text for choice in choices):
            text = f"{text} One of {', '.join(choices)}.".strip()
        lines += [""] if not margin else []
        lines += textwrap.wrap(
            text.replace("`", ""), WIDTH, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}# "
        )
        if is_group:
            lines += [f"{margin}{name}:", *write_lines(value, explanations, f"{margin}  ")]
        else:
            lines.append(f"{margin}{name}: {write_value(settings.model_dump(mode='json')[name])}")
    return lines


def write_value(value: Any) -> str:
    """Write a value on one line, quoted where YAML of any version would read it as something else."""
    text = yaml.safe_dump(value, default_flow_style=True, width=WIDTH, allow_unicode=True)
    return str(text).partition("\n...")[0].strip()


def write_example(example: Example) -> str:
    """Write one file's text."""
    head = [f"# {line}".rstrip() for line in textwrap.dedent(example.head).splitlines()]
    return "\n".join([*head, *write_lines(example.settings, read_explanations())]) + "\n"


if __name__ == "__main__":
    for name, example in EXAMPLES.items():
        (CONFIGS / f"{name}.yaml").write_text(write_example(example), "utf-8")
