"The notebooks as files: outputs that are true, cells that are clean, modules in step with them, chapters in one form."
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from execnb.nbio import new_nb, mk_cell, read_nb, write_nb

root = Path(__file__).parent.parent
tool = root / "nbs" / "_tools" / "notebooks.py"
notebooks = sorted((root / "nbs").glob("*.ipynb"))
chapters = [p for p in notebooks if p.name[:2].isdigit()]


def run(*command, cwd=root, **env): return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path):
    "A copy of what the notebooks and modules are made from."
    shutil.copytree(root / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns("_quarto.yml", "__pycache__"))
    shutil.copytree(root / "vitdet_nb", tmp_path / "vitdet_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "settings.ini", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def checks(request):
    "The checks of the notebooks whose test is to run: two at a time, on one thread each."
    wanted = [item.callspec.params["path"] for item in request.session.items
              if item.nodeid.startswith(request.node.nodeid) and item.originalname == "test_stored_outputs_are_what_the_code_prints"]
    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(run, sys.executable, tool, "check", path, OMP_NUM_THREADS="1") for path in wanted}
        pool.shutdown(cancel_futures=True)  # of those that wait for their turn when a test failed and was the last


@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)
def test_stored_outputs_are_what_the_code_prints(path, checks):
    res = checks[path].result()
    assert res.returncode == 0, res.stderr[-4000:]


@pytest.mark.parametrize("stored, same", [
    ("greatest difference 2.4e-07\n", True),  # the last digits of a float depend on the processor
    ("greatest difference 2.4e-01\n", False),
    ("some difference 2.4e-07\n", False),
    ("", False),
])
def test_a_wrong_stored_output_is_found(tmp_path, stored, same):
    cell = mk_cell("print('greatest difference 1.1e-06')", "code")
    cell["outputs"] = [dict(output_type="stream", name="stdout", text=[stored])] if stored else []
    write_nb(new_nb([cell]), tmp_path / "a.ipynb")
    res = run(sys.executable, tool, "check", tmp_path / "a.ipynb")
    assert (res.returncode == 0) == same, res.stderr
    if not same: assert "out of date" in res.stderr


def test_refresh_forgets_what_a_cell_no_longer_prints(checkout):
    cell = mk_cell("x = 1", "code")
    cell["outputs"] = [dict(output_type="stream", name="stdout", text=["once\n"])]
    write_nb(new_nb([cell]), checkout / "nbs" / "a.ipynb")
    checked, refreshed = (run(sys.executable, checkout / "nbs" / "_tools" / "notebooks.py", command,
                              checkout / "nbs" / "a.ipynb", cwd=checkout) for command in ("check", "refresh"))
    assert checked.returncode != 0 and "out of date" in checked.stderr
    assert refreshed.returncode == 0, refreshed.stderr
    assert read_nb(checkout / "nbs" / "a.ipynb").cells[0].outputs == []


def test_notebooks_are_clean(checkout):
    res = run(Path(sys.executable).parent / "nbdev_clean", cwd=checkout)
    assert res.returncode == 0, res.stderr
    unclean = [p.name for p in notebooks if p.read_bytes() != (checkout / "nbs" / p.name).read_bytes()]
    assert not unclean, f"run nbdev_clean: {unclean}"


def test_modules_are_in_step_with_the_notebooks(checkout):
    for module in (checkout / "vitdet_nb").glob("*.py"): module.unlink()
    res = run(Path(sys.executable).parent / "nbdev_export", cwd=checkout)
    assert res.returncode == 0, res.stderr
    ours, fresh = ({p.name: p.read_text() for p in (folder / "vitdet_nb").glob("*.py")} for folder in (root, checkout))
    changed = [name for name in ours.keys() | fresh.keys() if ours.get(name) != fresh.get(name)]
    assert not changed, f"run nbdev_export: {changed}"


def given_tests(cells):
    "Tests `check_x` that stand in sight after 'Try it yourself', whose fold calls them and that refuse wrong answers."
    shown, solutions, away = "", "", ""
    exercises, fold = False, False
    for c in cells:
        if c.cell_type == "markdown":
            exercises = exercises or re.search("^## Try it yourself", c.source, re.M)
            fold = c.source.rfind("<details>") > c.source.rfind("</details>")
        elif exercises:
            hidden = re.search(r"^#\| *(hide|code-fold: *true|echo: *false)", c.source, re.M)
            if fold: solutions += "\n" + c.source
            if fold or hidden or c.metadata.get("jupyter", {}).get("source_hidden"): away += "\n" + c.source
            else: shown += "\n" + c.source
    return [name for name in re.findall(r"^def (check_\w+)\(\w+\):", shown, re.M)
            if re.search(rf"^{name}\(\w+\)", solutions, re.M)
            and re.search(rf"test_fail\(lambda: {name}\(.*contains=", away)]


@pytest.mark.parametrize("path", chapters, ids=lambda p: p.stem)
def test_a_chapter_has_its_parts(path):
    nb = read_nb(path)
    text = [c.source for c in nb.cells if c.cell_type == "markdown"]
    code = [c for c in nb.cells if c.cell_type == "code"]
    pictures = [o for c in code for o in c.outputs if "image/jpeg" in o.get("data", {})]
    assert 600 <= len(" ".join(text).split()) <= 1500
    assert len(pictures) >= 3
    assert sum(t.count("<summary>Solution</summary>") for t in text) == 2
    assert sum(t.count("<summary>Answer</summary>") for t in text) >= 2
    assert given_tests(nb.cells), "one exercise asks for code that a given test must accept"
    headings = [h for t in text for h in re.findall(r"^## (.*)", t, re.M)]
    assert headings[-4:] == ["What it costs", "Try it yourself", "What you can now say", "What comes next"]
    section = "\n".join(text).split("\n## What you can now say\n")[1].split("\n## ")[0]
    facts = [line for line in section.splitlines() if line.strip()]
    assert all(re.match(r"- .*\d", fact) and len(fact.split()) <= 40 for fact in facts), "short facts, with numbers"
    assert 3 <= len(facts) <= 5
    i, names = chapters.index(path), [p.name for p in chapters]
    for neighbour in names[max(0, i - 1):i] + names[i + 1:i + 2]: assert f"({neighbour})" in " ".join(text)
    assert all(not re.search(r"^(import|from) ", c.source, re.M) or not re.search(r"^(def|class|\w+ ?=|\w+\()", c.source, re.M)
               for c in code), "imports stand in cells of their own"
    assert path.stat().st_size < 1_500_000
