"""The benchmarks' own arithmetic, and that each of their scripts can be asked for help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from n2n_pipeline.sources.simulated import simulate_movie

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(
    path.name for path in BENCHMARKS.glob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8")
)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("check", "costs", "judging"):
        sys.modules.pop(name, None)


def test_every_script_has_its_line_in_the_table_of_questions():
    table = (BENCHMARKS / "README.md").read_text("utf-8")
    assert [name for name in SCRIPTS if name not in table] == []
    for name in re.findall(r"benchmarks/([\w/]+\.(?:py|sh))", table):
        assert (BENCHMARKS / name).is_file(), name


def test_a_ratio_that_lost_a_quarter_fails_and_one_that_lost_a_tenth_does_not(benchmarks):
    import check

    recorded = {"slower": 1.0, "as good": 1.0}
    assert check.lost({"slower": 0.75, "as good": 0.9}, recorded) == ["slower: 0.75, recorded 1.0: a loss of 25 %"]


def test_a_ratio_is_measured_again_before_it_is_called_lost(benchmarks):
    import check

    ratios = iter([0.5, 0.95, 2.0])
    assert check.compare(lambda: next(ratios), recorded=1.0) == 0.95


def test_a_script_is_run_again_before_a_ratio_is_called_lost_and_its_results_stay(
    benchmarks, monkeypatch, tmp_path
):
    import check

    results, count = tmp_path / "pairs.json", tmp_path / "count"
    results.write_text('{"speed_over_fill": 1.0}')
    count.write_text("0")
    script = tmp_path / "pairs.py"
    script.write_text(
        "from pathlib import Path\n"
        f"count, results = Path({str(count)!r}), Path({str(results)!r})\n"
        "number = int(count.read_text())\n"
        "count.write_text(str(number + 1))\n"
        """results.write_text('{"speed_over_fill": %s}' % [0.5, 0.95, 0.5, 0.7][number])\n"""
    )
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setattr(check, "SCRIPTS", {"pairs.json": [str(script)]})
    assert check.check_scripts() == []
    assert check.check_scripts() == ["pairs.json: speed_over_fill: 0.7, recorded 1.0: a loss of 30 %"]
    assert (count.read_text(), results.read_text()) == ("4", '{"speed_over_fill": 1.0}')


def test_costs_that_are_less_are_turned_round(benchmarks):
    import check

    result = {"ratios": {"xarray 16 over balanced 16": 8.0, "balanced, W = 64 over W = 8": 1.25}}
    assert check.ratios_of(result) == {"xarray 16 over balanced 16": 8.0, "balanced, W = 64 over W = 8": 0.8}


def test_a_perfect_picture_keeps_all_detail_and_noise_adds_power_but_no_detail(benchmarks):
    import judging

    truth = simulate_movie((4, 128, 128), dose=5.0).truth
    perfect = judging.judge(3 * truth + 7, truth)
    assert perfect["detail_kept"] == pytest.approx(1, abs=1e-3)
    assert perfect["detail_power"] == pytest.approx(1, abs=1e-3)
    noisy = judging.judge(truth + np.random.default_rng(0).normal(0, 0.3 * truth.std(), truth.shape), truth)
    assert noisy["detail_kept"] == pytest.approx(1 / (1 + 0.3**2), abs=0.02)  # the fit takes noisy contrast down
    assert noisy["detail_power"] > 1.1


def test_a_model_of_costs_gives_back_what_it_was_fitted_to(benchmarks):
    import costs

    shape, windows = (512, 512, 512), (2, 4, 8, 16, 32, 64, 128, 256, 512)
    area = 512 * 512 / 1e6
    sweep = {w: costs.MEASURED_FRAMES * area * (0.01 * len(w) + 0.002 * sum(w)) for w in (costs.SWEPT, windows)}
    found = {
        stage: {"ms_per_megapixel": {"8x": rate}}
        for stage, rate in (("ingest", 5), ("align", 7), ("align_read", 4), ("denoise", 90))
    }
    found |= {
        "shapes": {stage: {"8x": shape} for stage in ("sweep", "align", "denoise")},
        "sweep_s": {"8x": sweep[costs.SWEPT]},
        "sweep_all_s": {"8x": sweep[windows]},
        "train": {"start_s": {"8x": 2.0}, "ms_per_update": {"8x": 100.0}},
    }
    predicted = costs.predict(shape, costs.rates_of(found, "8x"), costs.MEASURED_FRAMES)
    assert predicted["sweep"] == pytest.approx(sweep[windows])
    assert predicted["align"] == pytest.approx(0.007 * 512 * area)
    assert predicted["denoise"] == pytest.approx(0.09 * 512 * area)
    assert predicted["train"] == pytest.approx(2 + costs.UPDATES * 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_does(script):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(BENCHMARKS / script), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_peers_that_nobody_knows_are_refused(tmp_path):
    script = str(BENCHMARKS / "peers.sh")
    done = subprocess.run(
        ["bash", script, str(tmp_path), "nobody"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
        check=False,
    )
    assert done.returncode == 2
    assert "nobody is none of" in done.stderr
