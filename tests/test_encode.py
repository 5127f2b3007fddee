"The command vitdet_encode, run as users run it: folders with bad files, interruptions, kills, several processes, errors."
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdet_nb.checkpoints import builders
from vitdet_nb.encode import draw_encoding, make_parser, output_files, read_encoding, vitdet_encode
from vitdet_nb.encoder import ViTDet
from vitdet_nb.images import sample_photo
from vitdet_nb.utils import randomize

command = Path(sys.executable).parent / "vitdet_encode"
torchrun = sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
env = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it: sums come out the same


def encode(folder, *args, program=(sys.executable, command)):
    return subprocess.run([*program, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def call(capsys, *args):
    "The same without a process of its own, in the current folder: exit status, standard output and standard error."
    try: status = vitdet_encode([str(a) for a in args])
    except SystemExit as e: status = e.code
    return status, *capsys.readouterr()


def photo(path, side=40, seed=0):
    "A small photo of noise."
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def left(out):
    "The files in a folder and below: names and bytes."
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def done(out):
    "How many photos are done. Files with a final name must be whole, a photo's picture never comes last."
    found = [p for p in out.rglob("*") if p.suffix != ".part" and p.is_file()]
    for path in found:
        if path.suffix == ".jpg": Image.open(path).load()
        else:
            features, about = read_encoding(path)
            assert features.shape == (8, 8, 8) and torch.isfinite(features).all()
            assert json.loads(Image.open(path.with_suffix(".jpg")).info["comment"]) == about
    return sum(p.suffix == ".safetensors" for p in found)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def work(tmp_path, monkeypatch):
    "The current folder, with the weights of a small encoder."
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    encoder = ViTDet(img_size=128, embed_dim=128, depth=4, num_heads=2, out_chans=8, window_size=3, global_attn_indexes=(1, 3))
    torch.save(randomize(encoder).state_dict(), tmp_path / "small.pth")
    return tmp_path


@pytest.fixture
def mixed(work):
    "A folder of good and bad files."
    for i, name in enumerate(("dog.jpg", "dog.png", "sub/dog.jpg", "sub/deep/$x^$ ü.png")): photo(work / "photos" / name, seed=i)
    (work / "photos/sub/cut.jpg").write_bytes(sample_photo().read_bytes()[:9999])
    (work / "photos/text.jpg").write_text("not a picture")
    return work


def check_mixed(err):
    "That a run over `mixed` names each bad file once, with a reason."
    assert "Traceback" not in err.partition("torch/distributed")[0], err
    assert "2 of 6 photos failed" in err
    for name in "cut.jpg", "text.jpg": assert len(re.findall(rf"^  .*{name}' is not a readable picture", err, re.M)) == 1


def test_a_folder_is_encoded_mirrored_and_skipped(mixed, capsys):
    res = encode(mixed, "photos", "--checkpoint", "small.pth", "--out", "out/here")
    assert res.returncode == 1 and "4 encoded, 0 skipped, 2 failed; output in out/here" in res.stdout
    assert "6/6" in res.stderr and "RANDOM" not in res.stderr  # progress
    check_mixed(res.stderr)
    names = "dog.jpg", "dog.png", "sub/dog.jpg", "sub/deep/$x^$ ü.png"
    first = left(mixed / "out/here")
    assert sorted(first) == sorted(n + s for n in names for s in (".jpg", ".safetensors"))
    assert done(mixed / "out") == 4

    status, out, err = call(capsys, "photos", "--checkpoint", "small.pth", "--out", "out/here")
    assert status == 1 and "0 encoded, 4 skipped, 2 failed" in out
    check_mixed(err)
    assert left(mixed / "out/here") == first


def test_several_processes_write_what_one_writes(mixed, capsys):
    args = "photos", "--checkpoint", "small.pth", "--point", "3", "4", "--size", "128", "--out"
    assert call(capsys, *args, "one")[0] == 1
    res = encode(mixed, *args, "two", program=(*torchrun, command))
    assert res.returncode == 1 and res.stdout == "4 encoded, 0 skipped, 2 failed; output in two\n"
    check_mixed(res.stderr)
    assert left(mixed / "two") == left(mixed / "one") and len(left(mixed / "two")) == 8


def test_several_processes_say_once_that_nothing_can_be_done(work):
    res = encode(work, "cat.jpg", program=(*torchrun, command))
    assert res.returncode != 0 and res.stderr.count("no photo or folder at 'cat.jpg'") == 1
    assert not (work / "features").exists()


@pytest.mark.parametrize("program", [(sys.executable,), torchrun], ids=["alone", "torchrun"])
def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(work, capsys, program):
    for i in range(20): photo(work / f"photos/{i}.png", seed=i)
    args = [*program, command, "photos", "--checkpoint", "small.pth"]
    process = subprocess.Popen(args, cwd=work, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (work / "features").exists() or len(list((work / "features").glob("*.safetensors"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    out, err = process.communicate(timeout=60)
    number = int(re.search(r"interrupted after (\d+) of \d+ photos", err)[1])
    assert not list((work / "features").glob(".*")), "no temporary file stays"
    n = done(work / "features")
    assert 2 <= n < 20
    if len(program) == 1:
        assert process.returncode == 130 and "Traceback" not in err and out == ""
        assert number == n
        status, out, err = call(capsys, "photos", "--checkpoint", "small.pth")
        assert status == 0 and f"{20 - n} encoded, {n} skipped, 0 failed" in out
    else: assert process.returncode != 0 and "encode.py" not in err, err  # torchrun shows its own traceback


def dropped():
    "Ctrl-C in a weak reference's callback, where Python drops it."
    class Watched: pass
    watched = Watched()
    reference = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGINT))
    del watched


def replaced():
    "Ctrl-C that compiled code turns into another exception."
    try: signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt: raise ValueError("invalid box") from None


@pytest.mark.parametrize("interrupt", [dropped, replaced])
def test_ctrl_c_is_heard_wherever_it_comes(work, capsys, monkeypatch, interrupt):
    for i in range(4): photo(work / f"photos/{i}.png", seed=i)
    def draw(encoding, encoder, title):
        if "2.png" in title: interrupt()
        return draw_encoding(encoding, encoder, title)
    monkeypatch.setattr("vitdet_nb.encode.draw_encoding", draw)
    status, out, err = call(capsys, "photos", "--checkpoint", "small.pth")
    n = done(work / "features")
    assert status == 130 and out == "" and "failed" not in err and "Traceback" not in err
    assert f"interrupted after {n} of 4 photos" in err and n == (3 if interrupt is dropped else 2)
    monkeypatch.undo()
    monkeypatch.chdir(work)
    status, out, err = call(capsys, "photos", "--checkpoint", "small.pth")
    assert status == 0 and f"{4 - n} encoded, {n} skipped, 0 failed" in out


# kills itself when the given share of a file is written
killed = """
import os, pathlib, signal, sys
from vitdet_nb.encode import vitdet_encode
write = pathlib.Path.write_bytes
def write_bytes(path, data):
    write(path, data[:int(len(data) * float(sys.argv[1]))])
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_bytes = write_bytes
vitdet_encode(sys.argv[2:])
"""


def test_a_kill_leaves_no_half_written_file(work, capsys):
    for i in range(2): photo(work / f"photos/{i}.png", seed=i)
    args = "photos", "--checkpoint", "small.pth"
    res = encode(work, "0.5", *args, program=(sys.executable, "-c", killed))
    assert res.returncode == -signal.SIGKILL
    assert sorted(left(work / "features")) == [".0.png.safetensors.part", "0.png.jpg"]
    assert done(work / "features") == 0
    status, out, err = call(capsys, *args)
    assert status == 0 and "2 encoded, 0 skipped" in out
    assert done(work / "features") == 2 and len(left(work / "features")) == 4


def test_what_is_asked_for_decides_what_is_done_again(work, capsys):
    photo(work / "a.png")
    def run(*args, path="a.png"): return call(capsys, path, "--checkpoint", "small.pth", *args)[1].split(";")[0]
    once, again = "1 encoded, 0 skipped, 0 failed", "0 encoded, 1 skipped, 0 failed"
    assert [run(), run(), run("--size", 128)] == [once, again, again]  # 128 is the default
    assert [run("--size", 99), run("--size", 99), run("--size", 128)] == [once, again, once]
    assert [run("--point", 1, 2), run("--point", 1, 2), run("--point", 2, 1)] == [once, again, once]
    os.utime("a.png", (1, 1))
    assert run("--point", 2, 1) == again
    photo(work / "a.png", seed=1)
    assert run("--point", 2, 1) == once
    weights = torch.load("small.pth")
    torch.save(weights, "copy.pth", _use_new_zipfile_serialization=False)  # the same in other bytes
    assert run("--point", 2, 1, "--checkpoint", "copy.pth") == again
    weights["neck.2.weight"][0, 0, 0, 0] += 1
    torch.save(weights, "copy.pth")
    assert run("--point", 2, 1, "--checkpoint", "copy.pth") == once


def test_random_weights_are_called_so_in_capitals_and_are_the_same_each_time(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "a.png")
    torch.manual_seed(5)
    status, out, err = call(capsys, "a.png", "--size", "64", "--model", "vitdet_b")
    assert status == 0 and "THE WEIGHTS ARE RANDOM: vitdet_b" in err
    features, about = read_encoding("features/a.png.safetensors")
    assert about["random_weights"] is True and about["model"] == "vitdet_b" and features.shape == (768, 4, 4)
    res = encode(tmp_path, "a.png", "--size", "64", "--model", "vitdet_b")
    assert res.returncode == 0 and "THE WEIGHTS ARE RANDOM: vitdet_b" in res.stderr and "1 skipped" in res.stdout


def test_published_weights_are_fetched_by_name(work, capsys, monkeypatch):
    photo(work / "a.png")
    asked = []
    monkeypatch.setattr("vitdet_nb.encode.download", lambda name: asked.append(name) or work / "small.pth")
    status, out, err = call(capsys, "a.png", "--download", "sam_vit_b")
    assert status == 0 and asked == ["sam_vit_b"] and "RANDOM" not in err
    assert read_encoding("features/a.png.safetensors")[1]["model"] == "small.pth"


def test_the_end_of_another_process_is_said_in_one_line(work, capsys, monkeypatch):
    class Barrier:
        def is_completed(self): return True
        def wait(self): raise RuntimeError("[pair.cc:561]\nConnection closed by peer")

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.barrier", lambda async_op: Barrier())
    status, out, err = call(capsys, work / "a.png")
    assert status == 1 and err == "vitdet_encode: another process has died; the same command goes on from what is done\n"


def test_no_process_leaves_before_the_first_has_spoken(work, capsys, monkeypatch):
    photo(work / "a.png")
    for args, said in (("a.png", "--checkpoint", "small.pth"), "1 encoded"), (("b.png",), "no photo or folder at 'b.png'"):
        told = []
        monkeypatch.setattr("vitdet_nb.encode.gather", lambda thing: told.append((thing, "".join(capsys.readouterr()))) or [thing])
        call(capsys, *args)
        assert told[-1][0] is None and said in told[-1][1]


def test_help_names_every_option(capsys):
    status, out, err = call(capsys, "--help")
    assert status == 0 and err == ""
    options = [s for a in make_parser()._actions for s in a.option_strings]
    assert {"--model", "--checkpoint", "--download", "--out", "--size", "--point"} < set(options)
    for text in [*options, *builders, "PHOTO|FOLDER", "torchrun", "exit status"]: assert text in out
    assert all(a.help for a in make_parser()._actions)


errors = {
    "": "required: PHOTO|FOLDER",
    "cat.jpg": "no photo or folder at 'cat.jpg'",
    "empty": "no picture in 'empty'",
    "a.png --model vit_b": "invalid choice: 'vit_b'",
    "a.png --download vit_b": "vit_b",
    "a.png --model sam_vit_b --checkpoint small.pth": "not allowed with",
    "a.png --download sam_vit_b --checkpoint small.pth": "not allowed with",
    "a.png --checkpoint none.pth": "none.pth",
    "a.png --checkpoint a.png": "a.png",
    "a.png --checkpoint small.pth --size 9": "--size 9 is smaller than a patch of 16",
    "a.png --checkpoint small.pth --size 0": "--size 0 is smaller than a patch of 16",
    "a.png --size large": "invalid int value: 'large'",
    "a.png --point 3": "expected 2 arguments",
    "a.png --out small.pth": "'small.pth' is a file",
    "a.png --out small.pth/deeper": "'small.pth' is a file",
    "photos --out photos": "holds the photos",
}


@pytest.mark.parametrize("line", errors)
def test_what_is_wrong_before_the_first_photo_is_said_in_one_line(work, capsys, monkeypatch, line):
    monkeypatch.setenv("TORCH_HOME", str(work / "hub"))
    photo(work / "a.png")
    photo(work / "photos/b.png")
    (work / "empty").mkdir()
    before = left(work)
    status, out, err = call(capsys, *line.split())
    said = re.sub(r"\r\d+ pictures\n", "", err).splitlines()
    assert status == 2 and out == "" and len(said) == 1
    assert said[0].startswith("vitdet_encode: ") and errors[line] in said[0]
    assert left(work) == before


def test_a_point_outside_fails_that_photo_alone(work, capsys):
    photo(work / "photos/small.png", side=20)
    photo(work / "photos/large.png", side=90)
    status, out, err = call(capsys, "photos", "--checkpoint", "small.pth", "--point", 80, 10)
    assert status == 1 and "1 encoded, 0 skipped, 1 failed" in out
    assert "photos/small.png: the point 80 10 is outside the photo, which is 29 pixels wide and 20 high" in err
    assert read_encoding(output_files("features/large.png")[0])[1]["point"] == [80, 10]


def test_the_folder_of_the_output_may_lie_among_the_photos(work, capsys):
    photo(work / "a.png")
    for counts in "1 encoded, 0 skipped, 0 failed", "0 encoded, 1 skipped, 0 failed":
        status, out, err = call(capsys, ".", "--checkpoint", "small.pth")
        assert status == 0 and counts in out
    assert len(left(work / "features")) == 2
