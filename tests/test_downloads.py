"Downloads from a server on this machine that fails in every way a server can, and processes that are stopped midway."
import hashlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vitdet_nb import downloads
from vitdet_nb.downloads import Published, download, fetch

data = bytes(range(251)) * 20_000  # 5 MB; no period that a megabyte has
size, sha256 = len(data), hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    "Notes the range asked for, and answers with the next of `server.answers`; the last one stays."
    def do_GET(self):
        self.server.asked.append(self.headers["Range"])
        answers = self.server.answers
        try: (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        except OSError: pass  # the client went away

    def reply(self, body, status=200, **headers):
        self.send_response(status)
        for k, v in ({"Content_Length": len(body)} | headers).items():
            if v is not None: self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        self.wfile.write(body)

    @property
    def start(self): return int((self.headers["Range"] or "bytes=0-")[6:-1])

    def log_message(self, *args): pass


def right(h, cut=None, data=data):
    "Answer as a server should, or hang up after `cut` bytes."
    if not h.start: return h.reply(data[:cut], Content_Length=len(data))
    if h.start >= len(data): return h.reply(b"", 416, Content_Range=f"bytes */{len(data)}")
    span = f"bytes {h.start}-{len(data) - 1}/{len(data)}"
    h.reply(data[h.start:][:cut], 206, Content_Range=span, Content_Length=len(data) - h.start)


def cut(n): return lambda h: right(h, n)
def body(b, **headers): return lambda h: h.reply(b, **headers)
def redirected(to): return body(b"", status=302, Location=to)
def ranges_ignored(h): h.reply(data)
def slow(h):
    h.reply(data[h.start:h.start + 2_000_000], 206 if h.start else 200, Content_Length=size - h.start,
            **({"Content_Range": f"bytes {h.start}-{size - 1}/{size}"} if h.start else {}))
    h.server.over.wait(30)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers, server.over = [], [right], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def path(tmp_path): return tmp_path / "deep" / "er" / "weights.pth"  # in a folder that is not there yet


@pytest.fixture
def part(path): return path.with_name("weights.pth.part")


def get(server, path, size=size, sha256=sha256, **kwargs):
    return fetch(server.url, path, size, sha256, **({"pause": 0, "timeout": 5} | kwargs))


def leave(part, content):
    "A part as an earlier call leaves it."
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


def test_a_file_is_fetched_once(server, path, part):
    assert get(server, path) == path and path.read_bytes() == data and not part.exists()
    assert get(server, path) == path and server.asked == [None]


def test_a_file_that_is_there_needs_nothing(server, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert get(server, path) == path and not server.asked
    assert list(path.parent.iterdir()) == [path]  # no lock: the folder may be read-only


def test_without_size_and_digest(server, path):
    assert get(server, path, None, "").read_bytes() == data


@pytest.mark.parametrize("answers, asked", [
    ([cut(1_000_000), right], [None, "bytes=1000000-"]),
    ([cut(1_000_000), cut(0), cut(7), right], [None, "bytes=1000000-", "bytes=1000000-", "bytes=1000007-"]),
    ([cut(1_000_000), ranges_ignored], [None, "bytes=1000000-"]),
    ([cut(1_000_000), lambda h: h.reply(b"", 503), right], [None, "bytes=1000000-", "bytes=1000000-"]),
    ([cut(1_000_000), lambda h: h.reply(data[5:], 206, Content_Range=f"bytes 5-{size - 1}/{size}"), right],
     [None, "bytes=1000000-", None]),  # not what was asked for
    ([lambda h: h.connection.shutdown(socket.SHUT_RDWR), right], [None, None]),
    ([lambda h: h.wfile.write(b"what?\r\n"), right], [None, None]),
    ([redirected("/else"), cut(9), redirected("/else"), right],
     [None, None, "bytes=9-", "bytes=9-"]),  # the range survives a redirection
], ids=["cut", "cut often", "ranges ignored", "busy", "another range", "closed", "no HTTP", "redirected"])
def test_a_failure_is_made_good(server, path, answers, asked):
    server.answers = answers
    assert get(server, path).read_bytes() == data
    assert server.asked == asked


def test_tries_that_get_on_do_not_count(server, path):
    server.answers = [cut(1_100_000)] * 4 + [right]
    assert get(server, path, tries=2).read_bytes() == data


def test_it_gives_up_and_the_next_call_goes_on(server, path, part):
    server.answers = [cut(1_000_000), cut(0)]
    with pytest.raises(ConnectionError, match="1,000,000 of 5,020,000 bytes arrived.*1,000,000 bytes are kept: call again"):
        get(server, path, tries=3)
    assert server.asked == [None, "bytes=1000000-", "bytes=1000000-"] and not path.exists()
    assert part.read_bytes() == data[:1_000_000]
    server.answers = [right]
    assert get(server, path).read_bytes() == data and server.asked[-1] == "bytes=1000000-"


def test_without_a_digest_nothing_is_glued(server, path, part):
    leave(part, b"other" * 1000)
    server.answers = [cut(1_000_000), right]
    assert get(server, path, sha256="").read_bytes() == data and server.asked == [None, None]


@pytest.mark.parametrize("content, asked", [
    (bytes(1000), ["bytes=1000-", None]), (data[:1000], ["bytes=1000-"]), (data, []), (bytes(size), [None]),
    (data + b"more", [f"bytes={size + 4}-", None])], ids=["of another file", "right", "whole", "wrong", "too long"])
def test_a_part_is_used_only_if_it_is_of_this_file(server, path, part, content, asked):
    leave(part, content)
    assert get(server, path).read_bytes() == data and server.asked == asked


def test_a_whole_part_of_unknown_size(server, path, part):
    leave(part, data)
    assert get(server, path, None).read_bytes() == data and server.asked == [f"bytes={size}-"]


@pytest.mark.parametrize("answer, message", [
    (body(data[::-1]), f"expected {sha256}. It was removed"),
    (body(data[:-9]), "has 5,019,991 bytes, expected 5,020,000"),
    (body(data + b"more"), "has 5,020,004 bytes, expected 5,020,000"),
    (body(data, Content_Length=size - 9), "has 5,019,991 bytes, expected 5,020,000"),
    (body(data, Content_Length=size + 9), "has 5,020,009 bytes, expected 5,020,000"),
    (body(b"<html>log in", Content_Type="text/html; charset=utf-8"), "answers with a web page"),
], ids=["content", "short", "long", "states too little", "states too much", "HTML"])
def test_a_wrong_file_gets_no_name(server, path, part, answer, message):
    server.answers = [answer]
    with pytest.raises(ValueError, match=message) as e: get(server, path)
    assert server.url in str(e.value) and server.asked == [None]
    assert not path.exists() and not part.exists()


@pytest.mark.parametrize("stated, error", [
    (size - 9, "expected " + sha256), (size + 9, "5,020,000 of 5,020,009 bytes arrived")], ids=["short", "long"])
def test_a_lie_about_the_length_is_found_where_no_size_is_known(server, path, stated, error):
    server.answers = [body(data, Content_Length=stated), right]
    with pytest.raises((ValueError, ConnectionError), match=error): get(server, path, None, tries=1)
    assert not path.exists()


def test_a_web_page_as_a_file_is_named(server, path):
    page = b"<!DOCTYPE html>" + b" " * 100
    server.answers = [body(page)]
    with pytest.raises(ValueError, match="is a web page"): get(server, path, None)


def test_a_server_that_never_ends_fills_no_disk(server, path, part):
    def endless(h):
        h.reply(b"", Content_Length=None)
        while True: h.wfile.write(bytes(1 << 20))
    server.answers = [endless]
    with pytest.raises(ValueError, match="expected " + sha256): get(server, path)
    with pytest.raises(ValueError, match="does not say how many bytes"): get(server, path, None)
    assert not part.exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_asked_for_once(server, path, part, status):
    leave(part, data[:1000])
    server.answers = [lambda h: h.reply(b"no", status)]
    with pytest.raises(ConnectionError, match=f"{server.url}: it answers {status}"): get(server, path)
    assert len(server.asked) == 1 and part.read_bytes() == data[:1000]


def test_a_redirection_to_a_local_file_is_refused(server, path):
    server.answers = [redirected("file:///etc/hostname")]
    with pytest.raises(ConnectionError, match="not allowed"): get(server, path)


def test_a_silent_server(server, path, part):
    server.answers = [slow]
    start = time.time()
    with pytest.raises(ConnectionError, match="timed out"): get(server, path, tries=1, timeout=1)
    assert time.time() - start < 5 and part.read_bytes() == data[:2_000_000]
    server.answers = [lambda h: h.server.over.wait(30)]  # not even a status
    with pytest.raises(ConnectionError, match="timed out"): get(server, path, tries=2, timeout=0.3)
    assert part.read_bytes() == data[:2_000_000]


def test_no_server_at_all(path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}/weights.pth"
        with pytest.raises(ConnectionError, match="refused"): fetch(url, path, tries=2, pause=0)


def test_pauses_grow(server, path, monkeypatch):
    pauses = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    server.answers = [cut(0)]
    with pytest.raises(ConnectionError): get(server, path, tries=4, pause=1)
    assert pauses == [1, 2, 4]


def test_proxies_are_not_for_this_machine(server, path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"): monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert get(server, path, tries=1).read_bytes() == data


def test_proxies_are_for_the_rest(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch("http://weights.invalid/w.pth", path, size, sha256, tries=1).read_bytes() == data


def test_a_full_disk(server, path, part, monkeypatch):
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda folder: usage(size - 1))
        with pytest.raises(OSError, match="no room for weights.pth: 5,020,000 bytes to come, 5,019,999 free"):
            get(server, path)
        assert not part.exists()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large, writing .*weights.pth.part: .* of 5,020,000 bytes") as e:
            get(server, path)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(e.value, ConnectionError) and 0 < part.stat().st_size <= 3_000_000
    assert get(server, path).read_bytes() == data


def test_the_bar_starts_where_the_bytes_do(server, path, part, capsys):
    leave(part, data[:size // 2])
    get(server, path)
    out, err = capsys.readouterr()
    assert not out and "weights.pth:  50%" in err and "5.02M/5.02M" in err and " 0%" not in err


def test_download(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    p = Published(server.url.replace("weights", "sam_test"), "this test", size, sha256)
    monkeypatch.setitem(downloads.published, "sam_vit_b", p)
    assert download("sam_vit_b") == tmp_path / "hub" / "checkpoints" / "sam_test.pth"
    assert download("sam_vit_b").read_bytes() == data and server.asked == [None]
    monkeypatch.setitem(downloads.published, "sam_vit_b", p._replace(size=size + 1))
    with pytest.raises(ValueError, match="sam_test.pth has 5,020,000 bytes, expected 5,020,001. Delete it"):
        download("sam_vit_b")
    monkeypatch.setitem(downloads.published, "sam_vit_b", Published(p.url, p.source, md5="b8b06e"))
    with pytest.raises(ValueError, match="expected b8b06e. Delete it"): download("sam_vit_b")


def process(server, path):
    "Another Python that fetches the file; it prints a line when it is about to."
    code = f"""from vitdet_nb.downloads import fetch
print("here", flush=True)
fetch({server.url!r}, {str(path)!r}, {size}, {sha256!r}, pause=0)"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    for _ in range(600):
        if condition(): return
        time.sleep(0.05)
    raise TimeoutError


def test_two_processes_fetch_once(server, path):
    go = threading.Event()
    def held(h):
        go.wait(30)
        right(h)
    server.answers = [held]
    both = [process(server, path) for _ in range(2)]
    for p in both: assert p.stdout.readline() == "here\n", p.stderr.read()
    time.sleep(0.5)  # for the second to come to the lock
    go.set()
    for p in both:
        _, err = p.communicate(timeout=30)
        assert p.returncode == 0, err
    assert path.read_bytes() == data and server.asked == [None]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_a_stopped_process_leaves_its_part(server, path, part, how):
    server.answers = [slow]
    p = process(server, path)
    wait_for(lambda: part.exists() and part.stat().st_size >= 1_900_000)  # the last bytes may be in its buffer
    p.send_signal(how)
    _, err = p.communicate(timeout=30)
    assert p.returncode != 0 and (how == signal.SIGKILL or "KeyboardInterrupt" in err), err
    had = part.stat().st_size
    assert part.read_bytes() == data[:had] and not path.exists()
    server.answers = [right]
    assert get(server, path).read_bytes() == data and server.asked == [None, f"bytes={had}-"]
