"""Time and memory of other people's models, as they are and with this library's blocks: part of `make bench`.

Writes models.json (all figures) and models.txt (a table) into nbs/images, where the page `adapters` shows them. Every model
lives in a process of its own, with the same random weights before and after; their runs take turns. A time is the median of
the runs, a ratio the median of the rounds' ratios; "peak" is as in bench.py; "off by" the greatest difference of what the whole
model puts out, relative to the greatest value.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench import MiB, Worker, device, images, machine, peak_of, photo_of, ratio, say, segment_anything_model, timed
from vitdet_nb.adapters import DetectionBackbone, use_fast_blocks
from vitdet_nb.encoder import sam_vit_b
from vitdet_nb.images import load_image, sample_photo
from vitdet_nb.utils import randomize

# ---- the models: a function of the size and of what makes blocks fast gives a function without arguments ----------------

def sam_predictor(size, speed_up):
    from segment_anything import SamPredictor, sam_model_registry
    sam = sam_model_registry["vit_b"]()
    sam.image_encoder = segment_anything_model(size)
    prompts, grid = sam.prompt_encoder, size // 16
    prompts.input_image_size, prompts.image_embedding_size = (size, size), (grid, grid)
    predictor = SamPredictor(speed_up(randomize(sam)).to(device).eval())
    photo = np.array(load_image(sample_photo()))

    def run():
        predictor.set_image(photo)
        masks, *_ = predictor.predict(box=np.array([100, 50, 400, 500]), return_logits=True)
        return torch.cat([predictor.features.flatten().cpu(), torch.tensor(masks).flatten()])

    return run


def sam_model(size, speed_up):
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor
    config = SamConfig(vision_config=dict(image_size=size),  # the rest of its defaults are ViT-B
                       prompt_encoder_config=dict(image_size=size, image_embedding_size=size // 16))
    model = speed_up(randomize(SamModel(config))).to(device).eval()
    processor = SamProcessor(SamImageProcessor(size={"longest_edge": size}, pad_size={"height": size, "width": size}))
    inputs = processor(load_image(sample_photo()), input_points=[[[250., 150.]]], return_tensors="pt").to(device)
    return lambda: model(**inputs).pred_masks


def vitdet_backbone(size, speed_up):
    from transformers import VitDetBackbone, VitDetConfig
    config = VitDetConfig(image_size=size, window_size=14, window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10],
                          use_relative_position_embeddings=True)  # the rest of its defaults are ViT-B
    model, x = speed_up(randomize(VitDetBackbone(config))).to(device).eval(), photo_of(size).to(device)
    return lambda: model(x).feature_maps[-1]


def samvit(size, speed_up):
    import timm
    model = timm.create_model("samvit_base_patch16", img_size=size, features_only=True, out_indices=(2, 5, 8, 11))
    model, x = speed_up(randomize(model)).to(device).eval(), photo_of(size).to(device)
    return lambda: torch.cat(model(x))


def faster_rcnn(size, speed_up):
    "Here the encoder is another one: segment-anything's before, ours after."
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign
    encoder = segment_anything_model(size) if speed_up is same else randomize(sam_vit_b(img_size=size))
    torch.manual_seed(0)
    model = FasterRCNN(DetectionBackbone(encoder), num_classes=91, fixed_size=(size, size), box_score_thresh=0.,
                       rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1., 2.),)),
                       box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2))
    model, x = model.to(device).eval(), photo_of(size)[0].to(device)
    return lambda: model([x])[0]["scores"][:20]  # the greatest


models = {"segment-anything, SamPredictor": sam_predictor, "transformers, SamModel": sam_model,
          "transformers, VitDetBackbone": vitdet_backbone, "timm, samvit features_only": samvit,
          "torchvision, FasterRCNN": faster_rcnn}

def same(model): return model

variants = {"before": same, "after": use_fast_blocks}

# ---- measuring ----------------------------------------------------------------------------------------------------------

def worker(name, variant, size):
    "Answer the commands that come in: peak, time, save PATH."
    torch.manual_seed(0)  # for buffers and the heads
    run = models[name](size, variants[variant])

    def forward():
        with torch.inference_mode(): return run()

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, *rest = json.loads(line)
        if command == "peak": answer = peak_of(forward)[1] / MiB
        elif command == "time": answer = timed(forward)[1]
        elif command == "save": answer = np.save(rest[0], forward().float().cpu().numpy())
        print(json.dumps(answer), flush=True)


class ModelWorker(Worker):
    "A process that holds one variant of one model."
    def __init__(self, name, variant, size, threads):
        self.name, self.size = f"{name}, {variant}", size
        command = [sys.executable, __file__, "--worker", name, variant, "--size", str(size), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()


def measure(name, args):
    "A row of figures: those of each variant, and how far apart the results are."
    say(name)
    with (ModelWorker(name, "before", args.size, args.threads) as before,
          ModelWorker(name, "after", args.size, args.threads) as after, tempfile.TemporaryDirectory() as folder):
        workers = dict(before=before, after=after)
        row = {variant: dict(peak_mib=w("peak"), runs=[]) for variant, w in workers.items()}
        for variant, w in workers.items(): w("save", f"{folder}/{variant}.npy")
        results = [np.load(f"{folder}/{variant}.npy") for variant in workers]
        for _ in range(args.runs):
            for variant, w in workers.items(): row[variant]["runs"].append(w("time"))
    for figures in row.values(): figures["seconds"] = statistics.median(figures["runs"])
    expected, result = results
    return dict(name=name, difference=float(np.abs(result - expected).max() / np.abs(expected).max()), **row)


def table(data):
    "The figures as plain text."
    m, s = data["machine"], data["settings"]
    where = m.get("gpu") or f"{m['processor']}, {m['threads']} of {m['cores']} cores, {m['capability']}"
    lines = [where, f"torch {m['torch']}, float32, one photo at {s['size']} px, median of {s['runs']} runs", "",
             f"{'':32}{'seconds':^26}{'peak MiB':^26}",
             f"{'ViT-B in':32}" + 2 * f"{'before':>8}{'after':>8}{'ratio':>8}  " + f"{'off by':>9}"]
    for r in data["models"]:
        a, b = r["after"], r["before"]
        lines.append(f"{r['name']:32}{b['seconds']:8.2f}{a['seconds']:8.2f}{ratio(a, b):8.2f}  {b['peak_mib']:8.0f}"
                     f"{a['peak_mib']:8.0f}{a['peak_mib'] / b['peak_mib']:8.2f}  {r['difference']:9.1e}")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(models), default=list(models), metavar="NAME",
                        help=f"of the models {', '.join(map(repr, models))} (default: all)")
    parser.add_argument("--size", type=int, default=1024, help="side of the square image (default: 1024)")
    parser.add_argument("--runs", type=int, default=2, help="rounds of timing, after one that warms up (default: 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (default: as many as it takes)")
    parser.add_argument("--out", type=Path, default=images, help="where models.json and models.txt go (default: nbs/images)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.size < 32 or args.size % 16: parser.error(f"--size {args.size}: a side is a multiple of 16, the patch, from 32 up")
    if args.runs < 1: parser.error("--runs must be at least 1")
    if args.worker: return worker(*args.worker, args.size)
    if device == "cpu" and not Path("/proc/self/clear_refs").exists(): parser.error("the peak of a process can be read on Linux only")
    args.out.mkdir(parents=True, exist_ok=True)
    data = dict(machine=machine(args.threads), settings=dict(size=args.size, runs=args.runs))
    data["models"] = [measure(name, args) for name in args.only]
    (args.out / "models.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / "models.txt").write_text(table(data))
    print(table(data))


if __name__ == "__main__": main()
