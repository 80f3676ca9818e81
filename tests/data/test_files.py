"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from xpcnn import files
from xpcnn.files import write_whole


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"", bytes(range(256)) * 5000):
        write_whole(str(path), content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_fault_midway_leaves_the_old_file(tmp_path, monkeypatch, broken, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(files.os, broken, fail)
    with pytest.raises(type(error)):
        write_whole(path, b"new")
    with pytest.raises(type(error)):
        write_whole(tmp_path / "another", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_a_write_that_stops_halfway(tmp_path, monkeypatch):
    """The disk is full after some of the bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    class Full:
        def __init__(self, name, mode):
            self.file = open(name, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new" * 100)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", b"")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_directory_in_the_way_or_none_at_all(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", b"new")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "file", b"new")
    assert os.listdir(tmp_path) == ["taken"]
