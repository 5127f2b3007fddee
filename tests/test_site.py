"The website as a reader meets it: its pages read as text and in a browser, and the tool that builds and serves it."
import base64
import importlib.util
import io
import json
import re
import shutil
import signal
import socket
import sys
from collections import Counter
from configparser import ConfigParser
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest
import yaml
from PIL import Image

from conftest import ROOT, open_tab, run_site, start_server

NOTEBOOKS = sorted((ROOT / "nbs").glob("[!_.]*.ipynb"), key=lambda p: (p.stem != "index", p.name))


def address(notebook):
    "The numberless address of a notebook's page."
    return re.sub(r"^\d+[a-z]*_", "", Path(notebook).stem.lower()) + ".html"


PAGES = [address(nb) for nb in NOTEBOOKS]
CHAPTERS = [address(nb) for nb in NOTEBOOKS if nb.name[0].isdigit()]
every_page = pytest.mark.parametrize("page", PAGES)


def cells(notebook, kind):
    "The sources of a notebook's cells of one kind."
    nb = json.loads(Path(notebook).read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == kind]


def sidebar_pages():
    "The addresses in the sidebar's order, which is the order of reading."
    def flat(contents):
        for item in contents:
            if isinstance(item, str):
                yield address(item)
            else:
                yield from flat([item["href"]] if "href" in item else item["contents"])

    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    return list(flat(config["website"]["sidebar"]["contents"]))


# ---- the pages as text


class Page(HTMLParser):
    "What the tests read in a page's HTML."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.images = [], [], [], []
        self.prose, self.cell_code, self.formulas = [], [], 0
        self.open = Counter()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.open[tag] += 1
        self.formulas += tag == "math"
        if tag == "pre":
            self.in_cell = "cell-code" in a.get("class", "")
        if a.get("id"):
            self.ids.append(a["id"])
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag in ("script", "img", "iframe", "source") and a.get("src"):
            self.loads.append(a["src"])
        if tag == "link":
            self.loads.append(a["href"])
        if tag == "img":
            self.images.append((a.get("alt") or "").strip())

    def handle_endtag(self, tag):
        self.open[tag] -= 1
        if tag == "pre" and self.in_cell:
            self.cell_code.append("\n")

    def handle_data(self, data):
        if self.open["script"] or self.open["style"]:
            return
        if self.open["pre"]:
            if self.in_cell:
                self.cell_code.append(data)
        elif not self.open["code"]:
            self.prose.append(data)


@pytest.fixture(scope="session")
def read(site_dir):
    "Read a page of the built site, once."
    pages = {}

    def read(page):
        if page not in pages:
            pages[page] = Page(site_dir / page)
        return pages[page]

    return read


def leftovers(page):
    "Markup that should have been turned into something else, in what a reader sees."
    prose, code = "".join(page.prose), "".join(page.cell_code)
    marks = re.findall(r"@(?:fig|tbl|sec|eq|lst)-\w*|:::|#\||\$|\\[(\[]|\{\{<|`|\]\(|\[\^|\*\*", prose)
    return marks + re.findall(r"(?m)^#\|.*", code)


def dead_links(name, read, site_dir):
    "The links of a page that lead nowhere in the site: to no file, or to no anchor."
    dead = []
    for link in read(name).links:
        url = urlsplit(link)
        if url.scheme in ("http", "https"):
            continue
        target = unquote(url.path) or name
        target = "index.html" if target in (".", "./") else target
        there = not url.scheme and not target.startswith("/") and (site_dir / target).is_file()
        if not there or (url.fragment and target.endswith(".html") and unquote(url.fragment) not in read(target).ids):
            dead.append(link)
    return dead


def test_pages_have_numberless_addresses(site_dir):
    assert sorted(p.name for p in site_dir.glob("*.html")) == sorted(PAGES)
    assert len(CHAPTERS) >= 7


def test_sidebar_lists_every_notebook_in_order():
    listed = sidebar_pages()
    assert listed[0] == "index.html"
    assert sorted(listed) == sorted(PAGES), "_quarto.yml's sidebar and nbs/*.ipynb differ"
    assert [p for p in listed if p in CHAPTERS] == CHAPTERS


@every_page
def test_no_dead_link_or_anchor(page, read, site_dir):
    assert dead_links(page, read, site_dir) == []


@every_page
def test_anchors_are_unique(page, read):
    twice = [i for i, n in Counter(read(page).ids).items() if n > 1]
    assert twice == [], "a heading may not be the bare name of an exported symbol of its chapter; rename the heading"


@every_page
def test_no_leftover_markup(page, read):
    assert leftovers(read(page)) == []


@every_page
def test_formulas_are_mathml(page, read, site_dir):
    source = re.sub(r"(`+).*?\1", "", "\n".join(cells(NOTEBOOKS[PAGES.index(page)], "markdown")), flags=re.S)  # code may hold a dollar
    written = len(re.findall(r"\$\$.+?\$\$|\$[^\s$](?:[^$]*[^\s$])?\$", source, re.S))
    assert read(page).open["math"] == 0  # every <math> is closed
    assert read(page).formulas >= written
    html = (site_dir / page).read_text(encoding="utf-8")
    assert not re.search(r'class="math [a-z]+">(?!<math)|<script[^>]*(katex|mathjax)', html, re.I)


@every_page
def test_pictures_have_alt_text(page, read):
    images = read(page).images
    assert all(images), f"{images.count('')} of {len(images)} pictures have no alt text; add #| fig-alt to their cells"
    if page in CHAPTERS:
        assert len(images) >= 3, f"{len(images)} pictures only; are the notebook's outputs stored (make refresh)?"


@every_page
def test_everything_is_loaded_from_the_site(page, read):
    assert [u for u in read(page).loads if re.match(r"(https?:)?//", u)] == []


@every_page
def test_links_that_need_a_public_address_wait_for_it(page, read, site_dir):
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    settings = config["DEFAULT"]
    if settings["git_url"] or settings["doc_host"]:
        pytest.skip("settings.ini has a public address")
    needy = re.compile(rf"^/|colab\.research|nbviewer|mybinder|{settings['repo']}/(blob|edit|issues|tree)|github\.com/[^/]*/{settings['repo']}\b")
    assert [u for u in read(page).links if needy.search(u)] == []
    html = (site_dir / page).read_text(encoding="utf-8")
    assert not re.search(r'rel="canonical"|property="og:url"|toc-action', html)
    assert not (site_dir / "sitemap.xml").exists()


PICTURE = re.compile(r"""<img\b(?:[^>"']|"[^"]*"|'[^']*')*>""")


@every_page
def test_pictures_have_their_size(page, site_dir):
    "So that the text does not move when a picture comes in."
    for img in PICTURE.findall((site_dir / page).read_text(encoding="utf-8").partition("<main")[2]):
        data = re.search(r'src="data:[^,]*,([^"]*)"', img)
        file = io.BytesIO(base64.b64decode(data[1])) if data else site_dir / re.search(r'src="([^"]*)"', img)[1]
        width, height = Image.open(file).size
        assert f' width="{width}" height="{height}"' in img, img[-200:]


@every_page
def test_navigations_have_names(page, site_dir):
    html = (site_dir / page).read_text(encoding="utf-8")
    assert all("aria-label=" in nav for nav in re.findall(r"<nav\b[^>]*>", html))
    assert 'role="navigation"' not in html, "a link that folds a section is a button"


# ---- the pages as Markdown


def blocks(page):
    "Code and outputs of a page: the text of its <pre>."
    return [unescape(re.sub(r"<[^>]*>", "", pre)).strip("\n") for pre in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.S)]


def without_code(markdown):
    "Markdown without its blocks of code and its code in lines."
    return re.sub(r"(`+).*?\1", "", re.sub(r"(?ms)^(`{3,}).*?^\1$", "", markdown))


def anchors(markdown):
    "What links may name of a page: its headings."
    headings = re.findall(r"^#+ (.*)", re.sub(r"(?ms)^(`{3,}).*?^\1$", "", markdown), re.M)
    return [re.sub(r"[^\w -]", "", h.lower().replace("`", "")).strip().replace(" ", "-") for h in headings]


@every_page
def test_a_page_is_there_as_markdown(page, site_dir):
    html, markdown = ((site_dir / page).with_suffix(end).read_text(encoding="utf-8") for end in (".html", ".md"))
    assert f'<link rel="alternate" type="text/markdown" href="{page[:-5]}.md">' in html
    nb = NOTEBOOKS[PAGES.index(page)]
    title, description = re.match(r"# (.*)\s+> (.*)", cells(nb, "markdown")[0]).groups()
    assert markdown.startswith(f"# {title}\n\n> {description}\n\n")
    main = re.sub(r"<(script|style)\b.*?</\1>", "", html.partition("<main")[2], flags=re.S)
    missing = [b for b in blocks(main) if "\n".join(line.rstrip() for line in b.split("\n")) not in "\n".join(line.rstrip() for line in markdown.split("\n"))]
    assert missing == []
    assert [alt for alt in read_alts(main) if alt not in markdown] == []
    prose = without_code(markdown)
    assert re.findall(r"#\||<details|</details|<summary|<div|<script|<!--|\.ipynb\)|!\[|data:image|:::", prose) == []
    assert not re.search(r"^#\|", markdown, re.M)


def read_alts(main):
    return [" ".join(unescape(alt).split()) for alt in re.findall(r' alt="([^"]*)"', main)]


@every_page
def test_prose_and_formulas_are_in_the_markdown(page, site_dir):
    markdown = " ".join((site_dir / page).with_suffix(".md").read_text(encoding="utf-8").split())
    for cell in cells(NOTEBOOKS[PAGES.index(page)], "markdown")[1:]:
        text = re.sub(r"`[^`]*`|<[^>]*>|!?\[[^\]]*\]\([^)]*\)(\{[^}]*\})?", "\0", re.sub(r"(?ms)^(`{3,}).*?^\1$", "\0", cell))
        missing = [part for part in map(str.strip, text.split("\0")) if " ".join(part.split()) not in markdown]
        assert missing == []


@every_page
def test_hidden_cells_are_not_in_the_markdown(page, site_dir):
    markdown = (site_dir / page).with_suffix(".md").read_text(encoding="utf-8")
    prose, source = (cells(NOTEBOOKS[PAGES.index(page)], kind) for kind in ("markdown", "code"))
    hidden = [c for c in source if re.search(r"^#\| *(hide|export|echo: *false|include: *false)\b", c, re.M)]
    shown = "\n".join(prose + [c for c in source if c not in hidden])
    lines = {line for c in hidden for line in c.split("\n") if len(line) > 30 and not line.startswith("#|") and line not in shown}
    assert [line for line in lines if line in markdown] == []


@every_page
def test_links_of_the_markdown_lead_somewhere(page, site_dir):
    markdown = (site_dir / page).with_suffix(".md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]*)\)", without_code(markdown)):
        url = urlsplit(link)
        if url.scheme in ("http", "https"):
            continue
        file = site_dir / (url.path or page.replace(".html", ".md"))
        assert file.is_file() and file.suffix != ".html", link
        if url.fragment:
            assert url.fragment in anchors(file.read_text(encoding="utf-8")), link


def test_figures_to_move_are_told_in_the_markdown(site_dir, read):
    for page in PAGES:
        html, markdown = ((site_dir / page).with_suffix(end).read_text(encoding="utf-8") for end in (".html", ".md"))
        labels = re.findall(r'<div class="vitdet-widget"[^>]*aria-label="([^"]*)"', html.partition("<main")[2])
        assert markdown.count("**A figure to move.**") == len(labels), page
        assert all(f"**A figure to move.** {unescape(label)}" in markdown for label in labels), page


def test_llms_txt_lists_all_pages(site_dir):
    text = (site_dir / "llms.txt").read_text(encoding="utf-8")
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    assert text.startswith(f"# vitdet_nb\n\n> {config['DEFAULT']['description']}\n\n")
    sidebar = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    sections = {item["section"]: [address(name) for name in item["contents"]] for item in sidebar if "section" in item}
    parts = re.split(r"^## (.*)", text, flags=re.M)
    assert parts[1::2] == list(sections)
    listed = []
    for name, lines in zip(["start", *sections], parts[::2]):
        entries = re.findall(r"^- \[(.+)\]\((\w+)\.md\): (.+)$", lines, re.M)
        assert len(entries) == len(re.findall("^-", lines, re.M))
        assert [f"{page}.html" for _, page, _ in entries] == sections.get(name, ["index.html"])
        listed += entries
    for title, page, description in listed:
        assert (site_dir / f"{page}.md").read_text(encoding="utf-8").startswith(f"# {title}\n\n> {description}\n")
    assert sorted(f"{page}.html" for _, page, _ in listed) == sorted(PAGES)


# ---- the pages in a browser

# What sticks out of a narrow screen and cannot be scrolled to
STICKS_OUT = """() => [...document.querySelectorAll('body *')].filter(e => {
  if (!e.checkVisibility() || e.closest('#quarto-sidebar')) return false;
  if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
  return true;
}).map(e => e.tagName + '.' + e.className + ' ' + e.textContent.trim().slice(0, 60))"""

# Both ends of an element are in view, with nothing over them
NOT_CUT_OFF = """e => { const b = e.getBoundingClientRect(), y = b.top + b.height / 2;
  return [b.left + 4, b.right - 4].every(x => { const hit = document.elementFromPoint(x, y); return e.contains(hit); }); }"""

# The contrast of text with what lies behind it, for one element of each kind
CONTRAST = """() => {
  const rgb = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 && m[3] === 0 ? null : m.slice(0, 3); };
  const light = c => c.map(v => (v /= 255) <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c) return c; } return [255, 255, 255]; };
  const kinds = ['h1', 'h2', 'main p', 'main a', 'main li', 'td', 'th', 'figcaption', 'summary', 'blockquote p', 'p code', 'pre code', 'code .co', 'code .st',
                 'code .kw', 'code .dv', 'code .fu', '.cell-output pre code', '.sidebar-title a', '.sidebar-link', '#TOC a', '.page-navigation a', 'main .description'];
  return Object.fromEntries(kinds.map(k => [k, [...document.querySelectorAll(k)].find(e => e.checkVisibility())]).filter(([k, e]) => e).map(([k, e]) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [k, (a + .05) / (b + .05)];
  }));
}"""


@pytest.fixture(scope="module", params=PAGES)
def page(request):
    "Each page; the tests that open it in a browser run one after the other, so that it is loaded once."
    return request.param


@pytest.fixture(scope="module")
def page_tab(page, shared_context, site_url):
    "A tab with the page."
    tab = open_tab(shared_context, site_url)
    tab.goto(site_url + page)
    yield tab
    tab.close()


@pytest.fixture
def open_page(page_tab):
    "The tab with the page, as it is after loading: what a test opens, colours or resizes is put back."
    yield page_tab
    page_tab.emulate_media(color_scheme="light")
    page_tab.evaluate("document.querySelectorAll('details[open]').forEach(d => { d.open = false }); scrollTo(0, 0)")


def test_page_loads_clean_and_whole(page, open_page):
    tab = open_page
    assert tab.problems == []
    assert tab.foreign == []
    assert tab.locator("h1.title").inner_text()
    formulas = tab.eval_on_selector_all("math", "ms => ms.filter(m => m.checkVisibility()).map(m => m.getBoundingClientRect()).map(b => b.width * b.height)")
    assert all(formulas), "a formula takes no room"
    # the sidebar leads to every page and marks this one
    links = tab.eval_on_selector_all("#quarto-sidebar a.sidebar-link[href$='.html']", "ls => ls.map(a => a.pathname.slice(1))")
    assert set(PAGES) <= set(links)
    assert tab.locator("#quarto-sidebar a.sidebar-link.active").first.get_attribute("href").endswith(page)
    # the contents of the page are its headings, footnotes aside, and lead to them
    headings = tab.eval_on_selector_all("main h2:not(.quarto-appendix-heading)", "hs => hs.map(h => h.textContent.trim())")
    contents = tab.eval_on_selector_all("#TOC a", "as => as.map(a => a.textContent.trim())")
    assert [h for h in headings if h not in contents] == []
    if page in CHAPTERS:
        assert len(headings) >= 3
    if contents:
        tab.locator("#TOC a").last.click()
        tab.wait_for_function("decodeURIComponent(location.hash) === document.querySelectorAll('#TOC a')[document.querySelectorAll('#TOC a').length - 1].getAttribute('href')")


# Whether the keyboard reaches every box that scrolls sideways, and stops at no other
SCROLLERS_ONLY = """() => [...document.querySelectorAll('main pre, main table, main .sd-table, main .cell-output-display, main .math.display')]
  .every(e => e.hasAttribute('tabindex') === (e.scrollWidth > e.clientWidth))"""


@every_page
def test_a_phone_needs_no_sideways_scroll(page, tab, site_url):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(site_url + page)
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    tab.wait_for_function(SCROLLERS_ONLY)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate(STICKS_OUT) == []


# Click the middle of each fold's summary, as a reader does: what is wrong with it
CLICK_FOLDS = """() => [...document.querySelectorAll('main details:not(details details)')].map(d => {
  const summary = d.querySelector('summary');
  if (d.open) return 'is open before the reader opens it: ' + summary.textContent;
  summary.scrollIntoView({ block: 'center', behavior: 'instant' });
  const b = summary.getBoundingClientRect(), hit = document.elementFromPoint(b.left + b.width / 2, b.top + b.height / 2);
  if (!summary.contains(hit)) return 'cannot be clicked: ' + summary.textContent;
  hit.click();
  if (!d.open) return 'does not open: ' + summary.textContent;
  return [...d.children].slice(1).some(e => e.getBoundingClientRect().height > 0) ? null : 'nothing is in the fold: ' + summary.textContent;
}).filter(wrong => wrong)"""


def test_folds_open(page, open_page):
    tab = open_page
    assert tab.evaluate(CLICK_FOLDS) == []
    first = tab.locator("main details > summary").first
    if first.count():
        first.click()  # and by the mouse
        assert first.locator("xpath=..").get_attribute("open") is None
    if page in CHAPTERS:
        solutions = tab.locator("main details:has(> summary:text-matches('^Solution'))")
        assert solutions.count() >= 2
        assert solutions.locator("pre.cell-code").count() >= 2, "the solutions hold no code"


def test_text_can_be_read(open_page):
    tab = open_page
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_timeout(150)
        assert {k: round(c, 1) for k, c in tab.evaluate(CONTRAST).items() if c < 4.5} == {}, scheme


def test_the_menu_of_a_phone(tab, site_url):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(site_url + CHAPTERS[0])
    link = tab.locator(f"#quarto-sidebar a.sidebar-link[href$='{CHAPTERS[1]}']").first
    assert not link.evaluate(NOT_CUT_OFF)
    tab.locator(".quarto-btn-toggle").first.click()
    tab.wait_for_timeout(500)  # it slides in
    assert link.evaluate(NOT_CUT_OFF)
    assert re.match(r"rgb\(", tab.locator("#quarto-sidebar").evaluate("e => getComputedStyle(e).backgroundColor")), "the page shines through the menu"
    tab.locator(".sidebar-search input").first.fill("window")
    tab.locator(".search-result").first.wait_for()
    assert tab.locator(".search-result").first.evaluate(NOT_CUT_OFF)
    tab.keyboard.press("Escape")
    link.click()
    tab.wait_for_url(site_url + CHAPTERS[1])


def test_next_and_previous_lead_through_the_course(tab, site_url):
    order = sidebar_pages()
    tab.goto(site_url)
    for page in order[1:]:
        tab.locator(".nav-page-next a").click()
        tab.wait_for_url(site_url + page, wait_until="domcontentloaded")
    assert tab.locator(".nav-page-next a").count() == 0
    for page in order[-2::-1]:
        tab.locator(".nav-page-previous a").click()
        tab.wait_for_url(site_url + page, wait_until="domcontentloaded")
    assert tab.locator(".nav-page-previous a").count() == 0


def test_dark_mode_toggles_and_persists(fresh_tab, site_url):
    def is_dark():
        fresh_tab.wait_for_timeout(150)
        return sum(map(int, re.findall(r"\d+", fresh_tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])) < 3 * 128

    fresh_tab.goto(site_url)
    assert not is_dark()
    fresh_tab.locator(".quarto-color-scheme-toggle").first.click()
    assert is_dark()
    fresh_tab.reload()
    assert is_dark()
    fresh_tab.goto(site_url + CHAPTERS[0])
    assert is_dark()
    fresh_tab.locator(".quarto-color-scheme-toggle").first.click()
    assert not is_dark()
    fresh_tab.reload()
    assert not is_dark()


def search_terms(notebook):
    "What a reader may look for: the chapter's title, and the first definition that it exports."
    exported = [re.search(r"^(?:def|class) ([A-Za-z]\w*)", c, re.M) for c in cells(notebook, "code") if re.search(r"^#\| *exports?\b", c, re.M)]
    return [re.search(r"^# (.*)", cells(notebook, "markdown")[0], re.M)[1], *[m[1] for m in exported if m][:1]]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=PAGES)
def test_search_finds(notebook, tab, site_url):
    page = address(notebook)
    tab.goto(site_url + (CHAPTERS[0] if page == "index.html" else "index.html"))
    for term in search_terms(notebook):
        tab.locator(".sidebar-search input").first.fill("")
        tab.locator(".search-result").first.wait_for(state="hidden")  # those of the term before
        tab.locator(".sidebar-search input").first.fill(term)
        hit = tab.locator(f".search-result[href*='{page}']").first
        hit.wait_for()
        best = tab.eval_on_selector_all(".search-result", "rs => rs.slice(0, 5).map(r => r.pathname.slice(1))")
        assert page in best, f"{term!r} leads to {best}"
        assert tab.locator(".search-result").first.evaluate(NOT_CUT_OFF), "the results are cut off"
    hit.click()
    tab.wait_for_url(re.compile(re.escape(site_url + page)))


@pytest.mark.parametrize("name, href", [("window_partition", "windowing.html#window_partition"), ("RelPosAttention", "rel_pos.html#relposattention")])
def test_a_search_for_a_name_leads_to_its_definition(name, href, tab, site_url):
    tab.goto(site_url)
    tab.locator(".sidebar-search input").first.fill(name)
    tab.locator(".search-result").first.wait_for()
    assert tab.locator(".search-result").first.get_attribute("href").endswith(href)
    tab.locator(".search-result").first.click()
    tab.wait_for_url(site_url + href)


def test_search_says_when_there_is_nothing(tab, site_url):
    tab.goto(site_url)
    tab.locator(".sidebar-search input").first.fill("qqqqzzzzxxxx")
    tab.locator(".search-none").wait_for()


def test_code_copies(page, open_page):
    tab = open_page
    block = tab.locator(".code-copy-outer-scaffold:visible").first
    if page not in CHAPTERS and not block.count():
        return
    block.hover()
    block.locator("button").click()
    tab.wait_for_selector(".code-copy-button-checked")
    assert tab.evaluate("navigator.clipboard.readText()").strip() == block.locator("code").inner_text().strip() != ""


# ---- the tool


@pytest.fixture(scope="session")
def site_tool():
    "The site tool as a module."
    sys.path.append(str(ROOT / "nbs/_tools"))  # where it finds its other half
    spec = importlib.util.spec_from_file_location("site_tool", ROOT / "nbs/_tools/site.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def write_notebook(path, *cells):
    "Write a notebook; a cell is a text, Markdown or, when it starts with `#|`, code; or it is a cell as the file has it."
    def cell(i, source):
        if isinstance(source, dict):
            return {**source, "id": f"c{i}"}
        more = {"cell_type": "code", "execution_count": None, "outputs": []} if source.startswith("#|") else {"cell_type": "markdown"}
        return {**more, "id": f"c{i}", "metadata": {}, "source": source}

    nb = {"cells": [cell(i, c) for i, c in enumerate(cells)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(nb), encoding="utf-8")


def small_checkout(root, cells):
    "Make a checkout with two small notebooks, the second of these cells."
    (root / "nbs/_tools").mkdir(parents=True)
    for name in ("settings.ini", "nbs/_tools/site.py", "nbs/_tools/markdown_pages.py", "nbs/styles.css", "nbs/favicon.svg"):
        shutil.copy(ROOT / name, root / name)
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    config["website"]["sidebar"]["contents"] = [{"text": "Home", "href": "index.ipynb"}, {"section": "Course", "contents": ["01_one.ipynb"]}]
    (root / "_quarto.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (root / "nbs/_quarto.yml").symlink_to("../_quarto.yml")
    (root / "README.md").write_text("by hand")
    write_notebook(root / "nbs/index.ipynb", "# A course\n\n> The start", "See [one](01_one.ipynb).")
    write_notebook(root / "nbs/01_one.ipynb", *cells)
    return root


@pytest.fixture
def small(tmp_path):
    "A checkout with two small notebooks."
    return small_checkout(tmp_path, ["# One\n\n> The first", "## A part\n\n$x^2$ and `code`", "#| exports\nclass Thing:\n    def act(self): ..."])


def quarto_stub(folder, code=0):
    "An executable `quarto` that notes how it was called and, like the real one, writes the output folder."
    folder.mkdir()
    stub = folder / "quarto"
    stub.write_text(f'#!/bin/sh\necho "$PWD $@" > "{folder}/called"\nmkdir -p _docs\necho stub > _docs/index.html\nexit {code}\n')
    stub.chmod(0o755)
    return folder


def test_without_quarto_the_stand_in_renders(small):
    done = run_site(small, "build")
    assert done.returncode == 0, done.stderr
    page = (small / "_docs/one.html").read_text()
    assert "<math" in page and 'id="thing"' in page and 'id="thing.act"' in page
    assert sorted(p.name for p in (small / "_docs").glob("*.html")) == ["index.html", "one.html"]
    assert (small / "README.md").read_text() == "by hand"


def test_quarto_renders_where_it_is_installed(small, tmp_path):
    bin_ = quarto_stub(tmp_path / "bin")
    done = run_site(small, "build", first_on_path=bin_)
    assert done.returncode == 0, done.stderr
    assert (bin_ / "called").read_text().split() == [str(small / "_proc"), "render", "--no-cache"]
    assert (small / "_docs/index.html").read_text() == "stub\n"
    assert "output-file: one.html" in (small / "_proc/01_one.ipynb").read_text()
    assert (small / "README.md").read_text() == "by hand"


def test_a_public_address_is_one_setting(small):
    settings = (small / "settings.ini").read_text()
    (small / "settings.ini").write_text(re.sub(r"(?m)^doc_host *=.*", "doc_host = https://example.org", settings))
    assert run_site(small, "build").returncode == 0
    assert "<loc>https://example.org/one.html</loc>" in (small / "_docs/sitemap.xml").read_text()


def test_pages_of_renamed_notebooks_go(small):
    for folder, page in (("_docs", "one.html"), ("_proc", "01_one.ipynb"), ("_proc/_docs", "one.html")):  # what an earlier build left
        (small / folder).mkdir(exist_ok=True)
        (small / folder / page).write_text((small / "nbs/01_one.ipynb").read_text())
    (small / "nbs/01_one.ipynb").rename(small / "nbs/01_other.ipynb")
    assert run_site(small, "build").returncode == 0
    assert sorted(p.name for p in (small / "_docs").glob("*.html")) == ["index.html", "other.html"]


@pytest.mark.parametrize(
    "cell,says",
    [
        ("$\\undefined{x}$", ["01_one.ipynb", r"\undefined{x}"]),
        ("#| fig-cap: one: two\nplot()", ["01_one.ipynb", "one: two"]),
    ],
)
def test_a_failed_build_says_where_and_leaves_the_site_alone(small, cell, says):
    (small / "_docs").mkdir()
    (small / "_docs/index.html").write_text("before")
    write_notebook(small / "nbs/01_one.ipynb", "# One\n\n> The first", cell)
    done = run_site(small, "build")
    assert done.returncode == 1 and done.stderr.startswith("site: ") and "Traceback" not in done.stderr
    assert all(s in done.stderr for s in says), done.stderr
    assert [p.read_text() for p in (small / "_docs").iterdir()] == ["before"]


def test_a_failed_quarto_leaves_the_site_alone(small, tmp_path):
    (small / "_docs").mkdir()
    (small / "_docs/index.html").write_text("before")
    done = run_site(small, "build", first_on_path=quarto_stub(tmp_path / "bin", code=1))
    assert done.returncode == 1 and "quarto could not render" in done.stderr
    assert (small / "_docs/index.html").read_text() == "before"


def test_a_taken_port_is_named_with_the_way_out(site_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_site(site_dir.parent, "serve", "--port", str(port))
    assert done.returncode == 1
    assert str(port) in done.stderr and f"make site PORT={port + 1}" in done.stderr and "Traceback" not in done.stderr


def test_plain_text_is_served_as_utf_8(site_url):
    for file, kind in (("index.md", "text/markdown; charset=utf-8"), ("llms.txt", "text/plain; charset=utf-8")):
        with urlopen(site_url + file) as answer:
            assert answer.headers["Content-Type"] == kind


def test_a_port_that_is_none_is_refused(site_dir):
    done = run_site(site_dir.parent, "serve", "--port", "99999")
    assert done.returncode == 1 and "99999" in done.stderr and "Traceback" not in done.stderr


def test_serving_before_building_says_so(small):
    done = run_site(small, "serve", "--port", "0")
    assert done.returncode == 1 and "build the site first" in done.stderr


def test_the_server_is_local_and_ends_quietly(site_dir):
    process, url = start_server(site_dir.parent)
    assert url.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0 and err == ""


@pytest.mark.parametrize(
    "tex",
    [
        r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d}} + B\right)V",
        r"\begin{aligned} a &= b \\ &= c \end{aligned}",
        r"\begin{cases} 1 & i = j \\ 0 & \text{otherwise} \end{cases}",
        r"\left\lceil \tfrac{64}{14} \right\rceil = 5, \quad x < y \,\&\, \{z\}",
        r"\sum_{i=1}^{N} x_{i} \in \mathbb{R}^{H \times W}",
    ],
)
def test_formulas_are_converted(site_tool, tex):
    mathml = site_tool.tex_to_mathml(tex, display=True)
    assert mathml.startswith("<math") and "\\" not in mathml


@pytest.fixture(scope="session")
def plain(site_tool):
    "The part of the site tool that writes Markdown, as a module."
    return sys.modules["markdown_pages"]


PAGES_BY_NAME = {"02_two.ipynb": "two.md", "two.html": "two.md"}


@pytest.mark.parametrize("cell, markdown", [
    ("[a](02_two.ipynb) [b](02_two.ipynb#part) [c](#here) [d](images/x.png)", "[a](two.md) [b](two.md#part) [c](#here) [d](images/x.png)"),
    ("[`name`](two.html#name), [it](02_two.ipynb#name) and `[a](02_two.ipynb)`", "[`name`](two.md), [it](two.md) and `[a](02_two.ipynb)`"),
    ('<div id="name"></div>\n<div id="name.act"></div>', ""),
    ("Ask.\n\n<details><summary>Answer</summary>\n\nYes.\n\n</details>\n\nOn.", "Ask.\n\n**Answer.**\n\nYes.\n\nOn."),
    ("```html\n<details>\n</details> [a](02_two.ipynb)\n```", "```html\n<details>\n</details> [a](02_two.ipynb)\n```"),
    ("~~~html\n</details>\n~~~", "~~~html\n</details>\n~~~"),
    ("- list\n\n  ```\n  <details>\n  ```", "- list\n\n  ```\n  <details>\n  ```"),
    ("A `<details>` or `<div>` tag.", "A `<details>` or `<div>` tag."),
    ('<div class="ways">\n\n- one\n\n</div>', "- one"),
    ('![What it *is*](images/x.png){fig-alt="A dot."}', "> **Figure.** What it *is*\n>\n> *In the picture:* A dot."),
    ("| a |\n|---|\n| $x_1$ |\n\n$$\ny\n$$", "| a |\n|---|\n| $x_1$ |\n\n$$\ny\n$$"),
])
def test_markdown_of_a_cell(plain, cell, markdown):
    assert plain.prose(cell, PAGES_BY_NAME, {"two.md#name"}) == markdown


@pytest.mark.parametrize("html, markdown", [
    ("<p>one\n two</p>three", "one two\n\nthree"),
    ("<ul><li>a</li><li>b <b>c</b></li></ul>", "- a\n- b c"),
    ("<table><caption>Cap</caption><tr><th>k</th><th></th></tr><tr><td>1 | 2</td><td><p>x</p></td></tr></table>", "Cap\n\n| k |  |\n| --- | --- |\n| 1 \\| 2 | x |"),
    ('<div class="vitdet-widget" aria-label="W &amp; V"><div>text</div><script>no</script></div><style>no</style>', "**A figure to move.** W & V\n\ntext"),
])
def test_markdown_of_an_output(plain, html, markdown):
    assert plain.HTMLText(html).markdown() == markdown


def test_markdown_of_a_code_cell(plain):
    def cell(source, *outputs):
        return "\n\n".join(plain.code_cell({"source": source, "outputs": outputs}, "python", str.upper))

    text = {"output_type": "stream", "name": "stdout", "text": ["a\n", "```\n"]}
    picture = {"output_type": "display_data", "data": {"image/png": "", "text/plain": "<Figure>"}}
    assert cell("x = 1\n", text) == "```python\nx = 1\n```\n\n````text\na\n```\n````"
    assert cell('#| code-fold: true\n#| fig-cap: "C"\n#| fig-alt: "A"\nplot()', picture) == "```python\nplot()\n```\n\n> **Figure.** C\n>\n> *In the picture:* A"
    assert cell("x", {"output_type": "display_data", "data": {"text/markdown": "told", "text/plain": "<Markdown>"}}) == "```python\nx\n```\n\nTOLD"
    assert cell("#| echo: false\nx", text) == "````text\na\n```\n````"
    assert cell("#| output: false\nx", text) == "```python\nx\n```"
    assert cell("#| include: false\nx", text) == ""


@pytest.mark.parametrize("html, size", [
    ('<img alt="a > b, width=3" src="dot.png">', ' width="2" height="1"'),
    ('<img src="a%20dot.png" alt="" />', ' width="2" height="1" /'),
    ('<img src="logo.svg">', ' width="24" height="12"'),
    ('<img src="dot.png" width="9">', ""),
    ('<img src="https://example.org/dot.png">', ""),
    ("<script>const tag = '<img src=\"dot.png\">'</script>", ""),
])
def test_sizes_of_pictures(site_tool, tmp_path, html, size):
    for name in ("dot.png", "a dot.png"):
        Image.new("RGB", (2, 1)).save(tmp_path / name)
    (tmp_path / "logo.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 12"></svg>')
    page = site_tool.size_pictures('<img src="dot.png"><main>' + html, tmp_path)
    assert page == '<img src="dot.png"><main>' + (html.replace(" />", size + ">").replace('">', f'"{size}>') if size and " />" not in html else html.replace(" />", size + ">"))


@pytest.mark.parametrize("tex", [r"\undefined", r"\frac{1", r"\left( x", r"\text{a $x$ b}", r"a & b"])
def test_formulas_that_would_come_out_wrong_are_refused(site_tool, tex):
    with pytest.raises(Exception):
        site_tool.tex_to_mathml(tex, display=False)
