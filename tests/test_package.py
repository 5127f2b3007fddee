"What users install: a wheel that holds the modules, asks for little, and imports without notebook tools or network."
import email
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
modules = sorted(p.stem for p in (root / "vitdet_nb").glob("*.py") if p.stem[0] != "_")

use_it = """
import importlib, importlib.abc, socket, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","): raise ImportError(f"{name} is a development tool")

def no_network(*args): raise OSError("the library went to the network")

sys.meta_path.insert(0, Refuse())
socket.socket.connect = socket.getaddrinfo = no_network
for module in sys.argv[2].split(","): importlib.import_module("vitdet_nb." + module)

import torch, vitdet_nb
from vitdet_nb.encoder import ViTDet
from vitdet_nb.images import load_image, sample_photo, sam_preprocess
encoder = ViTDet(img_size=64, embed_dim=32, depth=2, num_heads=2, out_chans=8, global_attn_indexes=(1,))
with torch.inference_mode(): features = encoder(sam_preprocess(load_image(sample_photo()), 64))
print(vitdet_nb.__file__, tuple(features.shape))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # a copy, since a build leaves its files beside setup.py
    shutil.copytree(root / "vitdet_nb", source / "vitdet_nb", ignore=shutil.ignore_patterns("__pycache__"))
    for name in "settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in": shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source]
    res = subprocess.run(command, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_modules_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names}
    assert tops == {"vitdet_nb", next(t for t in tops if t.endswith(".dist-info"))}
    held = sorted(n for n in names if n.startswith("vitdet_nb/"))
    assert held == sorted(f"vitdet_nb/{p.name}" for p in (root / "vitdet_nb").glob("*.py"))


def test_the_wheel_asks_for_what_settings_ini_says(wheel):
    cfg = ConfigParser(delimiters=["="])
    cfg.read(root / "settings.ini", encoding="utf-8")
    archive = zipfile.ZipFile(wheel)
    metadata = email.message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))))
    required = {r.split(">")[0].strip() for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert required == {"torch", "torchvision", "fastcore", "matplotlib", "pillow", "safetensors", "tqdm", "filelock", "pycocotools"}
    assert metadata["Version"] == cfg["DEFAULT"]["version"]
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_library_needs_no_development_tools_and_no_network(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    tools = "nbdev,execnb,IPython,ipykernel,jupyterlab,transformers,timm,segment_anything,pytest,smalldocs,playwright"
    res = subprocess.run([sys.executable, "-c", use_it, tools, ",".join(modules)], cwd=tmp_path,
                         env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    assert str(tmp_path) in res.stdout and "(1, 8, 4, 4)" in res.stdout


def test_the_readme_runs_and_its_links_lead_somewhere():
    text = (root / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 5 and not [link for link in links if not (root / link).exists()]
    code = re.search(r"```python\n(.*?)```", text, re.S)[1] + "\nassert features.shape == (1, 256, 64, 64)"
    res = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
