"""The command line, called here."""

from __future__ import annotations

import pytest

from xpcnn.cli import main


@pytest.fixture
def call(capsys):
    """Return a function that runs the command line and returns its exit status and what it printed."""

    def call(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call
