"The two renderers of the site give a reader the same pages: what a reader can tell is read from both and compared."
import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from conftest import copy_checkout, run_site
from test_site import site_tool, small_checkout  # noqa: F401  (site_tool is a fixture)

# ---- a page as a tree


class Node:
    "An element: its tag, its attributes, and what is in it, elements and text."

    def __init__(self, tag, attrs, parent=None):
        self.tag, self.attrs, self.parent, self.inside = tag, attrs, parent, []
        self.classes = set((attrs.get("class") or "").split())

    def walk(self):
        "All elements in it, in reading order."
        for e in self.inside:
            if isinstance(e, Node):
                yield e
                yield from e.walk()

    def all(self, *tags, cls=None, **attrs):
        "The elements in it with one of these tags, a class, and attributes."
        return [e for e in self.walk() if (not tags or e.tag in tags) and (cls is None or cls in e.classes)
                and all(e.attrs.get(k) == v for k, v in attrs.items())]

    def first(self, *tags, **kwargs):
        return next(iter(self.all(*tags, **kwargs)), Node("", {}))

    def above(self):
        "The elements that it is in, the nearest first."
        if self.parent:
            yield self.parent
            yield from self.parent.above()

    def text(self):
        "Its text, without what is not read, and with a mark for each formula."
        parts = (e if isinstance(e, str) else "" if silent(e) else "[formula]" if e.tag == "math" else e.text() for e in self.inside)
        return "".join(parts)


def silent(e):
    "Whether a reader does not read an element: scripts, a copy button, the anchor of a line of code, the arrow after a footnote."
    of_line = e.tag == "a" and (e.attrs.get("aria-hidden") == "true" or e.attrs.get("href", "").startswith("#fnref"))
    return of_line or e.tag in ("script", "style", "template", "button", "svg", "head") or "hidden" in e.classes


def words(text):
    "Text without regard to line breaks and the width of gaps."
    return " ".join(text.split())


class Tree(HTMLParser):
    "Read HTML into a tree."

    VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}

    def __init__(self, html):
        super().__init__()
        self.root = self.at = Node("", {})
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs), self.at)
        self.at.inside.append(node)
        if tag not in self.VOID:
            self.at = node

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.at.tag == tag and tag not in self.VOID:
            self.at = self.at.parent

    def handle_endtag(self, tag):
        e = self.at
        while e.parent and e.tag != tag:
            e = e.parent
        if e.parent:
            self.at = e.parent

    def handle_data(self, data):
        self.at.inside.append(data)


# ---- what a reader can tell of a page

HEADINGS = ("h2", "h3", "h4", "h5", "h6")
INLINE = {"a", "abbr", "b", "br", "cite", "code", "del", "em", "i", "img", "kbd", "mark", "math", "q", "s", "small", "span", "strong", "sub", "sup", "u", "wbr"}
APART = {"pre", "table", "figcaption", "summary", "nav", "header", "aside", *HEADINGS}  # read on their own


def paragraphs(e):
    "Runs of text between the borders of blocks, in reading order: so it does not matter what wraps a paragraph, or a list's item."
    runs, run = [], []

    def read(node):
        for inner in node.inside:
            if isinstance(inner, str):
                run.append(inner)
            elif inner.tag == "math":
                run.append("[formula]")
            elif silent(inner) or inner.tag in APART:
                end()
            elif inner.tag in INLINE:
                read(inner)
            else:
                end()
                read(inner)
                end()

    def end():
        if words("".join(run)):
            runs.append(words("".join(run)))
        run.clear()

    read(e)
    end()
    return runs


def target(href, page):
    "Where a link leads, however it is written."
    file, mark, anchor = unquote(href).partition("#")
    file = re.sub(r"^(\./)+", "", file)
    return ("index.html" if file == "" and not mark else file or page) + mark + anchor


def links(e, page):
    "Text and target of the links in an element."
    return [f"{words(a.text())} -> {target(a.attrs['href'], page)}" for a in e.all("a") if a.attrs.get("href") is not None and not silent(a)]


def own_headings(main):
    "Level, text and anchor of each heading. Quarto has the anchor on the section that the heading opens, smalldocs too, plain HTML on itself."
    for h in main.all(*HEADINGS):
        section = h.parent if h.parent.tag == "section" and h.parent.first(*HEADINGS) is h else Node("", {})
        yield f"{h.tag} {words(h.text())} #{h.attrs.get('id') or section.attrs.get('id')}"


def picture(img, folder):
    "Alt text, size, and the picture itself: smalldocs has it in the page, Quarto in a file."
    src = unquote(img.attrs.get("src") or "")
    inside = re.match(r"data:[^,]*;base64,(.*)", src, re.S)
    data = base64.b64decode(inside[1]) if inside else (folder / src).read_bytes() if (folder / src).is_file() else src.encode()
    size = f"{img.attrs.get('width')} x {img.attrs.get('height')}"
    return f"{words(img.attrs.get('alt') or '(no alt text)')} | {size} | {hashlib.sha1(data).hexdigest()[:8]}"


def list_sizes(main):
    "Kind and number of items of each list, and blockquotes."
    for e in main.all("ul", "ol", "blockquote"):
        if not any(a.tag == "nav" for a in e.above()):
            yield e.tag if e.tag == "blockquote" else f"{e.tag} of {sum(isinstance(i, Node) and i.tag == 'li' for i in e.inside)}"


def in_output(e):
    return any("cell-output" in a.classes for a in e.above())


def shown(pre):
    "The lines of a block of code or output."
    return "\n".join(line.rstrip() for line in pre.text().strip("\n").split("\n")).rstrip()


def neighbour(root, side, page):
    "The link to the previous or next page."
    return links(root.first("div", cls=f"nav-page-{side}"), page)


def reading(path):
    "What a reader can tell of a page: for each kind of thing, what there is of it, in reading order."
    root = Tree(path.read_text(encoding="utf-8")).root
    page, folder = path.name, path.parent
    main, side, contents = root.first("main"), root.first("nav", id="quarto-sidebar"), root.first("nav", id="TOC")
    body = Node("main", {})  # the text: the links to other pages stand in it or after it
    body.inside = [e for e in main.inside if isinstance(e, str) or e.tag not in ("nav", "header")]
    return {
        "title": [words(root.first("title").text())],
        "heading": [words(h.text()) for h in main.all("h1")],
        "description": [root.first("meta", name="description").attrs.get("content", ""), words(main.first("div", cls="description").text())],
        "icon": [target(e.attrs["href"], page) for e in root.all("link") if "icon" in (e.attrs.get("rel") or "").split()],
        "style": [target(e.attrs["href"], page) for e in root.all("link", rel="stylesheet") if "site_libs" not in e.attrs["href"]],
        "plain text": [target(e.attrs["href"], page) for e in root.all("link", rel="alternate")],
        "headings": list(own_headings(body)),
        "anchors of names": [e.attrs["id"] for e in body.all("div") if e.attrs.get("id") and not any(isinstance(i, Node) or i.strip() for i in e.inside)],
        "text": paragraphs(body),
        "marked words": [f"{e.tag} {words(e.text())}" for e in body.all("strong", "em", "code", "sup", "sub", "del") if not any(a.tag == "pre" for a in e.above())],
        "lists": list(list_sizes(body)),
        "code": [shown(e) for e in body.all("pre") if not in_output(e)],
        "outputs": [shown(e) for e in body.all("pre") if in_output(e)],
        "pictures": [picture(e, folder) for e in body.all("img")],
        "captions": [words(e.text()) for e in body.all("figcaption", "caption")],
        "formulas": [f"formula {e.attrs.get('display') or 'inline'}" for e in body.all("math")],
        "tables": [" / ".join(" | ".join(words(c.text()) for c in row.all("td", "th")) for row in e.all("tr")) for e in body.all("table")],
        "folds": [words(e.first("summary").text()) + (" (open)" if "open" in e.attrs else "") for e in body.all("details")],
        "figures to move": [e.attrs.get("data-name", "") for e in body.all(cls="vitdet-widget")],
        "links": links(body, page),
        "sidebar": [("(here) " if "active" in a.classes else "") + words(a.text()) + " -> " + target(a.attrs.get("href") or "", page)
                    for a in side.all("a", cls="sidebar-item-text") if not (a.attrs.get("href") or "#").startswith("#")],
        "sections of the sidebar": [words(a.text()) for a in side.all("a", cls="sidebar-item-text") if (a.attrs.get("href") or "#").startswith("#")],
        "contents": links(contents, page),
        "previous page": neighbour(root, "previous", page),
        "next page": neighbour(root, "next", page),
        "dark mode": ["a switch"] * bool(root.all("a", cls="quarto-color-scheme-toggle")),
        "search": ["a field"] * bool(root.all("div", id="quarto-search")),
    }


def site_reading(site):
    "What a reader can tell of a site: its pages, and what its search knows of each."
    pages = {p.name: reading(p) for p in sorted(site.glob("*.html"))}
    entries = json.loads((site / "search.json").read_text(encoding="utf-8"))
    for name, page in pages.items():
        of_page = [e for e in entries if e["href"].split("#")[0] == name]
        page["found by search as"] = sorted({words(e["title"]) for e in of_page})
        page["names in the search"] = [e["section"] for e in of_page if e["text"].endswith(": its definition")]
    return pages


def differences(ours, theirs, names=("smalldocs", "Quarto")):
    "One line for each thing that a reader meets on one site and not on the other."
    a, b = site_reading(ours), site_reading(theirs)
    lines = [f"{page}: only {name} has this page" for name, one, other in ((names[0], a, b), (names[1], b, a)) for page in one if page not in other]
    for page in a.keys() & b.keys():
        for kind in a[page]:
            x, y = a[page][kind], b[page][kind]
            for name, only in ((names[0], Counter(x) - Counter(y)), (names[1], Counter(y) - Counter(x))):
                lines += [f"{page}: {kind}: only {name}{f' ({n} times)' * (n > 1)}: {thing[:300]!r}" for thing, n in only.items()]
            if x != y and Counter(x) == Counter(y):
                lines.append(f"{page}: {kind}: in another order")
    plain = [{p.name: p.read_text(encoding="utf-8") for pattern in ("*.md", "llms.txt") for p in site.glob(pattern)} for site in (ours, theirs)]
    lines += [f"{name}: the plain text differs" for name in plain[0].keys() | plain[1].keys() if plain[0].get(name) != plain[1].get(name)]
    return sorted(lines)


# ---- the two renderers


def test_both_renderers_give_a_reader_the_same_pages(site_dir, tmp_path):
    quarto = shutil.which("quarto")
    if not quarto:
        pytest.skip("quarto is not on PATH: nothing to compare with")
    copy_checkout(tmp_path)
    done = run_site(tmp_path, "build", first_on_path=Path(quarto).parent, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = differences(site_dir, tmp_path / "_docs")
    assert not found, f"{len(found)} differences:\n" + "\n".join(found)


# ---- the comparison itself, which runs without Quarto too

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAYAAAD0In+KAAAAC0lEQVR4nGNgQAcAABIAAcNdkDoAAAAASUVORK5CYII="  # 2 x 1 pixels


def code(source, **output):
    outputs = [{"metadata": {}, **({"name": "stdout"} if "text" in output else {"data": output}), **{k: v for k, v in output.items() if k == "text"},
                "output_type": "stream" if "text" in output else "display_data"}] if output else []
    return {"cell_type": "code", "id": "c", "metadata": {}, "execution_count": None, "outputs": outputs, "source": source}


CELLS = [
    "# One\n\n> It's the first",
    """See [home](index.ipynb) and **note** `Thing` or *this*.[^a] It's $x^2$.

[^a]: The note.

## A part

- item one
- item two

> **Note.** Kept.

### Deeper

| a | b |
|---|---|
| 1 | `c` |

: What it costs

$$
y = 2
$$

<details><summary>Answer</summary>

Twenty-five.

</details>

```python
plain = 1
```

![By hand](dot.png){fig-alt="A dot from a file."}""",
    code("#| exports\nclass Thing:\n    def act(self): ..."),
    code("print('3 < 4')\nprint(5)", text=["3 < 4\n", "5\n"]),
    code('#| code-fold: true\n#| code-summary: "Plotting code"\n#| fig-cap: "Two **dots**, $n$ wide"\n#| fig-alt: "Two dots."\nplot()', **{"image/png": DOT, "text/plain": ["<Figure>"]}),
    code("show()", **{"text/html": ['<div class="vitdet-widget" data-name="w" role="group" aria-label="W">\n<div class="vitdet-text"><table><tr><th>k</th></tr><tr><td>7</td></tr></table></div>\n'
                                   '<script type="application/json">{"a": "<p>no</p>"}</script>\n</div>']}),
]

# The page that Quarto makes of these cells: its wrappers, classes, line anchors and files, the text in them by hand
QUARTO = """<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" lang="en" xml:lang="en"><head>
<meta charset="utf-8"><meta name="generator" content="quarto-1.6.40">
<meta name="description" content="It’s the first">
<title>One – vitdet_nb</title>
<link href="./favicon.svg" rel="icon" type="image/svg+xml">
<link href="site_libs/bootstrap/bootstrap.min.css" rel="stylesheet" class="quarto-color-scheme" id="quarto-bootstrap" data-mode="light">
<link rel="stylesheet" href="styles.css">
<link rel="alternate" type="text/markdown" href="one.md"></head>
<body class="nav-sidebar floating quarto-light">
<div id="quarto-search-results"></div>
<header id="quarto-header" class="headroom fixed-top">
  <nav class="quarto-secondary-nav"><div class="container-fluid d-flex">
    <button type="button" class="quarto-btn-toggle btn" aria-controls="quarto-sidebar" aria-label="Toggle sidebar navigation"><i class="bi"></i></button>
    <nav class="quarto-page-breadcrumbs" aria-label="breadcrumb"><ol class="breadcrumb"><li class="breadcrumb-item"><a href="./one.html">One</a></li></ol></nav>
    <a class="flex-grow-1" role="navigation" data-bs-toggle="collapse" data-bs-target=".quarto-sidebar-collapse-item" aria-label="Toggle sidebar navigation"></a>
  </div></nav>
</header>
<div id="quarto-content" class="quarto-container page-columns page-rows-contents page-layout-article">
<nav id="quarto-sidebar" class="sidebar collapse sidebar-navigation floating overflow-auto">
  <div class="sidebar-header"><div class="sidebar-title mb-0 py-0"><a href="./">vitdet_nb</a>
    <div class="sidebar-tools-main"><a href="" class="quarto-color-scheme-toggle quarto-navigation-tool  px-1" onclick="return false;" title="Toggle dark mode"><i class="bi"></i></a></div></div></div>
  <div class="sidebar-search"><div id="quarto-search" class="" title="Search"></div></div>
  <div class="sidebar-menu-container"><ul class="list-unstyled mt-1">
    <li class="sidebar-item"><div class="sidebar-item-container"><a href="./index.html" class="sidebar-item-text sidebar-link">
 <span class="menu-text">Home</span></a></div></li>
    <li class="sidebar-item sidebar-item-section"><div class="sidebar-item-container">
      <a class="sidebar-item-text sidebar-link text-start" data-bs-toggle="collapse" data-bs-target="#quarto-sidebar-section-1" role="navigation" aria-expanded="true">
 <span class="menu-text">Course</span></a>
      <a class="sidebar-item-toggle text-start" data-bs-toggle="collapse" data-bs-target="#quarto-sidebar-section-1" role="navigation" aria-expanded="true" aria-label="Toggle section"><i class="bi"></i></a></div>
      <ul id="quarto-sidebar-section-1" class="collapse list-unstyled sidebar-section depth1 show">
        <li class="sidebar-item"><div class="sidebar-item-container"><a href="./one.html" class="sidebar-item-text sidebar-link active"><span class="menu-text">One</span></a></div></li>
      </ul></li>
  </ul></div>
</nav>
<div id="quarto-sidebar-glass" class="quarto-sidebar-collapse-item"></div>
<div id="quarto-margin-sidebar" class="sidebar margin-sidebar">
  <nav id="TOC" role="doc-toc" class="toc-active"><h2 id="toc-title">On this page</h2>
  <ul>
  <li><a href="#a-part" id="toc-a-part" class="nav-link active" data-scroll-target="#a-part">A part</a>
  <ul class="collapse"><li><a href="#deeper" id="toc-deeper" class="nav-link" data-scroll-target="#deeper">Deeper</a></li></ul></li>
  </ul></nav>
</div>
<main class="content" id="quarto-document-content">
<header id="title-block-header" class="quarto-title-block default"><nav class="quarto-page-breadcrumbs quarto-title-breadcrumbs d-none d-lg-block"><ol class="breadcrumb"></ol></nav>
<div class="quarto-title"><h1 class="title">One</h1></div>
<div>
  <div class="description">
    It’s the first
  </div>
</div>
</header>
<p>See <a href="./index.html">home</a> and <strong>note</strong> <code>Thing</code> or
<em>this</em>.<a href="#fn1" class="footnote-ref" id="fnref1" role="doc-noteref"><sup>1</sup></a> It’s
<span class="math inline"><math display="inline" xmlns="http://www.w3.org/1998/Math/MathML"><semantics><msup><mi>x</mi><mn>2</mn></msup><annotation encoding="application/x-tex">x^2</annotation></semantics></math></span>.</p>
<section id="a-part" class="level2 page-columns">
<h2 class="anchored" data-anchor-id="a-part">A part</h2>
<ul>
<li><p>item
one</p></li>
<li><p>item two</p></li>
</ul>
<blockquote class="blockquote">
<p><strong>Note.</strong> Kept.</p>
</blockquote>
<section id="deeper" class="level3">
<h3 class="anchored" data-anchor-id="deeper">Deeper</h3>
<table class="caption-top table">
<caption>What it costs</caption>
<colgroup><col style="width: 50%"><col style="width: 50%"></colgroup>
<thead><tr class="header"><th>a</th><th>b</th></tr></thead>
<tbody><tr class="odd"><td>1</td><td><code>c</code></td></tr></tbody>
</table>
<p><span class="math display"><math display="block" xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mrow><mi>y</mi><mo>=</mo><mn>2</mn></mrow><annotation encoding="application/x-tex">y = 2</annotation></semantics></math></span></p>
<details>
<summary>
Answer
</summary>
<p>Twenty-five.</p>
</details>
<div class="code-copy-outer-scaffold"><div class="sourceCode" id="cb1"><pre class="sourceCode python code-overflow-scroll code-with-copy"><code class="sourceCode python"><span id="cb1-1"><a href="#cb1-1" aria-hidden="true" tabindex="-1"></a>plain <span class="op">=</span> <span class="dv">1</span></span></code></pre></div><button title="Copy to Clipboard" class="code-copy-button"><i class="bi"></i></button></div>
<div class="quarto-figure quarto-figure-center">
<figure class="figure">
<p><img src="dot.png" class="img-fluid figure-img" alt="A dot from a file."></p>
<figcaption>By hand</figcaption>
</figure>
</div>
<div id="thing">

</div>
<div id="thing.act">

</div>
<div id="c2" class="cell">
<div class="sourceCode cell-code" id="cb2"><pre class="sourceCode python code-with-copy"><code class="sourceCode python"><span id="cb2-1"><a href="#cb2-1" aria-hidden="true" tabindex="-1"></a><span class="kw">class</span> Thing:</span>
<span id="cb2-2"><a href="#cb2-2" aria-hidden="true" tabindex="-1"></a>    <span class="kw">def</span> act(<span class="va">self</span>): ...</span></code><button title="Copy to Clipboard" class="code-copy-button"><i class="bi"></i></button></pre></div>
</div>
<div id="c3" class="cell">
<div class="sourceCode cell-code" id="cb3"><pre class="sourceCode python code-with-copy"><code class="sourceCode python"><span id="cb3-1"><a href="#cb3-1" aria-hidden="true" tabindex="-1"></a><span class="bu">print</span>(<span class="st">'3 &lt; 4'</span>)</span>
<span id="cb3-2"><a href="#cb3-2" aria-hidden="true" tabindex="-1"></a><span class="bu">print</span>(<span class="dv">5</span>)</span></code></pre></div>
<div class="cell-output cell-output-stdout">
<pre><code>3 &lt; 4
5</code></pre>
</div>
</div>
<div id="c4" class="cell">
<details class="code-fold">
<summary>Plotting code</summary>
<div class="sourceCode cell-code" id="cb5"><pre class="sourceCode python code-with-copy"><code class="sourceCode python"><span id="cb5-1"><a href="#cb5-1" aria-hidden="true" tabindex="-1"></a>plot()</span></code></pre></div>
</details>
<div class="cell-output cell-output-display">
<div id="fig-dots" class="quarto-float quarto-figure quarto-figure-center anchored">
<figure class="quarto-float quarto-float-fig figure">
<div aria-describedby="fig-dots-caption">
<img src="01_one_files/figure-html/cell-5-output-1.png" class="img-fluid figure-img" alt="Two dots.">
</div>
<figcaption class="quarto-float-caption-bottom quarto-float-caption quarto-float-fig" id="fig-dots-caption">
Two <strong>dots</strong>, <span class="math inline"><math display="inline" xmlns="http://www.w3.org/1998/Math/MathML"><mi>n</mi></math></span> wide
</figcaption>
</figure>
</div>
</div>
</div>
<div id="c5" class="cell">
<div class="sourceCode cell-code" id="cb6"><pre class="sourceCode python code-with-copy"><code class="sourceCode python"><span id="cb6-1"><a href="#cb6-1" aria-hidden="true" tabindex="-1"></a>show()</span></code></pre></div>
<div class="cell-output cell-output-display">
<div class="vitdet-widget" data-name="w" role="group" aria-label="W">
<div class="vitdet-text">
<table class="caption-top table" data-quarto-postprocess="true"><tbody><tr class="odd"><th data-quarto-table-cell-role="th">k</th></tr><tr class="even"><td>7</td></tr></tbody></table>
</div>
<script type="application/json">{"a": "<p>no</p>"}</script>
</div>
</div>
</div>
</section>
</section>
<div id="quarto-navigation-envelope" class="hidden"><p>not seen</p></div>
<div id="quarto-appendix" class="default"><section id="footnotes" class="footnotes footnotes-end-of-document" role="doc-endnotes"><h2 class="anchored quarto-appendix-heading">Footnotes</h2>
<ol>
<li id="fn1"><p>The note.<a href="#fnref1" class="footnote-back" role="doc-backlink">↩︎</a></p></li>
</ol>
</section></div></main> <!-- /main -->
<script id="quarto-html-after-body" type="application/javascript">const p = "<p>not seen</p>"</script>
<nav class="page-navigation">
  <div class="nav-page nav-page-previous"><a href="./index.html" class="pagination-link" aria-label="Home">
        <i class="bi bi-arrow-left-short"></i> <span class="nav-page-text">Home</span>
      </a></div>
  <div class="nav-page nav-page-next">
  </div>
</nav>
</div> <!-- /content -->
</body></html>
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "A site of two pages, one of them with everything that the comparison reads, built without Quarto."
    root = small_checkout(tmp_path_factory.mktemp("parts"), CELLS)
    (root / "nbs/dot.png").write_bytes(base64.b64decode(DOT))
    done = run_site(root, "build")
    assert done.returncode == 0, done.stderr
    return root / "_docs"


@pytest.fixture
def other(parts, tmp_path):
    "A copy of that site, to be changed."
    return Path(shutil.copytree(parts, tmp_path / "other"))


def test_the_comparison_reads_something_of_every_kind(parts):
    page = site_reading(parts)["one.html"]
    assert [kind for kind, things in page.items() if not any(things)] == ["next page", "names in the search"]  # nbdev's index knows no Thing
    assert page["text"] == ["See home and note Thing or this.1 It’s [formula].", "item one", "item two", "Note. Kept.", "[formula]", "Twenty-five.", "The note."]
    assert page["headings"] == ["h2 A part #a-part", "h3 Deeper #deeper", "h2 Footnotes #footnotes"]
    assert page["code"][1:3] == ["class Thing:\n    def act(self): ...", "print('3 < 4')\nprint(5)"] and page["outputs"] == ["3 < 4\n5"]
    assert [p.rsplit(" | ", 1)[0] for p in page["pictures"]] == ["A dot from a file. | 2 x 1", "Two dots. | 2 x 1"]
    assert page["tables"] == ["a | b / 1 | c", "k / 7"] and page["captions"] == ["What it costs", "By hand", "Two dots, [formula] wide"]
    assert page["previous page"] == ["Home -> index.html"] and page["sidebar"] == ["Home -> index.html", "(here) One -> one.html"]


def test_equal_sites_differ_in_nothing(site_dir, parts, other):
    assert differences(parts, other) == []
    for name, page in site_reading(site_dir).items():
        assert page["text"] and page["sidebar"] and page["found by search as"] and not any("None" in size for size in page["pictures"]), name


def test_wrappers_make_no_difference(parts, other, site_tool):
    (other / "01_one_files/figure-html").mkdir(parents=True)
    (other / "01_one_files/figure-html/cell-5-output-1.png").write_bytes(base64.b64decode(DOT))
    page = site_tool.name_landmarks(site_tool.size_pictures(QUARTO, other))
    (other / "one.html").write_text(page, encoding="utf-8")
    assert differences(parts, other) == []
    assert 'role="navigation"' not in page and page.count("<nav aria-label=") == 4


@pytest.mark.parametrize("kind, old, new", [
    ("title", "<title>One", "<title>Two"),
    ("heading", '<h1 class="title">One', '<h1 class="title">Two'),
    ("description", '<meta name="description" content="It', '<meta name="description" content="This'),
    ("description", '<div class="description">It’s', '<div class="description">It is'),
    ("icon", 'rel="icon" href="favicon.svg"', 'rel="icon" href="other.svg"'),
    ("style", '<link rel="stylesheet" href="styles.css">', ""),
    ("plain text", '<link rel="alternate" type="text/markdown" href="one.md">', ""),
    ("headings", ">Deeper</h3>", ">Depth</h3>"),
    ("headings", '<section id="deeper"', '<section id="depth"'),
    ("headings", "h3", "h4"),
    ("anchors of names", '<div id="thing.act"></div>', ""),
    ("text", "<p>Twenty-five.</p>", "<p>Twenty-six.</p>"),
    ("text", "<p>Twenty-five.</p>", "<p>Twenty</p><p>-five.</p>"),
    ("text", "It’s <span", "It's <span"),
    ("marked words", "<strong>note</strong>", "note"),
    ("marked words", "<em>this</em>", "<strong>this</strong>"),
    ("lists", "<li>item two</li>", "<li>item</li><li>two</li>"),
    ("lists", "blockquote>", "div>"),
    ("code", "    <span class=\"kw\">def</span>", "  <span class=\"kw\">def</span>"),
    ("outputs", "3 &lt; 4", "3 < 5"),
    ("pictures", 'alt="Two dots."', 'alt=""'),
    ("pictures", ' width="2" height="1"', ""),
    ("pictures", DOT, DOT.replace("ABCAY", "ABCBY")),
    ("captions", "<strong>dots</strong>,", "<strong>dots</strong>;"),
    ("captions", ">What it costs<", "><"),
    ("formulas", 'display="block"', 'display="inline"'),
    ("tables", ">1</td>", ">2</td>"),
    ("folds", "<summary>Answer</summary>", "<summary>Solution</summary>"),
    ("folds", "<details><summary>Answer", "<details open><summary>Answer"),
    ("figures to move", "vitdet-widget", "widget"),
    ("links", '<a href="index.html">home</a>', '<a href="index.html#home">home</a>'),
    ("links", '<a href="index.html">home</a>', "home"),
    ("sidebar", ">Home</span></a></div></li>", ">Start</span></a></div></li>"),
    ("sidebar", "sidebar-link active", "sidebar-link"),
    ("sections of the sidebar", ">Course</span>", ">Chapters</span>"),
    ("contents", '<a href="#deeper"', '<a href="#a-part"'),
    ("previous page", 'nav-page-text">Home', 'nav-page-text">vitdet_nb'),
    ("dark mode", "quarto-color-scheme-toggle", "toggle"),
    ("search", 'id="quarto-search"', ""),
])
def test_a_difference_that_a_reader_sees_is_found(parts, other, kind, old, new):
    page = (other / "one.html").read_text(encoding="utf-8")
    assert old in page, "nothing to change"
    (other / "one.html").write_text(page.replace(old, new), encoding="utf-8")
    found = differences(parts, other)
    assert any(line.startswith(f"one.html: {kind}: only ") for line in found), found
    assert all(line.startswith("one.html: ") for line in found), found


def test_pages_in_another_order_and_missing_pages_are_found(parts, other):
    page = (other / "one.html").read_text(encoding="utf-8")
    (other / "one.html").write_text(page.replace("<li>item one</li>\n<li>item two</li>", "<li>item two</li>\n<li>item one</li>"), encoding="utf-8")
    assert differences(parts, other) == ["one.html: text: in another order"]
    (other / "one.html").unlink()
    (other / "one.md").unlink()
    assert differences(parts, other) == ["one.html: only smalldocs has this page", "one.md: the plain text differs"]


def test_what_only_one_search_knows_is_found(parts, other):
    entries = json.loads((other / "search.json").read_text(encoding="utf-8"))
    (other / "search.json").write_text(json.dumps([e for e in entries if not e["href"].startswith("one.html")]))
    assert differences(parts, other) == ["one.html: found by search as: only smalldocs: 'One'"]
    name = {"href": "one.html#thing", "title": "One", "section": "Thing", "text": "Thing: its definition"}
    (other / "search.json").write_text(json.dumps([name, *entries]))
    assert differences(parts, other) == ["one.html: names in the search: only Quarto: 'Thing'"]
