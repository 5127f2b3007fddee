"The look of the site: for eyes that need contrast, for keyboards, screen readers, slow networks, any screen, and paper."
import re
from importlib.resources import files
from urllib.parse import urlsplit

import pytest

from conftest import ROOT, open_tab
from test_site import every_page

AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")  # Deque's checker of accessibility
CHAPTER = "windowing.html"

# Open what is folded. What is marked alike in alike surroundings looks alike: of thousands of words of code keep one of each kind,
# and of all that holds text mark one of each kind, for its colours
PREPARE = """() => {
  document.querySelectorAll('details').forEach(d => { d.open = true; });
  const kind = e => {
    let path = '';
    for (; e !== document.body; e = e.parentElement)
      path += `${e.tagName}.${e.className} ${e.closest('main') ? '' : e.id} ${e.getAttribute('style') ?? ''} ${!e.previousElementSibling};`;
    return path;
  };
  const words = new Set(), kinds = new Set();
  for (const word of [...document.querySelectorAll('main pre code span')].reverse()) {
    const its = word.className + kind(word.closest('code'));
    if (words.has(its)) word.replaceWith(...word.childNodes);
    words.add(its);
  }
  for (const e of document.body.querySelectorAll('*')) {
    if (!e.shadowRoot && !e.placeholder && ![...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())) continue;
    const its = kind(e);
    if (e.shadowRoot || !kinds.has(its)) e.dataset.sample = '';
    kinds.add(its);
  }
}"""

# What axe finds: rule, gravity, and where
VIOLATIONS = """([where, options]) => axe.run(where, {resultTypes: ['violations'], ...options}).then(found =>
  found.violations.flatMap(v => v.nodes.map(n => [v.impact, v.id, n.target.join(' '), n.html.slice(0, 120), n.failureSummary])))"""
NOT_COLOURS = {"rules": {"color-contrast": {"enabled": False}}}
COLOURS_ALONE = {"runOnly": ["color-contrast"]}


@pytest.fixture(scope="module")
def one_tab(new_context, site_url):
    "One tab for all pages: what they share is loaded once."
    context = new_context()
    tab = open_tab(context, site_url)
    yield tab
    context.close()


def open_page(tab, url, scheme="light", width=1400, media="screen"):
    "Open a page on a screen of this width, or as it is printed, with all that it loads."
    tab.emulate_media(color_scheme=scheme, media=media)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(url)


def turn_dark(tab):
    "Prefer dark pages from now on, and wait until this one is."
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function("document.querySelector('html.quarto-dark, body.quarto-dark')")
    tab.wait_for_function("document.getAnimations().every(a => a.playState === 'finished')")  # links fade to their new colour


def violations(tab):
    "The violations of level serious or critical that axe finds on a light page, and in its colours when it turns dark."
    tab.evaluate(PREPARE)
    tab.add_script_tag(content=AXE)
    found = tab.evaluate(VIOLATIONS, [{"include": ["html"]}, NOT_COLOURS])
    found += tab.evaluate(VIOLATIONS, [{"include": ["[data-sample]"]}, COLOURS_ALONE])
    turn_dark(tab)
    found += tab.evaluate(VIOLATIONS, [{"include": ["[data-sample]"]}, COLOURS_ALONE])
    return [v for v in found if v[0] in ("serious", "critical")]


@every_page
def test_axe_finds_no_grave_violation(page, one_tab, site_url):
    open_page(one_tab, site_url + page)
    assert violations(one_tab) == []


@pytest.mark.parametrize("page", ["index.html", CHAPTER])
def test_axe_finds_no_grave_violation_on_a_phone(page, one_tab, site_url):
    open_page(one_tab, site_url + page, width=390)
    one_tab.locator(".quarto-btn-toggle").first.click()
    one_tab.wait_for_timeout(300)  # the menu slides in
    assert violations(one_tab) == []


@every_page
def test_a_page_weighs_less_than_a_megabyte_and_a_half(page, one_tab, site_url, site_dir):
    open_page(one_tab, site_url + page)
    loaded = one_tab.evaluate("performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:'))")
    parts = {page} | {urlsplit(url).path.lstrip("/") for url in loaded}
    assert any(p.endswith(".css") for p in parts) and any(p.endswith(".js") for p in parts)
    sizes = {p: (site_dir / p).stat().st_size for p in parts}
    assert sum(sizes.values()) < 1_500_000, sorted(sizes.items(), key=lambda s: -s[1])[:5]


# ---- colours that figures take from the page

# The contrast of each colour with each ground it stands on
COLOURS = """() => {
  const style = getComputedStyle(document.body);
  const light = name => {
    const probe = document.createElement('i');
    probe.style.color = style.getPropertyValue(name);
    document.body.append(probe);
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    probe.remove();
    return parts[0] * .2126 + parts[1] * .7152 + parts[2] * .0722;
  };
  const contrast = (a, b) => { const [low, high] = [light(a), light(b)].sort((x, y) => x - y); return (high + .05) / (low + .05); };
  const names = ['--text', '--muted', '--link', '--accent', '--name', '--code-key', '--code-str', '--code-num', '--code-note', '--code-fun'];
  return Object.fromEntries(names.flatMap(n => ['--page', '--panel'].map(ground => [`${n} on ${ground}`, contrast(n, ground)])));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_can_be_read_on_both_grounds(scheme, one_tab, site_url):
    open_page(one_tab, site_url + "utils.html", scheme)
    one_tab.wait_for_timeout(100)
    assert {pair: round(c, 1) for pair, c in one_tab.evaluate(COLOURS).items() if c < 4.5} == {}
    assert one_tab.evaluate("['--line', '--mono'].map(n => getComputedStyle(document.body).getPropertyValue(n)).every(Boolean)")


def test_figures_lie_on_the_light_page(one_tab, site_url):
    paper = re.search(r'^paper.*= "#(\w\w)(\w\w)(\w\w)"', (ROOT / "vitdet_nb/utils.py").read_text(encoding="utf-8"), re.M)
    open_page(one_tab, site_url + "utils.html")
    ground = one_tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert ground == [int(c, 16) for c in paper.groups()]


def test_one_logo_stands_in_the_tab_and_in_the_sidebar(one_tab, site_url, site_dir):
    open_page(one_tab, site_url + CHAPTER)
    assert one_tab.locator("link[rel=icon]").get_attribute("href") == "favicon.svg"
    drawn = one_tab.evaluate("getComputedStyle(document.querySelector('.sidebar-title a'), '::before').backgroundImage")
    assert drawn == f'url("{site_url}favicon.svg")'
    inks = set(re.findall(r'fill="(#\w{6})"', (site_dir / "favicon.svg").read_text(encoding="utf-8")))
    for scheme in ("light", "dark"):
        open_page(one_tab, site_url + CHAPTER, scheme)
        one_tab.wait_for_timeout(100)
        for ink in inks:
            one_tab.evaluate("ink => document.body.style.setProperty('--text', ink)", ink)
            assert one_tab.evaluate(COLOURS)["--text on --page"] >= 3, f"{ink} fades on the {scheme} page"
    assert len(inks) == 2


# ---- measure

# Letters a line, of each paragraph with some lines
LINE_LENGTHS = """() => [...document.querySelectorAll('main p')].filter(p => !p.closest('details, figure, table, li, blockquote') && p.innerText.length > 250)
  .map(p => p.innerText.length / Math.round(p.getBoundingClientRect().height / parseFloat(getComputedStyle(p).lineHeight)))"""


@pytest.mark.parametrize("width", [1400, 1920, 2560])
def test_lines_of_prose_have_a_readable_length(width, one_tab, site_url):
    open_page(one_tab, site_url + CHAPTER, width=width)
    lengths = one_tab.evaluate(LINE_LENGTHS)
    assert len(lengths) >= 5
    assert max(lengths) <= 76
    assert sum(lengths) / len(lengths) >= 58


# ---- first paint

SHIFTS = """new PerformanceObserver(list => list.getEntries().forEach(e => {
  if (e.hadRecentInput) return;
  window.shifted = (window.shifted || 0) + e.value;
  window.movers = (window.movers || []).concat(e.sources.map(s => s.node && `${s.node.nodeName} ${s.node.className} ${s.node.textContent.trim().slice(0, 40)}`));
})).observe({ type: 'layout-shift', buffered: true })"""


@pytest.fixture
def slow_tab(new_context, site_url):
    "A tab that has loaded nothing yet, behind a slow line: a megabyte a second, each answer after a tenth of a second."
    context = new_context()
    tab = open_tab(context, site_url)
    line = context.new_cdp_session(tab)
    line.send("Network.enable")
    line.send("Network.setCacheDisabled", {"cacheDisabled": True})
    line.send("Network.emulateNetworkConditions", {"offline": False, "latency": 100, "downloadThroughput": 2**20, "uploadThroughput": 2**20})
    tab.add_init_script(SHIFTS)
    yield tab
    context.close()


def shifts(tab):
    "How far the page has jumped until now, by the browser's measure, and what moved."
    tab.wait_for_timeout(150)
    return tab.evaluate("[window.shifted || 0, window.movers]")


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_jumps_while_a_page_loads(width, slow_tab, site_url):
    jumps = {}
    for page in ("index.html", CHAPTER, "widgets.html"):
        open_page(slow_tab, site_url + page, width=width)
        shifted, movers = shifts(slow_tab)
        if shifted >= 0.01:
            jumps[page] = (shifted, movers)
    assert jumps == {}


@pytest.mark.parametrize("page", ["detection.html", "fast_attention.html"])
def test_nothing_jumps_when_a_picture_comes_late(page, tab, site_url):
    held = []
    tab.add_init_script(SHIFTS)
    tab.route("**/images/*", lambda route: held.append(route))
    tab.goto(site_url + page, wait_until="domcontentloaded")
    tab.locator("main img[src^='images/']").first.evaluate("e => e.scrollIntoView({ behavior: 'instant', block: 'start' })")
    tab.wait_for_timeout(150)
    assert held
    for route in held:
        route.continue_()
    tab.wait_for_load_state("load")
    shifted, movers = shifts(tab)
    assert shifted < 0.01, movers


# ---- keyboard

# The line round what has the keyboard: its width, and its contrast with the page
RING = """() => {
  let e = document.activeElement;
  while (e.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;  // in a figure
  const s = getComputedStyle(e);
  const light = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const [low, high] = [light(s.outlineColor), light(getComputedStyle(document.body).backgroundColor)].sort((a, b) => a - b);
  return { kind: e.tagName, name: e.textContent.trim().slice(0, 40) || e.className, there: s.outlineStyle === 'solid' && parseFloat(s.outlineWidth) >= 2 && e.matches(':focus-visible'),
    contrast: (high + .05) / (low + .05), seen: getComputedStyle(e).opacity !== '0' && e.getBoundingClientRect().width > 0 };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_keyboard_can_be_followed(scheme, one_tab, site_url):
    open_page(one_tab, site_url + CHAPTER, scheme)
    one_tab.wait_for_timeout(100)
    kinds = {}
    for _ in range(75):
        one_tab.keyboard.press("Tab")
        ring = one_tab.evaluate(RING)
        if ring["kind"] == "BODY":
            break
        kinds[ring["kind"]] = kinds.get(ring["kind"], 0) + 1
        assert ring["there"] and ring["seen"] and ring["contrast"] >= 3, ring
    assert {"A", "INPUT", "BUTTON", "SUMMARY"} <= set(kinds), kinds
    one_tab.locator("main details:not(.code-fold) > summary").first.focus()
    one_tab.keyboard.press("Enter")
    assert one_tab.locator("main details:not(.code-fold)").first.get_attribute("open") is not None


# ---- paper

A4 = 673  # CSS pixels between margins of 16 mm

# What is printed and should not be
AROUND = """() => ['#quarto-header', '#quarto-sidebar', '#quarto-margin-sidebar', '.page-navigation', '.code-copy-button', 'details.code-fold']
  .flatMap(s => [...document.querySelectorAll(s)].filter(e => e.getBoundingClientRect().height).map(() => s))"""

# What does not fit between the margins, or is hidden in a box that scrolls
CUT_OFF = """() => [...document.querySelectorAll('main *:not(pre span, math *, svg *)')].filter(e => e.checkVisibility())
  .filter(e => { const b = e.getBoundingClientRect(); return b.right > innerWidth + 1 || (e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1 && getComputedStyle(e).overflowX !== 'visible'); })  // text for screen readers is a pixel wide
  .map(e => `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 60)}`)"""

# Figures that may break over two pages, or are higher than one
BREAKING = """() => [...document.querySelectorAll('main :is(figure, img)')].filter(e => e.checkVisibility())
  .filter(e => getComputedStyle(e).breakInside !== 'avoid' || e.getBoundingClientRect().height > 980).map(e => e.outerHTML.slice(0, 120))"""

CLOSED = """() => [...document.querySelectorAll('main details:not(.code-fold)')]
  .filter(d => d.checkVisibility() && ![...d.children].slice(1).some(e => e.checkVisibility({ contentVisibilityAuto: true }) && e.getBoundingClientRect().height)).length"""


@every_page
def test_paper_holds_the_text_and_nothing_else(page, one_tab, site_url):
    open_page(one_tab, site_url + page, width=A4, media="print", scheme="dark")
    assert one_tab.evaluate(AROUND) == []
    assert one_tab.evaluate(CUT_OFF) == []
    assert one_tab.evaluate(BREAKING) == []
    assert one_tab.evaluate(CLOSED) == 0, "an answer stays folded on paper"
    assert one_tab.evaluate("getComputedStyle(document.body).getPropertyValue('--text')") == "#22262b", "paper is light"


def test_a_chapter_can_be_printed(one_tab, site_url):
    open_page(one_tab, site_url + CHAPTER)
    pdf = one_tab.pdf(format="A4", prefer_css_page_size=True)
    sheets = pdf.count(b"/Type /Page\n")
    assert pdf.startswith(b"%PDF") and 4 <= sheets <= 30, sheets
