import runpy
from pathlib import Path

import pytest

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.settings_file import MAX_BYTES, Given, dump_settings, load_settings, read_settings

ROOT = Path(__file__).parent.parent


def refusal(tmp_path: Path, text: str) -> str:
    """The line that says why settings are refused, without the folder."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_settings(file)
    assert error.value.code is ExitCode.CONFIG
    return str(error.value).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\ndenoise:\n  tiel: {core_px: 64}\n", "config.yaml:3: unknown key 'tiel'; did you mean 'tile'?"),
        (
            "train:\n  lr: no\n",
            "config.yaml:2: train.lr must be a number, got 'no'",
        ),  # YAML 1.1 reads False
        (
            "train:\n  steps: 1:30\n",
            "config.yaml:2: train.steps must be a whole number, got '1:30'",
        ),  # and 90
        ("train: {steps: true}", "config.yaml:1: train.steps must be a whole number, got 'true'"),
        ("train: {lr: .inf}", "config.yaml:1: train.lr must be a number, got '.inf'"),
        ("train: {lr: nan}", "config.yaml:1: train.lr must be a finite number, got 'nan'"),
        (
            "\ndenoise:\n  tile:\n    core_px: -1",
            "config.yaml:4: denoise.tile.core_px must be greater than or equal",
        ),
        ("train: 5", "config.yaml:1: train must be a group of settings, got 5"),
        ("train:\n  lr: 1\n  lr: 2\n", "config.yaml:3: key 'lr' is given twice"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "config.yaml:1: aliases"),  # ten lines of these are a billion items
        ("[" * 20_000, "config.yaml:1: nested more than 20 deep"),
        ("seed: !!python/object/apply:os.getpid []", "config.yaml:1: tags"),
        ("train:\n\tlr: 3\n", "config.yaml:2: not valid YAML: found character"),
        ("- 1\n", "config.yaml:1: settings must be `name: value` lines"),
        ("seed: [1, {a: 2}]", "config.yaml:1: a list holds names and numbers only"),
        ("seed: 1\n---\nseed: 2\n", "config.yaml:2: not valid YAML"),
        ("\x00", "config.yaml: not valid YAML"),
        ("#" * (MAX_BYTES + 1), "config.yaml: 1000001 bytes, more than settings can need"),
    ],
)
def test_wrong_settings_are_refused_by_line_and_name(tmp_path, text, line):
    assert refusal(tmp_path, text).startswith(line)


def test_a_value_that_no_branch_of_a_union_takes_lists_all_of_them(tmp_path):
    line = refusal(tmp_path, "train:\n  window: wide\n")
    choices = "'auto' or 'all' or a whole number or several"
    assert line == f"config.yaml:2: train.window must be {choices}, got 'wide'"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.lr=1e-4", 1e-4),  # YAML 1.1 reads a text
        ("train.lr='0.5'", 0.5),  # a text that is a number, where a number is due
        ("train.steps=010", 10),  # YAML 1.1 reads 8
        ("ingest.unsigned=true", True),
        ("ingest.gain_rotate=90", 90),
        ("ingest.frames=[2, 8]", (2, 8)),
        ("network=null", None),
    ],
)
def test_set_takes_yaml_values(word, value):
    found = load_settings(assignments=[word])
    for name in word.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value


def test_an_option_wins_over_set_and_set_over_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\ntrain: {steps: 1, batch: 1, lr: 0.5}\n")
    options = {"train.steps": Given("3", "--steps")}
    config = load_settings(file, ["train.steps=2", "train.batch=2"], options)
    assert (config.seed, config.train.steps, config.train.batch, config.train.lr) == (1, 3, 2, 0.5)


def test_a_wrong_option_is_named_as_the_user_wrote_it():
    options = {"ingest.pixel_size_angstrom": Given("x", "--pixel-size")}
    with pytest.raises(InputError, match=r"--pixel-size: ingest\.pixel_size_angstrom must be a number, got 'x'"):
        load_settings(options=options)


def test_settings_that_are_written_read_back_equal(tmp_path):
    config = load_settings(assignments=["train.window=8", "ingest.dark=dark ü.mrc", "denoise.tile.halo_px=exact"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_settings(config), "utf-8")
    assert load_settings(file) == config


def test_a_missing_file_is_no_input(tmp_path):
    with pytest.raises(InputError, match="no such file") as error:
        load_settings(tmp_path / "config.yaml")
    assert error.value.code is ExitCode.NO_INPUT


@pytest.mark.parametrize("name", ["demo", "movie", "montage", "gpu", "student", "slurm"])
def test_every_example_file_is_complete_valid_and_says_what_the_models_say(name):
    script = runpy.run_path(str(ROOT / "scripts" / "write_configs.py"))
    example = script["EXAMPLES"][name]
    file = ROOT / "configs" / f"{name}.yaml"
    assert read_settings(type(example.settings), file) == example.settings
    assert file.read_text("utf-8") == script["write_example"](example), "run scripts/write_configs.py"


@pytest.mark.parametrize(
    ("told", "window"), [("auto", "auto"), ("8", 8), ("4,8,16", (4, 8, 16)), ("[4, 8]", (4, 8)), ("all", "all")]
)
def test_a_window_is_one_or_several_or_all_or_left_to_the_sweep(told, window):
    assert load_settings(assignments=[f"train.window={told}"]).train.window == window
