"One exported program for every image size and batch: what an ONNX exporter traces."
import logging

import pytest
import torch
from torch.export import Dim

from vitdet_nb.encoder import ViTDet
from vitdet_nb.utils import randomize


@pytest.fixture(scope="module")
def models():
    "The encoder and its definition, with the same weights."
    args = dict(img_size=160, embed_dim=48, depth=4, num_heads=4, window_size=4, global_attn_indexes=(1, 3), out_chans=16)
    return [randomize(ViTDet(**args, attention=attention)).eval() for attention in ("auto", "naive")]


@pytest.fixture(scope="module")
def program(models):
    "Traced at a size at which some tables are resized, some are not, and windows need padding."
    free = {0: Dim("batch"), 2: 16 * Dim("rows", min=2, max=256), 3: 16 * Dim("columns", min=2, max=256)}
    config = pytest.importorskip("torch.fx.experimental._config")
    if not hasattr(config, "backed_size_oblivious"): pytest.skip("this torch cannot leave sizes free")
    logging.disable(logging.WARNING)
    with config.patch(backed_size_oblivious=True):  # torch.onnx.export sets it as well
        exported = torch.export.export(models[0], (torch.randn(2, 3, 160, 112),), dynamic_shapes=(free,), strict=False)
    logging.disable(logging.NOTSET)
    return exported.module()


@pytest.mark.parametrize("batch, height, width", [
    (2, 160, 112), (1, 160, 160), (3, 320, 48), (2, 64, 64), (2, 32, 160), (1, 640, 720)])
def test_any_size(models, program, batch, height, width):
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
    with torch.inference_mode(): difference = (program(x) - models[1](x)).abs().max()
    assert difference < 1e-5
