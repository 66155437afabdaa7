"""The benchmarks that users are asked to run do so, also where there is little to measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_report_of_a_gpu_in_its_quick_form(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu_report.py"
    subprocess.run([sys.executable, str(script), "--quick"], cwd=tmp_path, check=True)
    report = json.loads((tmp_path / "gpu-report.json").read_text(encoding="utf-8"))
    assert " passed" in report["tests"]
    assert "| offbook |" in report["speed, small shape"]
    assert "| merged |" in report["replies, small shape"]
    text = (tmp_path / "gpu-report.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
