"""The server behind the page: real connections to 127.0.0.1, good ones and all kinds of bad ones."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import xpcnn as xc
from xpcnn.report.attribution import grad_cam
from xpcnn.report.layer_outputs import layer_outputs
from xpcnn.serve import Looking, PageServer, server

SHAPE = (1, 12, 12)


def png(pixels=None, kind="PNG"):
    """Return a picture's file; by default light noise on black of the model's size."""
    if pixels is None:
        pixels = np.zeros((12, 12), dtype=np.uint8)
        pixels[3:9, 4:8] = np.random.default_rng(5).integers(100, 256, (6, 4))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model():
    net = xc.models.simple_convnet(SHAPE, 3, filters=4, kernel_size=3, hidden=5)
    return xc.Model(net, "cpu", seed=4, dtype="float64", classes=("a", "<b>", "c\u2028"), dataset="mnist")


@pytest.fixture(scope="module")
def page(model):
    """Return a running server."""
    with PageServer(Looking(model, "my <run>"), port=0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def ask(page):
    """Return a function that sends a request and returns status, headers and content."""

    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", page.server_address[1], timeout=20)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    return ask


@pytest.fixture
def look(ask):
    """Return a function that asks about a picture and returns status and JSON."""

    def look(body, path="/look", content_type="image/png", **headers):
        status, _, content = ask("POST", path, body, Content_Type=content_type, **headers)
        return status, json.loads(content)

    return look


def raw(page, *pieces, pause=0.0):
    """Send bytes as they are and return all that comes back."""
    with socket.create_connection(page.server_address, timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        with contextlib.suppress(OSError):  # it may have ended already
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(65536):
            found += more
    return found


def head(method=b"POST", path=b"/look", **headers):
    """Return a request's head of a picture."""
    usual = {"Host": "localhost", "Content-Type": "image/png"} | headers
    lines = [f"{name.replace('_', '-')}: {value}".encode() for name, value in usual.items() if value is not None]
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", *lines, b"", b""])


def decoded(uri):
    """Return the pixels of a data URI."""
    kind, _, text = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGBA"))


def test_the_page_is_one_file_that_may_load_nothing(ask):
    status, headers, content = ask("GET", "/")
    text = content.decode()
    policy = headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', text))
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert f"script-src 'nonce-{nonce}'" in policy
    assert "'unsafe" not in policy
    assert not re.search(r"https?://|COLOURS|NONCE|style=|onclick=", text)
    assert "--ground:" in text
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert ask("GET", "/")[1]["Content-Security-Policy"] != policy  # a nonce is used once
    assert ask("HEAD", "/")[2] == b""


def test_what_the_model_is(ask, model):
    status, headers, content = ask("GET", "/model")
    found = json.loads(content)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert (found["name"], found["classes"], found["shape"]) == ("my <run>", list(model.classes), [1, 12, 12])
    assert found["parameters"] == sum(array.size for array in model.parameters().values())


def test_an_answer_is_what_the_model_says(look, model):
    with Image.open(io.BytesIO(png())) as picture:
        image = np.asarray(picture)[None]
    logits = model.predict(image[None])[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    status, found = look(png())
    assert status == 200
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    assert found["explained"] == expected.argmax()
    (layer,) = found["layers"]
    maps = layer_outputs(model, image[None])["conv1"][0]
    assert (layer["name"], layer["size"], layer["of"], len(layer["maps"])) == ("conv1", [10, 10], 4, 4)
    assert layer["limit"] == pytest.approx(np.abs(maps).max())
    for uri, values in zip(layer["maps"], maps, strict=True):
        red, _, blue, strength = np.moveaxis(decoded(uri).astype(int), 2, 0)
        rising = strength.ravel()[np.argsort(np.abs(values).ravel())]
        assert (np.diff(rising) >= 0).all()  # the further from 0, the stronger
        assert rising[0] == 0
        assert (rising[-1] == 255) == (np.abs(values).max() == np.abs(maps).max())
        clear = strength > 30
        np.testing.assert_array_equal((red > blue)[clear], (values > 0)[clear])
    np.testing.assert_array_equal(decoded(found["input"])[..., 0], image[0])
    assert decoded(found["overlay"]).shape == (12, 12, 4)


def test_any_class_can_be_explained(look, model):
    with Image.open(io.BytesIO(png())) as picture:
        image = np.asarray(picture)[None]
    for number in range(3):
        status, found = look(png(), f"/look?class={number}")
        hot = grad_cam(model, image[None], number)[0] > 0.95
        overlay = decoded(found["overlay"]).astype(int)
        assert (status, found["explained"]) == (200, number)
        assert (overlay[hot][:, 0] - overlay[hot][:, 2] > 80).all()
    for text in ("3", "-1", "x", "1e3", "9" * 30, "%D9%A3"):  # the last is an Arabic three
        status, found = look(png(), f"/look?class={text}")
        assert status in (400, 422)
        assert "class" in found["error"]


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "WEBP"])
def test_pictures_are_told_by_their_content(look, kind):
    status, found = look(png(np.full((30, 20, 3), 90, dtype=np.uint8), kind), content_type="image/x-whatever")
    assert status == 200
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-4)


def test_a_picture_is_made_ready_as_in_predict(look, tmp_path):
    """Dark ink on a large white sheet becomes light, small and centred, for this is a model of MNIST."""
    sheet = np.full((200, 300), 255, dtype=np.uint8)
    sheet[20:80, 200:220] = 0
    found = look(png(sheet))[1]
    (tmp_path / "x.png").write_bytes(png(sheet))
    image = xc.data.read_picture(tmp_path / "x.png", SHAPE, center=True)
    np.testing.assert_array_equal(decoded(found["input"])[..., 0], image[0])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"hello", "the picture is not a picture in one of the formats"),
        (png()[:60], "the picture cannot be decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"GIF89a" + b"\xff" * 40, "the picture"),
        (bytes(range(256)) * 40, "not a picture"),
    ],
)
def test_garbage_is_refused_with_a_sentence(look, body, message):
    status, found = look(body)
    assert status == 422
    assert message in found["error"]
    assert "/tmp" not in found["error"]
    assert look(png())[0] == 200


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(look, monkeypatch):
    big = png(np.zeros((4001, 4000), dtype=np.uint8))
    assert len(big) < 100_000
    monkeypatch.setattr("xpcnn.serve.looking.prepared", lambda *_: pytest.fail("decoded"))
    status, found = look(big)
    assert status == 422
    assert "4000 × 4001 pixels, more than 16,000,000" in found["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/look", 405), ("PUT", "/look", 405), ("DELETE", "/", 405), ("OPTIONS", "/look", 405),
        ("POST", "/", 405), ("POST", "/model", 405), ("HEAD", "/look", 405),
        ("GET", "/nothing", 404), ("GET", "/../../etc/passwd", 404), ("GET", "/page.html", 404),
    ],
)  # fmt: skip
def test_other_methods_and_places(ask, method, path, status):
    found, headers, content = ask(method, path, b"" if method == "POST" else None)
    assert found == status
    assert headers["Content-Type"] == "application/json"
    assert method == "HEAD" or json.loads(content)["error"].endswith(".")
    assert status == 404 or headers["Allow"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:9000", "127.5.5.5"])
def test_names_of_this_machine(ask, host):
    assert ask("GET", "/model", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.1.5", "0.0.0.0", "", "a b"]
)
def test_other_names_are_refused(ask, host):
    """A rebound name would let another site's page read what is here."""
    for method, path in (("GET", "/"), ("GET", "/model"), ("POST", "/look")):
        status, _, content = ask(method, path, png() if method == "POST" else None, Host=host, Content_Type="image/png")
        assert status == 403
        assert "not called" in json.loads(content)["error"]


def test_other_sites_may_not_ask(look):
    for wrong in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://localhost"},
        {"Origin": "http://localhost:1"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
    ):  # fmt: skip
        assert look(png(), Host="localhost", **wrong)[0] == 403
    own = {"Origin": "http://localhost", "Sec_Fetch_Site": "same-origin"}
    assert look(png(), Host="localhost", **own)[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_pictures_are_taken(look, kind):
    assert look(png(), content_type=kind)[0] == 415


def test_sizes_are_checked_before_anything_is_read(page, look, monkeypatch):
    monkeypatch.setattr(server, "LINGER", 0.2)
    for length, status in (("8388609", 413), ("99999999999999999999", 413), ("0", 400), ("-5", 400), ("ten", 400)):
        answer = raw(page, head(Content_Length=length))
        assert answer.startswith(f"HTTP/1.0 {status} ".encode())
    assert raw(page, head()).startswith(b"HTTP/1.0 411 ")
    assert raw(page, head(Transfer_Encoding="chunked"), b"0\r\n\r\n").startswith(b"HTTP/1.0 411 ")
    status, found = look(bytes(9 << 20))  # sent in full, and still the answer arrives
    assert status == 413
    assert "8,388,608 bytes" in found["error"]


def test_malformed_requests(page):
    for request in (b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"a" * 70000 + b"\r\n\r\n"):
        answer = raw(page, request)
        assert b"Traceback" not in answer
        assert not answer or b'{"error": ' in answer
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(200))
    assert b" 431 " in raw(page, b"GET / HTTP/1.1\r\n" + many + b"\r\n")
    assert b" 404 " in raw(page, b"GET http://[?class=[ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b'{"error": "the picture ended' in raw(page, head(Content_Length=len(png())), png()[:-5])


def test_the_slow_are_let_go(page, look, monkeypatch):
    monkeypatch.setattr(server, "SECONDS", 0.4)
    start = time.monotonic()
    with socket.create_connection(page.server_address, timeout=20) as lines:
        lines.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert lines.recv(100) == b""  # a head that never ends
    with socket.create_connection(page.server_address, timeout=20) as body:
        body.sendall(head(Content_Length=5000) + b"x")
        assert body.recv(100).startswith(b"HTTP/1.0 408 ")
    drops = threading.Event()
    with socket.create_connection(page.server_address, timeout=20) as dripping:
        dripping.sendall(head(Content_Length=5000))
        for _ in range(100):  # each byte comes in time; the whole does not
            try:
                dripping.sendall(b"x")
            except OSError:
                drops.set()
                break
            time.sleep(0.02)
    assert drops.is_set()
    assert time.monotonic() - start < 10
    monkeypatch.undo()
    assert look(png())[0] == 200


def test_twenty_at_once_and_no_more_threads_than_allowed(page, look, model, monkeypatch):
    running, most = [0], [0]
    guard = threading.Lock()
    usual = page.answers.look

    def counted(content, chosen=None):
        with guard:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            time.sleep(0.02)
            return usual(content, chosen)
        finally:
            with guard:
                running[0] -= 1

    monkeypatch.setattr(page.answers, "look", counted)
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(lambda number: look(png(), f"/look?class={number % 3}"), range(30)))
    assert [status for status, _ in found] == [200] * 30
    assert [answer["explained"] for _, answer in found] == [number % 3 for number in range(30)]
    assert most[0] <= server.MOST_CONNECTIONS


def test_the_model_runs_once_at_a_time(page, look, monkeypatch):
    inside = threading.Semaphore(1)
    usual = xc.serve.looking.watch

    def alone(*arguments):
        assert inside.acquire(blocking=False)
        time.sleep(0.01)
        inside.release()
        return usual(*arguments)

    monkeypatch.setattr("xpcnn.serve.looking.watch", alone)
    with ThreadPoolExecutor(8) as pool:
        assert [status for status, _ in pool.map(lambda _: look(png()), range(8))] == [200] * 8


def test_a_fault_of_the_program_is_a_sentence(page, look, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(page.answers, "look", broken)
    status, found = look(png())
    assert status == 500
    assert "boom" not in found["error"]
    printed = capsys.readouterr().err
    assert "RuntimeError: boom" in printed
    assert "Traceback" not in printed


def test_where_it_may_listen(page, model):
    with pytest.raises(xc.XpcnnError, match=r"port \d+ of 127\.0\.0\.1 is in use; choose another"):
        PageServer(Looking(model, ""), port=page.server_address[1])
    with pytest.raises(xc.XpcnnError, match=r"cannot listen at 203\.0\.113\.7"):
        PageServer(Looking(model, ""), "203.0.113.7", 0)
    assert not page.open_to_others
    with PageServer(Looking(model, ""), "0.0.0.0", 0) as wide:
        assert wide.open_to_others
        assert wide.is_called("192.168.1.5")
        assert wide.is_called(socket.gethostname().lower())
        assert not wide.is_called("evil.example")


def test_models_that_cannot_be_looked_at():
    net = xc.layers.Sequential(xc.layers.Conv2D(2, 3), xc.layers.Affine(2), input_shape=(2, 6, 6))
    with pytest.raises(xc.XpcnnError, match="1 or 3 channels, but the model takes 2"):
        Looking(xc.Model(net, "cpu"), "")
    with pytest.raises(xc.XpcnnError, match="from images"):
        Looking(xc.Model(xc.layers.Conv2D(2, 3), "cpu", input_shape=(1, 6, 6)), "")
