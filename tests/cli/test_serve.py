"""`xpcnn serve` as a process: it prints where it is, answers, and ends when it is told to."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.error
import urllib.request

import pytest

import xpcnn as xc


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a small model's file."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    xc.Model(xc.models.simple_convnet(filters=3, hidden=4), "cpu", seed=3, dataset="mnist").save(path)
    return path


def test_a_server_from_start_to_end(start, model, digits):
    with start("serve", model, "--port", 0, "--device", "cpu", "--threads", 1) as process:
        said = process.stdout.readline()
        (url,) = re.findall(r"look at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)", said)
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert b"<canvas" in answer.read()
        with open(digits[0][0], "rb") as picture:
            request = urllib.request.Request(f"{url}look", picture.read(), {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert sum(json.load(answer)["probabilities"]) == pytest.approx(1, abs=1e-4)
        request = urllib.request.Request(f"{url}look", b"nonsense", {"Content-Type": "image/png"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        with refused.value as answer:
            assert "not a picture" in json.load(answer)["error"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert out == ""
        assert err.strip() == "ended."


def test_a_port_in_use_is_one_sentence(refused, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refused("serve", model, "--port", port, "--device", "cpu")
    assert sentence.endswith(
        f"port {port} of 127.0.0.1 is in use; choose another with --port, or 0 for any that is free."
    )


def test_other_addresses_are_warned_of(call, model, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("xpcnn.serve.PageServer.serve_forever", interrupted)
    opened = []
    monkeypatch.setattr("click.launch", opened.append)
    status, out, err = call("serve", model, "--host", "0.0.0.0", "--port", 0, "--open", "--device", "cpu")
    assert status == 0
    assert "warning: whoever reaches this machine over the network" in err
    assert opened == re.findall(r"http://0\.0\.0\.0:\d+/", out)
    status, out, err = call("serve", model, "--port", 0, "--device", "cpu")
    assert (status, "warning" in err, len(opened)) == (0, False, 1)


def test_refusals(refused, model, tmp_path):
    assert "there is no run nowhere" in refused("serve", "nowhere", "--device", "cpu")
    xc.Model(xc.layers.Conv2D(2, 3), "cpu", input_shape=(1, 6, 6)).save(tmp_path / "maps")
    assert "from images" in refused("serve", tmp_path / "maps", "--device", "cpu")
    assert "cannot listen at no.such.host.invalid" in refused(
        "serve", model, "--host", "no.such.host.invalid", "--device", "cpu"
    )
