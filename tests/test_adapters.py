"The benchmark of other people's models: what it writes, and that before and after are the same function."
import json
import subprocess
import sys

import pytest
from conftest import ROOT


def run(*args):
    command = [sys.executable, str(ROOT / "nbs/_tools/bench_models.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_writes_figures_and_table(tmp_path):
    names = ["timm, samvit features_only"]
    done = run("--size", 64, "--runs", 2, "--only", *names, "--threads", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "models.json").read_text())
    assert [row["name"] for row in data["models"]] == names
    for row in data["models"]:
        for variant in "before", "after":
            assert len(row[variant]["runs"]) == 2 and row[variant]["seconds"] > 0 and row[variant]["peak_mib"] > 0
        assert row["difference"] <= 1e-5, "not the same weights, photo or function"
    text = (tmp_path / "models.txt").read_text()
    assert text in done.stdout and all(name in text for name in names)
    assert "samvit features_only, after" in done.stderr, "no progress shown"


@pytest.mark.parametrize("args, message", [
    (("--size", 100), "--size 100: a side is a multiple of 16"),
    (("--runs", 0), "--runs must be at least 1"),
    (("--only", "SamPredictor"), "invalid choice: 'SamPredictor'"),
])
def test_bad_options(args, message):
    done = run(*args)
    assert done.returncode == 2 and message in done.stderr
