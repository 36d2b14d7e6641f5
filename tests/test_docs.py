"""What the documentation says to type, typed; what the table of faults names, there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_the_first_steps_in_python_can_be_taken(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-W", "error", str(ROOT / "docs" / "first_steps.py"), str(tmp_path / "steps")]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    errors = re.search(r"rms error: ([\d.]+) .* raw, ([\d.]+) denoised", done.stdout)
    assert errors is not None
    assert float(errors[2]) < 0.25 * float(errors[1])
    for name in ("report.html", "denoised.mrc", "model/weights.safetensors"):
        assert (tmp_path / "steps" / name).stat().st_size > 0


def test_figures_beside_other_programs_are_those_that_were_measured():
    summary = json.loads((ROOT / "benchmarks/results/quality.json").read_text("utf-8"))["summary"]
    row = re.compile(r"^\| .+ \| `(\w+)` \| (-?[\d.]+) \| (-?[\d.]+) \|$", re.MULTILINE)
    rows = row.findall((ROOT / "README.md").read_text("utf-8"))
    assert {"bm3d", "careamics", "topaz", "paper", "linear"} <= {method for method, *_ in rows}
    for method, mean, least in rows:
        measured = summary[f"default over {method}"]
        assert (float(mean), float(least)) == (round(measured["mean_db"], 1), round(measured["least_db"], 1)), (
            method
        )


def test_every_row_of_the_table_of_faults_names_tests_that_exist():
    table = yaml.safe_load((ROOT / "benchmarks/faults.yaml").read_text("utf-8"))
    for number, row in table["rows"].items():
        for test in row["tests"]:
            file, _, name = test.partition(" ")
            name = name.partition("[")[0]
            text = (ROOT / table["files"][file]).read_text("utf-8")
            assert f"def test_{name}(" in text or f"{name.partition('::')[0]} =" in text, f"{number}: {test}"
