"""Build the course as a website from the notebooks, and serve it on this machine.

    python nbs/_tools/site.py build
    python nbs/_tools/site.py serve --port 8000

nbdev turns the notebooks into pages in its work folder `_proc`. Quarto renders them where it is installed; otherwise
smalldocs does, from the same `_quarto.yml`, and this file patches what smalldocs does differently. What both leave to do
is done here for both: sizes of pictures, names for screen readers, the pages as Markdown. Only a finished site replaces
`_docs`. Nothing is downloaded.
"""
import argparse
import ast
import base64
import datetime
import html
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import yaml
from markdown_pages import write_markdown
from PIL import Image, UnidentifiedImageError

ROOT = Path(__file__).resolve().parents[2]
PROC, DOCS = ROOT / "_proc", ROOT / "_docs"


class SiteError(Exception):
    "What is wrong and how to mend it, for a person to read."


# ---- notebooks to pages: the same for both renderers


def symbols(source):
    "The names that nbdev's index has for the definitions in `source`: functions, classes and `Class.method`."
    from nbdev.doclinks import L, patch_name

    defs = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.parse(source).body:
        if not isinstance(node, defs):
            continue
        yield from L(patch_name(node))
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{o.name}" for o in node.body if isinstance(o, defs))


def add_anchors(nb):
    "Set before each exported cell the anchors that nbdev's links to its symbols, `windowing.html#window_partition`, lead to."
    from execnb.nbio import mk_cell

    for cell in reversed(nb.cells):
        if cell.cell_type == "code" and {"export", "exports"} & cell.directives_.keys():
            names = dict.fromkeys(name.lower() for name in symbols(cell.source))  # `Widget` and `widget` are one address
            divs = [f'<div id="{name}"></div>' for name in names]
            if divs:
                nb.cells.insert(cell.idx_, mk_cell("\n".join(divs), cell_type="markdown"))


def check_options(nb):
    "Stop at a cell whose `#|` options are no YAML: Quarto stops too, smalldocs drops the cell's caption and alt text."
    for cell in nb.cells:
        options = re.findall(r"^#\|(.*:.*)$", cell.source, re.M) if cell.cell_type == "code" else []
        try:
            yaml.safe_load("\n".join(o.strip() for o in options))
        except yaml.YAMLError as e:
            raise SiteError(f"{Path(nb.path_).name}: quote the values of these options: {options} ({e})") from e


def symbol_index():
    "nbdev's index of the package: for each exported symbol the page and the anchor of its definition."
    from nbdev.config import get_config

    package = get_config().lib_name
    try:
        return importlib.import_module(f"{package}._modidx").d
    except ImportError as e:
        raise SiteError(f"{package} is not installed in this Python, so its symbols cannot be linked: pip install -e .") from e


def process_notebooks():
    "Fill nbdev's work folder from nothing, so that no page of a renamed notebook survives."
    from nbdev import serve
    from nbdev.config import get_config
    from nbdev.process import Processor
    from nbdev.quarto import refresh_quarto_yml

    class Prepare(Processor):
        def begin(self):
            check_options(self.nb)
            add_anchors(self.nb)

    class Filter(serve.FilterDefaults):
        def base_procs(self):
            return [Prepare, *super().base_procs()]

    index = symbol_index()
    index["settings"].pop("doc_host", None)  # links to symbols stay in the site, also once it has a public address
    shutil.rmtree(PROC, ignore_errors=True)
    refresh_quarto_yml()
    serve.FilterDefaults = Filter
    serve.proc_nbs(n_workers=0)  # in this process: no cell is run, so there is nothing to share out


# ---- the two renderers: each makes a site in `_proc/_docs`


def render_with_quarto():
    "Render as `nbdev_docs` does."
    if subprocess.run(["quarto", "render", "--no-cache"], cwd=PROC).returncode:
        raise SiteError("quarto could not render the site; its message is above")


def render_with_smalldocs():
    "Render without Quarto, with patches for what smalldocs does differently."
    try:
        from smalldocs import config, layout, site
    except ImportError as e:
        raise SiteError(f"{e}: install the development requirements (make does), or Quarto") from e

    if not hasattr(datetime, "UTC"):
        datetime.UTC = datetime.timezone.utc  # for smalldocs on Python 3.10: all else it does there

    class Site(site.Site):
        def read(self, src):
            "Give the page the address that nbdev chose for it, without the chapter's number, and Quarto's apostrophes."
            page = super().read(src)
            page.out = page.out.with_name(page.front.pop("output-file", page.out.name))
            for key in {"title", "description"} & page.front.keys():  # the text of a page has typographic apostrophes anyway
                page.front[key] = page.meta[key] = re.sub(r"(?<=\w)'", "’", page.front[key])
            return page

        def find_page(self, target):
            "Find a page by that address too: nbdev's links to symbols use it."
            return super().find_page(target) or next((p for p in self.pages.values() if p.out == target), None)

        def theme_files(self):
            "Take the light theme for dark pages too: styles.css has the colours, and a second theme weighs a quarter of a megabyte."
            light, *others = super().theme_files()
            return [light, *(replace(t, src=light.src, href=light.href) for t in others)]

        def render_page(self, page):
            "Read Markdown in the captions of figures, link notebooks as pages, and leave no formula to a script from another host."
            caption = lambda m: layout.inline_md(html.unescape(m[0]), self, page)
            page.body = re.sub(r"(?<=<figcaption>).*?(?=</figcaption>)", caption, page.body, flags=re.S)
            notebook = re.compile(r'(?<=href=")[^":#]+\.ipynb(?=["#])')  # in HTML that a cell has put out
            page.body = notebook.sub(lambda m: self.resolve(m[0], page), page.body)
            super().render_page(page)
            page.html = footnotes_as_in_quarto(page.html)
            page.env["math"] = False

        def build(self):
            "Turn the formulas of the finished pages into MathML, and name pages as the sidebar does."
            super().build()
            for page in self.pages.values():
                path = self.out / page.out
                text = formulas_to_mathml(path.read_text(encoding="utf-8"), page.src)
                text = re.sub(r'<link [^>]*bootstrap-icons[^>]*>', "", text)  # styles.css draws the few that are used
                path.write_text(neighbours_as_in_sidebar(text), encoding="utf-8")
            shutil.rmtree(self.out / "site_libs/bootstrap-icons")

    try:
        course = Site(config.load(PROC))
        course.build()
    except (config.BuildError, config.ConfigError) as e:
        raise SiteError(str(e)) from e
    handled_here = ("html-math-method is ignored", "output-file is not read by smalldocs")
    for warning in course.warnings:
        if not warning.endswith(handled_here):
            print(f"warning: {warning}", file=sys.stderr)


def footnotes_as_in_quarto(text):
    "Write footnotes as Quarto does: numbers without brackets, and a heading over the notes."
    text = re.sub(r'<sup class="footnote-ref">(<a [^>]*)>\[(\d+)(?::\d+)?\]</a></sup>', r'\1 class="footnote-ref" role="doc-noteref"><sup>\2</sup></a>', text)
    notes = '<section id="footnotes" class="footnotes" role="doc-endnotes">\n<h2 class="anchored quarto-appendix-heading">Footnotes</h2>'
    return re.sub(r'<hr class="footnotes-sep" />\s*<section class="footnotes">', notes, text)


def formulas_to_mathml(page, name):
    "Replace the formulas of a page's HTML, as smalldocs marks them, by MathML."

    def mathml(m):
        display, tex = m[1] == "display", html.unescape(m[2]).strip()
        try:
            return f'<span class="math {m[1]}">{tex_to_mathml(tex, display)}</span>'
        except Exception as e:  # the converter raises many kinds, all about the formula
            raise SiteError(f"{name}: the formula {tex!r} cannot be turned into MathML: {str(e) or type(e).__name__}") from e

    return re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', mathml, page, flags=re.S)


def tex_to_mathml(tex, display):
    "Turn a formula into MathML, or raise: the converter lets pass what it does not know."
    from latex2mathml.converter import convert

    if tex.count("{") - tex.count(r"\{") != tex.count("}") - tex.count(r"\}"):
        raise ValueError("its braces do not match")
    known = re.sub(r"(begin|end)\{aligned\}", r"\1{align*}", tex)  # `aligned` is unknown to the converter, `align*` is the same
    mathml = convert(known, display="block" if display else "inline")
    strange = re.search(r"\\\w*|[&$](?!#?\w+;)", re.sub(r"<[^>]*>", " ", mathml))
    if strange:
        raise ValueError(f"{strange[0]} is not understood")
    return mathml


def neighbours_as_in_sidebar(page):
    "Give the links to the previous and the next page the text of the sidebar, as Quarto does: Home, not the site's name."
    texts = dict(re.findall(r'<a href="([^"]*)" class="sidebar-item-text[^>]*><span class="menu-text">(.*?)</span>', page))

    def link(m):
        return m[1] + texts.get(m[2], m[4]) + m[5]

    return re.sub(r'(<a href="([^"]*)" class="pagination-link">((?:(?!</a>).)*nav-page-text">))(.*?)(</span>)', link, page)


# ---- what both renderers leave to do


PICTURE = re.compile(r"""<(script|style|textarea)\b.*?</\1>|(<img\b(?:[^>"']|"[^"]*"|'[^']*')*?)(\s*/?>)""", re.S)


def picture_size(data):
    "Width and height of a picture in a file's bytes, in pixels; None for what has no size of its own."
    box = re.search(rb"<svg\b[^>]*\bviewBox=[\"'][-\d.]+[ ,]+[-\d.]+[ ,]+([\d.]+)[ ,]+([\d.]+)", data[:2000])
    if box:
        return round(float(box[1])), round(float(box[2]))
    try:
        return Image.open(io.BytesIO(data)).size
    except UnidentifiedImageError:
        return None


def size_pictures(page, site):
    "Write width and height into the pictures of a page's text, so that the text does not move when they come in."

    def sized(m):
        if not m[2] or re.search(r"\s(width|height)=", re.sub(r"""="[^"]*"|='[^']*'""", "=", m[2])):
            return m[0]
        src = re.search(r"""\ssrc=["']([^"']*)""", m[2])
        src = html.unescape(src[1]) if src else ""
        inside = re.match(r"data:image/[\w+.-]+;base64,(.*)", src, re.S)
        file = site / unquote(src)
        size = picture_size(base64.b64decode(inside[1]) if inside else file.read_bytes()) if inside or file.is_file() else None
        return f'{m[2]} width="{size[0]}" height="{size[1]}"{m[3]}' if size else m[0]

    before, main, text = page.partition("<main")
    return before + main + PICTURE.sub(sized, text)


# A box that scrolls sideways must be reached by keyboard; one that does not would only be in the way
REACH_SCROLLERS = """<script>
{
  const seen = new ResizeObserver(changes => changes.forEach(({ target: box }) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
  }));
  document.querySelectorAll("main :is(pre, table, .sd-table, .cell-output-display, .math.display)").forEach(box => seen.observe(box));
}
</script>"""

LANDMARKS = {"quarto-sidebar": "All pages", "quarto-secondary-nav": "Where you are", "TOC": "On this page", "page-navigation": "Previous and next page"}


def name_landmarks(page):
    "Tell a page's navigations apart for screen readers, and say that what folds a section of the sidebar is a button."

    def named(m):
        name = next((text for key, text in LANDMARKS.items() if re.search(rf'\b(id|class)="{key}', m[0])), None)
        return f'<nav aria-label="{name}"{m[0][4:]}' if name and "aria-label" not in m[0] else m[0]

    def button(m):
        target = re.search(r'data-bs-target="(#[^"]*)"', m[0])  # an address makes it reachable by keyboard
        href = f'<a href="{target[1]}"' if target and " href=" not in m[0] else "<a"
        return href + m[0][2:].replace('role="navigation"', 'role="button"')

    page = re.sub(r"<nav\b[^>]*>", named, page)
    return re.sub(r'<a\b[^>]*\brole="navigation"[^>]*>', button, page)


def finish_pages(site):
    "Do to each page what both renderers leave to do, and set the site's plain text beside the pages."
    from nbdev.config import get_config

    config = get_config()
    write_markdown(PROC, site, config.title, config.description)
    for path in site.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        page = re.sub(r"<title>(.+) – \1</title>", r"<title>\1</title>", page)  # Quarto adds the site's name to the home page's, which is the same
        page = re.sub(r"(</(?:a|em|strong|code)>)‘(?=\w)", r"\1’", page)  # Pandoc takes the apostrophe after a link for an opening quote
        page = name_landmarks(size_pictures(page, site))
        plain = path.with_suffix(".md").name
        page = page.replace("</head>", f'<link rel="alternate" type="text/markdown" href="{plain}"></head>', 1)
        before, body, after = page.rpartition("</body>")
        path.write_text(before + REACH_SCROLLERS + body + after if body else page, encoding="utf-8")


def add_symbols_to_search(site):
    "Let a search for a name lead to its definition: an entry for each exported symbol, before those of the text."
    path = site / "search.json"
    if not path.exists():
        return
    entries = json.loads(path.read_text(encoding="utf-8"))
    titles = {e["href"].split("#")[0]: e["title"] for e in entries}
    definitions = []
    for module, names in symbol_index()["syms"].items():
        for name, (href, _) in names.items():
            symbol, page = name.removeprefix(f"{module}."), href.split("#")[0]
            if page in titles and not symbol.split(".")[-1].startswith("_"):
                text = f"{symbol}: its definition"
                definitions.append({"objectID": href, "href": href, "title": titles[page], "section": symbol, "text": text})
    path.write_text(json.dumps(definitions + entries, ensure_ascii=False), encoding="utf-8")


# ---- the two commands


def build():
    "Build the site; the one before stays in place until the new one is whole."
    process_notebooks()
    if shutil.which("quarto"):
        render_with_quarto()
    else:
        render_with_smalldocs()
    built = PROC / DOCS.name
    if not (built / "index.html").exists():
        raise SiteError("the renderer made no home page; it comes from nbs/index.ipynb")
    add_symbols_to_search(built)
    finish_pages(built)
    if DOCS.exists():
        DOCS.rename(PROC / "_old")
    built.rename(DOCS)
    shutil.rmtree(PROC / "_old", ignore_errors=True)
    print(f"The site is in {DOCS.name}/: {len(list(DOCS.glob('*.html')))} pages")


class QuietHandler(SimpleHTTPRequestHandler):
    "Serve files without a line for each request; plain text is UTF-8."

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".md": "text/markdown; charset=utf-8", ".txt": "text/plain; charset=utf-8"}

    def log_message(self, *args):
        pass


def serve(port):
    "Serve the site on this machine only, until Ctrl-C."
    if not (DOCS / "index.html").exists():
        raise SiteError(f"there is no {DOCS.name}/index.html yet: build the site first")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(QuietHandler, directory=DOCS))
    except (OSError, OverflowError) as e:
        other = port + 1 if 1024 <= port < 65535 else 8000
        raise SiteError(f"cannot use port {port} ({getattr(e, 'strerror', e)}): choose another, as in `make site PORT={other}`") from e
    try:
        print(f"Serving the course on http://127.0.0.1:{server.server_port}/ (Ctrl-C stops)", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        print()


def main():
    parser = argparse.ArgumentParser(description="Build the course's website from the notebooks, or serve it.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the site into _docs")
    serving = commands.add_parser("serve", help="serve _docs on this machine only")
    serving.add_argument("--port", type=int, default=8000, help="the port (default 8000; 0 takes any free one)")
    args = parser.parse_args()
    os.chdir(ROOT)  # nbdev looks for settings.ini from here
    try:
        build() if args.command == "build" else serve(args.port)
    except SiteError as e:
        sys.exit(f"site: {e}")


if __name__ == "__main__":
    main()
