"""The site as plain text: each page as Markdown beside its HTML, and `llms.txt`, the list of them (llmstxt.org).

Both are made from the notebooks that nbdev has prepared for the renderer: what the site hides is not in them any more,
names in backticks are links, and nothing depends on which renderer makes the HTML.
"""
import json
import re
from functools import partial
from html.parser import HTMLParser

import yaml

PICTURES = ("image/svg+xml", "image/png", "image/jpeg", "image/gif")
FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", re.S | re.M)
CODE = r"(`+)(?:(?!\1).)*?\1"  # a span of code, which stays as it is


def source(cell):
    "The text of a cell, which a notebook may store in lines."
    return "".join(cell["source"])


def fenced(text, language):
    "A code block that its text cannot close."
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def figure(caption, alt):
    "A picture in words: its caption, and what is to be seen."
    parts = [f"**Figure.** {caption}"] * bool(caption) + [f"*In the picture:* {alt}"] * bool(alt)
    return "\n>\n".join(f"> {' '.join(p.split())}" for p in parts or ["**Figure.**"])


# ---- HTML that a cell has put out


class HTMLText(HTMLParser):
    "HTML as Markdown, as far as a figure's text needs it: paragraphs, lists and tables. Scripts and styles are dropped."

    BLOCKS = {"p", "div", "ul", "ol", "table", "caption", "figure", "figcaption", "section", "pre", "h1", "h2", "h3", "h4"}

    def __init__(self, html):
        super().__init__()
        self.blocks, self.text, self.row, self.silent = [], "", None, 0
        self.feed(html)
        self.close()
        self.end_block()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "vitdet-widget" in (attrs.get("class") or "").split():
            self.text = f"**A figure to move.** {attrs.get('aria-label') or ''}"
        self.silent += tag in ("script", "style", "template")
        if tag == "tr":
            self.end_block()
            self.row = []
        elif tag in ("td", "th"):
            self.text = ""
        elif tag == "li":
            self.end_block()
            self.text = "- "
        elif tag == "img" and attrs.get("alt"):
            self.text += attrs["alt"]
        elif tag == "br":
            self.text += " "
        elif tag in self.BLOCKS:
            self.end_block()

    def handle_endtag(self, tag):
        self.silent -= tag in ("script", "style", "template")
        if tag in ("td", "th") and self.row is not None:
            self.row.append(" ".join(self.text.split()).replace("|", r"\|"))
            self.text = ""
        elif tag == "tr" and self.row is not None:
            first = not (self.blocks and self.blocks[-1].startswith("|"))
            self.blocks.append("| " + " | ".join(self.row) + " |")
            if first:
                self.blocks.append("|" + " --- |" * len(self.row))
            self.row, self.text = None, ""
        elif tag in self.BLOCKS or tag == "li":
            self.end_block()

    def handle_data(self, data):
        if not self.silent:
            self.text += data

    def end_block(self):
        "A block ends here, unless this is inside a cell of a table."
        text = " ".join(self.text.split())
        if self.row is None and text:
            self.blocks.append(text)
            self.text = ""

    def markdown(self):
        "The blocks, with a blank line between any two that are not of one table or list."
        joined = "\n\n".join(self.blocks)
        return re.sub(r"(?m)^((?:\||- ).*)\n\n(?=\||- )", r"\1\n", joined)


# ---- the cells of a page


def options(code):
    "The `#|` options at the top of a code cell, and the code under them."
    lines = code.split("\n")
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    return yaml.safe_load("\n".join(line[2:].strip() for line in lines[:n])) or {}, "\n".join(lines[n:]).strip("\n")


def output(out, opts, told):
    "What a reader sees of one output of a cell; `told` does to Markdown what `prose` does."
    if out["output_type"] == "stream":
        return fenced("".join(out["text"]), "text")
    if out["output_type"] == "error":
        return fenced(f"{out['ename']}: {out['evalue']}", "text")
    data = {kind: "".join(text) for kind, text in out["data"].items() if isinstance(text, (str, list))}
    if "text/html" in data:
        return HTMLText(data["text/html"]).markdown()
    if any(kind in data for kind in PICTURES):
        return figure(opts.get("fig-cap"), opts.get("fig-alt"))
    if "text/markdown" in data:
        return told(data["text/markdown"])
    return fenced(data.get("text/plain", ""), "text")


def code_cell(cell, language, told):
    "The code that the site shows, in full also where it is folded, and what it has put out."
    opts, code = options(source(cell))
    if opts.get("include") is False:
        return
    if opts.get("echo") is not False and code.strip():
        yield fenced(code, language)
    if opts.get("output") is not False:
        yield from filter(None, (output(out, opts, told) for out in cell["outputs"]))


def prose(text, pages, names):
    "A Markdown cell: folds are open, links lead to the Markdown of other pages, pictures are told, boxes go. Code stays as it is."

    def link(m):
        if m[3] not in pages:
            return m[0]
        target = pages[m[3]] + (m[4] or "")
        return f"]({pages[m[3]] if target in names else target})"  # the Markdown has headings to go to, but no names

    def picture(m):
        alt = re.search(r'fig-alt="([^"]*)"', m[4] or "")
        return figure(m[2], alt and alt[1])

    def words(part):
        part = re.sub(CODE + r"|<!--.*?-->|</?div\b[^>]*>|</details>", lambda m: m[0] if m[1] else "", part, flags=re.S)
        part = re.sub(CODE + r"|<details[^>]*>\s*<summary>(.*?)</summary>", lambda m: m[0] if m[1] else f"**{m[2]}.**", part, flags=re.S)
        part = re.sub(CODE + r"|!\[([^\]]*)\]\(([^)\s]*)\)(\{[^}]*\})?", lambda m: m[0] if m[1] else picture(m), part, flags=re.S)
        return re.sub(CODE + r"|(\]\()([^)#\s]+)(#[^)\s]*)?\)", lambda m: m[0] if m[1] else link(m), part, flags=re.S)

    done, at = [], 0
    for fence in FENCE.finditer(text):
        done += [words(text[at : fence.start()]), fence[0]]
        at = fence.end()
    done.append(words(text[at:]))
    return re.sub(r"\n{3,}", "\n\n", "".join(done)).strip()


# ---- the files


def front_matter(nb):
    "Title, description and address, as nbdev has put them into the first cell."
    return yaml.safe_load(source(nb["cells"][0]).strip().strip("-"))


def page_markdown(nb, pages, names):
    "A whole page."
    front = front_matter(nb)
    language = nb["metadata"].get("kernelspec", {}).get("language", "python")
    told = partial(prose, pages=pages, names=names)
    parts = [f"# {front['title']}"]
    if front.get("description"):
        parts.append("> " + front["description"])
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(told(source(cell)))
        elif cell["cell_type"] == "code":
            parts += code_cell(cell, language, told)
    return "\n\n".join(filter(None, parts)) + "\n"


def index(config, fronts, title, description):
    "`llms.txt`: a summary, and each page with its description, in the order and sections of the sidebar."

    def line(name):
        front = fronts[name]
        more = f": {front['description']}" if front.get("description") else ""
        return f"- [{front['title']}]({front['output-file'].replace('.html', '.md')}){more}"

    def lines(contents):
        names = [item if isinstance(item, str) else item.get("href") for item in contents]
        return [line(name) for name in names if name in fronts]

    contents = config["website"]["sidebar"]["contents"]
    parts = [f"# {title}", f"> {description}", "Every page of the site is there as Markdown too, with `.md` for `.html`. Start with:"]
    parts.append("\n".join(lines(item for item in contents if isinstance(item, str) or "section" not in item)))
    for item in contents:
        if isinstance(item, dict) and lines(item.get("contents", [])):
            parts += [f"## {item['section']}", "\n".join(lines(item["contents"]))]
    return "\n\n".join(parts) + "\n"


def write_markdown(proc, site, title, description):
    "Write the Markdown of all notebooks in nbdev's work folder `proc`, and `llms.txt`, into the built site."
    notebooks = {p.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(proc.glob("*.ipynb"))}
    fronts = {name: front_matter(nb) for name, nb in notebooks.items()}
    pages, names = {}, set()  # what a link may name, and the Markdown that it leads to; the anchors of exported names
    for name, front in fronts.items():
        pages[name] = pages[front["output-file"]] = front["output-file"].replace(".html", ".md")
        text = "\n".join(source(c) for c in notebooks[name]["cells"] if c["cell_type"] == "markdown")
        names |= {f"{pages[name]}#{anchor}" for anchor in re.findall(r'<div id="([^"]*)"></div>', text)}
    for name, nb in notebooks.items():
        (site / pages[name]).write_text(page_markdown(nb, pages, names), encoding="utf-8")
    config = yaml.safe_load((proc / "_quarto.yml").read_text(encoding="utf-8"))
    (site / "llms.txt").write_text(index(config, fronts, title, description), encoding="utf-8")
