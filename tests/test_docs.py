"""What the documentation says to type, typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
