"The interactive figures, moved in a browser as a reader moves them: what they show is what Python computes."
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from conftest import ROOT
from vitdet_nb.ablations import Task, draw_scenes, paper_cost, propagation_encoder, small_encoder, spread, train_small
from vitdet_nb.images import resized_hw
from vitdet_nb.rel_pos import RelPosAttention, add_decomposed_rel_pos, get_rel_pos
from vitdet_nb.utils import randomize
from vitdet_nb.widgets import attention_widget
from vitdet_nb.windowing import real_tokens, window_partition


def figure(tab, name): return tab.locator(f'.vitdet-widget[data-name="{name}"]').first


def value(tab, name, key):
    "A number that a figure shows, without its separators."
    return figure(tab, name).locator(f'[data-value="{key}"]').first.inner_text().replace(",", "")


def choose(tab, name, label, text):
    figure(tab, name).get_by_label(label, exact=False).first.select_option(label=text)


def middle_of(box, row, col, rows, cols):
    "The place of a cell in a stage's box, in pixels."
    return dict(x=box["width"] * (col + 0.5) / cols, y=box["height"] * (row + 0.5) / rows)


@pytest.fixture
def widget_tab(tab, site_url):
    tab.goto(site_url + "widgets.html")
    yield tab
    assert tab.problems == [] and tab.foreign == []


# ---- windows

def windows_of(size, patch, window):
    "What the library says: real tokens by row and column of windows, and the numbers of the table."
    h, w = resized_hw((600, 512), size)
    grid = -(-h // patch), -(-w // patch)
    Hp, Wp = window_partition(real_tokens(grid, 1).view(1, *grid, 1), window)[1]
    real = real_tokens(grid, window).view(Hp // window, Wp // window, -1).sum(-1)
    return grid, real


@pytest.mark.parametrize("size, patch, window", [(1024, 16, 14), (512, 14, 8), (1536, 8, 7), (224, 32, 16)])
def test_windows_show_what_the_library_counts(widget_tab, size, patch, window):
    for label, text in (("longest side", f"{size} pixels"), ("patch", f"{patch} pixels"), ("window", f"{window} tokens")):
        choose(widget_tab, "windows", label, text)
    (H, W), real = windows_of(size, patch, window)
    n, tokens = real.numel(), window**2
    shown = {key: value(widget_tab, "windows", key) for key in ("windows", "tokens", "pads", "window_scores", "scores", "global_scores", "share")}
    share = 100 * n * tokens**2 / (H * W)**2
    assert abs(float(shown.pop("share").rstrip("% ")) - share) <= 0.0051
    assert shown == {key: str(x) for key, x in dict(windows=n, tokens=tokens, pads=n * tokens - H * W, window_scores=tokens**2,
                                                    scores=n * tokens**2, global_scores=(H * W)**2).items()}
    stage = figure(widget_tab, "windows").locator(".stage")
    for row, col in ((0, 0), (real.shape[0] - 1, 0), (0, real.shape[1] - 1), (real.shape[0] - 1, real.shape[1] - 1)):
        stage.hover(position=middle_of(stage.bounding_box(), row, col, *real.shape))
        assert f"row {row}, column {col}" in figure(widget_tab, "windows").locator(".say").inner_text()
        assert value(widget_tab, "windows", "real") == str(real[row, col].item())
        assert abs(float(value(widget_tab, "windows", "real_share").rstrip("% ")) - 100 * real[row, col].item() / tokens) <= 0.0051


def test_windows_by_keyboard(widget_tab):
    real = windows_of(1024, 16, 14)[1]
    stage = figure(widget_tab, "windows").locator(".stage")
    stage.focus()
    for key in ["ArrowDown"] * 9 + ["ArrowRight"] * 9 + ["ArrowUp"]: widget_tab.keyboard.press(key)
    row, col = real.shape[0] - 2, real.shape[1] - 1  # the arrows stop at the edge
    assert f"row {row}, column {col}" in figure(widget_tab, "windows").locator(".say").inner_text()
    assert value(widget_tab, "windows", "real") == str(real[row, col].item())


def test_windows_by_touch(chromium, site_url):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto(site_url + "widgets.html")
    real = windows_of(1024, 16, 14)[1]
    stage = figure(tab, "windows").locator(".stage")
    stage.tap(position=middle_of(stage.bounding_box(), 4, 1, *real.shape))
    assert value(tab, "windows", "real") == str(real[4, 1].item())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


# ---- relative positions

rel_pos_grids = [((7, 7), (7, 7)), ((14, 14), (14, 14)), ((6, 10), (6, 10)), ((8, 5), (14, 14)), ((9, 12), (7, 7))]
signed = {"\N{MINUS SIGN}": "-", "+": ""}


@torch.no_grad()
def rel_pos_of(hw, input_size):
    "By the library: the bias of each pair (H, W, H, W), then what the row table and the column table add to it."
    attention = randomize(RelPosAttention(8, 1, input_size=input_size), std=0.4)
    q = attention.heads(torch.randn(1, *hw, 8, generator=torch.Generator().manual_seed(0)))[0]
    zero, h, w = torch.zeros(1, 1, math.prod(hw), math.prod(hw)), attention.rel_pos_h, attention.rel_pos_w
    return [add_decomposed_rel_pos(zero, q, *tables, hw, hw).view(*hw, *hw) for tables in ((h, w), (h, 0 * w), (0 * h, w))]


def rel_pos_shown(tab):
    "The numbers that the figure shows."
    keys = ("bias", "part0", "part1", "row0", "row1", "offset0", "offset1", "first0", "last0", "length0", "first1", "last1", "length1")
    texts = (value(tab, "relpos", key) for key in keys)
    return dict(zip(keys, (float("".join(signed.get(c, c) for c in text)) for text in texts)))


def check_rel_pos(tab, grid, query, key, biases):
    (H, W), shown = grid[0], rel_pos_shown(tab)
    said = figure(tab, "relpos").locator(".say").inner_text()
    assert f"query ({query[0]}, {query[1]})" in said and f"key ({key[0]}, {key[1]})" in said
    for name, bias in zip(("bias", "part0", "part1"), biases):
        assert abs(shown[name] - bias[(*query, *key)].item()) <= (0.0011 if name == "bias" else 0.00051), name
    for axis, n in enumerate((H, W)):
        reads = [query[axis] - k + n - 1 for k in range(n)]  # the rows of the axis' table
        assert shown[f"row{axis}"] == get_rel_pos(n, n, torch.arange(2. * n - 1)[:, None])[query[axis], key[axis], 0] == reads[key[axis]]
        assert shown[f"offset{axis}"] == query[axis] - key[axis]
        assert [shown[f"{name}{axis}"] for name in ("first", "last", "length")] == [min(reads), max(reads), 2 * n - 1]


@pytest.mark.parametrize("grid", rel_pos_grids, ids=str)
def test_rel_pos_shows_what_the_library_adds(widget_tab, grid):
    (H, W), biases = grid[0], rel_pos_of(*grid)
    figure(widget_tab, "relpos").locator("select").select_option(index=rel_pos_grids.index(grid))
    stages = figure(widget_tab, "relpos").locator(".stage")
    queries, maps = stages.nth(0), stages.nth(3)
    for query, key in (((0, 0), (H - 1, W - 1)), ((H - 1, 0), (0, W - 1)), ((2, W - 2), (H - 3, 1)), ((H - 1, W - 1), (H - 1, W - 1))):
        queries.click(position=middle_of(queries.bounding_box(), *query, H, W))
        maps.hover(position=middle_of(maps.bounding_box(), *key, H, W))
        check_rel_pos(widget_tab, grid, query, key, biases)
    for map_ in stages.nth(1), stages.nth(2):  # the index maps take a key, too
        map_.hover(position=middle_of(map_.bounding_box(), 1, 3, H, W))
        check_rel_pos(widget_tab, grid, query, (1, 3), biases)


def colours_of(stage):
    "The pixels of a stage's canvas, as rows of [red, green, blue, opacity]. A copy is read: the browser warns of canvases read often."
    data, width = stage.locator("canvas").evaluate("""c => {
        const copy = new OffscreenCanvas(c.width, c.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(c, 0, 0);
        return [Array.from(copy.getImageData(0, 0, c.width, c.height).data), c.width];
    }""")
    return torch.tensor(data).view(-1, width, 4)


def test_rel_pos_colours_follow_the_numbers(widget_tab):
    grid = rel_pos_grids[2]
    (H, W), bias = grid[0], rel_pos_of(*grid)[0]
    figure(widget_tab, "relpos").locator("select").select_option(index=2)
    stages = figure(widget_tab, "relpos").locator(".stage")
    stages.nth(0).click(position=middle_of(stages.nth(0).bounding_box(), 1, 7, H, W))
    painted, own = colours_of(stages.nth(3)).long(), bias[1, 7]
    warm = painted[..., 0] - painted[..., 2]  # red over blue
    clear = own.abs() > 0.05 * own.abs().max()
    assert ((warm > 0) == (own > 0))[clear].all() and clear.sum() > 40
    order = own.flatten().argsort()
    assert (warm.flatten()[order[:5]] < -60).all() and (warm.flatten()[order[-5:]] > 60).all()
    for i, axis in ((1, 0), (2, 1)):  # brighter for a greater index, the same along the other axis
        bright = colours_of(stages.nth(i))[..., :3].sum(-1)
        assert (bright.diff(dim=axis) < 0).all() and (bright.diff(dim=1 - axis) == 0).all()
        marks = stages.nth(i).locator(".mark").all_inner_texts()
        n, q = grid[0][axis], (1, 7)[axis]
        assert marks == [str(q - k + n - 1) for k in range(n)]


def test_rel_pos_by_keyboard(widget_tab):
    stages = figure(widget_tab, "relpos").locator(".stage")
    for i, keys in ((0, ["ArrowUp"] * 5 + ["ArrowRight"]), (3, ["ArrowLeft"] * 5 + ["ArrowUp"])):
        stages.nth(i).focus()
        for key in keys: widget_tab.keyboard.press(key)
    check_rel_pos(widget_tab, rel_pos_grids[0], (0, 5), (4, 0), rel_pos_of(*rel_pos_grids[0]))  # from (2, 4) and (5, 1)


def test_rel_pos_by_touch(chromium, site_url):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto(site_url + "widgets.html")
    figure(tab, "relpos").locator("select").select_option(index=3)
    stages = figure(tab, "relpos").locator(".stage")
    for i, cell in ((0, (7, 1)), (3, (2, 4))): stages.nth(i).tap(position=middle_of(stages.nth(i).bounding_box(), *cell, 8, 5))
    check_rel_pos(tab, rel_pos_grids[3], (7, 1), (2, 4), rel_pos_of(*rel_pos_grids[3]))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
# ---- the spread of information

def flow_by_gradient(strategy, count, place, token):
    "What a token of a grid of 64 x 55 can know after each of 12 blocks: the gradient of random encoders, one for each axis."
    known = []
    for n, t in zip((64, 55), token):  # a strip of tokens: what is known on one axis does not depend on the other
        hw = (4 * n, 4)
        encoder = propagation_encoder(strategy, count or None, place, depth=12, window_size=14, embed_dim=8, num_heads=1,
                                      patch_size=4, img_size=16, out_chans=None, use_abs_pos=False, attention="naive")
        encoder = randomize(encoder, std=0.3).double()
        picture = torch.randn(1, 3, *hw, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
        mix = torch.randn(8, dtype=torch.double, generator=torch.Generator().manual_seed(1))
        axis = [torch.eye(n, dtype=torch.bool)[t]]
        for y in encoder.block_outputs(picture):  # (1, 8, n, 1)
            grad, = torch.autograd.grad(y[0, :, t, 0] @ mix, picture, retain_graph=True)
            axis.append((grad[0].view(3, n, 4, 4) != 0).any(3).any(2).any(0))
        known.append(axis)
    return [rows[:, None] & cols for rows, cols in zip(*known)]


def shown_flow(tab):
    "Block, tokens known, share and place, as the figure says them."
    return tuple(value(tab, "flow", key) for key in ("block", "known", "share", "where"))


def is_shown(tab, block, all_known):
    "Numbers, bar and picture after a block are those of `all_known`: known before is clear, new is tinted, the rest is veiled."
    known, before = all_known[block], all_known[max(0, block - 1)]
    rows, cols = known.any(1).nonzero().flatten().tolist(), known.any(0).nonzero().flatten().tolist()
    n, share, where, expected_share = *shown_flow(tab)[1:], 100 * known.float().mean().item()
    assert shown_flow(tab)[0] == str(block) and n == str(known.sum().item())
    assert abs(float(share.rstrip("% ")) - expected_share) <= 0.0051
    assert where == f"rows {rows[0]} to {rows[-1]} columns {cols[0]} to {cols[-1]}"  # `value` drops the comma
    bar = figure(tab, "flow").locator(".bars .now")
    above, below = map(int, bar.inner_text().split())
    assert abs(above - expected_share) <= 0.5001 and below == block
    picture = figure(tab, "flow").locator("canvas").evaluate(
        "c => { const copy = Object.assign(document.createElement('canvas'), {width: c.width, height: c.height})"
        ".getContext('2d', {willReadFrequently: true}); copy.drawImage(c, 0, 0);"
        " const d = copy.getImageData(0, 0, c.width, c.height).data;"
        " return Array.from({length: c.width * c.height}, (_, i) => d[4 * i + 3] ? d[4 * i + 2] > 90 ? 'veil' : 'new' : 'clear') }")  # a veil is grey
    assert picture == ["clear" if b else "new" if k else "veil" for k, b in zip(known.flatten().tolist(), before.flatten().tolist())]


def click_token(tab, row, col):
    stage = figure(tab, "flow").locator(".stage")
    stage.click(position=middle_of(stage.bounding_box(), row, col, 64, 55))


def to_block(tab, block):
    figure(tab, "flow").get_by_role("slider").fill(str(block))


@pytest.mark.parametrize("label, strategy, count, place, token", [
    ("none", "none", 0, "even", (20, 30)), ("conv (naive or bottleneck)", "conv_naive", 4, "even", (27, 14)),
    ("conv (naive or bottleneck)", "conv_bottleneck", 6, "even", (0, 54)), ("conv (basic)", "conv_basic", 4, "first", (40, 29)),
    ("shifted windows", "shifted", 6, "even", (63, 0)), ("shifted windows", "shifted", 3, "last", (7, 48)),
    ("global attention", "global", 2, "last", (31, 8))])
def test_flow_shows_where_gradients_come_from(widget_tab, label, strategy, count, place, token):
    choose(widget_tab, "flow", "strategy", label)
    if count:
        choose(widget_tab, "flow", "blocks that join windows", str(count))
        choose(widget_tab, "flow", "where", dict(even="evenly spread", first="the first", last="the last")[place])
    menus = figure(widget_tab, "flow").locator("select")
    assert [menus.nth(i).is_disabled() for i in range(3)] == [False, not count, not count]
    click_token(widget_tab, *token)
    known = flow_by_gradient(strategy, count, place, token)
    for block in (0, 1, 2, 3, 6, 12):
        to_block(widget_tab, block)
        is_shown(widget_tab, block, known)
    marked = [int(bar.inner_text().split()[1]) - 1 for bar in figure(widget_tab, "flow").locator(".bars .joins").all()]
    assert tuple(marked) == (spread(12, count, place) if count else ())


def test_flow_by_buttons_and_keyboard(widget_tab):
    fig = figure(widget_tab, "flow")
    click_token(widget_tab, 62, 1)
    known = flow_by_gradient("shifted", 6, "even", (63, 0))
    fig.locator(".stage").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"): widget_tab.keyboard.press(key)  # the edge stops them
    fig.get_by_role("slider").focus()
    widget_tab.keyboard.press("Home")
    is_shown(widget_tab, 0, known)
    assert fig.get_by_role("button", name="back").is_disabled()
    for block in 1, 2, 3:
        fig.get_by_role("button", name="next").press("Enter")
        is_shown(widget_tab, block, known)
    fig.get_by_role("button", name="back").click()
    is_shown(widget_tab, 2, known)
    fig.get_by_role("slider").focus()
    widget_tab.keyboard.press("ArrowRight")
    is_shown(widget_tab, 3, known)
    lines = fig.locator(".stage svg path")
    assert lines.get_attribute("d") == "".join(f"M0 {y}h55" for y in (14, 28, 42, 56)) + "".join(f"M{x} 0v64" for x in (14, 28, 42))
    widget_tab.keyboard.press("End")
    is_shown(widget_tab, 12, known)
    assert lines.get_attribute("d") == "".join(f"M0 {y}h55" for y in (7, 21, 35, 49, 63)) + "".join(f"M{x} 0v64" for x in (7, 21, 35, 49))
    assert fig.get_by_role("button", name="next").is_disabled()
    assert value(widget_tab, "flow", "kind") == "Block 12: windows of 14 shifted by 7"


def test_flow_plays_to_the_end(widget_tab):
    fig = figure(widget_tab, "flow")
    to_block(widget_tab, 10)
    fig.get_by_role("button", name="play").click()
    fig.get_by_role("button", name="pause").wait_for()
    fig.get_by_role("button", name="play").wait_for()  # at the end it stops by itself
    assert value(widget_tab, "flow", "block") == "12"
    fig.get_by_role("button", name="play").click()
    fig.get_by_role("button", name="pause").click()
    assert int(value(widget_tab, "flow", "block")) < 3  # from the start again


def test_flow_by_touch(chromium, site_url):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto(site_url + "widgets.html")
    stage = figure(tab, "flow").locator(".stage")
    stage.tap(position=middle_of(stage.bounding_box(), 44, 12, 64, 55))
    figure(tab, "flow").get_by_role("button", name="next").tap()
    is_shown(tab, 5, flow_by_gradient("shifted", 6, "even", (44, 12)))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
# ---- cost

cost_dims = {"ViT-B": (768, 12, 12), "ViT-L": (1024, 24, 16), "ViT-H": (1280, 32, 16)}
cost_variants = [("none", lambda depth: None), ("conv_bottleneck", lambda depth: 4), ("global", lambda depth: 4),
                 ("global", lambda depth: depth), ("shifted", lambda depth: depth // 2)]


class Counter(TorchDispatchMode):
    "Multiply-adds, and the bytes of the largest tensor of attention weights."
    flops = scores = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        if f.overloadpacket in flop_registry:
            self.flops += flop_registry[f.overloadpacket](*args, **(kwargs or {}), out_val=out)
        if f is torch.ops.aten._softmax.default:
            self.scores = max(self.scores, out.nbytes)
        return out


def cost_counted(model, size, window, form, strategy, count):
    "Parameters in millions, multiply-adds in billions, scores in MiB, as a whole encoder has them on shapes without data."
    dim, depth, heads = cost_dims[model]
    with torch.device("meta"):
        encoder = propagation_encoder(strategy, count(depth), img_size=size, embed_dim=dim, depth=depth, num_heads=heads,
                                      window_size=window, use_rel_pos=False, out_chans=None, attention=form)
    torch.backends.mkldnn.enabled = False  # `linear` as it stands: the same count, sooner
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), Counter() as counter:
        encoder.to_empty(device="cpu")(torch.empty(1, 3, size, size))
    torch.backends.mkldnn.enabled = True
    return sum(p.numel() for p in encoder.parameters()) / 1e6, counter.flops / 2e9, counter.scores / 2**20


def cost_shown(tab, i):
    "The numbers of a strategy and its multiples of windows only, None where there is none."
    texts = [value(tab, "cost", f"{name}{i}") for name in ("parameters", "multiply_adds", "scores")]
    numbers, multiples = [], []
    for text, unit in zip(texts, ("M", "G", "MiB")):
        found = re.fullmatch(rf"(?:([\d.]+) {unit}|none)\s*(?:× ([\d.]+))?", text)
        numbers.append(float(found[1] or 0))
        multiples.append(found[2] and float(found[2]))
    return numbers, multiples


def choose_costs(tab, model, size, window, form):
    texts = model, f"{size} pixels", f"{window} tokens", dict(naive="naive", auto="fast (chapter 07)")[form]
    for i, text in enumerate(texts):
        figure(tab, "cost").locator("select").nth(i).select_option(label=text)


def width_of(tab, key, part):
    "How long a bar is, or where its line stands, as a share of the most."
    bar = figure(tab, "cost").locator(f'[data-value="{key}"] .bar')
    inner, whole = bar.locator(part).bounding_box(), bar.bounding_box()
    return (inner["width"] if part == "i" else inner["x"] - whole["x"]) / whole["width"]


@pytest.mark.parametrize("setting, strategies", [
    (("ViT-B", 512, 8, "naive"), (0, 1, 2, 3, 4)), (("ViT-L", 1024, 14, "naive"), (0, 4)), (("ViT-H", 1536, 16, "naive"), (0, 2)),
    (("ViT-B", 512, 8, "auto"), (0, 1, 3)), (("ViT-B", 1024, 16, "auto"), (0, 4)), (("ViT-B", 768, 14, "auto"), (0, 2))])
def test_costs_are_those_of_whole_encoders(widget_tab, setting, strategies):
    choose_costs(widget_tab, *setting)
    counted = {i: cost_counted(*setting, *cost_variants[i]) for i in strategies}
    for i in strategies:
        numbers, multiples = cost_shown(widget_tab, i)
        assert all(abs(a - b) <= 0.0501 for a, b in zip(numbers, counted[i])), (i, numbers, counted[i])
        for multiple, here, base in zip(multiples, counted[i], counted[0]):
            assert (multiple is None) if not base else abs(multiple - here / base) <= 0.00501


def test_cost_bars_show_the_numbers(widget_tab):
    choose_costs(widget_tab, "ViT-L", 1024, 14, "naive")
    for k, name in enumerate(("parameters", "multiply_adds", "scores")):
        numbers = [cost_shown(widget_tab, i)[0][k] for i in range(5)]
        for i in range(5):
            assert abs(width_of(widget_tab, f"{name}{i}", "i") - numbers[i] / max(numbers)) < 0.01
            assert abs(width_of(widget_tab, f"{name}{i}", "b") - numbers[0] / max(numbers)) < 0.01


def test_cost_parts_make_the_whole(widget_tab):
    fig, names = figure(widget_tab, "cost"), ("parameters", "multiply_adds", "scores")
    choose_costs(widget_tab, "ViT-L", 1024, 14, "naive")
    wanted = [["patches", "24 × windows"], ["patches", "20 × windows", "4 × windows, conv"], ["patches", "20 × windows", "4 × global"],
              ["patches", "24 × global"], ["patches", "12 × windows", "12 × shifted"]]
    for i, (label, parts) in enumerate(zip(("windows only", "4 convs", "4 global", "all global", "every 2nd shifted"), wanted)):
        fig.get_by_label(label, exact=True).check()
        found = [e.inner_text() for e in fig.locator('[data-value^="part"]').all() if re.fullmatch(r"part\d", e.get_attribute("data-value"))]
        assert found == parts
        whole = [float(value(widget_tab, "cost", f"{name}_of")) for name in names]
        assert whole == cost_shown(widget_tab, i)[0]
        each = [[float(value(widget_tab, "cost", f"{name}_of{p}")) for name in names] for p in range(len(parts))]
        many = [1] + [int(part.split()[0]) for part in parts[1:]]
        for k in 0, 1:
            assert abs(sum(n * e[k] for n, e in zip(many, each)) - whole[k]) <= 0.05 * (1 + sum(many))  # each is rounded
        assert max(e[2] for e in each) == whole[2]
        assert label in fig.locator(".say").inner_text()


def test_costs_that_were_measured(widget_tab):
    file = json.loads((Path(__file__).parents[1] / "nbs/images/propagation_cost.json").read_text())
    lines = [line.inner_text().split("\t") for line in figure(widget_tab, "cost").locator(".parts tbody").last.locator("tr").all()]
    shown = {name: list(map(float, numbers)) for name, *numbers in lines}
    none, *rows = file["rows"]
    expected = {"parameters, paper": [r.parameters for r in paper_cost[1:]], "test time, paper": [r.test_time for r in paper_cost[1:]],
                "training memory, paper": [r.training_memory for r in paper_cost[1:]],
                "multiply-adds, counted, naive": [r["multiply_adds"] / none["multiply_adds"] for r in rows],
                "parameters, counted": [r["parameters"] / none["parameters"] for r in rows],
                "training memory, counted, naive": [r["training_bytes"] / none["training_bytes"] for r in rows],
                "training memory, fast": [r["auto"]["train_peak_mib"] / none["auto"]["train_peak_mib"] for r in rows]}
    for form, key in ("naive", "naive"), ("fast", "auto"):
        expected[f"test memory, {form}"] = [r[key]["peak_mib"] / none[key]["peak_mib"] for r in rows]
        expected[f"test time, {form}"] = [statistics.median(a / b for a, b in zip(r[key]["runs"], none[key]["runs"])) for r in rows]
    assert shown.keys() == expected.keys()
    for name, values in expected.items():
        assert all(abs(a - b) <= 0.00501 for a, b in zip(shown[name], values)), name


def test_cost_by_keyboard(widget_tab):
    fig = figure(widget_tab, "cost")
    fig.locator("select").first.focus()
    widget_tab.keyboard.press("ArrowDown")  # ViT-H
    fig.get_by_label("4 global", exact=True).focus()
    widget_tab.keyboard.press("ArrowDown")
    assert fig.get_by_label("all global", exact=True).is_checked()
    said = fig.locator(".say").inner_text()
    assert said.startswith("ViT-H, 1024 pixels, windows of 14, naive attention, all global:")
    counted = cost_counted("ViT-H", 1024, 14, "naive", *cost_variants[3])
    assert all(abs(float(a) - b) <= 0.0501 for a, b in zip(re.findall(r"[\d.]+(?= (?:M|G|MiB)\b)", said.replace(",", "")), counted, strict=True))


def test_cost_by_touch(chromium, site_url):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto(site_url + "widgets.html")
    figure(tab, "cost").get_by_label("4 convs", exact=True).tap()
    assert value(tab, "cost", "part2") == "4 × windows conv"  # `value` drops the comma
    inside = "e => [...e.shadowRoot.querySelectorAll('.scroll, .cost')].map(e => e.scrollWidth - e.clientWidth)"
    assert max(figure(tab, "cost").evaluate(inside)) <= 0  # all columns are seen
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
# ---- attention

@pytest.fixture(scope="module")
def small_attention():
    "By the library: the weights of the figure's encoder, (blocks, heads, row and column that look, row and column looked at)."
    model = small_encoder("global", 4).requires_grad_(False)
    model.load_state_dict(load_file(ROOT / "nbs/images/small_global.safetensors"))
    x = draw_scenes(100, torch.Generator().manual_seed(10**6))[0][:1]
    maps = []
    for i, block in enumerate(model[0].blocks):
        tokens = model[0].block_outputs(x)[i - 1].permute(0, 2, 3, 1) if i else model[0].embed(x)
        maps.append(torch.stack([block.attention_map(tokens, divmod(n, 12))[0] for n in range(144)], dim=1).view(2, 12, 12, 12, 12))
    assert (maps[3][:, 4, 7] == model[0].attention_map(x, 3, (4, 7))[0]).all()
    return torch.stack(maps)


def check_attention(tab, weights, block, head, query, key):
    "The sentence, the table and the lit picture, for one map and one patch that is looked at."
    own = weights[block, head][query]  # (12, 12)
    most, best = own.max().item(), divmod(own.argmax().item(), 12)
    said = figure(tab, "attention").locator(".say").inner_text()
    kind = "global" if block % 2 else "window"
    assert said.startswith(f"Block {block} ({kind}), head {head}: patch ({query[0]}, {query[1]}) looks most at ({best[0]}, {best[1]}), with ")
    shown = {name: value(tab, "attention", name) for name in ("best", "most", "key", "weight", "even")}
    assert shown["best"].startswith(f"({best[0]} {best[1]})") and shown["key"].startswith(f"({key[0]} {key[1]})")  # value() drops commas
    for name, share in (("most", most), ("weight", own[key].item()), ("even", 1 / 144 if block % 2 else 1 / 9)):
        assert abs(float(shown[name].rstrip("% ")) - 100 * share) <= 0.0051 + 0.25 * most * (name != "even"), name
    dark = colours_of(figure(tab, "attention").locator(".stage").nth(1))[..., 3]
    expected = torch.where(own > 0, 215 - 215 * own / most, 235)
    assert (dark - expected).abs().max() <= 1


@pytest.mark.parametrize("block, head, query, key", [
    (1, 1, (0, 0), (11, 11)), (1, 0, (3, 8), (0, 2)), (3, 1, (11, 0), (2, 10)), (7, 0, (5, 7), (7, 5)), (0, 1, (4, 9), (5, 11)), (6, 0, (10, 2), (0, 0))])
def test_attention_shows_the_encoders_weights(widget_tab, small_attention, block, head, query, key):
    picture, lit, maps = (figure(widget_tab, "attention").locator(".stage").nth(i) for i in range(3))
    maps.click(position=middle_of(maps.bounding_box(), head, block, 2, 8))
    picture.click(position=middle_of(picture.bounding_box(), *query, 12, 12))
    lit.hover(position=middle_of(lit.bounding_box(), *key, 12, 12))
    check_attention(widget_tab, small_attention, block, head, query, key)


@pytest.mark.parametrize("query", [(0, 0), (7, 4), (2, 11)])
def test_all_small_maps_follow_the_weights(widget_tab, small_attention, query):
    picture, maps = (figure(widget_tab, "attention").locator(".stage").nth(i) for i in (0, 2))
    picture.click(position=middle_of(picture.bounding_box(), *query, 12, 12))
    pixels = colours_of(maps).view(2, 14, 8, 14, 4).permute(2, 0, 1, 3, 4)  # (blocks, heads, rows, columns, 4), a margin round each map
    own = small_attention[:, :, query[0], query[1]]  # (8, 2, 12, 12)
    opacity, bright = pixels[..., 3], pixels[..., :3].sum(-1)
    seen = torch.nn.functional.pad(own > 0, (1, 1, 1, 1))
    assert ((opacity > 0) == seen).all()
    for weights, shown in zip(own.flatten(0, 1), bright[..., 1:-1, 1:-1].flatten(0, 1)):
        weights, shown = weights[weights > 0], shown[weights > 0]
        order = weights.argsort()
        assert (shown[order].diff() >= 0).all(), "a greater weight is not brighter"
        assert shown[order[-1]] == 254 + 232 + 56 and (shown == 0 + 34 + 78).sum() == (weights < weights.max() / 510).sum()


def test_attention_by_keyboard(widget_tab, small_attention):
    stages = figure(widget_tab, "attention").locator(".stage")
    for i, keys in ((0, ["ArrowUp"] * 2 + ["ArrowLeft"]), (1, ["ArrowDown"] * 3), (2, ["ArrowRight"] * 2 + ["ArrowUp"] * 3)):
        stages.nth(i).focus()
        for key in keys: widget_tab.keyboard.press(key)
    first = divmod(small_attention[1, 1, 6, 6].argmax().item(), 12)  # where the figure points at first
    check_attention(widget_tab, small_attention, 3, 0, (4, 5), (min(11, first[0] + 3), first[1]))


def test_attention_by_touch(chromium, site_url, small_attention):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto(site_url + "widgets.html")
    for i, cell, grid in ((0, (9, 1), (12, 12)), (1, (10, 0), (12, 12)), (2, (1, 4), (2, 8))):
        stage = figure(tab, "attention").locator(".stage").nth(i)
        stage.tap(position=middle_of(stage.bounding_box(), *cell, *grid))
    check_attention(tab, small_attention, 4, 1, (9, 1), (10, 0))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_attention_of_another_encoder_on_its_own_page(tab):
    "An oblong image, shifted windows with padding; the page holds nothing but the figure."
    encoder = propagation_encoder("shifted", 2, img_size=64, patch_size=8, embed_dim=24, depth=4, num_heads=3, window_size=4, out_chans=None)
    image = torch.randn(3, 53, 76, generator=torch.Generator().manual_seed(0))  # 7 x 10 patches
    tab.set_content(attention_widget(randomize(encoder, std=0.3), image).html)
    picture, lit, maps = (figure(tab, "attention").locator(".stage").nth(i) for i in range(3))
    for block, head, query in ((0, 2, (6, 9)), (1, 0, (2, 7)), (3, 1, (6, 1))):
        maps.click(position=middle_of(maps.bounding_box(), head, block, 3, 4))
        picture.click(position=middle_of(picture.bounding_box(), *query, 7, 10))
        own = encoder.eval().attention_map(image[None], block, query)[0, head].detach()
        dark, best = colours_of(lit)[..., 3], divmod(own.argmax().item(), 10)
        assert (dark - torch.where(own > 0, 215 - 215 * own / own.max(), 235)).abs().max() <= 1
        assert value(tab, "attention", "best").startswith(f"({best[0]} {best[1]})")
        assert abs(float(value(tab, "attention", "most").rstrip("% ")) - 100 * own.max().item()) <= 0.0501
    assert tab.problems == [] and tab.foreign == []


def test_the_encoders_weights_are_written_as_they_were(tmp_path):
    command = [sys.executable, ROOT / "nbs/_tools/propagation.py", "encoder", "--steps", "8", "--validation", "20", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["small_global.safetensors"] and "accuracy by distance" in done.stderr
    task = Task(steps=8, validation=20, warmup=4)
    weights, again = load_file(tmp_path / "small_global.safetensors"), train_small("global", 4, seed=0, task=task)[0].state_dict()
    assert weights.keys() == again.keys()
    for name in weights: assert (weights[name] - again[name]).abs().max() < 1e-4, name
    with safe_open(tmp_path / "small_global.safetensors", "pt") as file: assert json.loads(file.metadata()["settings"]) == task._asdict()
