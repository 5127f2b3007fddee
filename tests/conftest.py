"What the tests of the website share: the built site, its address, and a browser."
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background has Ctrl-C ignored, in their children too


def copy_checkout(root):
    "Copy what the site is made from, so that the reader's own `_docs` is left alone."
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, root)
    for name in ("nbs", "vitdet_nb"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))


def run_site(root, *args, first_on_path=None, timeout=120):
    "Run the site tool of the checkout at `root`, on a PATH that holds no Quarto but the one in `first_on_path`."
    folders = [p for p in os.environ["PATH"].split(os.pathsep) if p and not (Path(p) / "quarto").exists()]
    path = os.pathsep.join([str(first_on_path)] * bool(first_on_path) + folders)
    command = [sys.executable, str(Path(root) / "nbs/_tools/site.py"), *args]
    return subprocess.run(command, env={**os.environ, "PATH": path}, cwd=root, capture_output=True, text=True, timeout=timeout)


def start_server(root, port=0):
    "Serve the site at `root`; return the process and the address that it prints."
    command = [sys.executable, str(Path(root) / "nbs/_tools/site.py"), "serve", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    address = re.search(r"http://\S+", line)
    assert address, f"no address printed: {line!r} {process.stderr.read() if process.poll() is not None else ''}"
    return process, address[0]


@pytest.fixture(scope="session")
def site_dir(tmp_path_factory):
    "The site, built once without Quarto."
    root = tmp_path_factory.mktemp("checkout")
    copy_checkout(root)
    done = run_site(root, "build")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"(?m)^warning: ", done.stderr), done.stderr
    return root / "_docs"


@pytest.fixture(scope="session")
def site_url(site_dir):
    "The address of the built site, served as `make site` serves it; it ends in a slash."
    process, address = start_server(site_dir.parent)
    yield address
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def chromium():
    "Headless Chromium: the system's, or Playwright's own. Without one the test is skipped, in CI it fails."
    from playwright.sync_api import Error, sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=flags)
        except Error as e:
            why = f"no browser starts: install Debian's chromium, or run `playwright install chromium` ({str(e).splitlines()[0]})"
            pytest.fail(why) if IN_CI else pytest.skip(why)
        yield browser
        browser.close()


def open_tab(context, site_url):
    "Open a tab that notes what goes wrong in it: `tab.problems`, and `tab.foreign`, the requests to other hosts."
    tab = context.new_page()
    tab.set_default_timeout(10_000)
    tab.problems, tab.foreign = [], []
    tab.on("console", lambda m: tab.problems.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda e: tab.problems.append(str(e)))
    tab.on("response", lambda r: tab.problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    tab.on("request", lambda r: None if r.url.startswith((site_url, "data:")) else tab.foreign.append(r.url))
    return tab


@pytest.fixture(scope="session")
def new_context(chromium):
    "Start a browser context that has stored nothing, on a desktop's screen, for a reader who prefers light pages."
    def new():
        return chromium.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light", permissions=["clipboard-read", "clipboard-write"])

    return new


@pytest.fixture(scope="session")
def shared_context(new_context):
    "The context that most tests share: what one page has loaded, the next need not."
    return new_context()


@pytest.fixture
def tab(shared_context, site_url):
    "A new tab for a test that stores nothing."
    tab = open_tab(shared_context, site_url)
    yield tab
    tab.close()


@pytest.fixture
def fresh_tab(new_context, site_url):
    "A tab for a test that stores something."
    context = new_context()
    yield open_tab(context, site_url)
    context.close()
