"""Time and memory of the encoder, measured here: `make bench`, or with options `make bench BENCH="--runs 5 --sizes 1024"`.

Writes bench.json (all figures), bench.txt (tables) and bench.jpg (a picture) into nbs/images, where chapter 07 shows them.
Every model lives in a process of its own, with the same random weights; the runs of a round follow each other, so that a slow
moment of the machine hits all of them. A time is the median over the rounds, a ratio the median of the rounds' ratios.
"Peak" is the greatest memory of a process during its first pass at that size, above what it held before; "off by" the greatest
difference of its features to segment-anything's.
"""
import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vitdet_nb.attention import merge_heads
from vitdet_nb.blocks import Block
from vitdet_nb.encoder import sam_vit_b
from vitdet_nb.fast_attention import (FastBlock, extended_attention, fast_mlp, in_strips, linear, mask_attention,
                                      strip_attention)
from vitdet_nb.images import load_image, sam_preprocess, sample_photo
from vitdet_nb.rel_pos import get_rel_pos
from vitdet_nb.utils import randomize
from vitdet_nb.windowing import window_unpartition

images = Path(__file__).resolve().parent.parent / "images"
device = "cuda" if torch.cuda.is_available() else "cpu"
MiB = 2 ** 20

# ---- what is measured -------------------------------------------------------------------------------------------------

def vitdet_nb_model(size, attention="auto"):
    return randomize(sam_vit_b(img_size=size, attention=attention))


def segment_anything_model(size):
    from segment_anything.modeling.image_encoder import ImageEncoderViT
    model = ImageEncoderViT(
        img_size=size, embed_dim=768, depth=12, num_heads=12, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True, window_size=14, global_attn_indexes=(2, 5, 8, 11))
    return with_our_weights(model, size, [])


def timm_model(size):
    from timm.models.vision_transformer_sam import VisionTransformerSAM
    model = VisionTransformerSAM(
        img_size=size, embed_dim=768, depth=12, num_heads=12, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True, window_size=14, global_attn_indexes=(2, 5, 8, 11), neck_chans=256, num_classes=0)
    return with_our_weights(model, size, [("mlp.lin", "mlp.fc")])


def transformers_model(size):
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder
    model = SamVisionEncoder(SamVisionConfig(image_size=size, attn_implementation="sdpa"))  # its defaults are ViT-B
    return with_our_weights(model, size, [
        ("neck.0", "neck.conv1"), ("neck.1", "neck.layer_norm1"), ("neck.2", "neck.conv2"), ("neck.3", "neck.layer_norm2"),
        (".norm", ".layer_norm"), ("blocks.", "layers."), ("patch_embed.proj.", "patch_embed.projection.")])


def with_our_weights(model, size, renames):
    "The model with the weights of `vitdet_nb_model`, whose names are segment-anything's."
    state = vitdet_nb_model(size).state_dict()
    for ours, theirs in renames: state = {name.replace(ours, theirs): p for name, p in state.items()}
    model.load_state_dict(state)
    return model


encoders = {
    "vitdet_nb": vitdet_nb_model,
    "vitdet_nb, naive": partial(vitdet_nb_model, attention="naive"),
    "segment-anything": segment_anything_model,
    "timm": timm_model,
    "transformers": transformers_model,
}


def features(name, model, x):
    if name == "timm": return model.forward_features(x)
    return model(x).last_hidden_state if name == "transformers" else model(x)


def photo_of(size):
    "The sample photo, padded to a square as Segment Anything does, at another size if need be."
    x = sam_preprocess(load_image(sample_photo()))
    return x if size == 1024 else F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


def products(size):
    "(rows, inner, columns, how many), for ViT-B: the matrix products that no form of the encoder can do without."
    C, hd, heads, w, grid = 768, 64, 12, 14, size // 16
    N, windows = grid ** 2, (-(-grid // w)) ** 2
    each_block = [(N, C, 3 * C), (N, C, C), (N, C, 4 * C), (N, 4 * C, C)]
    return dict(
        linear=[(N, C, C, 1), *((*shape, 12) for shape in each_block), (N, C, 256, 1), (N, 9 * 256, 256, 1)],
        whole=[(heads, N, hd, 4)], windows=[(windows * heads, w * w, hd, 8)])


def floor_of(size, onednn):
    "A function that does the bare products, with torch.mm, or through oneDNN where that has them."
    shapes, buffers = products(size), {}

    def tensor(*shape):
        if shape not in buffers: buffers[shape] = torch.randn(*shape, device=device)
        return buffers[shape]

    def product(x, weight):  # (rows, inner), (columns, inner)
        if not onednn: return torch.mm(x, weight.T, out=tensor(len(x), len(weight)))
        for part in x.split(1024): linear(part, weight)  # outputs small enough to stay in the cache

    def run():
        for rows, inner, columns, count in shapes["linear"]:
            for _ in range(count): product(tensor(rows, inner), tensor(columns, inner))
        for heads, N, hd, count in shapes["whole"]:
            rows = min(N, max(64, 2 ** 21 // N))  # in strips, as whole score matrices would wait for memory
            q, k, v, scores = tensor(rows, hd), tensor(N, hd), tensor(hd, N), tensor(rows, N)
            for _ in range(count * heads * (N // rows)):
                product(q, k)
                product(scores, v)
        for batch, n, hd, count in shapes["windows"]:
            q, scores, out = tensor(batch, n, hd), tensor(batch, n, n), tensor(batch, n, hd)
            for _ in range(count):
                torch.bmm(q, q.transpose(1, 2), out=scores)
                torch.bmm(scores, q, out=out)

    return run


def sdpa_on_padded(block, x):
    "A windowed block's attention branch with fused attention and nothing else changed: pads pass through every layer."
    windows, pad_hw, _ = block.windows(x)
    q, k, v = block.attn.heads(windows)
    w = block.window_size
    rel_pos = get_rel_pos(w, w, block.attn.rel_pos_h), get_rel_pos(w, w, block.attn.rel_pos_w)
    out = block.attn.proj(merge_heads(mask_attention(q, k, v, rel_pos))).view_as(windows)
    return window_unpartition(out, w, pad_hw, x.shape[1:3])


rungs = {  # part -> rung -> (function of block and tokens, whether oneDNN may be used for linear layers)
    "global attention": {
        "definition": (lambda b, x: Block.attend(b, x), False),
        "mask": (lambda b, x: b.attend_once(x, mask_attention), False),
        "extended": (lambda b, x: b.attend_once(x, extended_attention), False),
        "strips": (lambda b, x: b.attend_once(x, strip_attention), False),
        "strips, oneDNN": (lambda b, x: b.attend(x), True),
        "torch.compile": (lambda b, x: b.attend(x), True),
    },
    "windowed attention": {
        "definition": (lambda b, x: Block.attend(b, x), False),
        "mask": (sdpa_on_padded, False),
        "project first": (lambda b, x: b.attend_once(x, mask_attention), False),
        "strips": (lambda b, x: b.attend(x), False),
        "strips, oneDNN": (lambda b, x: b.attend(x), True),
        "torch.compile": (lambda b, x: b.attend(x), True),
    },
    "MLP": {
        "definition": (lambda b, x: b.mlp(x), False),
        "strips": (lambda b, x: in_strips(partial(fast_mlp, b.mlp), x), False),
        "strips, oneDNN": (lambda b, x: in_strips(partial(fast_mlp, b.mlp), x), True),
        "torch.compile": (lambda b, x: b.mlp(x), True),
    },
}


def rung_of(part, name, size):
    "A function of tokens, and the tokens, for one block of ViT-B."
    grid = size // 16
    function, torch.backends.mkldnn.enabled = rungs[part][name]
    block = randomize(FastBlock(768, 12, window_size=14 if part == "windowed attention" else 0, input_size=(grid, grid)))
    x = torch.randn(1, grid, grid, 768, generator=torch.Generator().manual_seed(0)).to(device)
    run = partial(function, block.to(device))
    return torch.compile(run) if name == "torch.compile" else run, x

# ---- a worker: one model in one process, told what to do over a pipe ---------------------------------------------------

def held():
    "Memory that this process holds, in bytes."
    if device == "cuda": return torch.cuda.memory_allocated()
    return status("VmRSS")


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak_of(f):
    "(f(), greatest memory above what was held before, in bytes)"
    gc.collect()
    if device == "cuda": torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts when it is taken again
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = held()
    result = f()
    return result, (torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM")) - before


def timed(f):
    start = time.perf_counter()
    result = f()
    if device == "cuda": torch.cuda.synchronize()
    return result, time.perf_counter() - start


def worker(kind, name, size):
    "Answer the commands that come in: peak, time, train_peak, train_time, save PATH."
    if kind == "floor": run, inputs, modules = floor_of(size, name == "oneDNN"), (), []
    elif kind == "rung":
        run, x = rung_of(*name.split(": "), size)
        inputs = (x,)
    else:
        model = encoders[name](size).to(device).eval()
        run, inputs = partial(features, name, model), (photo_of(size).to(device),)

    def forward():
        with torch.inference_mode(): return run(*inputs)

    def train():
        with torch.enable_grad():  # tokens of a block need a gradient, an image does not
            x = [t.clone().requires_grad_(kind == "rung") for t in inputs]
            run(*x).square().mean().backward()

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, *rest = json.loads(line)
        if command == "peak": answer = peak_of(forward)[1] / MiB
        elif command == "time": answer = timed(forward)[1]
        elif command == "train_peak": answer = peak_of(train)[1] / MiB
        elif command == "train_time": answer = timed(train)[1]
        elif command == "save": answer = np.save(rest[0], forward().float().cpu().numpy())
        print(json.dumps(answer), flush=True)


class Worker:
    "A process that holds one model."
    def __init__(self, kind, name, size, threads):
        self.kind, self.name, self.size = kind, name, size
        # a process of this very file, with arguments of ours: no shell
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", kind, name, str(size), "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} at {self.size} px stopped with status {self.process.wait()}: "
                             "its message is above; without one, the machine ran out of memory")
        return json.loads(line)

    def __call__(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.read()
        unit = "MiB" if command[0].endswith("peak") else "s"
        if command[0] != "save": say(f"  {self.name:32} {command[0]:10} {answer:9.2f} {unit}")
        return answer

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

# ---- the rounds ----------------------------------------------------------------------------------------------------------

def say(text): print(text, file=sys.stderr, flush=True)


def available():
    "Memory that can still be had, in MiB; without bound where this is not known."
    try: lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError: return float("inf")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def rounds(kind, names, size, args, train=0):
    "Rows of figures for workers that take turns."
    with ThreadPoolExecutor() as pool:  # they make their models side by side
        workers = dict(zip(names, pool.map(lambda name: Worker(kind, name, size, args.threads), names)))
    rows = {name: dict(name=name, size=size) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        if kind != "floor":
            for name, w in workers.items(): rows[name]["peak_mib"] = w("peak")
            if "segment-anything" in workers:
                for i, w in enumerate(workers.values()): w("save", f"{folder}/{i}.npy")
                results = {name: np.load(f"{folder}/{i}.npy") for i, name in enumerate(workers)}
                for name, row in rows.items():
                    row["difference"] = float(np.abs(results[name] - results["segment-anything"]).max())
        else:
            for w in workers.values(): w("time")  # to make the buffers
        for _ in range(args.runs):
            for name, w in workers.items(): rows[name].setdefault("runs", []).append(w("time"))
        if train:
            for name, w in workers.items(): rows[name]["train_peak_mib"] = w("train_peak")
            for _ in range(train):
                for name, w in workers.items(): rows[name].setdefault("train_runs", []).append(w("train_time"))
    for w in workers.values(): w.__exit__()
    for row in rows.values():
        row["seconds"] = statistics.median(row["runs"])
        if "train_runs" in row: row["train_seconds"] = statistics.median(row["train_runs"])
    return list(rows.values())


def measure_encoders(args):
    "All encoders at the first size, and at the others those that fit into memory."
    first, *others = args.sizes
    say(f"encoders at {first} px")
    rows = rounds("encoder", ["segment-anything", *(n for n in encoders if n != "segment-anything")], first, args)
    for size in others:
        say(f"encoders at {size} px")
        fits = []
        for row in rows[:len(encoders)]:
            need = row["peak_mib"] * (size / first) ** (2 if row["name"] == "vitdet_nb" else 4)  # scores grow as N^2
            if need < 0.8 * available(): fits.append(row["name"])
            else:
                say(f"  {row['name']}: would need about {need / 1024:.0f} GiB, left out")
                rows.append(dict(name=row["name"], size=size, needs_mib=need))
        if fits: rows += rounds("encoder", sorted(fits, key="segment-anything".__ne__), size, args)
    return rows


def measure_training(args):
    say(f"a training step at {args.sizes[0]} px")
    rows = []
    for name in "segment-anything", "vitdet_nb":  # one after the other: both together might not fit
        with Worker("encoder", name, args.sizes[0], args.threads) as w:
            row = dict(name=name, size=args.sizes[0], train_peak_mib=w("train_peak"))
            row["train_runs"] = [w("train_time") for _ in range(args.train_runs)]
        rows.append(row | dict(train_seconds=statistics.median(row["train_runs"])))
    return rows


def measure_rungs(args):
    rows = []
    for part, names in rungs.items():
        say(f"{part}, one block of ViT-B at {args.sizes[0]} px")
        for name in names:  # one at a time: the definition's training step takes gigabytes
            if name == "torch.compile" and not args.compile: continue
            with Worker("rung", f"{part}: {name}", args.sizes[0], args.threads) as w:
                compile_seconds = w("time") if name == "torch.compile" else None
                row = dict(part=part, name=name, size=args.sizes[0], peak_mib=w("peak"))
                row["seconds"] = statistics.median([w("time") for _ in range(args.runs)])
                if compile_seconds: row["compile_seconds"] = compile_seconds - row["seconds"]
                else:
                    row["train_peak_mib"] = w("train_peak")
                    row["train_seconds"] = statistics.median([w("train_time") for _ in range(args.runs)])
            rows.append(row)
    return rows


def machine(threads):
    "What the figures were measured on."
    name = platform.processor() or platform.machine()
    try: name = next(l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in l)
    except (OSError, StopIteration): pass
    res = dict(processor=name, cores=os.cpu_count(), threads=threads, torch=torch.__version__, capability=torch.backends.cpu.get_cpu_capability())
    if device == "cuda": res["gpu"] = torch.cuda.get_device_name()
    return res

# ---- table and picture -----------------------------------------------------------------------------------------------------

def ratio(a, b, key="runs"):
    "Median of the rounds' ratios of two rows."
    return statistics.median(x / y for x, y in zip(a[key], b[key]))


def reach(data):
    "(what, measured, goal) of chapter 07's goals, as far as they were measured."
    size = data["settings"]["sizes"][0]
    enc = {(r["name"], r["size"]): r for r in data["encoders"]}
    ours, sam = enc.get(("vitdet_nb", size)), enc.get(("segment-anything", size))
    res = []
    if ours and sam:
        peers = [enc[name, size] for name in ("segment-anything", "timm", "transformers")]
        fastest = min(peers, key=lambda r: r["seconds"])
        res += [("time / segment-anything's", ratio(ours, sam), 0.45),
                (f"time / fastest peer's ({fastest['name']})", ratio(ours, fastest), 0.65),
                ("peak / segment-anything's", ours["peak_mib"] / sam["peak_mib"], 0.12),
                ("greatest difference to segment-anything", ours["difference"], 2e-5)]
        for f in data["floor"]:
            goal = 1.20 if f["name"] == "torch.mm" else None
            res.append((f"time / matrix products alone ({f['name']})", ours["seconds"] / f["seconds"], goal))
        double = enc.get(("vitdet_nb", 2 * size))
        if double: res.append((f"peak at {2 * size} px / at {size} px", double["peak_mib"] / ours["peak_mib"], 4.5))
    if data["training"]:
        theirs, ours = data["training"]
        res += [("training step: peak / segment-anything's", ours["train_peak_mib"] / theirs["train_peak_mib"], 0.40),
                ("training step: time / segment-anything's", ours["train_seconds"] / theirs["train_seconds"], 0.9)]
    return res


def table(data):
    "The figures as plain text."
    m, s = data["machine"], data["settings"]
    where = m.get("gpu") or f"{m['processor']}, {m['threads']} of {m['cores']} cores, {m['capability']}"
    lines = [where, f"torch {m['torch']}, float32, batch 1, median of {s['runs']} runs", ""]
    if data["encoders"]:
        lines.append(f"{'ViT-B encoder':20}{'px':>6}{'seconds':>10}{'peak MiB':>10}{'off by':>12}")
        for r in data["encoders"]:
            if "runs" in r:
                difference = f"{r['difference']:.1e}" if "difference" in r else "-"
                text = f"{r['seconds']:10.2f}{r['peak_mib']:10.0f}{difference:>12}"
            else: text = f"{'-':>10}{r['needs_mib']:10.0f}  (estimate: too much for this machine)"
            lines.append(f"{r['name']:20}{r['size']:6}{text}")
        for f in data["floor"]: lines.append(f"{'products, ' + f['name']:20}{f['size']:6}{f['seconds']:10.2f}")
        lines.append("")
    if data["training"]:
        lines.append(f"{'a training step':20}{'px':>6}{'seconds':>10}{'peak MiB':>10}")
        for r in data["training"]:
            lines.append(f"{r['name']:20}{r['size']:6}{r['train_seconds']:10.2f}{r['train_peak_mib']:10.0f}")
        lines.append("")
    for part in dict.fromkeys(r["part"] for r in data["rungs"]):
        lines.append(f"{part:20}{'seconds':>10}{'peak MiB':>10}   and backward: {'seconds':>8}{'peak MiB':>10}")
        for r in data["rungs"]:
            if r["part"] != part: continue
            line = f"{r['name']:20}{r['seconds']:10.3f}{r['peak_mib']:10.0f}"
            if "compile_seconds" in r: line += f"   (and {r['compile_seconds']:.0f} s to compile)"
            else: line += f"{'':17} {r['train_seconds']:8.3f}{r['train_peak_mib']:10.0f}"
            lines.append(line)
        lines.append("")
    goals = reach(data)
    if goals: lines.append(f"{'':48}{'measured':>10}{'aim':>10}")
    for what, value, goal in goals:
        lines.append(f"{what:48}{value:10.2g}{'' if goal is None else format(goal, '10.2g')}")
    return "\n".join(lines).rstrip() + "\n"


def picture(data, path):
    "Bars of time and peak: the encoders, then each part's rungs."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from vitdet_nb.utils import figure_style, palette
    figure_style()
    size = data["settings"]["sizes"][0]
    groups = {f"whole encoder, {size} px": [r for r in data["encoders"] if r["size"] == size]}
    groups |= {part: [r for r in data["rungs"] if r["part"] == part] for part in rungs}
    groups = {title: rows for title, rows in groups.items() if rows}
    heights = [len(rows) + 1.2 for rows in groups.values()]
    fig, axes = plt.subplots(len(groups), 2, figsize=(7.2, 0.27 * sum(heights)), squeeze=False,
                             gridspec_kw=dict(height_ratios=heights))
    for (title, rows), row_axes in zip(groups.items(), axes):
        for ax, key, unit in zip(row_axes, ("seconds", "peak_mib"), ("seconds", "peak, MiB")):
            names, values = [r["name"] for r in rows], [r[key] for r in rows]
            ours = [r["name"] in ("vitdet_nb", "strips, oneDNN") for r in rows]
            ax.barh(names, values, color=[palette[1] if o else palette[0] for o in ours])
            for i, v in enumerate(values): ax.text(v, i, f" {v:.3g}" if v < 100 else f" {v:.0f}", va="center", fontsize=7.5)
            ax.invert_yaxis()
            ax.set(xlim=(0, 1.18 * max(values)), xticks=[])
            ax.spines["bottom"].set_visible(False)
            ax.tick_params(labelsize=8, left=False, labelleft=ax is row_axes[0])
            ax.set_title(f"{title}: {unit}", fontsize=8.5, loc="left")
    fig.savefig(path, dpi=150, pil_kwargs=dict(quality=88))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048], metavar="PX",
                        help="sides of the square image; peers run at the first, and where their memory allows (default: 1024 2048)")
    parser.add_argument("--runs", type=int, default=3, help="rounds of timing, after one that warms up (default: 3)")
    parser.add_argument("--train-runs", type=int, default=1, help="timed training steps, after one that warms up (default: 1)")
    parser.add_argument("--only", nargs="+", choices=["encoders", "training", "rungs"], default=["encoders", "training", "rungs"],
                        help="what to measure (default: all)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the rung torch.compile out (it needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (default: as many as it takes)")
    parser.add_argument("--out", type=Path, default=images, help="where bench.json, bench.txt and bench.jpg go (default: nbs/images)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker: return worker(*args.worker[:2], int(args.worker[2]))
    for size in args.sizes:
        if size < 16 or size % 16: parser.error(f"--sizes {size}: a side is a multiple of 16, the patch")
    if args.runs < 1 or args.train_runs < 1: parser.error("--runs and --train-runs must be at least 1")
    if device == "cpu" and not Path("/proc/self/clear_refs").exists(): parser.error("the peak of a process can be read on Linux only")
    args.out.mkdir(parents=True, exist_ok=True)

    data = dict(machine=machine(args.threads), settings=dict(sizes=args.sizes, runs=args.runs), encoders=[], floor=[], training=[], rungs=[])
    if "encoders" in args.only:
        data["encoders"] = measure_encoders(args)
        say(f"bare matrix products at {args.sizes[0]} px")
        data["floor"] = rounds("floor", ["torch.mm", *(["oneDNN"] if device == "cpu" else [])], args.sizes[0], args)
    if "rungs" in args.only: data["rungs"] = measure_rungs(args)
    if "training" in args.only: data["training"] = measure_training(args)
    (args.out / "bench.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / "bench.txt").write_text(table(data))
    picture(data, args.out / "bench.jpg")
    print(table(data))
    if args.out == images:
        say("`make refresh` puts these figures into chapter 07; where its text no longer holds, an assert there fails.")


if __name__ == "__main__": main()
