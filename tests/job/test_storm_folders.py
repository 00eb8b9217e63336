"""H30: a storm of output paths, links, stray files and kills never ends with code 0 and something wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import warm

pytestmark = [
    pytest.mark.storm,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and kills as POSIX has them"),
]

TRIALS, SEED = 300, 20261129


def test_h30_no_code_0_with_a_wrong_a_missing_or_a_changed_file(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "storm_folders.py"
    done = warm.start(script, tmp_path / "storm", SEED, TRIALS).wait(timeout=1000)
    assert done.returncode == 0, done.err[-4000:]
    found = json.loads(done.out)
    assert found["trials"] == TRIALS
    assert all(found["codes"][code] > 50 for code in ("0", "1", "None")), "all kinds of ends"
