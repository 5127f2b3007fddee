"""Execute the notebooks: store what they print (`refresh`), or see that what is stored is still so (`check`).

    python nbs/_tools/notebooks.py refresh [NOTEBOOK ...]    # all of them without a name
    python nbs/_tools/notebooks.py check NOTEBOOK ...
"""
import argparse
import base64
import re
import subprocess
import sys
import time
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import nbdev_clean

nbs = Path(__file__).resolve().parent.parent
inside = re.compile(r"[A-Za-z0-9+/=]{200,}")  # a picture or numbers in base64, in an interactive figure
number = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


def execute(path):
    "The notebook with fresh outputs; raises what a cell raises."
    shell = CaptureShell(path, mpl_format="png")
    nb = read_nb(path)
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs = []  # execnb leaves those of a cell that prints nothing now
    with working_directory(path.parent): shell.run_all(nb, exc_stop=True)
    return nb


def printed(cell):
    "What a reader sees of a code cell's outputs: (kind, text) pairs, with pictures as their kind alone."
    res = []
    for out in cell.get("outputs", []):
        if out["output_type"] == "stream": res.append((out["name"], "".join(out["text"])))
        elif out["output_type"] == "error": res.append(("error", out["ename"]))
        else:
            pictures = [kind for kind in out["data"] if kind.startswith("image/")]
            text = "".join(out["data"].get("text/html") or out["data"].get("text/plain", ""))
            text = inside.sub("(bytes)", text)
            res.append((pictures[0], "") if pictures else ("result", text))
    return res


def same_text(a, b):
    "Whether two texts agree but for the last digits of their numbers, which differ from one processor to the next."
    if number.sub("#", " ".join(a.split())) != number.sub("#", " ".join(b.split())): return False
    return all(same_number(x, y) for x, y in zip(number.findall(a), number.findall(b)))


def same_number(a, b):
    if a.lstrip("+-").isdigit() and b.lstrip("+-").isdigit(): return int(a) == int(b)
    return abs(float(a) - float(b)) <= 1e-3 + 0.02 * abs(float(b))


def differences(stored, fresh):
    "One line for each cell whose stored outputs are not what its code prints."
    for i, (old, new) in enumerate(zip(stored.cells, fresh.cells)):
        if old.cell_type != "code": continue
        old, new = printed(old), printed(new)
        if any(kind in ("error", "stderr") for kind, _ in old): yield f"cell {i} stores an error or a warning: {old}"
        elif [kind for kind, _ in old] != [kind for kind, _ in new]: yield f"cell {i} stores {old}, prints {new}"
        else:
            for (_, a), (_, b) in zip(old, new):
                if not same_text(a, b): yield f"cell {i} stores\n{a}\nbut prints\n{b}"


def check(path):
    "Execute a notebook and compare; exit with the differences if there are any."
    found = list(differences(read_nb(path), execute(path)))
    if found: sys.exit(f"{path.name}: stored outputs are out of date, `make refresh` stores them anew\n" + "\n".join(found))


def refresh(path):
    "Execute a notebook, store its outputs, and clean it as nbdev does."
    write_nb(execute(path), path)
    with working_directory(nbs.parent): nbdev_clean.__wrapped__(fname=str(path))
    if path.stem == "index": save_picture(read_nb(path))


def save_picture(index):
    "The README shows the home page's first figure."
    outputs = [out for cell in index.cells for out in cell.get("outputs", [])]
    figure = next(out["data"]["image/jpeg"] for out in outputs if "image/jpeg" in out.get("data", {}))
    (nbs / "images").mkdir(exist_ok=True)
    (nbs / "images" / "first_result.jpg").write_bytes(base64.b64decode("".join(figure)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["refresh", "check"])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them without a name")
    args = parser.parse_args()
    paths = [p.resolve() for p in args.notebooks] or sorted(nbs.glob("*.ipynb"))
    if len(paths) == 1: return {"refresh": refresh, "check": check}[args.command](paths[0])
    for path in paths:  # a process each, so that memory and state are left behind
        start = time.time()
        subprocess.run([sys.executable, __file__, args.command, path], check=True)
        print(f"{path.name}: {args.command} took {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__": main()
