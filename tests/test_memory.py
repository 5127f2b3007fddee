"Memory of fast attention, in processes of their own: linear in the tokens, in training too."
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
from vitdet_nb.fast_attention import FastBlock
from vitdet_nb.utils import randomize

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

window, grid, train = map(int, sys.argv[1:])
block = randomize(FastBlock(64, 2, window_size=window, input_size=(grid, grid)))
step = lambda x: block(x).square().mean().backward()
if not train: step = torch.inference_mode()(block)
step(torch.randn(1, 40, 40, 64))  # loads what is loaded once
x = torch.randn(1, grid, grid, 64)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
step(x)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process can be read on Linux only")
@pytest.mark.parametrize("train", [0, 1])
@pytest.mark.parametrize("window", [0, 14])
def test_no_matrix_of_all_scores(window, train):
    grid = 128  # 16384 tokens: the scores of two heads are 2048 MiB
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(window), str(grid), str(train)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300, f"{done.stdout} MiB"
