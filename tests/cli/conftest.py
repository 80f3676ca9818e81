"""The command line, called here or in a process of its own, with small data sets and trained runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from samples import write_dataset

from xpcnn.cli import main
from xpcnn.data import load_dataset

EPOCHS = 3


@pytest.fixture
def call(capsys):
    """Return a function that runs the command line and returns its exit status and what it printed."""

    def call(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(call):
    """Return a function that runs a command that must fail with one sentence, and returns it."""

    def refused(*arguments):
        status, out, err = call(*arguments)
        assert status == 2
        assert out == ""
        assert err.startswith("xpcnn: error: ")
        assert err.count("\n") == 1
        return err.strip()

    return refused


@pytest.fixture
def start():
    """Return a context manager that runs the command line in a process that can be interrupted."""

    @contextmanager
    def start(*arguments, **options):
        command = [sys.executable, "-m", "xpcnn", *map(str, arguments)]
        usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here would be there too
        try:
            process = subprocess.Popen(command, **usual | options)
        finally:
            signal.signal(signal.SIGINT, before)
        with process:
            try:
                yield process
            finally:
                process.kill()

    return start


def slice_of_mnist(directory, train, test, shuffled=False):
    parts = []
    for part, count in zip(load_dataset("mnist"), (train, test), strict=True):
        parts.append((part.images[:count, 0], part.labels[:count]))
    if shuffled:
        parts[0] = parts[0][0], np.random.default_rng(0).permutation(parts[0][1])
    return write_dataset(directory, *parts)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Return a directory with 3,000 training and 1,000 test images of MNIST."""
    return slice_of_mnist(tmp_path_factory.mktemp("mnist"), 3000, 1000)


@pytest.fixture(scope="session")
def shuffled(tmp_path_factory):
    """Return the same with the training labels in random order."""
    return slice_of_mnist(tmp_path_factory.mktemp("shuffled"), 3000, 1000, shuffled=True)


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """Return a directory with 250 training and 100 test images of MNIST."""
    return slice_of_mnist(tmp_path_factory.mktemp("few"), 250, 100)


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """Return the directory of a run trained on `data`, which no test may change."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--data-dir", str(data), "--epochs", str(EPOCHS), "--device", "cpu", "--quiet", "--out", str(out)]
    assert main(["train", *options]) == 0
    return out


@pytest.fixture
def digits(data, tmp_path):
    """Return ten pictures of test digits, the digits themselves (10, 1, 28, 28) and their labels."""
    test = load_dataset("mnist", data)[1].first(10)
    paths = []
    for number, image in enumerate(test.images[:, 0]):
        paths.append(str(tmp_path / f"digit{number}.png"))
        Image.fromarray(image).save(paths[-1])
    return paths, test.images, test.labels


@pytest.fixture
def environment():
    """Return the environment without what changes how a terminal is written to."""
    odd = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if name not in odd} | {"TERM": "xterm"}
