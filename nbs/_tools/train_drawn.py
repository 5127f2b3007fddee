"""The detector of chapter 11: `vitdet_train`'s tiny recipe on drawn shapes, from several seeds: `make detector`.

    python nbs/_tools/train_drawn.py              # about ten minutes a seed on two cores
    python nbs/_tools/train_drawn.py --seeds 0    # only this one

Draws the set with the defaults of `draw_coco`, measures AP before and after, and writes detection.json and, of the lowest
seed, detection_curves.jpg and detection_found.jpg into nbs/images, where the chapter shows them. A seed that is there with
the same settings is not trained again; one that was stopped goes on.
"""
import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench import images, machine, say
from vitdet_nb.train import draw_set, evaluate, make_parser, read_columns, set_up, train
from vitdet_nb.weight_files import write_whole


def finite(metrics): return {name: round(x, 2) for name, x in metrics.items() if math.isfinite(x)}  # NaN is no JSON


def thinned(path, most=200):
    "The log of a training as means over neighbouring steps."
    columns = {name: torch.tensor(values) for name, values in read_columns(path).items()}
    width = -(-len(columns["step"]) // most)
    return {name: [float(f"{part.mean():.4g}") for part in values.split(width)] for name, values in columns.items()}


def prepare(seed, args):
    "The options of a seed's training, and the training; it begins where it was stopped."
    options = [str(args.runs / "shapes"), "--out", str(args.runs / f"seed{seed}"), "--seed", str(seed)]
    if args.epochs: options += ["--epochs", str(args.epochs)]
    parsed = make_parser().parse_args(options)
    return parsed, set_up(parsed)


def train_seed(parsed, trainer):
    "Train to the end; what the detector scores, untrained and trained."
    before, begun = trainer.out / "untrained.json", trainer.step
    if not begun:
        found = finite(evaluate(trainer.model, trainer.held_out))
        write_whole(before, lambda part: part.write_text(json.dumps(found)))
    start = time.perf_counter()
    if train(trainer, parsed): sys.exit(f"{trainer.out} was not trained to the end")
    seconds = None if begun else round(time.perf_counter() - start)  # of a whole training only
    metrics = {name: values[-1] for name, values in read_columns(trainer.out / "metrics.csv").items() if name != "step"}
    return dict(untrained=json.loads(before.read_text()), trained=finite(metrics), seconds=seconds,
                threads=torch.get_num_threads())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--epochs", type=float, help="default: the recipe's")
    parser.add_argument("--out", type=Path, default=images, help="where the results go (default: nbs/images)")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "vitdet_nb_detector",
                        help="where pictures and trainings go (default: a folder for temporary files)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    draw_set(args.runs / "shapes")
    path = args.out / "detection.json"
    for seed in args.seeds:
        parsed, trainer = prepare(seed, args)
        settings = trainer.settings | dict(seed=None)  # the same for all
        data = json.loads(path.read_text()) if path.exists() else {}
        if data.get("settings") != settings:  # another recipe: what is there is no longer true
            data = dict(machine=machine(torch.get_num_threads()), settings=settings, seeds={})
        if str(seed) in data["seeds"]:
            say(f"seed {seed} is in {path} already")
            continue
        result = data["seeds"][str(seed)] = train_seed(parsed, trainer)
        data["seeds"] = dict(sorted(data["seeds"].items(), key=lambda item: int(item[0])))
        if str(seed) == next(iter(data["seeds"])):
            data["log"] = thinned(trainer.out / "log.csv")
            for ours, theirs in ("curves", "curves"), ("found", "detections"):
                shutil.copyfile(trainer.out / f"{theirs}.jpg", args.out / f"detection_{ours}.jpg")
        write_whole(path, lambda part: part.write_text(json.dumps(data, indent=1) + "\n"))
        before, after = (result[when]["box AP50"] for when in ("untrained", "trained"))
        say(f"seed {seed}: box AP50 {before:.1f} untrained, {after:.1f} trained, {result['seconds']} s")


if __name__ == "__main__": main()
