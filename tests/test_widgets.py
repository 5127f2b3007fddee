"The interactive figures, moved in a browser as a reader moves them: what they show is what Python computes."
import re

import pytest

from vitdet_nb.images import resized_hw
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


