"""The pages on metrics do what they say: their code runs, their anchors exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mm_lens.metrics import METRICS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry():
    """Metrics that a test registers are gone afterwards."""
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


def code() -> list[str]:
    page = (ROOT / "docs" / "adding_a_metric.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_code_of_adding_a_metric_runs(registry):
    blocks = code()
    assert len(blocks) >= 5
    names = {"__name__": "sparsity"}
    exec(compile("\n".join(blocks), "docs/adding_a_metric.md", "exec"), names)
    assert "sparsity" in METRICS


def test_a_package_adds_a_metric_and_a_broken_one_takes_none_along(tmp_path):
    """An installed package, as pip leaves it: a file and its entry point."""
    (tmp_path / "sparsity.py").write_text("\n".join(code()[:3]), encoding="utf-8")
    (tmp_path / "broken.py").write_text("raise RuntimeError('no such thing')", encoding="utf-8")
    info = tmp_path / "toy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mm_lens.metrics]\na = broken\nb = sparsity\n")
    check = "from mm_lens.metrics import METRICS; print(list(METRICS))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {check}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "'sparsity'" in done.stdout
    assert "'linearity_paper'" in done.stdout
    assert "Metric broken cannot be loaded: no such thing" in done.stderr
