"""The benchmark command runs and prints what it was asked for; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("rows", ["pcd mlp mala", "loss eqm dot", pytest.param("", marks=pytest.mark.slow)])
def test_rows_are_printed_with_finite_ratios(rows, tmp_path):
    command = [sys.executable, "benchmarks/run.py", "--quick", "--rows", rows, "--json", str(tmp_path / "rows.json")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    measured = json.loads((tmp_path / "rows.json").read_text())
    assert measured and all(rows in row["row"] and 0 < row["median"] < 1e3 for row in measured)
    assert all(row["row"] in printed for row in measured)


@pytest.mark.slow
def test_errors_of_evidence_are_compared_at_equal_gradients():
    command = [sys.executable, "benchmarks/evidence.py", "--seeds", "2", "--models", "arK"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert [row[1] for row in rows] == ["log_z", "smc", "BlackJAX"]
    spent = [float(row[3]) for row in rows]
    assert max(spent) < 1.5 * min(spent)
