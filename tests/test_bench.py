"The benchmark: that its rungs compute what the definition does, and what it writes."
import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

BENCH = ROOT / "nbs/_tools/bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def onednn():
    "Rungs switch oneDNN on and off."
    before = torch.backends.mkldnn.enabled
    yield
    torch.backends.mkldnn.enabled = before


def run(*args):
    return subprocess.run([sys.executable, str(BENCH), *map(str, args)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("part", ["global attention", "windowed attention", "MLP"])
def test_rungs_equal_the_definition(bench, onednn, part):
    with torch.inference_mode():
        f, x = bench.rung_of(part, "definition", 320)  # 20 x 20 tokens: windows of 14 need padding
        expected = f(x)
        for name in bench.rungs[part]:
            if name == "torch.compile": continue  # needs a C++ compiler; chapter 07 tests the traced form
            f, y = bench.rung_of(part, name, 320)
            assert torch.equal(x, y)
            assert (f(y) - expected).abs().max() < 1e-4, name


@pytest.mark.parametrize("onednn_floor", [False, True])
def test_floor_does_every_product(bench, onednn_floor):
    from torch.utils.flop_counter import FlopCounterMode
    C, N, padded, hd, heads = 768, 16 * 16, 28 * 28, 64, 12  # 256 px: 16 x 16 tokens, four windows
    linear = N * C * C + 12 * 12 * N * C * C + N * C * 256 + N * 9 * 256 * 256
    whole, windows = 4 * 2 * heads * N * N * hd, 8 * 2 * heads * padded * 14 * 14 * hd
    with torch.inference_mode(), FlopCounterMode(display=False) as counter: bench.floor_of(256, onednn_floor)()
    assert counter.get_total_flops() // 2 == linear + whole + windows


def test_writes_figures_table_and_picture(tmp_path):
    done = run("--sizes", 64, 128, "--runs", 2, "--only", "encoders", "--threads", 1, "--out", tmp_path)  # threads would wait for each other on a busy machine
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["name"], row["size"]): row for row in data["encoders"]}
    names = {"vitdet_nb", "vitdet_nb, naive", "segment-anything", "timm", "transformers"}
    assert set(rows) == {(name, size) for name in names for size in (64, 128)}
    for row in rows.values():
        assert len(row["runs"]) == 2 and row["seconds"] > 0 and row["peak_mib"] > 0
        assert row["difference"] <= 2e-5, "not the same weights, photo or function"
    assert {row["name"] for row in data["floor"]} >= {"torch.mm"}
    text = (tmp_path / "bench.txt").read_text()
    assert text in done.stdout and all(name in text for name in names)
    assert "time / segment-anything's" in text and "peak at 128 px / at 64 px" in text
    assert (tmp_path / "bench.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert "segment-anything" in done.stderr, "no progress shown"


@pytest.mark.parametrize("args, message", [
    (("--sizes", 100), "--sizes 100: a side is a multiple of 16"),
    (("--runs", 0), "--runs and --train-runs must be at least 1"),
    (("--only", "all"), "invalid choice: 'all'"),
])
def test_bad_options(args, message):
    done = run(*args)
    assert done.returncode == 2 and message in done.stderr
