"""Downloads from servers on this machine that do all that servers do, and lie."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from samples import idx, write_dataset

from xpcnn import DataError, load_dataset
from xpcnn.data import named
from xpcnn.data.download import Remote, cache_directory, fetch

CONTENT = np.random.default_rng(0).bytes(700_000)
NAME = "data.bin"
CLOSED = "https://127.0.0.1:9/"  # nothing listens on the port "discard"


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """Ask no proxy for what is on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@dataclass
class Server:
    """Answers every GET by ``behave(handler)``, and keeps what was asked."""

    behave: object = None
    asked: list = field(default_factory=list)
    ranges: list = field(default_factory=list)
    url: str = ""


def send(handler, content, status=200, length=None, **headers):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def whole(handler):
    """Send the file, whatever range was asked for."""
    send(handler, CONTENT)


def ranged(handler):
    """Send the file from the byte that was asked for."""
    asked = handler.headers.get("Range")
    if asked is None:
        return whole(handler)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start >= len(CONTENT):
        return send(handler, b"", 416, Content_Range=f"bytes */{len(CONTENT)}")
    send(handler, CONTENT[start:], 206, Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")


@pytest.fixture
def start():
    """Return a function that starts a server; all are stopped in the end."""
    running = []

    def start(behave):
        server = Server(behave)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                server.ranges.append(self.headers.get("Range"))
                server.behave(self)

            def log_message(self, *arguments):
                pass

        listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        listening.daemon_threads, listening.handle_error = True, lambda *arguments: None
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((listening, thread))
        server.url = f"http://127.0.0.1:{listening.server_port}/"
        return server

    yield start
    for listening, thread in running:
        listening.shutdown()
        listening.server_close()
        thread.join()


def remote(*mirrors, content=CONTENT):
    return Remote(NAME, len(content), hashlib.sha256(content).hexdigest(), tuple(f"{m}{NAME}" for m in mirrors))


def get(directory, *mirrors, progress=None, timeout=(5.0, 5.0), content=CONTENT):
    fetch([remote(*mirrors, content=content)], directory, progress, schemes=("http", "https"), timeout=timeout)
    assert (directory / NAME).read_bytes() == content
    assert sorted(path.name for path in directory.iterdir()) == [".lock", NAME]


def refusal(directory, *mirrors, **options):
    options = {"schemes": ("http", "https"), "timeout": (5.0, 5.0)} | options
    with pytest.raises(DataError) as caught:
        fetch([remote(*mirrors)], directory, **options)
    text = str(caught.value)
    assert str(directory) in text
    assert text.endswith(".")
    assert "\n" not in text
    assert not (directory / NAME).exists()
    return text


def partial(directory, content):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{NAME}.part").write_bytes(content)


def test_a_file_comes_whole_and_once(start, tmp_path):
    server, told = start(whole), []
    directory = tmp_path / "new" / "cache"
    get(directory, server.url, progress=lambda *news: told.append(news))
    assert told[0] == (0, len(CONTENT), NAME)
    assert told[-1] == (len(CONTENT), len(CONTENT), NAME)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    get(directory, server.url)
    assert server.asked == [f"/{NAME}"]


@pytest.mark.parametrize("cut", [1, 300_000, len(CONTENT) - 1])
def test_an_interrupted_download_is_continued(start, tmp_path, cut):
    server, told = start(ranged), []
    partial(tmp_path, CONTENT[:cut])
    get(tmp_path, server.url, progress=lambda *news: told.append(news))
    assert server.ranges == [f"bytes={cut}-"]
    assert told[0] == (cut, len(CONTENT), NAME)


def test_a_connection_that_breaks_off_is_continued_at_the_next_call(start, tmp_path):
    server = start(lambda handler: send(handler, CONTENT[:400_000], length=len(CONTENT)))
    assert "127.0.0.1 broke off" in refusal(tmp_path, server.url)
    server.behave = ranged
    get(tmp_path, server.url)
    assert server.ranges == [None, "bytes=400000-"]


def test_the_users_interruption_keeps_what_came(start, tmp_path):
    server = start(ranged)

    def interrupt(done, total, name):
        if done > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([remote(server.url)], tmp_path, interrupt, schemes=("http",))
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert 300_000 < kept < len(CONTENT)
    get(tmp_path, server.url)
    assert server.ranges == [None, f"bytes={kept}-"]


def test_a_server_that_ignores_ranges_begins_again(start, tmp_path):
    server = start(whole)
    partial(tmp_path, b"x" * 1000)
    get(tmp_path, server.url)
    assert len(server.asked) == 1


@pytest.mark.parametrize("old", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 10), b""])
def test_a_wrong_beginning_is_fetched_anew(start, tmp_path, old):
    partial(tmp_path, old)
    get(tmp_path, start(ranged).url)


def test_a_complete_partial_file_needs_no_server(tmp_path):
    partial(tmp_path, CONTENT)
    get(tmp_path, CLOSED)


def test_a_range_that_cannot_be_had(start, tmp_path):
    def never(handler):
        send(handler, b"", 416) if "Range" in handler.headers else whole(handler)

    partial(tmp_path, CONTENT[:1000])
    get(tmp_path, start(never).url)
    partial(tmp_path / "b", CONTENT[:1000])
    lying = start(lambda handler: send(handler, CONTENT, 206, Content_Range=f"bytes 0-{len(CONTENT) - 1}/*"))
    assert "sends another range" in refusal(tmp_path / "b", lying.url)


@pytest.mark.parametrize(
    ("behave", "says"),
    [
        (lambda handler: send(handler, CONTENT[:-1] + b"!"), "has other content (its SHA-256 is wrong)"),
        (lambda handler: send(handler, CONTENT + b"!"), "sends more than the 700,000 bytes"),
        (lambda handler: send(handler, CONTENT[:99]), "ended after 99 of 700,000 bytes"),
        (lambda handler: send(handler, b""), "ended after 0 of 700,000 bytes"),
        (lambda handler: send(handler, CONTENT[:99], length=len(CONTENT)), "broke off"),
        (lambda handler: send(handler, CONTENT, length=99), "ended after 99 of"),
        (lambda handler: send(handler, b"<html>", 404), "answers with status 404"),
        (lambda handler: send(handler, b"", 503), "answers with status 503"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "cannot be reached"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "cannot be"),
        (lambda handler: None, "cannot be reached"),
        (lambda handler: send(handler, b"", 302, Location=f"/{NAME}"), "redirects more than 5 times"),
        (lambda handler: send(handler, b"", 302, Location="ftp://127.0.0.1/x"), "leads to 'ftp://127.0.0.1/x'"),
        (lambda handler: send(handler, b"", 302, Location="file:///etc/passwd"), "which is not http or https"),
        (lambda handler: send(handler, b"", 302, Location="http://[broken"), "leads to something that is no address"),
    ],
)
def test_what_a_server_may_do_wrong(start, tmp_path, behave, says):
    bad = start(behave)
    text = refusal(tmp_path, bad.url)
    assert says in text
    assert f"put {NAME} (700,000 bytes, SHA-256 {hashlib.sha256(CONTENT).hexdigest()}) into {tmp_path}" in text
    part = tmp_path / f"{NAME}.part"
    assert not part.exists() or CONTENT.startswith(part.read_bytes())  # nothing wrong is kept
    good = start(ranged)
    get(tmp_path, bad.url, CLOSED, good.url)
    assert len(good.asked) == 1


def test_a_server_that_hangs(start, tmp_path):
    done = threading.Event()

    def hang(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT[:5000])
        handler.wfile.flush()
        done.wait(5)

    try:
        assert "does not answer" in refusal(tmp_path, start(hang).url, timeout=(1.0, 0.2))
    finally:
        done.set()


def test_only_https_unless_a_caller_says_otherwise(start, tmp_path):
    server = start(whole)
    with pytest.raises(DataError, match="which is not https"):
        fetch([remote(server.url)], tmp_path)
    assert not server.asked
    hop = start(lambda handler: send(handler, b"", 301, Location=f"{server.url}{NAME}"))
    get(tmp_path, hop.url)


def test_content_that_is_called_compressed_is_taken_as_it_is(start, tmp_path):
    content = gzip.compress(b"labels" * 100)
    get(tmp_path, start(lambda handler: send(handler, content, Content_Encoding="gzip")).url, content=content)


def test_two_at_once_do_not_disturb_each_other(start, tmp_path):
    server, errors = start(ranged), []

    def run():
        try:
            fetch([remote(server.url)], tmp_path, schemes=("http",))
        except DataError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (tmp_path / NAME).read_bytes() == CONTENT
    if os.name == "posix":
        assert len(server.asked) == 1


def test_a_place_that_cannot_be_written(start, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot take the download" in refusal(tmp_path / "file" / "cache", start(whole).url)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk(start, tmp_path):
    (tmp_path / f"{NAME}.part").symlink_to("/dev/full")
    assert "cannot take the download: No space left on device" in refusal(tmp_path, start(whole).url)


# The named data sets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XPCNN_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """Let every mirror be a port that nothing listens on."""
    files = {
        name: tuple(Remote(file.name, file.size, file.sha256, (f"{CLOSED}{file.name}",)) for file in remotes)
        for name, remotes in named.FILES.items()
    }
    monkeypatch.setattr(named, "FILES", files)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_offline_one_sentence_says_which_files_to_put_where(cache, offline, tmp_path, name):
    for data_dir in (None, tmp_path):
        with pytest.raises(DataError) as caught:
            load_dataset(name, data_dir)
        text = str(caught.value)
        assert "127.0.0.1 cannot be reached" in text
        assert f"into {cache / name} yourself, or into a directory that you name with --data-dir." in text
        for file in named.FILES[name]:
            assert f"{file.name} ({file.size:,} bytes, SHA-256 {file.sha256})" in text


def test_what_was_put_into_the_cache_is_found(cache, offline):
    images, labels = np.arange(40, dtype=np.uint8).reshape(2, 5, 4), np.array([3, 9], dtype=np.uint8)
    write_dataset(cache / "fashion-mnist", (images, labels), (images, labels))
    assert load_dataset("fashion-mnist")[0].labels.tolist() == [3, 9]
    (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"put t10k-labels-idx1-ubyte\.gz \(5,148 bytes, SHA-256 [0-9a-f]+\) into"):
        load_dataset("fashion-mnist")


def test_a_named_set_is_downloaded_into_the_cache(cache, start, tmp_path, monkeypatch):
    images, labels = np.arange(40, dtype=np.uint8).reshape(2, 5, 4), np.array([3, 9], dtype=np.uint8)
    content = {
        f"{name}.gz": gzip.compress(idx(images if "images" in name else labels), mtime=0) for name in named.IDX_FILES
    }
    server = start(lambda handler: send(handler, content[handler.path[1:]]))
    files = [
        Remote(name, len(data), hashlib.sha256(data).hexdigest(), (f"{server.url}{name}",))
        for name, data in content.items()
    ]
    monkeypatch.setattr(named, "FILES", {"fashion-mnist": files})
    monkeypatch.setattr(named, "fetch", lambda *arguments: fetch(*arguments, schemes=("http",)))
    told = []
    train, test = load_dataset("fashion-mnist", progress=lambda *news: told.append(news))
    assert np.array_equal(train.images[:, 0], images)
    assert test.labels.tolist() == [3, 9]
    assert {name for _, _, name in told} == set(content)
    assert sorted(os.listdir(cache / "fashion-mnist")) == sorted([".lock", *content])
    assert load_dataset("fashion-mnist", tmp_path)[0].fingerprint() == train.fingerprint()
    assert len(server.asked) == 4


def test_the_published_files():
    """Every mirror is asked by https for the file's own name; digests and sizes are whole."""
    files = [file for remotes in named.FILES.values() for file in remotes]
    assert len({file.sha256 for file in files}) == len(files) == 6
    for file in files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.mirrors
        assert all(mirror.startswith("https://") and mirror.endswith(f"/{file.name}") for mirror in file.mirrors)


def test_the_caches_place(monkeypatch):
    monkeypatch.setenv("XPCNN_DATA", "~/data")
    assert cache_directory() == Path("~/data").expanduser()
    monkeypatch.delenv("XPCNN_DATA")
    assert cache_directory().name in ("xpcnn", "Cache")
