"The site as one reader meets it: from home by \"next\" to the end, moving what can be moved, at night, to the printer."
import re

import pytest

from conftest import open_tab
from test_site import CHAPTERS, NOT_CUT_OFF, sidebar_pages

# What a figure shows: its words, and the pixels of its maps
SEEN = """host => host.shadowRoot.querySelector('.frame').innerText + [...host.shadowRoot.querySelectorAll('canvas')].map(c => c.toDataURL())
  + [...host.shadowRoot.querySelectorAll('svg')].map(s => s.innerHTML)"""


@pytest.fixture
def reader(new_context, site_url):
    "A tab that notes all messages, not only errors."
    context = new_context()
    tab = open_tab(context, site_url)
    tab.on("console", lambda m: tab.problems.append(m.text))
    yield tab
    context.close()


def changes(host, act):
    "Do something to a figure; whether it shows something else then."
    before = host.evaluate(SEEN)
    act()
    return host.evaluate(SEEN) != before


def move(host):
    "Move everything in a figure, by keyboard; the number of things that were moved."
    name = host.get_attribute("data-name")
    for stage in host.locator(".stage:visible").all():
        presses = ["ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"]
        assert any(changes(host, lambda: stage.press(key)) for key in presses), f"{name}: a picture does not answer"
    selects = host.locator("select:visible")
    for i in range(selects.count()):
        first, options = selects.nth(i).evaluate("s => [s.selectedIndex, s.length]")
        answered = [changes(host, lambda: selects.nth(i).select_option(index=k)) for k in range(options) if k != first]
        assert any(answered), f"{name}: menu {i} changes nothing"
        selects.nth(i).select_option(index=first)  # the others may mean nothing with the last choice
    sliders = host.locator("input[type=range]:visible")
    for i in range(sliders.count()):
        assert any(changes(host, lambda: sliders.nth(i).press(key)) for key in ("ArrowRight", "ArrowLeft")), f"{name}: slider {i} changes nothing"
    buttons = host.locator("button:visible:enabled")
    for i in range(buttons.count()):
        if i < buttons.count(): buttons.nth(i).click()
    return host.locator(".stage").count() + selects.count() + sliders.count() + buttons.count()


def test_a_reader_walks_from_home_to_the_end(reader, site_url):
    order, moved = sidebar_pages(), {}
    reader.goto(site_url)
    for page in order:
        if page != order[0]: reader.locator(".nav-page-next a").click()
        reader.wait_for_url(site_url + page if page != order[0] else re.compile(re.escape(site_url)))
        assert reader.locator("h1.title").inner_text()
        for host in reader.locator(".vitdet-widget").all():
            moved[page, host.get_attribute("data-name")] = move(host)
        if page == "attention.html": reader.locator(".quarto-color-scheme-toggle:visible").first.click()  # it gets late
        dark = sum(map(int, re.findall(r"\d+", reader.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])) < 3 * 128
        assert dark == (order.index(page) > order.index("attention.html")) or page == "attention.html", page
    assert reader.locator(".nav-page-next a").count() == 0
    assert {name for _, name in moved} >= {"windows", "relpos", "flow", "cost", "attention"} and all(moved.values()), moved
    assert {page for page, _ in moved} & set(CHAPTERS), "no figure to move in a chapter"
    assert reader.problems == [] and reader.foreign == []


@pytest.mark.parametrize("words, page", [
    ("pad tokens", "windowing.html"), ("relative position", "rel_pos.html"), ("load_checkpoint", "checkpoints.html"),
    ("drop path", "blocks.html"), ("large-scale jitter", "images.html"),
])
def test_a_reader_finds(words, page, tab, site_url):
    tab.goto(site_url)
    tab.locator(".sidebar-search input").first.fill(words)
    tab.locator(f".search-result[href*='{page}']").first.wait_for()
    best = tab.eval_on_selector_all(".search-result", "rs => rs.slice(0, 5).map(r => r.pathname.slice(1))")
    assert page in best, f"{words!r} leads to {best}"
    hit = tab.locator(f".search-result[href*='{page}']").first
    assert hit.evaluate(NOT_CUT_OFF)
    hit.click()
    tab.wait_for_url(re.compile(re.escape(site_url + page)))


@pytest.mark.parametrize("page", ["index.html", *CHAPTERS[:3], "widgets.html"])
def test_a_page_can_be_printed(page, tab, site_url):
    tab.goto(site_url + page)
    tab.emulate_media(media="print")
    assert not tab.locator("#quarto-sidebar").is_visible() and not tab.locator(".sidebar-search input").first.is_visible()
    # on A4 with its margins, about 700 pixels
    tab.set_viewport_size({"width": 700, "height": 990})
    wide = """() => [...document.querySelectorAll('main :is(pre, table, figure, img, p, .vitdet-widget)')]
      .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 50))"""
    assert tab.evaluate(wide) == []
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 1
