"""The benchmark scripts run, on a shape too small to measure anything with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


def test_the_comparison_with_pipeline_runs_and_agrees() -> None:
    command = [sys.executable, str(SCRIPTS / "against_pipeline.py"), "--shape", "tiny", "--rounds", "1"]
    done = subprocess.run([*command, "--texts", "mixed"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["results"]
    assert set(found["ratio"]) == {"pipeline() batch 1", "pipeline() batch 8", "pipeline() batch 32"}
    assert found["largest_score_difference"] < 1e-5
