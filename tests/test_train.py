"The command vitdet_train, run as users run it: kills, interruptions, several processes, bad input, full disks."
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from vitdet_nb import train
from vitdet_nb.checkpoints import save_checkpoint
from vitdet_nb.coco import CocoDataset, draw_coco
from vitdet_nb.encode import start_processes
from vitdet_nb.train import (NotFinite, Trainer, load_detector, make_parser, make_settings, read_columns, recipes, tiny,
                             vitdet_train)
from vitdet_nb.utils import randomize

command = Path(sys.executable).parent / "vitdet_train"
# a server that has imported the library: a process of its own starts at once
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["vitdet_nb.train", "pytest", "vitdet_nb.checkpoints"])

short = "shapes", "--size", "64", "--batch-size", "2", "--save-every", "2", "--eval-every", "3"  # 4 steps an epoch
results = "log.csv", "metrics.csv", "detector.safetensors", "curves.jpg", "detections.jpg"


def quick(put=setattr):
    "Replace what takes time by something small of the same kind: the model, and the pictures by what they are drawn from."
    model = dict(encoder=partial(tiny, embed_dim=32, depth=2, global_attn_indexes=(1,)), pyramid=dict(out_channels=16, scales=(2, 1)), drop_path=0.3)
    put(train, "recipes", train.recipes | {"tiny": train.recipes["tiny"] | model})
    put(train, "draw_curves", lambda out: train.write_whole(
        out / "curves.jpg", lambda part: part.write_text("".join(p.read_text() for p in (out / "log.csv", out / "metrics.csv") if p.exists()))))
    def draw_detections(path, model, dataset):
        found = train.detect(model.eval(), dataset[0][0])["scores"].tolist()
        train.write_whole(path, lambda part: part.write_text(str(found)))
    put(train, "draw_detections", draw_detections)


def inside(work, name, environ, act, args):
    "What a process of its own does: `act`, or else the command."
    os.setsid()
    os.chdir(work)
    os.environ.update(environ)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loaders: the server's way is slower
    quick()
    for number, ending in (1, "out"), (2, "err"): os.dup2(os.open(f"{name}.{ending}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.exit(act(*args) if act else vitdet_train([str(a) for a in args]))


class Process:
    "A process of its own, in a session of its own."
    def __init__(self, work, *args, act=None, environ=None, name="child"):
        self.files = [work / f"{name}.{ending}" for ending in ("out", "err")]
        self.process = context.Process(target=inside, args=(work, name, environ or {}, act, args))
        self.process.start()

    def end(self, timeout=300):
        "Exit status, standard output and standard error."
        self.process.join(timeout)
        status = self.process.exitcode
        if status is None: os.killpg(self.process.pid, signal.SIGKILL)
        return status, *(path.read_text() for path in self.files)

    def signal(self, number): os.killpg(self.process.pid, number)


def own(work, *args, **kwargs): return Process(work, *args, **kwargs).end()


def pair(work, *args, act=None):
    "Two processes that train together: for each, what `Process.end` returns."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environ = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    processes = [Process(work, *args, act=act, environ=environ | dict(RANK=str(r), LOCAL_RANK=str(r)), name=f"rank{r}") for r in (0, 1)]
    return [p.end() for p in processes]


def call(capsys, *args):
    "The command in this process, in the current folder: exit status, standard output, and what it said, without its bar."
    try: status = vitdet_train([str(a) for a in args])
    except SystemExit as e: status = e.code
    out, err = capsys.readouterr()
    return status, out, said(err)


def said(err):
    "The lines that the command said; nothing else may be there but the bars."
    assert "Traceback" not in err, err
    return [line for line in re.split("[\r\n]", err) if line.strip() and not re.search(r"\d+/\d+ \[|\?(step|picture)|\x1b", line)]


def left(folder):
    "The files in a folder and below, but for the lock: names and bytes."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def same(run, other):
    "That two trainings have come to the same, to the last byte."
    for name in results: assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(left(run)) == sorted([*results, "last.pth"])


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    quick(monkeypatch.setattr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A folder with a data set, `shapes`, and a training that nothing has interrupted, `run`."
    work = tmp_path_factory.mktemp("train")
    draw_coco(work / "shapes", train=8, val=3, size=64)
    status, out, err = own(work, *short, "--epochs", 1)
    assert status == 0, err
    return work


@pytest.fixture
def work(finished, tmp_path, monkeypatch):
    "The current folder, with the same data set."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(finished / "shapes")
    return tmp_path


@pytest.fixture
def copied(work):
    "The same, with a data set that may be changed."
    (work / "shapes").unlink()
    draw_coco(work / "shapes", train=4, val=2, size=64)
    return work


def annotations(work, split="train"):
    path = work / f"shapes/annotations/instances_{split}.json"
    return path, json.loads(path.read_text())


def change(work, edit, split="train"):
    path, content = annotations(work, split)
    edit(content)
    path.write_text(json.dumps(content))


# ---- to the end ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(finished, tmp_path_factory):
    "The command as it is, with the recipe as it is: the folder where it ran, and how it ended."
    work = tmp_path_factory.mktemp("real")
    (work / "shapes").symlink_to(finished / "shapes")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = [sys.executable, command, *short, "--epochs", "1"]
    return work, subprocess.run(args, cwd=work, env=env, capture_output=True, text=True, timeout=400)


def test_the_command_trains_to_the_end_and_then_leaves_all_as_it_is(real, capsys, monkeypatch):
    work, res = real
    assert res.returncode == 0 and re.fullmatch(r"box AP \d+\.\d, box AP50 .*, mask AP .*, mask AP75 \d+\.\d\n", res.stdout)
    assert "4/4" in res.stderr and "vitdet_train: the encoder begins with RANDOM WEIGHTS" in said(res.stderr)
    assert sorted(left(work / "run")) == sorted([*results, "last.pth"])
    log, metrics = (read_columns(work / f"run/{name}.csv") for name in ("log", "metrics"))
    assert log["step"] == [1, 2, 3, 4] and log["epoch"][-1] == 1 and metrics["step"] == [3, 4]
    assert all(Image.open(work / "run" / name).size[0] > 900 for name in ("curves.jpg", "detections.jpg"))
    assert all(Image.open(work / "run" / name).convert("L").getextrema()[0] < 100 for name in ("curves.jpg", "detections.jpg"))
    def stamps(): return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (work / "run").iterdir() if p.name != ".lock"}
    monkeypatch.undo()  # the recipe as it is
    monkeypatch.chdir(work)
    before = stamps()
    status, out, lines = call(capsys, *short, "--epochs", "1")
    assert status == 0 and out == res.stdout and lines[-1] == "vitdet_train: 'run' is trained to the end: another training needs another --out"
    assert stamps() == before


def test_the_detector_is_read_back_and_finds_what_it_found(finished):
    model, classes = load_detector(finished / "run/detector.safetensors")
    state = torch.load(finished / "run/last.pth")
    assert classes == ["disc", "square", "triangle", "ring"] == state["classes"]
    assert all(torch.equal(p, state["model"][name]) for name, p in model.state_dict().items())
    metrics = train.evaluate(model, CocoDataset(finished / "shapes", "val"), progress=False)
    logged = read_columns(finished / "run/metrics.csv")
    assert all(abs(logged[name][-1] - value) < 1e-4 for name, value in metrics.items() if value == value)


def test_boxes_and_half_precision(work, finished, capsys):
    args = *short, "--epochs", "0.75"  # 3 steps
    assert call(capsys, *args, "--out", "boxes", "--boxes")[0] == 0
    log, metrics = (read_columns(work / f"boxes/{name}.csv") for name in ("log", "metrics"))
    assert "loss_mask" not in log and "mask AP" not in metrics and "loss_box_reg" in log
    assert type(load_detector("boxes/detector.safetensors")[0]).__name__ == "FasterRCNN"
    assert call(capsys, *args, "--out", "half", "--half")[0] == 0
    half, full = (torch.tensor(read_columns(out / "log.csv")["loss"][:2]) for out in (work / "half", finished / "run"))
    assert not torch.equal(half, full) and torch.allclose(half, full, rtol=0.02)  # bfloat16: 8 bits


def test_a_checkpoint_fills_the_encoder(work, capsys):
    encoder = randomize(train.recipes["tiny"]["encoder"]())
    save_checkpoint(encoder, work / "encoder.safetensors")
    args = make_parser().parse_args([*short, "--checkpoint", "encoder.safetensors"])
    args.out = work / "untrained"
    net = train.set_up(args).model.backbone.net.state_dict()
    assert net.keys() == encoder.state_dict().keys()
    for name, value in encoder.state_dict().items(): assert torch.equal(net[name], value), name
    status, out, lines = call(capsys, *short, "--epochs", "0.1", "--checkpoint", "encoder.safetensors")
    assert status == 0 and "RANDOM" not in str(lines) and any(re.match(r"(loaded|renamed) +\d+", line) for line in lines)
    (work / "encoder.safetensors").unlink()  # a training that has begun needs it no more
    assert call(capsys, *short, "--epochs", "0.1", "--checkpoint", "encoder.safetensors")[0] == 0
    save_checkpoint(tiny(embed_dim=64), work / "narrow.pth")
    for name, reason in ("narrow.pth", "'narrow.pth'"), ("none.pth", "none.pth"):
        status, out, lines = call(capsys, *short, "--out", "other", "--checkpoint", name)
        assert status == 2 and len(lines) == 1 and reason in lines[0] and not (work / "other").exists()


# ---- interruptions -------------------------------------------------------------------------------


def die(): os.kill(os.getpid(), signal.SIGKILL)


def kill_at(what, name, number, *args):
    "Train, and be killed when `name` of the module `train` is called for the n-th time: before it runs, or after it."
    real, calls = getattr(train, name), []
    def replaced(*a, **k):
        calls.append(name)
        if what == "before" and len(calls) == number: die()
        result = real(*a, **k)
        if what == "after" and len(calls) == number: die()
        return result
    setattr(train, name, replaced)
    return vitdet_train([str(a) for a in args])


def kill_in_half_a_file(share, number, *args):
    "Train, and be killed when a part of the n-th file that is written whole is there."
    real, calls = train.write_whole, []
    def half(path, write):
        def cut(part):
            calls.append(path)
            write(part)
            if len(calls) == number:
                os.truncate(part, int(part.stat().st_size * share))
                die()
        real(path, cut)
    train.write_whole = half
    return vitdet_train([str(a) for a in args])


kills = {  # checkpoints after steps 2, 3 and 4, evaluations of three pictures after 3 and 4
    "before the first checkpoint": (kill_at, "after", "add_row", 1),
    "after a row of the log": (kill_at, "after", "add_row", 3),
    "between the evaluation and its row": (kill_at, "after", "evaluate", 1),
    "between that row and the checkpoint": (kill_at, "after", "add_row", 4),
    "in the evaluation": (kill_at, "before", "detect", 2),
    "after a checkpoint, before its curves": (kill_at, "after", "save_state", 2),
    "with a half-written second checkpoint": (kill_in_half_a_file, 0.5, 3),  # after the first and its curves
    "at the end, before the last checkpoint": (kill_at, "before", "save_state", 3),
    "at the end, before the pictures": (kill_at, "before", "draw_detections", 1),
    "at the end, with a half-written detector": (kill_in_half_a_file, 0.9, 9),
}


@pytest.mark.parametrize("kill", kills)
def test_a_killed_training_goes_on_to_the_same_bytes(work, finished, kill):
    act, *how = kills[kill]
    args = *short, "--epochs", 1, *(("--workers", 1) if "row of" in kill else ())
    assert own(work, *how, *args, act=act)[0] == -signal.SIGKILL
    assert not (work / "run/detector.safetensors").exists()
    assert ("half" in kill) == bool(list((work / "run").glob(".*.part")))
    status, out, err = own(work, *args)
    assert status == 0, err
    same(work / "run", finished / "run")


def test_a_log_that_was_cut_short_is_begun_anew(tmp_path):
    log = tmp_path / "log.csv"
    for text in "", "step,lo", "step,loss\n1,0.1":
        log.write_text(text)
        train.keep_rows(log, 0)
        assert not log.exists()
    log.write_text("step,loss\n1,0.5\n2,0.25\n3,0.12")  # killed within the third row
    train.keep_rows(log, 3)
    assert log.read_text() == "step,loss\n1,0.5\n2,0.25\n"
    train.keep_rows(log, 1)
    assert log.read_text() == "step,loss\n1,0.5\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_is_said_in_one_line_and_the_same_command_goes_on(work, finished, workers):
    args = *short, "--epochs", 1, "--workers", workers
    process = Process(work, *args)
    while not (work / "run/log.csv").exists(): time.sleep(0.01)
    process.signal(signal.SIGINT)  # as a terminal does: to all processes
    status, out, err = process.end()
    assert status == 130 and said(err)[-1] == "vitdet_train: interrupted; the same command goes on from the last checkpoint"
    assert not list((work / "run").glob("*.part"))
    assert own(work, *args)[0] == 0
    same(work / "run", finished / "run")


def test_other_settings_do_not_go_on(work, finished, capsys):
    shutil.copytree(finished / "run", work / "run")
    before = left(work / "run")
    for args, named in {("--lr", "0.002"): "lr 0.001, now 0.002", ("--seed", "1"): "seed 0, now 1", ("--boxes",): "masks True, now False",
                        ("--size", "80"): "size 64, now 80", ("--half",): "half False, now True"}.items():
        status, out, lines = call(capsys, *short, "--epochs", 1, *args)
        assert status == 2 and lines == [f"vitdet_train: 'run/last.pth' was trained with {named}: give the same, or another --out"]
    (work / "shapes").unlink()
    shutil.copytree(finished / "shapes", work / "shapes")
    change(work, lambda c: c["annotations"][0].update(bbox=[1, 1, 9, 9]))
    status, out, lines = call(capsys, *short, "--epochs", 1)
    assert status == 2 and "annotations '" in lines[0]
    assert left(work / "run") == before


def test_a_damaged_checkpoint(work, finished, capsys):
    whole = (finished / "run/last.pth").read_bytes()
    torch.save(dict(model=1), work / "other.pth")
    for content in b"", whole[:5000], whole[:-7000], b"text", (work / "other.pth").read_bytes():
        (work / "run").mkdir(exist_ok=True)
        (work / "run/last.pth").write_bytes(content)
        status, out, lines = call(capsys, *short, "--epochs", 1)
        assert status == 2 and len(lines) == 1 and "'run/last.pth'" in lines[0] and "delete it to begin anew, or give another --out" in lines[0]
        assert left(work / "run") == {"last.pth": content}
    (work / "run/last.pth").rename(work / "run/detector.safetensors")
    status, out, lines = call(capsys, *short, "--epochs", 1)
    assert status == 2 and lines == ["vitdet_train: 'run' holds a detector without its last.pth: give another --out"]


class Hasty(FileLock):
    "Waits for a tenth of a second only."
    def acquire(self, timeout=None): return super().acquire(timeout=0.1)


def test_two_commands_do_not_write_to_one_folder(work, capsys, monkeypatch):
    monkeypatch.setattr(train, "FileLock", Hasty)
    (work / "run").mkdir()
    with FileLock(work / "run/.lock"): status, out, lines = call(capsys, *short, "--epochs", 1)
    assert status == 2 and lines == ["vitdet_train: another vitdet_train writes to 'run': wait for it, or give another --out"]
    assert left(work / "run") == {}


# ---- several processes ---------------------------------------------------------------------------


def gradients_of_a_step(path):
    "Save the gradients of the first step of a training."
    rank, world = start_processes()
    args = make_parser().parse_args([*short, "--batch-size", "4"])
    trained, held_out = (CocoDataset(args.data, split) for split in ("train", "val"))
    trainer = Trainer(make_settings(args, trained), trained, held_out, Path("none"))
    trainer.join()
    row = trainer.advance(next(trainer.batches()))
    if rank == 0: torch.save([row, {name: p.grad for name, p in trainer.model.named_parameters()}], path)
    train.gather(None)
    return 0


def test_two_processes_have_the_gradients_of_one(work):
    assert own(work, "one.pth", act=gradients_of_a_step)[0] == 0
    assert [r[0] for r in pair(work, "two.pth", act=gradients_of_a_step)] == [0, 0]
    (row, one), (row2, two) = (torch.load(work / name) for name in ("one.pth", "two.pth"))
    assert one.keys() == two.keys() and len(one) > 70
    for name, g in one.items(): assert (two[name] - g).norm() <= 1e-5 * g.norm() and g.norm() > 0, name
    assert all(abs(row[name] - row2[name]) <= 1e-6 * abs(row[name]) for name in row)


def test_torchrun_trains_as_one_process_does(work, real):
    torchrun = sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    res = subprocess.run([*torchrun, command, *short, "--epochs", "1"], cwd=work, env=env, capture_output=True, text=True, timeout=400)
    assert res.returncode == 0 and res.stdout.count("box AP50") == 1, res.stderr
    assert res.stderr.count("RANDOM WEIGHTS") == 1
    one, two = (read_columns(out / "run/log.csv") for out in (real[0], work))
    assert one["step"] == two["step"] and one.keys() == two.keys()
    for i, (a, b) in enumerate(zip(one["loss"], two["loss"])): assert abs(a - b) <= (1e-5 if i < 2 else 1e-2) * a, i
    one, two = (read_columns(out / "run/metrics.csv") for out in (real[0], work))
    assert all(abs(a - b) < 0.5 for name in ("box AP", "mask AP") for a, b in zip(one[name], two[name]))


def test_processes_that_cannot_share_a_step_say_so_once(work):
    ends = pair(work, *short, "--batch-size", 3)
    assert [e[0] for e in ends] == [2, 2]
    assert [said(e[2]) for e in ends] == [["vitdet_train: 2 processes cannot share 3 pictures of a step evenly: give --batch-size a multiple of 2"], []]
    assert not (work / "run").exists()


def bad_in_the_second(what, *args):
    "Train where something goes wrong in the second process alone, at its second step."
    second, real, calls = os.environ.get("RANK") == "1", train.accumulate, []
    def accumulate(model, batch, *a, **k):
        calls.append(0)
        if second and len(calls) == 2 and what == "nan": batch = [(batch[0][0], batch[0][1] * float("nan"), batch[0][2]), *batch[1:]]
        if second and len(calls) == 2 and what == "memory": raise RuntimeError("can't allocate memory")
        if second and len(calls) == 2 and what == "kill": die()
        return real(model, batch, *a, **k)
    train.accumulate = accumulate
    if second and what == "picture": train.CocoDataset.read = lambda self, i: (_ for _ in ()).throw(train.CocoError(f"image {i} is broken"))
    return vitdet_train([str(a) for a in args])


@pytest.mark.parametrize("what", ["nan", "picture", "memory", "kill"])
def test_what_goes_wrong_in_one_process_ends_both(work, what):
    first, second = pair(work, what, *short, "--epochs", 1, "--save-every", 1, act=bad_in_the_second)
    lines, others = said(first[2])[3:], said(second[2])  # after two notes and the weights
    if what == "nan":
        assert first[0] == second[0] == 1 and len(lines) == 1 and others == []
        assert re.match(r"vitdet_train: stopped after step 1: step 2 is not finite \(loss_\w+ nan for image \d+", lines[0])
        assert lines[0].endswith("'run/last.pth' keeps step 1")
    elif what == "picture":
        assert first[0] == second[0] == 1 and len(lines) == 1 and others == []
        assert re.fullmatch(r"vitdet_train: stopped after step 0: image \d+ is broken; nothing was saved yet", lines[0])
    else:
        assert first[0] == 1 and lines == ["vitdet_train: stopped after step 1: another process has died; 'run/last.pth' keeps step 1"]
        if what == "memory": assert second[0] == 1 and others == [lines[0].replace("another process has died", "can't allocate memory")]


# ---- what can go wrong ---------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(work, capsys):
    args = *short, "--epochs", 1, "--save-every", 1, "--lr", "1e9"
    status, out, lines = call(capsys, *args)
    found = re.fullmatch(r"vitdet_train: stopped after step (\d): step (\d) is not finite \((loss_.* for image \d+|loss [^,]*, greatest gradient (nan|inf)).*\): "
                         r"a lower --lr may help; 'run/last.pth' keeps step (\d)", lines[-1])
    assert status == 1 and found and out == "" and int(found[2]) == int(found[1]) + 1
    step = int(found[1])
    assert step >= 1 and read_columns(work / "run/log.csv")["step"] == list(range(1, step + 1))
    state = torch.load("run/last.pth")
    assert state["step"] == step and all(p.isfinite().all() for p in state["model"].values())
    before = left(work / "run")
    assert call(capsys, *args)[0] == 1 and left(work / "run") == before  # it goes on from there, to the same end


def test_a_gradient_that_is_not_finite_changes_nothing(work):
    args = make_parser().parse_args([*short])
    trainer = train.set_up(args)
    p = trainer.model.roi_heads.box_predictor.cls_score.weight
    p.register_hook(lambda g: g * float("inf"))
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    with pytest.raises(NotFinite, match=r"step 1 is not finite \(loss \d\.\d+, greatest gradient (nan|inf)\)"): trainer.advance(next(trainer.batches()))
    assert trainer.step == 0 and all(torch.equal(x, before[name]) for name, x in trainer.model.state_dict().items())


def full_disk(*args):
    "Train; once the first checkpoint is there, no file may be larger than 100 kB."
    real = train.draw_curves
    def draw_curves(out):
        real(out)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    train.draw_curves = draw_curves
    return vitdet_train([str(a) for a in args])


def test_a_full_disk_leaves_the_checkpoint_before(work, finished):
    status, out, err = own(work, *short, "--epochs", 1, act=full_disk)
    assert status == 1 and re.fullmatch(r"vitdet_train: stopped after step 3: 'run/last.pth' cannot be written, is the disk full\? .*; "
                                        r"'run/last.pth' keeps step 2", said(err)[-1])
    assert sorted(left(work / "run")) == ["curves.jpg", "last.pth", "log.csv", "metrics.csv"]
    assert torch.load(work / "run/last.pth")["step"] == 2
    assert own(work, *short, "--epochs", 1)[0] == 0
    same(work / "run", finished / "run")


def first_image(content): return content["images"][0]


def outside(content): content["annotations"][0]["bbox"] = [50, 50, 400, 20]


def unlisted(content): content["annotations"][0]["category_id"] = 77


def missing(content): first_image(content)["file_name"] = "cat.jpg"


@pytest.mark.parametrize("edit,expected", [
    (outside, r"annotation \d+ of image \d+, '\d+.jpg', .*bbox \[50, 50, 400, 20\]: it reaches \d+ pixels outside: correct it, or remove"),
    (unlisted, r"annotation \d+ of image \d+ has category_id 77, which is not listed under categories: add it there, or correct it"),
    (missing, r"image \d+: no file at 'shapes/\w+/cat.jpg': add it, or remove the image from the list"),
])
def test_what_is_wrong_with_annotations_is_said_before_the_first_step(copied, capsys, edit, expected):
    for split in "val", "train":
        change(copied, edit, split)
        status, out, lines = call(capsys, *short)
        assert status == 2 and len(lines) == 1 and re.search(expected, lines[0]) and f"instances_{split}.json" in lines[0]
        assert not (copied / "run").exists()


def test_several_problems_have_a_line_each(copied, capsys):
    change(copied, outside)
    change(copied, missing)
    status, out, lines = call(capsys, *short)
    assert status == 2 and len(lines) == 3 and "has 2 problems:" in lines[0] and all(line.startswith("- ") for line in lines[1:])


def test_an_empty_file_and_a_picture_without_objects(copied, capsys):
    content = annotations(copied)[1]
    image = first_image(content)
    change(copied, lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != image["id"]]))
    status, out, lines = call(capsys, *short, "--epochs", 1)
    assert status == 0 and any(re.match(r"vitdet_train: note on instances_train.json: pictures without objects: \d of 4", line) for line in lines)
    (copied / "shapes/train" / image["file_name"]).write_bytes(b"")
    status, out, lines = call(capsys, *short, "--epochs", 2, "--out", "run2")
    assert status == 2 and len(lines) == 1 and re.search(r"image \d+: 'shapes/train/\d+.jpg' has 0 bytes: copy it again", lines[0])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_turns_out_broken(copied, capsys, workers, split):
    path = copied / "shapes" / split / first_image(annotations(copied, split)[1])["file_name"]
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    args = *short, "--epochs", 1, "--save-every", 1, "--workers", workers
    status, out, lines = call(capsys, *args)
    assert status == 1 and out == ""
    assert re.search(rf"stopped after step [0-2]: image \d+: 'shapes/{split}/{path.name}' is not a readable picture, perhaps truncated: ", lines[-1])
    path.write_bytes(whole)
    assert call(capsys, *args)[0] == 0


errors = {
    "": "required: DATA",
    "none": "no folder at 'none': check the path, or let --draw make one with pictures of shapes",
    "shapes/train": "no annotations in 'shapes/train'",
    "text --draw": "no folder at 'text'",
    "shapes --out text": "'text' is a file",
    "shapes --out text/deeper": "'text' is a file",
    "shapes --size 0": "--size: '0' is no whole number from 16 up",
    "shapes --size 64.5": "--size: '64.5' is no whole number from 16 up",
    "shapes --batch-size -1": "--batch-size: '-1' is no whole number from 1 up",
    "shapes --workers -1": "--workers: '-1' is no whole number from 0 up",
    "shapes --epochs 0": "--epochs: '0' is no number above 0",
    "shapes --lr nan": "--lr: 'nan' is no number above 0",
    "shapes --lr fast": "--lr: 'fast' is no number above 0",
    "shapes --model vit": "invalid choice: 'vit'",
    "shapes --train dev": "no split 'dev' in 'shapes': it has train, val",
    "shapes --model vitdet_b --checkpoint text": "'text' is no checkpoint",
}


@pytest.mark.parametrize("line", errors)
def test_what_is_wrong_before_the_first_step_is_said_in_one_line(work, capsys, line):
    (work / "text").write_text("text")
    before = sorted(work.iterdir())
    status, out, lines = call(capsys, *line.split())
    assert status == 2 and out == "" and len(lines) == 1 and lines[0].startswith("vitdet_train: ") and errors[line] in lines[0]
    assert sorted(work.iterdir()) == before


def test_categories_of_both_splits_must_agree(copied, capsys):
    change(copied, lambda c: c["categories"].append(dict(id=99, name="star")), "val")
    status, out, lines = call(capsys, *short)
    assert status == 2 and "the categories differ: disc, square, triangle, ring to train on, disc, square, triangle, ring, star" in lines[0]


def kill_while_drawing(*args):
    real = Image.Image.save
    Image.Image.save = lambda self, path, **k: die() if "val" in str(path) else real(self, path, **k)
    return vitdet_train([str(a) for a in args])


def test_a_set_is_drawn_whole_or_not_at_all_and_never_over_another(work, monkeypatch, capsys):
    monkeypatch.setattr(train, "draw_coco", partial(draw_coco, train=4, val=2, size=64))
    args = "drawn", "--draw", *short[1:], "--epochs", 0.5
    assert own(work, *args, act=kill_while_drawing)[0] == -signal.SIGKILL and not (work / "drawn").exists()
    assert call(capsys, *args)[0] == 0 and len(left(work / "drawn")) == 8 and not (work / ".drawn.part").exists()
    before = left(work / "drawn")
    assert call(capsys, *args, "--out", "run2")[0] == 0 and left(work / "drawn") == before
    assert (work / "run/log.csv").read_bytes() == (work / "run2/log.csv").read_bytes()


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit): vitdet_train(["--help"])
    out = capsys.readouterr().out
    options = [s for a in make_parser()._actions for s in a.option_strings]
    assert {"--out", "--draw", "--checkpoint", "--half", "--eval-every"} < set(options)
    for text in [*options, *recipes, "DATA", "torchrun", "exit status", "last.pth"]: assert text in out
    assert all(a.help for a in make_parser()._actions)
