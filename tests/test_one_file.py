"What a cell of the page cannot test: the command that saves the file, and the button that copies it."
import re
import subprocess
import sys
from pathlib import Path

from execnb.nbio import read_nb

from vitdet_nb.one_file import one_file

page = Path(__file__).parent.parent / "nbs" / "one_file.ipynb"


def test_the_command_saves_a_file_that_runs(tmp_path):
    prose = "\n".join(c.source for c in read_nb(page).cells if c.cell_type == "markdown")
    command = re.search(r"```bash\npython (.*)\n```", prose)[1]
    done = subprocess.run(f'"{sys.executable}" {command}', shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "vitdet.py").read_text() == one_file()
    use = "import torch, vitdet; torch.set_default_device('meta'); print(tuple(vitdet.sam_vit_b()(torch.rand(1, 3, 500, 300)).shape))"
    done = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(1, 256, 32, 19)\n", done.stderr


def test_the_button_copies_the_whole_file(tab, site_url):
    tab.goto(site_url + "one_file.html")
    block = tab.locator("main .cell-output-markdown").first
    block.locator("pre").hover()
    block.locator("button.code-copy-button").click()
    tab.wait_for_function("text => navigator.clipboard.readText().then(copied => copied.trim() == text)", arg=one_file().strip())
    assert not tab.problems and not tab.foreign
