"""The measurements of chapter 10: what it costs to let information cross windows, and what it brings.

    python nbs/_tools/propagation.py quality    # small encoders on drawn scenes, each strategy from several seeds: about 40 minutes
    python nbs/_tools/propagation.py cost       # ViT-L at 1024 px, each strategy: about 15 minutes, an idle machine, 12 GB
    python nbs/_tools/propagation.py encoder    # one small encoder, its weights kept: about a minute
    python nbs/_tools/propagation.py            # all three

They write propagation_quality.json, propagation_cost.json and small_global.safetensors into nbs/images, where the chapter
and the interactive figures read them. Each finished training is written at once; a run that was stopped goes on where it was.
"""
import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from bench import MiB, Worker, available, device, images, machine, peak_of, photo_of, ratio, say, timed
from vitdet_nb.ablations import Task, accuracy, cost_of, propagation_encoder, train_small
from vitdet_nb.utils import randomize
from vitdet_nb.weight_files import write_weights, write_whole

# ---- quality ------------------------------------------------------------------------------------------------------------

variants = [  # strategy, count, place: what the paper's Table 2 compares
    ("none", None, "even"), ("global", 4, "even"), ("conv_bottleneck", 4, "even"), ("shifted", 4, "even"),
    ("conv_basic", 4, "even"), ("conv_naive", 4, "even"), ("global", 2, "even"), ("global", 8, "even"),
    ("global", 4, "first"), ("global", 4, "last"),
]


def key_of(row): return tuple(row[k] for k in ("strategy", "count", "place", "seed"))


def order(row):
    "By seed, then as in `variants`: whatever order the trainings end in, the file is the same."
    *variant, seed = key_of(row)
    return seed, variants.index(tuple(variant))


def start_worker(threads):
    "In each process of the pool: its threads, and its end when the process that made it is gone."
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def training(strategy, count, place, seed, task):
    "One training as a row of the file."
    model, losses = train_small(strategy, count, place, seed, task)
    parts = torch.tensor(losses).tensor_split(min(20, len(losses)))
    return dict(strategy=strategy, count=count, place=place, seed=seed, accuracy=[round(a, 4) for a in accuracy(model, task)],
                losses=[round(part.mean().item(), 4) for part in parts])


def read_results(path, task):
    "What is there already; stops if it was trained in another way."
    if not path.exists(): return dict(machine=machine(1), settings=task._asdict(), runs=[])
    try:
        data = json.loads(path.read_text())
        settings, _ = data["settings"], [order(row) for row in data["runs"]]
    except (ValueError, KeyError, TypeError) as e: sys.exit(f"{path} is damaged ({e!r}): delete it to train anew")
    if settings != task._asdict():
        sys.exit(f"{path} holds trainings with other settings, {settings}: delete it, or give another --out")
    return data


def task_of(args):
    return Task()._replace(steps=args.steps, validation=args.validation, warmup=max(1, min(Task().warmup, args.steps // 2)))


def quality(args):
    "Train what is not in the file yet, a process for each training, and add each result when it is there."
    task = task_of(args)
    path = args.out / "propagation_quality.json"
    data = read_results(path, task)
    done = {key_of(row) for row in data["runs"]}
    wanted = [(*v, seed) for seed in range(args.seeds) for v in variants if args.only is None or v[0] in args.only]
    todo = [w for w in wanted if w not in done]
    if len(todo) < len(wanted): say(f"{len(wanted) - len(todo)} of {len(wanted)} trainings are in {path} already")
    context = multiprocessing.get_context("spawn")
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(todo), unit="training")
    with ProcessPoolExecutor(args.workers, context, start_worker, (args.threads,)) as pool:
        for future in as_completed([pool.submit(training, *w, task) for w in todo]):
            row = future.result()
            data["runs"].append(row)
            data["runs"].sort(key=order)
            write_whole(path, lambda part: part.write_text(json.dumps(data, indent=1) + "\n"))
            bar.write(f"{row['strategy']:16} {row['count'] or '-'} {row['place']:6} seed {row['seed']}: accuracy by distance "
                      + " ".join(f"{a:.3f}" for a in row["accuracy"]), file=sys.stderr)
            bar.update()
    bar.close()

# ---- encoder ------------------------------------------------------------------------------------------------------------

def encoder(args):
    "Train the small encoder whose attention is shown: 4 global blocks, seed 0."
    torch.set_num_threads(args.threads)
    task = task_of(args)
    say("a small encoder with 4 global blocks, seed 0")
    model, _ = train_small("global", 4, seed=0, task=task)
    shares = " ".join(f"{a:.3f}" for a in accuracy(model, task))
    path = args.out / "small_global.safetensors"
    write_weights(model.state_dict(), path, dict(strategy="global", count="4", seed="0", settings=json.dumps(task._asdict())))
    say(f"accuracy by distance {shares}, written to {path}")

# ---- cost ---------------------------------------------------------------------------------------------------------------

sizes = {"tiny": dict(embed_dim=64, depth=4, num_heads=4), "b": dict(embed_dim=768, depth=12, num_heads=12),
         "l": dict(embed_dim=1024, depth=24, num_heads=16)}


def settings_of(model):
    "Without relative positions, as in the paper's ablations, and without a neck."
    return dict(**sizes[model], use_rel_pos=False, out_chans=None)


def cost_variants(model): return [("none", None), ("conv_bottleneck", 4), ("global", 4), ("global", sizes[model]["depth"])]


def worker(model, size, strategy, count, attention):
    "Answer the commands that come in: peak, time, train_peak, and train_time, which is that of the last train_peak."
    encoder = propagation_encoder(strategy, int(count) or None, img_size=size, attention=attention, **settings_of(model))
    encoder, x, seconds = encoder.to(device), photo_of(size).to(device), None

    def forward():
        with torch.inference_mode(): return encoder(x)

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command = json.loads(line)[0]
        if command == "peak": answer = peak_of(forward)[1] / MiB
        elif command == "time": answer = timed(forward)[1]
        elif command == "train_peak":
            (_, seconds), peak = peak_of(lambda: timed(lambda: encoder(x).square().mean().backward()))
            encoder.zero_grad()  # the others need the memory
            answer = peak / MiB
        elif command == "train_time": answer = seconds
        print(json.dumps(answer), flush=True)


class CostWorker(Worker):
    "A process that holds one encoder."
    def __init__(self, model, size, strategy, count, attention, threads):
        self.name, self.size = f"{strategy} {count or ''}, {attention}", size
        command = [sys.executable, __file__, "cost", "--worker", strategy, str(count or 0), attention,
                   "--model", model, "--size", str(size), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()


def measure(attention, args, training):
    "Figures of each variant, whose workers take turns."
    say(f"{args.model} at {args.size} px, attention {attention!r}")
    with ThreadPoolExecutor() as pool:  # to draw the weights of large encoders takes a while
        workers = list(pool.map(lambda v: CostWorker(args.model, args.size, *v, attention, args.threads), cost_variants(args.model)))
    rows = [dict(peak_mib=w("peak"), runs=[]) for w in workers]
    for _ in range(args.runs):
        for w, row in zip(workers, rows): row["runs"].append(w("time"))
    for w, row in zip(workers, rows):
        row["seconds"] = statistics.median(row["runs"])
        if training: row |= dict(train_peak_mib=w("train_peak"), train_seconds=w("train_time"))
    for w in workers: w.__exit__()
    return rows


def measure_check(args):
    "What `cost_of` counts beside the peak of a real step, for models small enough."
    rows = []
    for strategy, count in cost_variants(args.check)[::2]:  # none, 4 global
        counted = cost_of(strategy, count, args.size, **settings_of(args.check))
        weights = 4 * counted["parameters"]
        if counted["training_bytes"] / MiB > 0.8 * available():
            say(f"{args.check} {strategy} {count or ''}: would need {counted['training_bytes'] / MiB:.0f} MiB, left out")
            continue
        with CostWorker(args.check, args.size, strategy, count, "naive", args.threads) as w:
            rows.append(dict(model=args.check, strategy=strategy, count=count, counted_mib=counted["training_bytes"] / MiB,
                             measured_mib=w("train_peak") + weights / MiB))
    return rows


def cost(args):
    "Count and measure each variant."
    data = dict(machine=machine(args.threads), settings=dict(model=args.model, size=args.size, runs=args.runs))
    rows = [dict(strategy=strategy, count=count, **cost_of(strategy, count, args.size, **settings_of(args.model)))
            for strategy, count in cost_variants(args.model)]
    data["check"] = measure_check(args)
    for attention in "auto", "naive":
        for row, figures in zip(rows, measure(attention, args, training=attention == "auto")): row[attention] = figures
    data["rows"] = rows
    path = args.out / "propagation_cost.json"
    write_whole(path, lambda part: part.write_text(json.dumps(data, indent=1) + "\n"))
    print(cost_table(data))


def cost_table(data):
    "The figures as plain text, relative to windows only."
    none = data["rows"][0]
    columns = {
        "parameters": lambda r: r["parameters"] / none["parameters"],
        "multiply-adds": lambda r: r["multiply_adds"] / none["multiply_adds"],
        "naive: training memory (counted)": lambda r: r["training_bytes"] / none["training_bytes"],
        "naive: test time": lambda r: ratio(r["naive"], none["naive"]),
        "naive: test memory, MiB": lambda r: r["naive"]["peak_mib"],
        "chapter 07: training memory, MiB": lambda r: r["auto"]["train_peak_mib"],
        "chapter 07: training time": lambda r: r["auto"]["train_seconds"] / none["auto"]["train_seconds"],
        "chapter 07: test time": lambda r: ratio(r["auto"], none["auto"]),
        "chapter 07: test memory, MiB": lambda r: r["auto"]["peak_mib"],
    }
    lines = [f"{'':34}" + "".join(f"{r['strategy'].split('_')[0]} {r['count'] or '':>2}".rjust(12) for r in data["rows"])]
    for name, value in columns.items():
        values = [value(r) for r in data["rows"]]
        lines.append(f"{name:34}" + "".join(f"{v:12.0f}" if "MiB" in name else f"{v:12.3f}" for v in values))
    for row in data["check"]:
        lines.append(f"check, {row['model']} {row['strategy']} {row['count'] or ''}: training memory counted "
                     f"{row['counted_mib']:.0f} MiB, measured {row['measured_mib']:.0f} MiB")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["quality", "cost", "encoder"], help="without it, all three")
    parser.add_argument("--out", type=Path, default=images, help="where the files go (default: nbs/images)")
    parser.add_argument("--threads", type=int, help="threads of a process (default: 1 for quality and encoder, as many as torch takes for cost)")
    group = parser.add_argument_group("quality")
    group.add_argument("--seeds", type=int, default=5, help="trainings of each variant (default: 5)")
    group.add_argument("--only", nargs="+", choices=sorted({v[0] for v in variants}), help="some strategies (default: all)")
    group.add_argument("--steps", type=int, default=Task().steps, help=f"of a training (default: {Task().steps})")
    group.add_argument("--validation", type=int, default=Task().validation,
                       help=f"scenes that test a training (default: {Task().validation})")
    group.add_argument("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    group = parser.add_argument_group("cost")
    group.add_argument("--model", choices=list(sizes), default="l", help="size of the encoder (default: l)")
    group.add_argument("--check", choices=list(sizes), default="b", help="size for which counted and measured memory are compared (default: b)")
    group.add_argument("--size", type=int, default=1024, help="side of the square image (default: 1024)")
    group.add_argument("--runs", type=int, default=2, help="rounds of timing, after one that warms up (default: 2)")
    group.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in "seeds", "steps", "workers", "runs":
        if getattr(args, name) < 1: parser.error(f"--{name} is {getattr(args, name)}: it must be at least 1")
    if args.validation < 2 or args.validation % 2: parser.error(f"--validation is {args.validation}: scenes come in pairs")
    if args.size < 32 or args.size % 16: parser.error(f"--size {args.size}: a side is a multiple of 16, the patch, from 32 up")
    if args.worker:
        if args.threads: torch.set_num_threads(args.threads)
        return worker(args.model, args.size, *args.worker)
    if args.what in (None, "cost") and device == "cpu" and not Path("/proc/self/clear_refs").exists():
        parser.error("the peak of a process can be read on Linux only")
    args.out.mkdir(parents=True, exist_ok=True)
    threads, most = args.threads, torch.get_num_threads()
    for what, run in ("quality", quality), ("encoder", encoder), ("cost", cost):
        if args.what not in (None, what): continue
        args.threads = threads or (most if what == "cost" else 1)
        run(args)


if __name__ == "__main__": main()
