"The command behind chapter 10: short runs of it, one of them killed, and what it says to files and options that do not fit."
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

TOOL = ROOT / "nbs/_tools/propagation.py"
SHORT = ("quality", "--steps", 8, "--validation", 20, "--only", "none", "shifted", "--seeds", 2, "--workers", 1)


@pytest.fixture
def main(monkeypatch):
    "The command within this process, for what ends before anything is trained."
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import propagation

    def main(*args):
        monkeypatch.setattr(sys, "argv", ["propagation.py", *map(str, args)])
        with pytest.raises(SystemExit) as stop: propagation.main()
        return stop.value.code
    return main


def command(*args): return [sys.executable, str(TOOL), *map(str, args)]


def run(*args): return subprocess.run(command(*args), capture_output=True, text=True, timeout=300)


def results(folder): return json.loads((folder / "propagation_quality.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The folder of a short run that nobody stopped."
    folder = tmp_path_factory.mktemp("whole")
    done = run(*SHORT, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "4/4" in done.stderr and "accuracy by distance" in done.stderr, "no progress shown"
    return folder


def test_short_training_is_stored_with_its_settings(whole):
    data = results(whole)
    assert data["settings"]["steps"] == 8 and data["settings"]["validation"] == 20 and data["settings"]["grid"] == 12
    assert [(r["strategy"], r["seed"]) for r in data["runs"]] == [("none", 0), ("shifted", 0), ("none", 1), ("shifted", 1)]
    for r in data["runs"]:
        assert len(r["accuracy"]) == 4 and all(0 <= a <= 1 for a in r["accuracy"]) and len(r["losses"]) == 8
    assert data["machine"]["torch"] and [p.name for p in whole.iterdir()] == ["propagation_quality.json"]


def children(pid): return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_killed_run_goes_on_with_the_same_results(whole, tmp_path):
    process = subprocess.Popen(command(*SHORT, "--out", tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 120
        while not (tmp_path / "propagation_quality.json").exists():
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.02)
        workers = children(process.pid)
    finally:
        process.kill()
        process.wait()
    before = results(tmp_path)["runs"]
    assert 1 <= len(before) < 4, "it was killed too late"
    deadline = time.time() + 30
    def alive(pid):
        try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
        except OSError: return False
    while any(map(alive, workers)):
        assert time.time() < deadline, "its worker goes on without it"
        time.sleep(0.1)
    done = run(*SHORT, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 4 trainings are in" in done.stderr
    assert results(tmp_path) == results(whole)


def test_finished_run_trains_nothing(whole):
    before = (whole / "propagation_quality.json").read_bytes()
    done = run(*SHORT, "--out", whole)
    assert done.returncode == 0 and "4 of 4 trainings are in" in done.stderr
    assert (whole / "propagation_quality.json").read_bytes() == before


@pytest.mark.parametrize("text, message", [
    ('{"settings": {"steps": 3}, "runs": []}', "holds trainings with other settings"),
    ('{"settings": {}, "ru', "is damaged"),
    ('{"settings": {}, "runs": [{"strategy": "none"}]}', "is damaged"),
])
def test_a_file_that_does_not_fit_is_kept(main, tmp_path, text, message):
    path = tmp_path / "propagation_quality.json"
    path.write_text(text)
    said = main(*SHORT, "--out", tmp_path)
    assert message in said and str(path) in said
    assert path.read_text() == text


def test_cost_of_a_tiny_encoder(tmp_path):
    done = run("cost", "--model", "tiny", "--check", "tiny", "--size", 64, "--runs", 2, "--threads", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "propagation_cost.json").read_text())
    assert data["settings"] == dict(model="tiny", size=64, runs=2) and data["machine"]["threads"] == 1
    assert [(r["strategy"], r["count"]) for r in data["rows"]] == [("none", None), ("conv_bottleneck", 4), ("global", 4), ("global", 4)]
    for r in data["rows"]:
        assert r["parameters"] > 0 and r["multiply_adds"] > 0 and r["training_bytes"] > 8 * r["parameters"]
        assert len(r["auto"]["runs"]) == len(r["naive"]["runs"]) == 2 and r["auto"]["train_seconds"] > 0
    assert [(r["strategy"], r["count"]) for r in data["check"]] == [("none", None), ("global", 4)]
    assert all(r["measured_mib"] > 0 for r in data["check"])
    assert "test time" in done.stdout and "check, tiny global 4" in done.stdout


@pytest.mark.parametrize("args, message", [
    (("quality", "--steps", 0), "--steps is 0: it must be at least 1"),
    (("quality", "--validation", 7), "--validation is 7: scenes come in pairs"),
    (("quality", "--only", "all"), "invalid choice: 'all'"),
    (("cost", "--size", 100), "--size 100: a side is a multiple of 16"),
])
def test_bad_options(main, capsys, args, message):
    assert main(*args) == 2 and message in capsys.readouterr().err
